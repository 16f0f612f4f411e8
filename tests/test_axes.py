"""Fan-in axes that do not lead, named by a spec or known from the layer."""

import dataclasses

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rgo_jax
import rgo_jax.linen
from rgo_jax import ProjectionSpec
from tests.test_specs import normals


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


@pytest.mark.slow
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


@pytest.mark.slow
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
