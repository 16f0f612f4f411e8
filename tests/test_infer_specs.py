"""Which axes are fan-in, read from what a model computes."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import rgo_jax
import rgo_jax.nnx
from rgo_jax import ProjectionSpec

X = jnp.ones((2, 5, 8))
DIAGONAL = ProjectionSpec(axes=0, diagonal=True)


def named(specs):
    flat = jax.tree_util.tree_leaves_with_path(specs, is_leaf=lambda x: x is None)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): spec for path, spec in flat}


def inferred(module, *args, method=None, **options):
    """By the parameter's path, of a Linen module; None where the default is right."""
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *args, method=method))["params"]

    def forward(params, *args):
        return module.apply({"params": params}, *args, method=method)

    specs = rgo_jax.infer_specs(forward, shapes, *args, **options)
    rgo_jax.projection_memory(shapes, specs=specs)  # It is one that RGO takes.
    return named(specs)


class Tied(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(11, 8)
        return embed.attend(nn.Dense(8)(embed(tokens)))


class Stacked(nn.Module):
    """Three layers in one scan, with checkpoints."""

    axis: int = 0

    @nn.compact
    def __call__(self, x):
        def layer(module, x, _):
            return nn.remat(nn.Dense)(8, name="dense")(x), None

        scan = nn.scan(layer, {"params": self.axis}, split_rngs={"params": True}, length=3)
        return scan(self, x, None)[0]


class Weighted(nn.Module):
    """A kernel that is standardised before use, in half precision."""

    @nn.compact
    def __call__(self, x):
        @jax.jit
        def standardised(w):
            w = (w - jnp.mean(w, axis=1, keepdims=True)) / jnp.std(w, axis=1, keepdims=True)
            return w.astype(jnp.bfloat16)

        w = self.param("weight", nn.initializers.normal(), (6, 8))  # [out, in]
        return x.astype(jnp.bfloat16) @ standardised(w).T


class Positions(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x + self.param("table", nn.initializers.normal(), (9, 8))[None, : x.shape[1]]


ATTENTION = {f"{name}/kernel": ProjectionSpec(axes=0) for name in ("query", "key", "value")} | {
    "out/kernel": None
}


@pytest.mark.parametrize(
    ("module", "args", "expected"),
    [
        (nn.Dense(3), (X,), {"kernel": None, "bias": None}),
        (nn.MultiHeadDotProductAttention(2), (X, X), ATTENTION),
        (nn.DenseGeneral((4, 3)), (X,), {"kernel": ProjectionSpec(axes=0), "bias": None}),
        (nn.DenseGeneral(3, axis=(-2, -1)), (X,), {"kernel": None}),
        (
            nn.DenseGeneral((3, 4), batch_dims=(0,), axis=-1),
            (X,),
            {"kernel": ProjectionSpec(axes=(0, 1), blocks=2)},
        ),
        (nn.Einsum((4, 8, 3), "bld,hdm->blhm"), (X,), {"kernel": ProjectionSpec(axes=1)}),
        (nn.Conv(3, (2, 2), strides=2, padding="VALID"), (X[..., None],), {"kernel": None}),
        (nn.Conv(8, (3,), feature_group_count=4, kernel_dilation=2), (X,), {"kernel": None}),
        (nn.ConvTranspose(3, (2,)), (X,), {"kernel": None}),
        (
            nn.ConvTranspose(3, (2,), transpose_kernel=True),
            (X,),
            {"kernel": ProjectionSpec(axes=(0, 2))},
        ),
        (nn.Embed(11, 8), (jnp.ones((2, 3), int),), {"embedding": DIAGONAL}),
        (Tied(), (jnp.ones((2, 3), int),), {"Embed_0/embedding": DIAGONAL, "Dense_0/kernel": None}),
        (nn.LayerNorm(), (X,), {"scale": None, "bias": None}),
        (Positions(), (X,), {"table": ProjectionSpec(axes=(0, 1), diagonal=True)}),
        (
            Stacked(),
            (X,),
            {
                "dense/kernel": ProjectionSpec(axes=(0, 1), blocks=3),
                "dense/bias": ProjectionSpec(axes=(0, 1), blocks=3),
            },
        ),
        (Stacked(axis=1), (X,), {"dense/kernel": ProjectionSpec(axes=(1, 0), blocks=3)}),
        (Weighted(), (X,), {"weight": ProjectionSpec(axes=1)}),
        (nn.WeightNorm(nn.Dense(3)), (X,), {"layer_instance/kernel": None}),
        (nn.OptimizedLSTMCell(8), ((X[:, 0], X[:, 0]), X[:, 0]), {"hf/kernel": None}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_layers_of_linen(module, args, expected):
    found = inferred(module, *args)
    for name, spec in expected.items():
        (actual,) = [found[path] for path in found if path == name or path.endswith(f"/{name}")]
        assert actual == spec, name


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda rngs: nnx.Linear(8, 3, rngs=rngs), {"kernel": None}),
        (lambda rngs: nnx.Conv(8, 3, (2,), rngs=rngs), {"kernel": None}),
        (
            lambda rngs: nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs),
            {"query/kernel": ProjectionSpec(axes=0), "out/kernel": None},
        ),
        (
            lambda rngs: nnx.LoRALinear(8, 3, lora_rank=2, rngs=rngs),
            {"kernel": None, "lora/lora_a": None, "lora/lora_b": None},
        ),
    ],
)
def test_layers_of_nnx(make, expected):
    model = make(nnx.Rngs(0))
    specs = rgo_jax.nnx.infer_specs(model, X)
    found = named(specs)
    assert {name: found[name] for name in expected} == expected
    tx = rgo_jax.rgo(0.1, specs=specs)
    state = nnx.Optimizer(model, tx, wrt=nnx.Param).opt_state[0]
    sizes = {name: spec for name, spec in found.items() if spec}
    for name in sizes:
        layer, parameter = name.split("/")
        assert state.projection[layer][parameter].shape == (8, 8)


class Pair(NamedTuple):
    first: Any
    second: Any


@pytest.mark.parametrize(
    ("params", "specs"),
    [
        ([jnp.zeros((7, 3)), jnp.zeros((4, 3))], {"0": DIAGONAL}),
        ([jnp.zeros((7, 3)), jnp.zeros((4, 3))], (DIAGONAL, None)),
        (Pair(jnp.zeros((7, 3)), jnp.zeros((4, 3))), {"first": DIAGONAL}),
    ],
)
def test_specs_name_parameters_in_any_container(params, specs):
    first, second = rgo_jax.scale_by_rgo(specs=specs).init(params).projection
    assert first.shape == (7,)
    assert second.shape == (4, 4)


def test_specs_of_no_parameter_are_refused():
    with pytest.raises(ValueError, match="specs names '2', but there is no such parameter"):
        rgo_jax.scale_by_rgo(specs=[None, None, DIAGONAL]).init([jnp.zeros(3), jnp.zeros(3)])


def factors(params, x):
    """Low-rank adapters, added to the kernel or applied by themselves."""
    added = x @ (params["w"] + 0.5 * params["a"] @ params["b"])
    return added + (x @ params["c"]) @ params["d"]


def test_low_rank_adapters():
    params = {"w": (8, 6), "a": (8, 2), "b": (2, 6), "c": (8, 2), "d": (2, 6)}
    shapes = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in params.items()}
    assert set(named(rgo_jax.infer_specs(factors, shapes, X)).values()) == {None}
    # And stored the other way round, where the default would be wrong.
    turned = {
        name: jax.ShapeDtypeStruct(leaf.shape[::-1], leaf.dtype) for name, leaf in shapes.items()
    }

    def forward(params, x):
        return factors({name: leaf.T for name, leaf in params.items()}, x)

    found = named(rgo_jax.infer_specs(forward, turned, X))
    assert set(found.values()) == {ProjectionSpec(axes=1)}


def test_the_gradient_lies_in_the_span_of_the_fan_in():
    # Of one example, and so of one row of inputs, all columns of the gradient are its multiples.
    module, x = nn.MultiHeadDotProductAttention(2), X[:1, :1]
    x = jax.random.normal(jax.random.key(0), x.shape)
    params = module.init(jax.random.key(1), x)["params"]

    def forward(params, x):
        return module.apply({"params": params}, x)

    specs = rgo_jax.infer_specs(forward, params, x)
    kernel = jax.grad(lambda p: jnp.sum(forward(p, x)))(params)["value"]["kernel"]
    (axis,) = specs["value"]["kernel"].axes
    columns = np.moveaxis(np.asarray(kernel), axis, 0).reshape(8, -1)
    assert np.linalg.matrix_rank(columns, tol=1e-5) == 1
    assert np.linalg.matrix_rank(np.asarray(kernel).reshape(-1, 4), tol=1e-5) > 1  # by default


def test_layers_picked_by_number_are_blocks():
    def forward(params, x):
        for number in range(3):
            x = x @ params["w"][number]
        return x

    shapes = {"w": jax.ShapeDtypeStruct((3, 8, 8), jnp.float32)}
    spec = rgo_jax.infer_specs(forward, shapes, X)["w"]
    assert spec == ProjectionSpec(axes=(0, 1), blocks=3)


def test_a_scan_over_time_is_no_stack_of_layers():
    def forward(params, x):
        def step(h, x):
            return jnp.tanh(x @ params["in"] + h @ params["hidden"]), None

        return jax.lax.scan(step, jnp.zeros((2, 8)), jnp.moveaxis(x, 1, 0))[0]

    shapes = {name: jax.ShapeDtypeStruct((8, 8), jnp.float32) for name in ("in", "hidden")}
    assert set(named(rgo_jax.infer_specs(forward, shapes, X)).values()) == {None}


def test_what_is_large_is_a_diagonal():
    found = inferred(nn.Dense(30), X, max_fan_in=20)
    assert found == {"kernel": None, "bias": DIAGONAL}


def test_vectors_can_be_diagonals():
    found = inferred(nn.MultiHeadDotProductAttention(2), X, X, diagonal_vectors=True)
    assert found["out/bias"] == DIAGONAL
    assert found["query/bias"] == ProjectionSpec(axes=(0, 1), diagonal=True)
    assert found["out/kernel"] is None


def test_what_is_not_used_is_left_to_the_default():
    shapes = {"w": jax.ShapeDtypeStruct((8, 3), jnp.float32)}
    assert rgo_jax.infer_specs(lambda params, x: x, shapes, X) == {"w": None}


def test_a_parameter_of_two_layouts_is_refused():
    def forward(params, x):
        return x @ params["w"] + x @ params["w"].T

    shapes = {"w": jax.ShapeDtypeStruct((8, 8), jnp.float32)}
    found = r"'w' with shape \(8, 8\) is used with fan-in axes \(0,\) and axes \(1,\).*specs={'w'"
    with pytest.raises(ValueError, match=found):
        rgo_jax.infer_specs(forward, shapes, X)
    chosen = {"w": ProjectionSpec(axes=1)}
    assert rgo_jax.infer_specs(forward, shapes, X, specs=chosen) == chosen


def test_specs_may_be_a_function_of_path_and_leaf():
    params = {"body": {"kernel": jnp.zeros((4, 3))}, "embed": jnp.zeros((7, 3))}

    def specs(path, leaf):
        assert leaf.ndim == 2
        return DIAGONAL if path == "embed" else None

    state = rgo_jax.scale_by_rgo(specs=specs).init(params)
    assert state.projection["embed"].shape == (7,)
    assert state.projection["body"]["kernel"].shape == (4, 4)
    with pytest.raises(ValueError, match="specs has 3 at 'body/kernel'"):
        rgo_jax.projection_memory(params, specs=lambda path, leaf: 3)
