"""Parameters that the default geometry does not fit: attention, stacked layers, embeddings."""

import dataclasses
from typing import NamedTuple

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


@pytest.mark.slow
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


class Pair(NamedTuple):
    a: object
    b: object


@pytest.mark.parametrize(
    "params",
    [
        {"a": {"w": jnp.zeros((4, 2, 3))}, "b": [jnp.zeros((4, 2, 3))]},
        Pair({"w": jnp.zeros((4, 2, 3))}, (jnp.zeros((4, 2, 3)),)),
        nnx.State({"a": {"w": nnx.Param(jnp.zeros((4, 2, 3)))}, "b": [jnp.zeros((4, 2, 3))]}),
    ],
    ids=["dict", "tuple", "state"],
)
@pytest.mark.parametrize(
    "specs",
    [
        {"a": {"w": ProjectionSpec(axes=0)}, "b": [ProjectionSpec(axes=1)]},
        Pair(ProjectionSpec(axes=0), (ProjectionSpec(axes=1),)),
        {"a/w": ProjectionSpec(axes=0), "b/0": ProjectionSpec(axes=1)},
        lambda path, leaf: ProjectionSpec(axes=["a/w", "b/0"].index(path)),
    ],
    ids=["dict", "tuple", "paths", "function"],
)
def test_names_match_across_containers(params, specs):
    memory = rgo_jax.projection_memory(params, specs=specs)
    assert memory == {"a/w": 16 * 4 / 2**20, "b/0": 4 * 4 / 2**20}
    state = rgo_jax.scale_by_rgo(specs=specs).init(params)
    assert [p.shape for p in jax.tree.leaves(state.projection)] == [(4, 4), (2, 2)]


def test_a_function_of_path_and_leaf():
    def specs(path, leaf):
        assert path in ("embed", "kernel")
        return ProjectionSpec(diagonal=True) if leaf.shape[0] > 100 else None

    params = {"embed": jnp.zeros((200, 2)), "kernel": jnp.zeros((4, 2))}
    state = rgo_jax.rgo(0.1, specs=specs).init(params)
    assert [p.shape for p in jax.tree.leaves(state[0].projection)] == [(200,), (4, 4)]
    with pytest.raises(ValueError, match="specs has 0 at 'kernel'; expected"):
        rgo_jax.projection_memory(params, specs=lambda path, leaf: 0 if path == "kernel" else None)


def test_a_name_that_begins_with_another():
    """As flax.linen.WeightNorm names its scales: the kernel's spec is not the scale's."""
    params = {"kernel": jnp.zeros((4, 2, 3)), "kernel/scale": jnp.zeros((2, 3))}
    memory = rgo_jax.projection_memory(params, specs={"kernel": ProjectionSpec(axes=-1)})
    assert memory == {"kernel": 9 * 4 / 2**20, "kernel/scale": 4 * 4 / 2**20}


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
