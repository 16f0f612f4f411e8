"""Parameters that the default geometry does not fit: attention, stacked layers, embeddings."""

import dataclasses

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import rgo_jax
import rgo_jax.linen
from rgo_jax import ProjectionSpec
from tests import oracle

QKV = {"kernel": ProjectionSpec(axes=0)}
ATTENTION = {"query": QKV, "key": QKV, "value": QKV}  # "out" and biases are as the default has them


def normals(seed, tree):
    leaves, treedef = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return treedef.unflatten(
        [jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    )


def linen_attention():
    module = nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=8)
    return module.init(jax.random.key(0), jnp.ones((1, 3, 6)))["params"]


def nnx_attention():
    module = nnx.MultiHeadAttention(
        2, in_features=6, qkv_features=8, decode=False, rngs=nnx.Rngs(0)
    )
    state = nnx.state(module, nnx.Param)
    return {
        layer: {name: value[...] for name, value in parameters.items()}
        for layer, parameters in state.items()
    }


@pytest.mark.parametrize("make", [linen_attention, nnx_attention])
def test_attention(make):
    params = make()
    grads = [normals(seed, params) for seed in range(4)]
    tx = rgo_jax.scale_by_rgo(specs=ATTENTION)
    state = tx.init(params)
    assert state.projection["query"]["kernel"].shape == (6, 6)
    assert state.projection["query"]["bias"].shape == (8, 8)
    assert state.projection["out"]["kernel"].shape == (8, 8)
    for grad in grads:
        state = rgo_jax.rls_update(state, grad)
    updates, _ = tx.update(grads[0], state)
    for layer, name, matrix in (
        ("query", "kernel", (6, 8)),
        ("key", "bias", (8, 1)),
        ("out", "kernel", (8, 6)),
    ):
        given = [np.asarray(grad[layer][name]).reshape(matrix) for grad in grads]
        p = oracle.projection(given)
        np.testing.assert_allclose(state.projection[layer][name], p, atol=3e-6)
        expected = oracle.modified_gradient(p, given[0])
        np.testing.assert_allclose(
            np.asarray(updates[layer][name]).reshape(matrix), expected, rtol=2e-3, atol=2e-5
        )
        assert updates[layer][name].shape == params[layer][name].shape


def fold(state, vectors, together):
    if together:
        return rgo_jax.consolidate(state, lambda g: g, vectors, block_size=4)
    for vector in vectors:
        state = rgo_jax.rls_update(state, vector)
    return state


@pytest.mark.parametrize("together", [False, True])
def test_diagonal(together):
    vectors = jax.random.normal(jax.random.key(0), (9, 7, 2))
    tx = rgo_jax.scale_by_rgo(specs=ProjectionSpec(diagonal=True))
    state = fold(tx.init(jnp.zeros((7, 2))), vectors, together)
    means = np.mean(np.asarray(vectors, np.float64), axis=2)
    expected = 0.01 / (0.01 + np.sum(means**2, axis=0))
    assert state.projection.shape == (7,)
    np.testing.assert_allclose(state.projection, expected, rtol=1e-4)
    updates, _ = tx.update(vectors[0], state)
    modified = oracle.modified_gradient(np.diag(expected), vectors[0])
    np.testing.assert_allclose(updates, modified, rtol=1e-3)


@pytest.mark.parametrize("together", [False, True])
def test_blocks_are_layers_of_their_own(together):
    vectors = jax.random.normal(jax.random.key(0), (9, 12, 2))
    tx = rgo_jax.scale_by_rgo(specs=ProjectionSpec(blocks=3))
    state = fold(tx.init(jnp.zeros((12, 2))), vectors, together)
    updates, _ = tx.update(vectors[0], state)
    plain = rgo_jax.scale_by_rgo()
    for block in range(3):
        rows = slice(4 * block, 4 * block + 4)
        alone = fold(plain.init(jnp.zeros((4, 2))), vectors[:, rows], together)
        np.testing.assert_allclose(state.projection[block], alone.projection, atol=1e-5)
        expected, _ = plain.update(vectors[0, rows], alone)
        np.testing.assert_allclose(updates[rows], expected, rtol=1e-3, atol=1e-5)
        assert np.abs(expected - vectors[0, rows]).max() > 0.1


def test_stacked_layers():
    """Under nn.scan three layers are one parameter; each keeps its own projection."""

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.relu(nn.Dense(4)(x)), None

    stacked = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)()
    params = stacked.init(jax.random.key(0), jnp.ones((2, 4)), None)["params"]
    specs = {
        "Dense_0": {
            "kernel": ProjectionSpec(blocks=3),
            "bias": ProjectionSpec(axes=(0, 1), blocks=3),
        }
    }
    tx = rgo_jax.scale_by_rgo(specs=specs)
    grads = normals(1, params)
    state = rgo_jax.rls_update(tx.init(params), grads)
    updates, _ = tx.update(grads, state)
    single = rgo_jax.scale_by_rgo()
    for layer in range(3):
        own = jax.tree.map(lambda g, layer=layer: g[layer], grads)
        alone = rgo_jax.rls_update(single.init(own), own)
        expected, _ = single.update(own, alone)
        assert np.abs(expected["Dense_0"]["kernel"] - own["Dense_0"]["kernel"]).max() > 0.05
        jax.tree.map(
            lambda u, e, layer=layer: np.testing.assert_allclose(u[layer], e, rtol=1e-3, atol=1e-5),
            updates,
            expected,
        )


def test_stats_and_memory_of_every_form():
    params = {"full": jnp.zeros((6, 2)), "blocks": jnp.zeros((6, 2)), "diagonal": jnp.zeros((6, 2))}
    specs = {"blocks": ProjectionSpec(blocks=2), "diagonal": ProjectionSpec(diagonal=True)}
    state = rgo_jax.scale_by_rgo(specs=specs).init(params)
    stats = rgo_jax.projection_stats(state)
    memory = rgo_jax.projection_memory(params, specs=specs)
    for name, numbers in (("full", 36), ("blocks", 18), ("diagonal", 6)):
        assert stats[name].dim == 6
        assert stats[name].mib == memory[name] == numbers * 4 / 2**20
        np.testing.assert_allclose(stats[name].trace, 6)
        np.testing.assert_allclose(stats[name].effective_rank, 6, rtol=1e-5)


def test_huge_fan_in_is_the_users_choice():
    params = {"embed": jax.ShapeDtypeStruct((50_000, 8), jnp.float32)}
    with pytest.raises(
        ValueError, match=r"fan-in 50000.*ProjectionSpec\(diagonal=True\).*optax.masked"
    ):
        jax.eval_shape(rgo_jax.scale_by_rgo().init, params)
    for spec, shape in (
        (ProjectionSpec(diagonal=True), (50_000,)),
        (ProjectionSpec(blocks=50), (50, 1000, 1000)),
    ):
        state = jax.eval_shape(rgo_jax.scale_by_rgo(specs={"embed": spec}).init, params)
        assert state.projection["embed"].shape == shape
    with pytest.raises(ValueError, match="fan-in 25000, above"):
        jax.eval_shape(rgo_jax.scale_by_rgo(specs=ProjectionSpec(blocks=2)).init, params)


def test_specs_under_wrappers():
    params = {"a": {"w": jnp.zeros((2, 3, 4))}, "b": {"w": jnp.zeros((2, 3, 4))}}
    specs = {"a": ProjectionSpec(axes=0), "b": ProjectionSpec(axes=0)}
    for tx in (
        optax.masked(rgo_jax.scale_by_rgo(specs=specs), {"a": True, "b": False}),
        optax.inject_hyperparams(rgo_jax.rgo)(learning_rate=0.1, specs=specs),
    ):
        state = jax.jit(tx.init)(params)
        assert rgo_jax.projection_stats(state)["a/w"].dim == 2


@pytest.mark.parametrize(
    ("specs", "match"),
    [
        ({"w": ProjectionSpec(axes=2)}, r"'w' has shape \(6, 2\).*axes=\(2,\).*from -2 to 1"),
        ({"w": ProjectionSpec(axes=(0, -2))}, r"axes=\(0, -2\); expected different axes"),
        ({"w": ProjectionSpec(blocks=4)}, "'w' has fan-in 6.*blocks=4; expected a divisor"),
        ({"v": ProjectionSpec(blocks=2)}, "specs names 'v', but there is no such parameter.*'w'"),
        ({"w": 2}, "specs has 2 at 'w'; expected a rgo_jax.ProjectionSpec"),
    ],
)
def test_specs_that_do_not_fit(specs, match):
    with pytest.raises(ValueError, match=match):
        rgo_jax.scale_by_rgo(specs=specs).init({"w": jnp.zeros((6, 2))})


@pytest.mark.parametrize(
    "values", [{"axes": ()}, {"axes": (1, 1)}, {"blocks": 0}, {"blocks": 2, "diagonal": True}]
)
def test_impossible_specs(values):
    with pytest.raises(ValueError, match="expected"):
        ProjectionSpec(**values)


@pytest.mark.parametrize(
    ("axes", "shape", "to_matrix"),
    [
        (-1, (3, 5), lambda w: w.T),  # [out, in]
        ((1, 2, 3), (4, 3, 2, 2), lambda w: w.reshape(4, 12).T),  # [out, in, *window]
        # ConvTranspose(transpose_kernel=True): [*window, out, in]
        ((0, 1, -1), (2, 2, 4, 3), lambda w: w.transpose(0, 1, 3, 2).reshape(12, 4)),
        ((2, 0), (2, 4, 3), lambda w: w.transpose(2, 0, 1).reshape(6, 4)),
    ],
)
def test_axes_that_do_not_lead(axes, shape, to_matrix):
    """The parameter is projected as its matrix is by default, in every function."""
    to_matrix = jax.jit(to_matrix)
    tx, plain = rgo_jax.scale_by_rgo(specs=ProjectionSpec(axes=axes)), rgo_jax.scale_by_rgo()
    params, grads = normals(0, (jnp.zeros(shape), jnp.zeros(shape)))
    state = rgo_jax.rls_update(tx.init(params), grads)
    matrix_state = rgo_jax.rls_update(plain.init(to_matrix(params)), to_matrix(grads))
    np.testing.assert_allclose(state.projection, matrix_state.projection, rtol=1e-6)
    stacked = jnp.stack([grads, params])
    # One batch at a time, whichever axis of the gradients is taken for that of the examples.
    each = {"columns": "each", "block_size": 1}
    state = rgo_jax.consolidate(state, lambda g: g, stacked, **each)
    matrices = jax.vmap(to_matrix)(stacked)
    matrix_state = rgo_jax.consolidate(matrix_state, lambda g: g, matrices, **each)
    expected, _ = plain.update(to_matrix(grads), matrix_state)
    assert np.abs(expected - to_matrix(grads)).max() > 0.1

    def loss(params):
        return jnp.sum(params * grads)

    for given in (grads, rgo_jax.value_and_grad(loss, state)(params)[1]):
        updates, _ = tx.update(given, state)
        assert updates.shape == shape
        np.testing.assert_allclose(to_matrix(updates), expected, rtol=1e-4, atol=1e-6)


def test_inputs_of_old_tasks_are_protected_in_kernels_stored_out_in():
    old = jnp.zeros((4, 6)).at[:, :3].set(jax.random.normal(jax.random.key(0), (4, 3)))

    def moved(spec):
        tx = rgo_jax.scale_by_rgo(specs=spec)
        state = rgo_jax.rls_update(tx.init(old), old, columns="each", alpha=1e-4)
        updates, _ = tx.update(jnp.ones((4, 6)), state)
        return float(jnp.abs(updates[:, :3]).max())

    assert moved(ProjectionSpec(axes=-1)) < 0.05 * moved(None)


def test_a_transposed_convolution_of_flax():
    model = nn.ConvTranspose(4, (2, 2), transpose_kernel=True, use_bias=False)
    x = jax.random.normal(jax.random.key(0), (2, 3, 3, 5))
    params = model.init(jax.random.key(1), x)["params"]
    state = rgo_jax.scale_by_rgo(specs=ProjectionSpec(axes=(0, 1, -1))).init(params)
    assert params["kernel"].shape == (2, 2, 4, 5)
    assert state.projection["kernel"].shape == (20, 20)


@pytest.mark.parametrize(("axis", "length"), [(0, 3), (0, 1), (1, 3), (1, 1)])
def test_one_spec_for_a_stack_of_layers(axis, length):
    """Stacked along any axis, also a stack of one: as if they were apart."""

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.LayerNorm()(nn.Dense(4)(x)), None

    stack = nn.scan(Block, {"params": axis}, split_rngs={"params": True}, length=length)
    params = stack().init(jax.random.key(0), jnp.ones((2, 4)), None)["params"]
    spec = ProjectionSpec(axes=None if axis == 0 else (1, 0), blocks=length)
    tx, single = rgo_jax.scale_by_rgo(specs=spec), rgo_jax.scale_by_rgo()
    grads = normals(1, params)

    def updated(tx, grads):
        state = rgo_jax.rls_update(tx.init(grads), grads, columns="each")
        return tx.update(grads, state)[0]

    updates = updated(tx, grads)
    for layer in range(length):
        own = jax.tree.map(lambda g, i=layer: jnp.take(g, i, axis=axis), grads)
        found = jax.tree.map(lambda u, i=layer: jnp.take(u, i, axis=axis), updates)
        chex.assert_trees_all_close(found, updated(single, own), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("axes", [None, -1, (-1, 0)])
@pytest.mark.parametrize("layer", ["dense", "conv"])
def test_fused_layers_with_specs(layer, axes):
    """They multiply their inputs by P only where all axes but the last are fan-in."""
    model = rgo_jax.linen.Dense(9) if layer == "dense" else rgo_jax.linen.Conv(9, (2, 2))
    x = jax.random.normal(jax.random.key(0), (2, 5) if layer == "dense" else (1, 2, 2, 5))
    params = model.init(jax.random.key(1), x)["params"]
    specs = {"kernel": ProjectionSpec(axes=axes)}
    tx = rgo_jax.scale_by_rgo(specs=specs)
    state = rgo_jax.rls_update(tx.init(params), normals(2, params), columns="each")

    def loss(params):
        return jnp.sum(jnp.sin(model.apply({"params": params}, x)))

    expected, _ = tx.update(jax.grad(loss)(params), state)
    updates, _ = tx.update(rgo_jax.value_and_grad(loss, state)(params)[1], state)
    chex.assert_trees_all_close(updates, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["weight", "fc1.weight"])
def test_a_weight_may_be_stored_either_way(name):
    params = {name: jnp.zeros((3, 5)), "bias": jnp.zeros(3)}
    match = rf"'{name}' has shape \(3, 5\).*\[out, in\].*axes=\.\.\."
    with pytest.raises(ValueError, match=match):
        rgo_jax.rgo(0.1).init(params)
    tx = rgo_jax.scale_by_rgo(specs=ProjectionSpec(axes=-1))
    shapes = {key: p.shape for key, p in tx.init(params).projection.items()}
    assert shapes == {name: (5, 5), "bias": (3, 3)}
    rgo_jax.rgo(0.1).init({name: jnp.zeros(3)})  # of a normalisation


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Linear:
    weight: object
    bias: object


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Embedding:
    weight: object


def test_layers_of_equinox(monkeypatch):
    """Its weights are [out, in, ...]; of its embeddings [vocabulary, features]."""
    for kind in (Linear, Embedding):
        monkeypatch.setattr(kind, "__module__", "equinox.nn._linear")
    params = {"layers": (Linear(jnp.zeros((3, 5)), jnp.zeros((3, 1))),)}
    assert rgo_jax.projection_memory(params) == {
        "layers/0/weight": 25 * 4 / 2**20,
        "layers/0/bias": 9 * 4 / 2**20,
    }
    with pytest.raises(ValueError, match="'weight' has shape"):
        rgo_jax.projection_memory(Embedding(jnp.zeros((7, 2))))


def test_a_field_named_value_is_no_box():
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass
    class Attention:
        query: object
        value: object
        out: object

    params = Attention(*(jnp.ones((8, 2, 4)) for _ in range(3)))
    spec = Attention(None, rgo_jax.ProjectionSpec(axes=0), None)
    tx = rgo_jax.scale_by_rgo(specs=spec)
    state = tx.init(params)
    shapes = [p.shape for p in jax.tree.leaves(state.projection)]
    assert shapes == [(16, 16), (8, 8), (16, 16)]
    assert rgo_jax.projection_stats(state).keys() == {"query", "value", "out"}
    updates, _ = tx.update(params, rgo_jax.rls_update(state, params))
    assert isinstance(updates, Attention)
