"""Fan-in read from the traced model, against what one would write by hand."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import rgo_jax
import rgo_jax.linen
import rgo_jax.nnx
from rgo_jax import ProjectionSpec

TOKENS = jax.ShapeDtypeStruct((2, 5), jnp.int32)
SEQUENCE = jax.ShapeDtypeStruct((2, 5, 8), jnp.float32)
IMAGE = jax.ShapeDtypeStruct((2, 8, 8, 4), jnp.float32)


def spec(*axes, blocks=1, diagonal=False):
    return ProjectionSpec(axes, blocks, diagonal)


class Tied(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(11, 8, name="embed")
        return embed.attend(nn.Dense(8, name="dense")(embed(tokens)))


def stack(axis):
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            dense = nn.remat(nn.DenseGeneral)((2, 4), name="dense")
            return x + dense(nn.LayerNorm(name="norm")(x)).reshape(x.shape), None

    class Stack(nn.Module):
        @nn.compact
        def __call__(self, x):
            options = {"split_rngs": {"params": True}, "length": 3}
            return nn.scan(Block, {"params": axis}, **options)(name="blocks")(x, None)[0]

    return Stack()


ATTENTION = {
    **{f"{name}/kernel": spec(0) for name in ("query", "key", "value")},
    **{f"{name}/bias": spec(0, 1) for name in ("query", "key", "value")},
    "out/kernel": spec(0, 1),
    "out/bias": spec(0),
}
LINEN = {
    "dense": (nn.Dense(3), SEQUENCE, {"kernel": spec(0), "bias": spec(0)}),
    "dense in bfloat16": (
        nn.Dense(3, dtype=jnp.bfloat16),
        SEQUENCE,
        {"kernel": spec(0), "bias": spec(0)},
    ),
    "two axes in": (
        nn.DenseGeneral(3, axis=(-2, -1)),
        SEQUENCE,
        {"kernel": spec(0, 1), "bias": spec(0)},
    ),
    "a kernel for each example": (
        nn.DenseGeneral(3, batch_dims=(0,)),
        SEQUENCE,
        {"kernel": spec(0, 1, blocks=2), "bias": spec(0, 1)},
    ),
    "einsum": (
        nn.Einsum((2, 8, 3), "bsd,hdk->bhsk", use_bias=False),
        SEQUENCE,
        {"kernel": spec(1)},
    ),
    "attention": (nn.MultiHeadAttention(num_heads=2), SEQUENCE, ATTENTION),
    "convolution": (
        nn.Conv(6, (3, 2), strides=2, kernel_dilation=2),
        IMAGE,
        {"kernel": spec(0, 1, 2), "bias": spec(0)},
    ),
    "fused convolution": (
        rgo_jax.linen.Conv(6, (3, 2)),
        IMAGE,
        {"kernel": spec(0, 1, 2), "bias": spec(0)},
    ),
    "transposed": (
        nn.ConvTranspose(6, (3, 2), strides=(2, 2)),
        IMAGE,
        {"kernel": spec(0, 1, 2), "bias": spec(0)},
    ),
    "transposed kernel": (
        nn.ConvTranspose(6, (3, 2), strides=(2, 2), transpose_kernel=True),
        IMAGE,
        {"kernel": spec(0, 1, 3), "bias": spec(0)},
    ),
    "a kernel for each place": (
        nn.ConvLocal(6, (3, 3), use_bias=False),
        IMAGE,
        {"kernel": spec(0, 1, 2, blocks=64)},
    ),
    "normalisation": (nn.GroupNorm(2), SEQUENCE, {"scale": spec(0), "bias": spec(0)}),
    "normalised weights": (
        nn.WeightNorm(nn.DenseGeneral((2, 3), use_bias=False)),
        SEQUENCE,
        # Flax gives the scale a name with a slash in it.
        {"layer_instance/kernel": spec(0), "layer_instance/kernel/scale": spec(0)},
    ),
    "embedding": (nn.Embed(11, 8), TOKENS, {"embedding": spec(0, diagonal=True)}),
    "tied embedding": (
        Tied(),
        TOKENS,
        {"embed/embedding": spec(0, diagonal=True), "dense/kernel": spec(0), "dense/bias": spec(0)},
    ),
    "stacked": (
        stack(0),
        SEQUENCE,
        {
            "blocks/dense/kernel": spec(0, 1, blocks=3),
            "blocks/dense/bias": spec(0, 1, 2, blocks=3),
            "blocks/norm/scale": spec(0, 1, blocks=3),
            "blocks/norm/bias": spec(0, 1, blocks=3),
        },
    ),
    "stacked along axis 1": (
        stack(1),
        SEQUENCE,
        {
            "blocks/dense/kernel": spec(1, 0, blocks=3),
            "blocks/dense/bias": spec(1, 0, 2, blocks=3),
            "blocks/norm/scale": spec(1, 0, blocks=3),
            "blocks/norm/bias": spec(1, 0, blocks=3),
        },
    ),
}


@pytest.mark.parametrize("name", LINEN)
def test_linen(name):
    module, x, expected = LINEN[name]
    params = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    specs = rgo_jax.infer_specs(lambda p, x: module.apply({"params": p}, x), params, x)
    assert specs == expected
    state = jax.eval_shape(rgo_jax.scale_by_rgo(specs=specs).init, params)
    shapes = dict(zip(specs, jax.tree.leaves(state.projection), strict=True))
    for path, given in zip(specs, jax.tree.leaves(params), strict=True):
        d = math.prod(given.shape[axis] for axis in specs[path].axes)
        assert math.prod(shapes[path].shape) == (
            d if specs[path].diagonal else d * d // specs[path].blocks
        )


def test_an_lstm_that_concatenates_its_kernels():
    module = nn.RNN(nn.OptimizedLSTMCell(7))
    params = jax.eval_shape(module.init, jax.random.key(0), SEQUENCE)["params"]
    specs = rgo_jax.infer_specs(lambda p, x: module.apply({"params": p}, x), params, SEQUENCE)
    assert len(specs) == len(jax.tree.leaves(params))
    assert set(specs.values()) == {spec(0)}


def nnx_stack():
    class Block(nnx.Module):
        def __init__(self, key):
            self.dense = nnx.LinearGeneral(8, (2, 4), rngs=nnx.Rngs(key))

        def __call__(self, x):
            return x + self.dense(x).reshape(x.shape)

    class Stack(nnx.Module):
        def __init__(self):
            keys = jax.random.split(jax.random.key(0), 3)
            self.blocks = nnx.vmap(Block)(keys)

        def __call__(self, x):
            run = nnx.scan(nnx.remat(Block.__call__), in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
            return run(self.blocks, x)

    return Stack()


class NnxTied(nnx.Module):
    def __init__(self):
        self.embed = nnx.Embed(11, 8, rngs=nnx.Rngs(0))
        self.dense = nnx.Linear(8, 8, use_bias=False, rngs=nnx.Rngs(0))

    def __call__(self, tokens):
        return self.embed.attend(self.dense(self.embed(tokens)))


NNX = {
    "attention": (
        lambda rngs: nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs),
        SEQUENCE,
        nnx.Param,
        ATTENTION,
    ),
    "convolution": (
        lambda rngs: nnx.Conv(4, 6, (3, 2), strides=2, rngs=rngs),
        IMAGE,
        nnx.Param,
        {"kernel": spec(0, 1, 2), "bias": spec(0)},
    ),
    "transposed kernel": (
        lambda rngs: nnx.ConvTranspose(4, 6, (3, 2), transpose_kernel=True, rngs=rngs),
        IMAGE,
        nnx.Param,
        {"kernel": spec(0, 1, 3), "bias": spec(0)},
    ),
    "einsum": (
        lambda rngs: nnx.Einsum("nta,hab->nthb", (3, 8, 4), (3, 4), rngs=rngs),
        SEQUENCE,
        nnx.Param,
        {"kernel": spec(1), "bias": spec(0, 1)},
    ),
    "lora": (
        lambda rngs: nnx.LoRA(8, 2, 6, base_module=nnx.Linear(8, 6, rngs=rngs), rngs=rngs),
        SEQUENCE,
        nnx.LoRAParam,
        {"lora_a": spec(0), "lora_b": spec(0)},
    ),
    "dropout": (
        lambda rngs: nnx.Sequential(nnx.Linear(8, 3, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)),
        SEQUENCE,
        nnx.Param,
        {"layers/0/kernel": spec(0), "layers/0/bias": spec(0)},
    ),
    "tied embedding": (
        lambda rngs: NnxTied(),
        TOKENS,
        nnx.Param,
        {"embed/embedding": spec(0, diagonal=True), "dense/kernel": spec(0)},
    ),
    "stacked": (
        lambda rngs: nnx_stack(),
        SEQUENCE,
        nnx.Param,
        {
            "blocks/dense/kernel": spec(0, 1, blocks=3),
            "blocks/dense/bias": spec(0, 1, 2, blocks=3),
        },
    ),
}


@pytest.mark.parametrize("name", NNX)
def test_nnx(name):
    make, x, wrt, expected = NNX[name]
    model = make(nnx.Rngs(0))
    before = jax.tree.leaves(nnx.state(model))
    specs = rgo_jax.nnx.infer_specs(model, x, wrt=wrt)
    assert specs == expected
    assert all(a is b for a, b in zip(jax.tree.leaves(nnx.state(model)), before, strict=True))
    optimizer = nnx.Optimizer(model, rgo_jax.rgo(0.1, specs=specs), wrt=wrt)
    assert rgo_jax.projection_memory(nnx.state(model, wrt), specs=specs).keys() == expected.keys()
    assert int(optimizer.opt_state[0].num_updates[...]) == 0


X = jax.ShapeDtypeStruct((2, 8), jnp.float32)


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def hand_stacked(w, x):
    for layer in range(3):
        x = jnp.tanh(x @ w[layer])
    return x


def looped(w, x):
    return jax.lax.fori_loop(0, 3, lambda i, x: jnp.tanh(x @ w[i]), x)


def in_the_carry(w, x):
    (_, y), _ = jax.lax.scan(lambda c, _: ((c[0], jnp.tanh(c[1] @ c[0].T)), None), (w, x), None, 3)
    return y


PLAIN = {
    "stored [out, in]": (lambda w, x: jax.vmap(lambda x: w @ x)(x), (5, 8), spec(1)),
    "stored [out, in], one output": (lambda w, x: w @ x.T, (1, 8), spec(1)),
    "one input": (lambda w, x: x[:, :1] @ w, (1, 5), spec(0)),
    "a vector of weights": (lambda w, x: x @ w, (8,), spec(0)),
    "compiled and remembered": (jax.jit(jax.checkpoint(lambda w, x: x @ w.T)), (5, 8), spec(1)),
    "merged": (lambda w, x: x @ w.reshape(8, 6), (2, 4, 3, 2), spec(0, 1)),
    "split": (lambda w, x: jnp.einsum("bi,ijk->bjk", x, w.reshape(8, 3, 2)), (8, 6), spec(0)),
    "split and merged": (lambda w, x: x @ w.reshape(5, 2, 4).reshape(5, 8).T, (5, 8), spec(1)),
    "queries, keys and values": (
        lambda w, x: (x @ w[:, :4], x @ w[:, 4:8], x @ w[:, 8:]),
        (8, 12),
        spec(0),
    ),
    "masked": (lambda w, x: x @ (w * jnp.tri(8, 5)), (8, 5), spec(0)),
    "scaled": (lambda w, x: x @ (w * 0.1), (8, 5), spec(0)),
    "experts": (lambda w, x: jnp.einsum("bi,eio->ebo", x, w), (3, 8, 5), spec(1)),
    "experts with inputs of their own": (
        lambda w, x: jnp.einsum("ebi,eio->ebo", jnp.stack([x, x, x]), w),
        (3, 8, 5),
        spec(0, 1, blocks=3),
    ),
    "stacked by hand": (hand_stacked, (3, 8, 8), spec(0, 1, blocks=3)),
    "stacked and looped over": (looped, (3, 8, 8), spec(0, 1, blocks=3)),
    "one output at a time": (lambda w, x: (x @ w[0], x @ w[1]), (2, 8), spec(1)),
    "one output and the others": (lambda w, x: (x @ w[:, :1], x @ w[:, 1:]), (8, 5), spec(0)),
    "in the carry of a scan": (in_the_carry, (8, 8), spec(1)),
    "under a condition": (
        lambda w, x: jax.lax.cond(x[0, 0] > 0, lambda w, x: x @ w.T, lambda w, x: x, w, x),
        (8, 8),
        spec(1),
    ),
    "a bias of each task": (lambda w, x: x + w[2][None], (3, 8), spec(0, 1, blocks=3)),
    "a number for each layer": (lambda w, x: x * w[0] + x * w[1], (2,), spec(0)),
    "learned positions": (lambda w, x: x + w, (2, 8), spec(0, 1)),
    "a token of classes": (lambda w, x: jnp.concatenate([w, x]), (1, 8), spec(0, 1)),
    "a scalar": (lambda w, x: x * w, (), None),
    "not used": (lambda w, x: x, (8, 8), None),
    "in a loop of unknown length": (
        lambda w, x: jax.lax.while_loop(lambda x: x[0, 0] < 9, lambda x: x @ w, x),
        (8, 8),
        None,
    ),
    "multiplied by itself": (lambda w, x: x @ (w @ w), (8, 8), None),
}


@pytest.mark.parametrize("name", PLAIN)
def test_plain_jax(name):
    fn, sizes, expected = PLAIN[name]
    params = {"weight": shape(*sizes)}
    specs = rgo_jax.infer_specs(lambda p, x: fn(p["weight"], x), params, X)
    assert specs == ({} if expected is None else {"weight": expected})


def test_one_array():
    """Not in a tree."""
    specs = rgo_jax.infer_specs(lambda w, x: x @ w.T, shape(5, 8), X)
    state = jax.eval_shape(rgo_jax.scale_by_rgo(specs=specs).init, shape(5, 8))
    assert state.projection.shape == (8, 8)


def test_long_vectors_are_diagonal():
    params = {"w": shape(8, 2000), "b": shape(2000), "positions": shape(5, 2000), "c": shape(1024)}

    def fn(p, x):
        y = jnp.tanh(x @ p["w"] + p["b"][None]) + p["positions"]
        return y[:, :1024] * p["c"][None]

    x = shape(5, 8)
    rest = {"w": spec(0), "c": spec(0)}
    assert rgo_jax.infer_specs(fn, params, x) == rest | {
        "b": spec(0, diagonal=True),
        "positions": spec(0, 1, diagonal=True),
    }
    assert rgo_jax.infer_specs(fn, params, x, max_vector=10_000) == rest | {
        "b": spec(0),
        "positions": spec(0, 1),
    }
    assert rgo_jax.infer_specs(fn, params, x, max_vector=0)["c"] == spec(0, diagonal=True)
    with pytest.raises(ValueError, match="max_vector is -1; expected 0 or more"):
        rgo_jax.infer_specs(fn, params, x, max_vector=-1)


def test_two_layouts_are_the_users_choice():
    params = {"w": shape(8, 8), "v": shape(8, 4)}

    def fn(p, x):
        return (x @ p["w"]) @ p["w"].T @ p["v"]

    with pytest.raises(
        ValueError,
        match=r"'w' of shape \(8, 8\) is used with fan-in axes \(0,\) and axes \(1,\).*specs={'w'",
    ):
        rgo_jax.infer_specs(fn, params, X)
    expected = {"w": ProjectionSpec(axes=1), "v": spec(0)}
    assert rgo_jax.infer_specs(fn, params, X, specs={"w": ProjectionSpec(axes=1)}) == expected


def test_data_that_is_closed_over():
    x = jnp.ones((2, 8))
    with pytest.raises(ValueError, match=r"There is no data: expected fn\(params, \*args\)"):
        rgo_jax.infer_specs(lambda w: x @ w, shape(8, 3))


def test_masked_parameters():
    params = {"w": shape(5, 8), "frozen": optax.MaskedNode()}
    assert rgo_jax.infer_specs(lambda p, x: p["w"] @ x.T, params, X) == {"w": spec(1)}
