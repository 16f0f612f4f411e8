"""RCL on a network of four and three units."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.methods.growing import controller, rcl
from tests.benchmarks.small_networks import narrow_problem
from tests.small_models import task_of

X = jax.random.normal(jax.random.key(3), (40, 5))
Y = jnp.argmax(X[:, :4], axis=1)


@pytest.fixture
def problem(monkeypatch):
    """Three tasks of four classes, five inputs; a trial takes five steps."""
    given = narrow_problem(monkeypatch, "rcl", 5, learning_rate=0.2, initial_values="uniform")
    return given._replace(options=rcl.Rcl(rcl_trials=2, rcl_child=0.25, room=10.0))


def task(task_id, epochs=4):
    return task_of(X, (Y + task_id) % 4, task_id, batch_size=8, epochs=epochs)


def after(problem, num_tasks):
    """The states after each of so many tasks."""
    method = rcl.rcl(problem)

    @jax.jit
    def run(state, task_id):
        own = task(0)._replace(id=task_id, load=lambda i: (X[i], (Y[i] + task_id) % 4))
        state = method.start_task(state, own, jax.random.key(1))
        batches = jnp.tile(own.batches, (4, 1))
        return jax.lax.scan(lambda s, i: method.step(s, own.load(i), own), state, batches)[0]

    states = [jax.jit(method.init)(jax.random.key(0))]
    for task_id in range(num_tasks):
        states.append(run(states[-1], jnp.int32(task_id)))
    return states[1:]


def test_parameters_between_units_of_earlier_tasks_stay_bit_for_bit(problem):
    first, second = after(problem, 2)
    assert any(int(jnp.sum(tasks == 1)) for tasks in second.born)
    moved = {}
    for i, name in enumerate(("Dense_0", "Dense_1")):
        old = np.asarray(second.born[i] == 0)
        senders = np.ones(5, bool) if i == 0 else np.asarray(second.born[0] == 0)
        kept = senders[:, None] & old[None]
        before, now = (np.asarray(s.params[name]["kernel"]) for s in (first, second))
        np.testing.assert_array_equal(now[kept], before[kept])
        moved[name] = (now != before)[~kept].any()
        before, now = (np.asarray(s.params[name]["bias"]) for s in (first, second))
        np.testing.assert_array_equal(now[old], before[old])
    assert all(moved.values())
    apply = jax.jit(rcl.rcl(problem).apply)
    np.testing.assert_array_equal(*(apply(s, X, jnp.int32(0)) for s in (first, second)))


def test_units_that_are_added_have_small_weights_from_and_to_them(problem):

    @jax.jit
    def grown():
        state = rcl.rcl(problem).init(jax.random.key(0))
        counts = jnp.array([2, 29])
        added = rcl.grow(problem, state.params, state.born, counts, jnp.int32(1), jax.random.key(2))
        return state, *added

    state, params, born = grown()
    assert [int(jnp.sum(tasks == 1)) for tasks in born] == [2, 29]
    kernel, before = params["Dense_1"]["kernel"], state.params["Dense_1"]["kernel"]
    np.testing.assert_array_equal(kernel[:4, :3], before[:4, :3])
    new = np.concatenate([np.ravel(kernel[4:6, :32]), np.ravel(kernel[:4, 3:32])])
    assert 0.008 < new.std() < 0.012
    assert not np.any(kernel[6:])
    assert not np.any(kernel[:, 32:])


def test_reward_is_accuracy_less_the_price_of_units():
    born = (jnp.array([0, 1, 1, 3]), jnp.array([0, 1, 2, 3]))
    found = rcl.reward_of(jnp.float32(0.9), born, jnp.int32(1), 1e-2)
    np.testing.assert_allclose(found, 0.9 - 3e-2, rtol=1e-6)


@pytest.mark.slow
def test_the_best_child_is_kept(problem):
    """At a price of 1, above all that accuracy can differ by, it has the fewest units."""
    problem = problem._replace(
        options=dataclasses.replace(problem.options, rcl_price=1.0, rcl_trials=5, rcl_child=0.05)
    )
    drawn = []

    def sample(policy, key, num_layers):
        counts = controller_sample(policy, key, num_layers)
        jax.debug.callback(lambda c: drawn.append(int(c.sum())), counts)
        return counts

    controller_sample = controller.sample
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(controller, "sample", sample)
        method = rcl.rcl(problem)
        start = jax.jit(lambda key: method.start_task(method.init(key), task(1), jax.random.key(1)))
        state = jax.block_until_ready(start(jax.random.key(0)))
        jax.effects_barrier()
    assert len(drawn) == 5
    assert len(set(drawn)) > 1
    assert sum(int(jnp.sum(tasks == 1)) for tasks in state.born) == min(drawn)
    assert int(state.controller.trials) == 5


@pytest.mark.parametrize("wrong", [{"rcl_trials": 0}, {"rcl_child": 0.0}, {"rcl_price": -1.0}])
def test_options_outside_their_range(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"--{name.replace('_', '-')}"):
        rcl.Rcl(**wrong)
