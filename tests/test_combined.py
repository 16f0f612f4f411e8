"""Curvature without gradients: the same as from gradients, whatever the model is made of."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rgo_jax
import rgo_jax.linen
from rgo_jax import ProjectionSpec
from tests import oracle
from tests.marks import slow_but


class Plain:
    """Subclasses of Flax's layers are not fused, its own are."""

    class Dense(nn.Dense):
        pass

    class Conv(nn.Conv):
        pass


class Net(nn.Module):
    """Convolution, shared layer, wide layer, head; fused or not."""

    layers: Any = rgo_jax.linen
    remat: bool = False

    @nn.compact
    def __call__(self, x):
        layers = self.layers
        x = nn.relu(layers.Conv(3, (2, 2))(x))
        x = x.reshape(len(x), -1)
        shared = layers.Dense(x.shape[1])
        x = nn.relu(shared(nn.relu(shared(x))))
        wide = nn.remat(layers.Dense) if self.remat else layers.Dense
        return layers.Dense(3, name="head")(nn.relu(wide(20, name="wide")(x)))


X = jax.random.normal(jax.random.key(0), (5, 4, 3, 3, 2))
Y = jax.random.randint(jax.random.key(1), (5, 4), 0, 3)
PARAMS = Net().init(jax.random.key(2), X[0])["params"]


def logits(net, params, x):
    return net.apply({"params": params}, x)


def one_by_one(net, params, x):
    return jax.vmap(lambda x: logits(net, params, x[None])[0])(x)


def output(net, params, batch, logits=logits, penalty=0.0):
    x, y = batch
    squares = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))
    return rgo_jax.curvature_output(logits(net, params, x), y) + penalty * squares


def input_gradients(params, batch):
    """Second derivatives reach the kernels too."""

    def inner(x):
        return jnp.sum(logits(Net(), params, x) ** 2)

    return output(Net(), params, batch) + 0.1 * jnp.sum(jax.grad(inner)(batch[0]) ** 2)


OUTPUTS = {
    "fused": partial(output, Net()),
    "plain": partial(output, Net(Plain)),
    "Flax's own": partial(output, Net(nn)),
    "remat": partial(output, Net(remat=True)),
    "vmap": partial(output, Net(), logits=one_by_one),
    "penalty": partial(output, Net(), penalty=0.1),
    "input gradients": input_gradients,
}


def check_the_same(tx, output, columns, params=PARAMS, batches=(X, Y), **close):
    state = tx.init(params)
    options = {"columns": columns, "key": jax.random.key(5), "alpha": 0.1}

    @jax.jit
    def both(state, params):
        grad_fn = lambda batch: jax.grad(output)(params, batch)  # noqa: E731
        return (
            rgo_jax.consolidate(state, output, batches, params, **options),
            rgo_jax.consolidate(state, grad_fn, batches, **options),
        )

    ours, expected = both(state, params)
    for found, wanted in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(found, wanted, **{"rtol": 1e-4, "atol": 1e-5} | close)
    for found, fresh in zip(
        jax.tree.leaves(ours[0].projection), jax.tree.leaves(state[0].projection), strict=True
    ):
        assert np.abs(found - fresh).max() > 1e-3


@pytest.mark.parametrize(
    ("name", "columns"),
    slow_but(
        [*((name, "mean") for name in OUTPUTS), ("fused", "signs"), ("plain", "signs")],
        ("fused", "mean"),
        ("plain", "mean"),
        ("penalty", "mean"),
        ("fused", "signs"),
    ),
)
def test_the_same_as_from_gradients(name, columns):
    check_the_same(rgo_jax.rgo(0.1), OUTPUTS[name], columns)


def test_every_column_is_taken_from_gradients():
    check_the_same(rgo_jax.rgo(0.1), OUTPUTS["fused"], "each")


@pytest.mark.parametrize(
    "spec",
    [ProjectionSpec(blocks=3), pytest.param(ProjectionSpec(diagonal=True), marks=pytest.mark.slow)],
)
def test_whatever_is_kept_of_p(spec):
    tx = rgo_jax.rgo(0.1, specs={"wide": {"kernel": spec}})
    check_the_same(tx, OUTPUTS["fused"], "mean")


@pytest.mark.parametrize("dtype", [jnp.bfloat16, pytest.param(jnp.float64, marks=pytest.mark.slow)])
def test_other_dtypes(dtype):
    """Of bfloat16 gradients are rounded, what is computed without them is not."""
    close = {"rtol": 0.05, "atol": 0.05} if dtype == jnp.bfloat16 else {"rtol": 1e-9, "atol": 1e-12}
    with oracle.enable_x64():
        params, x = jax.tree.map(lambda leaf: leaf.astype(dtype), (PARAMS, X))
        check_the_same(rgo_jax.rgo(0.1), OUTPUTS["fused"], "mean", params, (x, Y), **close)


@pytest.mark.parametrize("layer", [nn.Dense, Plain.Dense, rgo_jax.linen.Dense])
def test_mean_against_float64(layer):
    rng = np.random.default_rng(0)
    x, outputs = rng.normal(size=(6, 4, 5)), rng.normal(size=(6, 4, 7))
    net = layer(7, use_bias=False)
    params = net.init(jax.random.key(0), x[0])["params"]

    def output(params, batch):
        x, outputs = batch
        return jnp.sum(outputs * net.apply({"params": params}, x))

    state = rgo_jax.rgo(0.1).init(params)
    batches = (jnp.asarray(x, jnp.float32), jnp.asarray(outputs, jnp.float32))
    state = rgo_jax.consolidate(state, output, batches, params)
    expected = oracle.projection([a.T @ b for a, b in zip(x, outputs, strict=True)])
    np.testing.assert_allclose(state[0].projection["kernel"], expected, atol=5e-6)


@pytest.mark.parametrize("layer", [nn.Dense, rgo_jax.linen.Dense])
def test_no_gradient_of_a_kernel_is_computed(layer):
    net = layer(64, use_bias=False)
    x, y = jnp.ones((2, 8, 64)), jnp.zeros((2, 8), jnp.int32)
    params = net.init(jax.random.key(0), x[0])["params"]
    state = rgo_jax.rgo(0.1).init(params)

    def output(params, batch):
        return rgo_jax.curvature_output(net.apply({"params": params}, batch[0]), batch[1])

    def flops(**options):
        fn = output if options else lambda batch: jax.grad(output)(params, batch)
        program = jax.jit(lambda state: rgo_jax.consolidate(state, fn, (x, y), **options))
        return program.lower(state).compile().cost_analysis()["flops"]

    assert flops() - flops(params=params) > 0.9 * 2 * 8 * 64 * 64


def test_params_of_another_model():
    state = rgo_jax.rgo(0.1).init(PARAMS)
    params = {name: PARAMS[name] for name in PARAMS if name != "wide"}
    with pytest.raises(ValueError, match="params have no leaf 'wide/bias'"):
        rgo_jax.consolidate(state, OUTPUTS["fused"], (X, Y), params)
