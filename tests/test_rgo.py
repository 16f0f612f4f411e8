"""The alias rgo: momentum, and learning rates over several tasks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rgo_jax
from tests import oracle


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_acts_on_projected_gradients(nesterov):
    params = {"kernel": jax.random.normal(jax.random.key(0), (5, 3))}
    tx = rgo_jax.rgo(0.1, momentum=0.9, nesterov=nesterov)
    state = rgo_jax.rls_update(tx.init(params), params)
    p = oracle.projection([np.asarray(params["kernel"])])
    modified = oracle.modified_gradient(p, params["kernel"])
    _, state = tx.update(params, state)
    updates, _ = tx.update(params, state)
    factor = 1 + 0.9 * 1.9 if nesterov else 1.9
    np.testing.assert_allclose(updates["kernel"], -0.1 * factor * modified, rtol=1e-4)


def test_momentum_can_be_set_back_between_tasks():
    """What the docstring of rgo says of momentum."""
    tx = rgo_jax.rgo(0.1, momentum=0.9)
    params = jnp.ones((4, 2))
    old = jnp.zeros((4, 2)).at[0].set(100.0)
    new = jnp.zeros((4, 2)).at[1].set(1.0)
    _, state = tx.update(old, tx.init(params))
    state = rgo_jax.rls_update(state, old)
    assert np.abs(tx.update(new, state)[0][0]).min() > 1
    state = rgo_jax.next_task(tx, state, params)
    assert np.abs(tx.update(new, state)[0][0]).max() < 1e-4


def test_a_schedule_starts_anew_in_each_task():
    """Either way that the docstring of rgo tells of."""
    params, grads = jnp.zeros(2), jnp.ones(2)

    def rates(learning_rate, between_tasks=lambda tx, state, params: state):
        tx = rgo_jax.rgo(learning_rate)
        state, found = tx.init(params), []
        for _ in range(2):
            for _ in range(3):
                updates, state = tx.update(grads, state, params)
                found.append(-float(updates[0]))
            state = between_tasks(tx, rgo_jax.rls_update(state, grads), params)
        return np.array(found)

    decay = optax.linear_schedule(0.3, 0.0, 3)
    set_back = rates(decay, rgo_jax.next_task)
    anew = rates(lambda count: decay(count % 3))
    np.testing.assert_allclose(set_back[:3], [0.3, 0.2, 0.1], rtol=1e-5)
    np.testing.assert_allclose(set_back[3:] / set_back[3], [1, 2 / 3, 1 / 3], rtol=1e-5)
    np.testing.assert_allclose(anew, set_back, rtol=1e-5)
    assert not rates(decay)[3:].any()
