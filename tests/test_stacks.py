"""Fused layers stacked by Flax's scan and vmap, one layer too."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import rgo_jax
import rgo_jax.linen
import rgo_jax.nnx
from tests.gradients import projected as linen_projected
from tests.test_nnx_layers import assert_close, optimizer_of
from tests.test_nnx_layers import projected as nnx_projected


@pytest.mark.slow
@pytest.mark.parametrize("depth", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_linen_scan_over_layers(depth):
    """Under a scan over layers, of one layer too, beside one that keeps averages."""

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.relu(rgo_jax.linen.Dense(9, name="dense")(x)), None

    class Stack(nn.Module):
        @nn.compact
        def __call__(self, x):
            lifted = nn.scan(Block, {"params": 0}, split_rngs={"params": True}, length=depth)
            x, _ = lifted(name="blocks")(x, None)
            seen = self.variable("averages", "seen", lambda: jnp.zeros(9))
            if self.is_mutable_collection("averages"):
                seen.value = jnp.mean(x, axis=0)
            return nn.Dense(2, name="head")(x)

    x = jax.random.normal(jax.random.key(0), (4, 9))
    params = Stack().init(jax.random.key(1), x)["params"]
    kernel, bias = (
        rgo_jax.ProjectionSpec(blocks=depth),
        rgo_jax.ProjectionSpec(axes=0, blocks=depth),
    )
    specs = {"blocks": {"dense": {"kernel": kernel, "bias": bias}}}
    tx = rgo_jax.scale_by_rgo(specs=specs)
    state = rgo_jax.rls_update(tx.init(params), params)

    def loss(params):
        variables = {"params": params, "averages": {"seen": jnp.zeros(9)}}
        return jnp.sum(Stack().apply(variables, x) ** 2)

    expected, _ = tx.update(jax.grad(loss)(params), state)
    updates, _ = tx.update(rgo_jax.value_and_grad(loss, state)(params)[1], state)
    chex.assert_trees_all_close(updates, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("wrap", [nn.scan, nn.vmap])
@pytest.mark.parametrize("axis", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (0, -1))])
def test_linen_stacks_of_one_layer(wrap, axis):
    """Whatever the stacked axis: a stacked kernel is not taken for the layer's own."""

    class Layer(nn.Module):
        dense: type

        @nn.compact
        def __call__(self, x, _):
            return nn.tanh(self.dense(6, name="dense")(x)), None

    def model(dense):
        layers = wrap(Layer, {"params": axis}, split_rngs={"params": True}, **options)
        return layers(dense)

    options = {"length": 1} if wrap is nn.scan else {"axis_size": 1, "in_axes": (0, None)}
    x = jax.random.normal(jax.random.key(0), (3, 6) if wrap is nn.scan else (1, 3, 6))
    params = model(nn.Dense).init(jax.random.key(1), x, None)["params"]
    tx = rgo_jax.scale_by_rgo(normalize=False)
    state = rgo_jax.rls_update(tx.init(params), params)

    def loss(params, dense):
        return jnp.sum(model(dense).apply({"params": params}, x, None)[0] ** 2)

    expected, _ = tx.update(jax.grad(loss)(params, nn.Dense), state)
    for unrolled in (False, True):
        with jax.disable_jit(unrolled):
            ours = linen_projected(loss, state, params, rgo_jax.linen.Dense)
        chex.assert_trees_all_close(ours, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("axis", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_nnx_stacks_of_one_layer(axis):
    """Whatever the stacked axis: a stacked kernel is not taken for the layer's own."""
    axes = nnx.StateAxes({nnx.Param: axis})

    def stack(linear):
        @nnx.vmap(in_axes=0, out_axes=axes)
        def make(key):
            return linear(6, 6, rngs=nnx.Rngs(key))

        return make(jax.random.split(jax.random.key(1), 1))

    def loss(layers):
        @nnx.scan(in_axes=(axes, nnx.Carry), out_axes=nnx.Carry, length=1)
        def forward(layer, x):
            return jnp.tanh(layer(x))

        return jnp.sum(forward(layers, jax.random.normal(jax.random.key(0), (3, 6))) ** 2)

    plain, ours = stack(nnx.Linear), stack(rgo_jax.nnx.Linear)
    tx = rgo_jax.scale_by_rgo(normalize=False)
    params = nnx.state(plain)
    state = rgo_jax.rls_update(tx.init(params), params)
    expected, _ = tx.update(nnx.grad(loss)(plain), state)
    assert_close(
        nnx_projected(loss, optimizer_of(ours, state), ours), expected, rtol=1e-3, atol=1e-4
    )
