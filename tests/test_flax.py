"""The Flax layers in training: fused against plain, Linen against NNX."""

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
import rgo_jax.nnx
from tests.gradients import sgd_with_a_state


class LinenNet(nn.Module):
    dense: type = nn.Dense
    width: int = 32

    @nn.compact
    def __call__(self, x, task_id):
        x = rgo_jax.linen.FeatureEncoding(layer=0)(x, task_id)
        x = nn.relu(self.dense(self.width, name="hidden")(x))
        x = rgo_jax.linen.FeatureEncoding(layer=1)(x, task_id)
        return self.dense(3, name="head")(x)


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.encode_input = rgo_jax.nnx.FeatureEncoding(layer=0)
        self.hidden = nnx.Linear(6, 32, rngs=rngs)
        self.encode_hidden = rgo_jax.nnx.FeatureEncoding(layer=1)
        self.head = nnx.Linear(32, 3, rngs=rngs)

    def __call__(self, x, task_id):
        x = nnx.relu(self.hidden(self.encode_input(x, task_id)))
        return self.head(self.encode_hidden(x, task_id))


def batches(seed, batch_size=8, count=5):
    x = jax.random.normal(jax.random.key(seed), (count, batch_size, 6))
    return x, jax.random.randint(jax.random.key(seed + 1), (count, batch_size), 0, 3)


def cross_entropy(logits, y):
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, y))


def train_linen(dense, projected, batch_size=8, tx=None):
    """Two tasks of five steps; the parameters after them."""
    model = LinenNet(dense)
    tx = tx or rgo_jax.rgo(0.5)
    params = model.init(jax.random.key(0), jnp.zeros((1, 6)), 0)["params"]

    def logits(params, x, task):
        return model.apply({"params": params}, x, task)

    @jax.jit
    def task_of_training(params, state, data, task):
        def step(carry, batch):
            params, state = carry
            x, y = batch

            def loss(params):
                return cross_entropy(logits(params, x, task), y)

            with_grad = (
                rgo_jax.value_and_grad(loss, state) if projected else jax.value_and_grad(loss)
            )
            _, grads = with_grad(params)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        (params, state), _ = jax.lax.scan(step, (params, state), data)

        def grad_fn(batch):
            x, y = batch
            return jax.grad(lambda p: rgo_jax.curvature_output(logits(p, x, task), y))(params)

        return params, rgo_jax.consolidate(state, grad_fn, data)

    state = tx.init(params)
    for task in range(2):
        params, state = task_of_training(params, state, batches(10 * task, batch_size), task)
    return params, state


# 8 rows are fewer than 32 features (factored), but not fewer than the head's 3; 40 are more.
@pytest.mark.slow
@pytest.mark.parametrize(
    "batch_size", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (8, 40))]
)
def test_fused_dense_trains_as_plain_dense(batch_size):
    plain, plain_state = train_linen(nn.Dense, projected=False, batch_size=batch_size)
    fused, fused_state = train_linen(rgo_jax.linen.Dense, projected=True, batch_size=batch_size)
    chex.assert_trees_all_close(fused, plain, rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(fused_state, plain_state, rtol=1e-3, atol=1e-4)
    sgd, _ = train_linen(nn.Dense, False, batch_size, sgd_with_a_state(0.5))
    unprojected, _ = train_linen(rgo_jax.linen.Dense, False, batch_size)
    chex.assert_trees_all_close(
        unprojected, plain, rtol=1e-4, atol=1e-5
    )  # without value_and_grad: flax's Dense
    assert np.abs(fused["hidden"]["kernel"] - sgd["hidden"]["kernel"]).max() > 1e-3


@pytest.mark.slow
def test_fused_layers_without_the_trace_rule():
    plain, _ = train_linen(nn.Dense, False, tx=rgo_jax.rgo(0.5, normalize=False))
    tx = rgo_jax.rgo(0.5, normalize=False)
    fused, _ = train_linen(rgo_jax.linen.Dense, True, tx=tx)
    chex.assert_trees_all_close(fused, plain, rtol=1e-4, atol=1e-5)
    with_rule, _ = train_linen(nn.Dense, False)
    assert np.abs(plain["hidden"]["kernel"] - with_rule["hidden"]["kernel"]).max() > 1e-3


@pytest.mark.slow
def test_nnx_trains_as_linen():
    linen_params, linen_state = train_linen(nn.Dense, projected=False)

    model = NnxNet(nnx.Rngs(0))
    start = LinenNet().init(jax.random.key(0), jnp.zeros((1, 6)), 0)["params"]
    for layer in ("hidden", "head"):
        getattr(model, layer).kernel[...] = start[layer]["kernel"]
        getattr(model, layer).bias[...] = start[layer]["bias"]
    optimizer = nnx.Optimizer(model, rgo_jax.rgo(0.5), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, x, y, task):
        grads = nnx.grad(lambda model: cross_entropy(model(x, task), y))(model)
        optimizer.update(model, grads)

    @nnx.jit
    def end_of_task(model, optimizer, data, task):
        def output(model, batch):
            return rgo_jax.curvature_output(model(batch[0], task), batch[1])

        rgo_jax.nnx.consolidate(model, optimizer, output, data)

    for task in range(2):
        x, y = batches(10 * task)
        for i in range(len(x)):
            step(model, optimizer, x[i], y[i], jnp.int32(task))
        end_of_task(model, optimizer, (x, y), jnp.int32(task))

    for layer in ("hidden", "head"):
        np.testing.assert_allclose(
            getattr(model, layer).kernel[...], linen_params[layer]["kernel"], rtol=1e-3, atol=1e-5
        )
        np.testing.assert_allclose(
            optimizer.opt_state[0].projection[layer]["kernel"][...],
            linen_state[0].projection[layer]["kernel"],
            rtol=1e-3,
            atol=1e-4,
        )
    assert int(optimizer.opt_state[0].num_updates[...]) == 10
    assert int(optimizer.step[...]) == 10
    assert set(rgo_jax.projection_stats(optimizer.opt_state)) == {
        f"{layer}/{name}" for layer in ("hidden", "head") for name in ("kernel", "bias")
    }
    # SGD ends elsewhere.
    sgd, _ = train_linen(nn.Dense, False, tx=sgd_with_a_state(0.5))
    assert np.abs(linen_params["hidden"]["kernel"] - sgd["hidden"]["kernel"]).max() > 1e-3


@pytest.mark.parametrize(
    "tx",
    [
        optax.chain(
            optax.masked(rgo_jax.scale_by_rgo(), lambda p: jax.tree.map(lambda _: True, p))
        ),
        optax.MultiSteps(rgo_jax.rgo(0.1), 2),
        optax.inject_hyperparams(rgo_jax.rgo)(learning_rate=0.1),
        optax.apply_if_finite(rgo_jax.rgo(0.1), 2),
    ],
)
def test_nnx_optimizer_around_wrappers(tx):
    model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    x, y = jax.random.normal(jax.random.key(0), (5, 10, 4)), jnp.zeros((5, 10), jnp.int32)

    @nnx.jit
    def learn(model, optimizer, x, y):
        grads = nnx.grad(lambda model: cross_entropy(model(x[0]), y[0]))(model)
        optimizer.update(model, grads)
        rgo_jax.nnx.consolidate(
            model, optimizer, lambda m, b: rgo_jax.curvature_output(m(b[0]), b[1]), (x, y)
        )

    for _ in range(2):
        learn(model, optimizer, x, y)
    stats = rgo_jax.projection_stats(optimizer.opt_state)
    assert set(stats) == {"kernel", "bias"}
    assert stats["kernel"].trace < 3.9
