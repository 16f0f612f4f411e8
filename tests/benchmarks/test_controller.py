"""The controller of RCL, on made rewards."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.methods.growing import controller

SGD = optax.sgd(0.1)


@pytest.fixture(scope="module")
def fresh():
    return jax.jit(lambda key: controller.init(key, 3, SGD))(jax.random.key(0))


def test_probabilities_of_all_that_can_be_chosen_sum_to_one(fresh):
    every = jnp.stack(jnp.meshgrid(jnp.arange(3), jnp.arange(3)), axis=-1).reshape(-1, 2)
    found = jax.vmap(lambda counts: controller.log_probabilities(fresh.policy, counts))(every)
    np.testing.assert_allclose(jnp.sum(jnp.exp(jnp.sum(found, axis=1))), 1, rtol=1e-5)


def test_counts_are_drawn_with_their_probabilities(fresh):
    """With a read-out of its bias alone, by hand: 0.5, 0.3 and 0.2."""
    bias = jnp.log(jnp.array([0.5, 0.3, 0.2]))
    policy = fresh.policy | {"read": {"kernel": jnp.zeros((100, 3)), "bias": bias}}
    draw = jax.jit(jax.vmap(lambda key: controller.sample(policy, key, 2)))
    counts = draw(jax.random.split(jax.random.key(1), 4000))
    assert counts.shape == (4000, 2)
    for layer in range(2):
        found = np.bincount(np.asarray(counts[:, layer]), minlength=3) / 4000
        np.testing.assert_allclose(found, [0.5, 0.3, 0.2], atol=0.03)
    found = controller.log_probabilities(policy, jnp.array([2, 0]))
    np.testing.assert_allclose(found, np.log([0.2, 0.5]), rtol=1e-5)


@pytest.mark.parametrize("sign", [1, -1])
def test_what_was_better_than_expected_is_more_likely_afterwards(fresh, sign):
    """The critic expects the mean of 0.5 and this trial's reward: 0.25 more or less than it is."""
    policy = fresh.critic | {"read": jax.tree.map(jnp.zeros_like, fresh.critic["read"])}
    before = fresh._replace(critic=policy, mean=jnp.float32(0.5), trials=jnp.int32(1))
    counts = jnp.array([2, 0])

    @jax.jit
    def learn(before, reward):
        after = controller.learn(before, counts, reward, SGD)
        change = controller.log_probabilities(after.policy, counts)
        return after, change - controller.log_probabilities(before.policy, counts)

    after, change = learn(before, jnp.float32(0.5 + sign * 0.5))
    assert np.all(sign * np.asarray(change) > 1e-3)
    assert float(after.mean) == pytest.approx(0.5 + sign * 0.25)
    assert int(after.trials) == 2
    # The critic's bias moves by the rate times the sum of the two errors.
    np.testing.assert_allclose(after.critic["read"]["bias"], [0.1 * 2 * sign * 0.25], rtol=1e-5)


def test_learns_which_arm_pays():
    """A bandit of two layers: 1 pays in the first, 2 in the second."""
    tx = optax.adam(1e-2)

    def trial(chooser, key):
        counts = controller.sample(chooser.policy, key, 2)
        reward = jnp.mean((counts == jnp.array([1, 2])).astype(jnp.float32))
        return controller.learn(chooser, counts, reward, tx), reward

    @jax.jit
    def learned(key):
        start = controller.init(key, 3, tx)
        return jax.lax.scan(trial, start, jax.random.split(jax.random.key(2), 300))

    after, rewards = learned(jax.random.key(0))
    assert float(rewards[:30].mean()) < 0.6
    assert float(rewards[-30:].mean()) > 0.9
    assert float(jnp.exp(controller.log_probabilities(after.policy, jnp.array([1, 2])).sum())) > 0.8
