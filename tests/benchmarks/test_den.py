"""DEN on a network of three and two units."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.methods.growing import den, selection
from tests.benchmarks.small_networks import narrow_problem
from tests.small_models import task_of

RATE = 0.2
X = jax.random.normal(jax.random.key(3), (8, 5))
Y = jnp.arange(8) % 4
# Where phases begin: 0, 8, 40 and 64 steps.
EPOCHS = 80


@pytest.fixture
def problem(monkeypatch):
    """Three tasks of four classes, five inputs."""
    given = narrow_problem(
        monkeypatch, "den", 5, hidden=(3, 2), learning_rate=RATE, initial_values="uniform"
    )
    return with_options(given, den_units=2, den_loss=1e-3, den_l1=1e-4, den_group=1e-3, room=8.0)


def with_options(problem, **options):
    return problem._replace(options=dataclasses.replace(problem.options, **options))


def task(task_id):
    """The same examples with other labels."""
    return task_of(X, (Y + task_id) % 4, task_id, batch_size=8, epochs=EPOCHS)


def trained(problem, num_tasks):
    """The states after each of so many tasks."""
    method = den.den(problem)

    @jax.jit
    def run(state, task_id):
        own = task(0)._replace(id=task_id, load=lambda i: (X[i], (Y[i] + task_id) % 4))
        state = method.start_task(state, own, jax.random.key(1))
        batch = own.load(own.batches[0])
        state, _ = jax.lax.scan(lambda s, _: method.step(s, batch, own), state, length=EPOCHS)
        return method.end_task(state, own)

    states = [jax.jit(method.init)(jax.random.key(0))]
    for task_id in range(num_tasks):
        states.append(run(states[-1], jnp.int32(task_id)))
    return states[1:]


def loss_of(problem, state, task_id):
    logits = den.den(problem).apply(state, X, jnp.int32(task_id))
    return float(jnp.mean(problem.losses(logits, (Y + task_id) % 4)))


def test_where_all_that_drifted_splits_earlier_tasks_stay_bit_for_bit(problem):
    """Units have their old values back, and hear nothing of new ones and of copies."""
    first, second, last = trained(with_options(problem, den_drift=1e-9), 3)
    apply = jax.jit(den.den(problem).apply)
    before = apply(first, X, jnp.int32(0))
    for later in (second, last):
        np.testing.assert_array_equal(apply(later, X, jnp.int32(0)), before)
    np.testing.assert_array_equal(apply(last, X, jnp.int32(1)), apply(second, X, jnp.int32(1)))
    # And later ones are learned: log 4 is 1.39.
    assert max(loss_of(problem, last, t) for t in range(3)) < 1.2
    assert [int(jnp.sum(tasks == 0)) for tasks in last.born] == [3, 2]


@pytest.mark.slow
def test_where_nothing_splits_or_is_added_the_network_stays_as_wide(problem):
    first, second = trained(with_options(problem, den_drift=1e9, den_loss=1e9), 2)
    assert float(den.capacity(problem, second)) == 1
    apply = jax.jit(den.den(problem).apply)
    differences = apply(second, X, jnp.int32(0)) - apply(first, X, jnp.int32(0))
    assert float(jnp.abs(differences).max()) > 1e-3
    wider = trained(with_options(problem, den_drift=1e9), 2)[1]
    assert [int(jnp.sum(tasks == 1)) for tasks in wider.born] == [2, 2]
    assert float(den.capacity(problem, wider)) > 1


def in_second_task(problem):
    """From initial values."""
    method = den.den(problem)

    @jax.jit
    def start(key):
        return method.start_task(method.init(key), task(1), key)

    return start(jax.random.key(0))


def before_step(problem, num_steps):
    """In the second task, where all that is retrained has moved."""
    state = in_second_task(problem)
    moved = {name: jax.tree.map(lambda p: p * 1.1, state.params[name]) for name in state.old}
    head = jax.tree.map(lambda p: p + 0.1, state.params["head"])
    path = (jnp.array([True, False, True] + [False] * 24), jnp.array([True] + [False] * 17))
    return state._replace(params=moved | {"head": head}, path=path, num_steps=jnp.int32(num_steps))


def differs(after, before):
    return {
        name: np.asarray(after.params[name]["kernel"] != before.params[name]["kernel"])
        for name in ("Dense_0", "Dense_1")
    }


def test_a_new_head_is_trained_alone_and_from_zero(problem):
    method = den.den(problem)
    state = in_second_task(problem)
    assert not np.any(state.params["head"]["kernels"][1])
    after, _ = jax.jit(lambda s: method.step(s, (X, Y), task(1)))(state)
    assert not any(found.any() for found in differs(after, state).values())
    changed = np.any(
        after.params["head"]["kernels"] != state.params["head"]["kernels"], axis=(1, 2)
    )
    np.testing.assert_array_equal(changed, [False, True, False])


def test_the_path_is_retrained_by_hand(problem):
    """Gradient and pull on what leads from unit to unit of the path; the rest stays."""
    problem = with_options(problem, den_pull=0.5)
    method = den.den(problem)
    state = before_step(problem, 20)

    def loss(params):
        logits = method.apply(state._replace(params=params), X, jnp.int32(1))
        return jnp.mean(problem.losses(logits, Y))

    grads = jax.jit(jax.grad(loss))(state.params)
    after, found = jax.jit(lambda s: method.step(s, (X, Y), task(1)))(state)
    np.testing.assert_allclose(found, loss(state.params), rtol=1e-6)
    for name, senders in (("Dense_0", np.ones(5, bool)), ("Dense_1", np.asarray(state.path[0]))):
        kernel, grad, old = (tree[name]["kernel"] for tree in (state.params, grads, state.old))
        receivers = state.path[int(name[-1])]
        edge = senders[:, None] & np.asarray(receivers)[None]
        expected = np.where(edge, kernel - RATE * (grad + 0.5 * (kernel - old)), kernel)
        np.testing.assert_allclose(after.params[name]["kernel"], expected, atol=1e-6)


def test_only_what_is_new_is_trained_after_units_were_added(problem):
    method = den.den(problem)
    state = before_step(problem, 40)
    step = jax.jit(lambda s: method.step(s, (X, Y), task(1)))
    grown, _ = step(state._replace(loss=jnp.float32(1.0)))
    changed = differs(step(grown)[0], grown)
    np.testing.assert_array_equal(changed["Dense_0"].any(axis=0), grown.born[0] == 1)
    np.testing.assert_array_equal(changed["Dense_1"].any(axis=0), grown.born[1] == 1)
    # A loss that is low enough adds nothing.
    same, _ = step(state._replace(loss=jnp.float32(1e-4)))
    assert not any(np.any(tasks == 1) for tasks in same.born)


def test_new_units_without_a_weight_are_dropped(problem):
    """Their places are free again, and nothing of them is left."""
    state = den.den(problem).init(jax.random.key(0))
    params = jax.tree.map(jnp.ones_like, state.params)
    params["Dense_0"]["kernel"] = params["Dense_0"]["kernel"].at[:, 3].set(0)
    born = (state.born[0].at[jnp.array([3, 4])].set(1), state.born[1].at[2].set(1))
    left, when = selection.drop(problem, params, born, jnp.int32(1))
    assert when[0].tolist() == [0, 0, 0, 3, 1] + [3] * 22
    assert when[1].tolist() == [0, 0, 1] + [3] * 15
    assert float(left["Dense_0"]["bias"][3]) == 0
    expected = jnp.ones((27, 18)).at[3].set(0)
    np.testing.assert_array_equal(left["Dense_1"]["kernel"], expected)
    np.testing.assert_array_equal(left["head"]["kernels"], jnp.ones((3, 18, 4)))


@pytest.mark.parametrize("wrong", [{"den_l1": -1.0}, {"den_units": 0}, {"room": 0.0}])
def test_options_outside_their_range(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"--{name.replace('_', '-')}"):
        den.Den(**wrong)
