"""A-GEM and ER-Ring, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.data import tasks
from benchmarks.methods import METHODS, replay
from benchmarks.networks.layers import HEADS
from benchmarks.run import problem as problems
from tests.benchmarks.problems import RATE, cross_entropy_grad, linear_problem, task_of, two_tasks


@pytest.mark.parametrize(
    ("grad", "reference", "expected"),
    [
        ([1, 0], [1, 1], [1, 0]),  # agree: unchanged
        ([1, 0], [0, 3], [1, 0]),  # at right angles
        ([1, 0], [-2, 0], [0, 0]),  # opposed
        ([1, 0], [-1, 1], [0.5, 0.5]),
        ([3, -4], [0, 2], [3, 0]),
        ([3, -4], [0, 0], [3, -4]),  # nothing in memory
    ],
)
def test_a_gem_projection_by_hand(grad, reference, expected):
    # As leaves of a tree, to be taken as one vector.
    def tree(v):
        return {"a": jnp.array([float(v[0])]), "b": jnp.array([[float(v[1])]])}

    found = replay.project_to_agree(tree(grad), tree(reference))
    np.testing.assert_allclose([found["a"][0], found["b"][0, 0]], expected, atol=1e-7)


def empty_ring(num_tasks=3, num_classes=4):
    shape = (num_tasks, num_classes)
    return replay.Ring(jnp.zeros((*shape, 2)), jnp.zeros(shape, bool))


def test_ring_keeps_the_last_example_of_each_class_and_task():
    x = jnp.arange(12.0).reshape(6, 2)
    ring = replay.store(empty_ring(), (x, jnp.array([2, 0, 2, 1, 0, 2])), jnp.int32(0))
    ring = replay.store(ring, (x[:1] + 100, jnp.array([1])), jnp.int32(0))
    ring = replay.store(ring, (x[:2] - 50, jnp.array([3, 3])), jnp.int32(2))
    np.testing.assert_array_equal(ring.x[0, :3], [x[4], x[0] + 100, x[5]])
    np.testing.assert_array_equal(ring.x[2, 3], x[1] - 50)
    np.testing.assert_array_equal(ring.filled, [[1, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]])


def test_draws_come_from_earlier_tasks_without_replacement():
    ring = empty_ring()
    for task in range(3):
        x = jnp.array([[10.0 * task + k, 0.0] for k in range(4)])
        ring = replay.store(ring, (x, jnp.arange(4)), jnp.int32(task))
    seen = set()
    for seed in range(20):
        drawn = replay.draw(ring, jax.random.key(seed), jnp.int32(2), batch_size=5)
        np.testing.assert_array_equal(drawn.x[:, 0], 10 * drawn.task_id + drawn.y)
        np.testing.assert_array_equal(drawn.weight, np.ones(5))
        values = set(np.asarray(drawn.x[:, 0]).tolist())
        assert len(values) == 5
        assert all(value < 20 for value in values)
        seen |= values
    assert len(seen) == 8
    # In the second task four are all there are, and in the first none.
    assert sorted(replay.draw(ring, jax.random.key(0), jnp.int32(1), 5).weight) == [0, 1, 1, 1, 1]
    assert not replay.draw(ring, jax.random.key(0), jnp.int32(0), 5).weight.any()


@pytest.mark.slow
def test_er_trains_on_the_batch_and_the_replayed_examples_alike():
    w = np.array([[0.1, -0.2], [0.3, 0.4]])
    method = replay.er_ring(linear_problem(w))
    old_x, old_y = jnp.array([[1.0, 2.0], [3.0, -1.0]]), jnp.array([0, 1])
    x, y = jnp.array([[0.5, 0.5], [1.0, 0.0], [2.0, 2.0]]), jnp.array([0, 1, 1])
    state = method.init(jax.random.key(0))
    state, _ = method.step(state, (old_x, old_y), task_of(old_x, old_y))
    first = w - RATE * cross_entropy_grad(w, old_x, old_y)
    np.testing.assert_allclose(state.params["w"], first, rtol=1e-5)
    state, loss = method.step(state, (x, y), task_of(x, y, task_id=1))
    both = jnp.concatenate([x, old_x]), jnp.concatenate([y, old_y])
    np.testing.assert_allclose(
        state.params["w"], first - RATE * cross_entropy_grad(first, *both), rtol=1e-5
    )
    logits = x @ first
    own = optax.softmax_cross_entropy_with_integer_labels(logits, y)
    np.testing.assert_allclose(loss, own.mean(), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
def test_replayed_examples_go_through_their_own_task(digits, head):
    """Networks with FEL and heads of their own give each example its own task's output."""
    config = two_tasks("er-ring", head=head, num_tasks=3, fel=True)
    sequence = tasks.permuted(digits, 3)
    problem = problems.make_problem(
        config, METHODS["sgd"], sequence, digits.name, jax.random.key(1)
    )
    params = problem.init(jax.random.key(0))
    drawn = replay.Drawn(
        jax.random.uniform(jax.random.key(1), (4, 64)),
        jnp.arange(4),
        jnp.array([0, 1, 1, 0]),
        jnp.array([1.0, 1.0, 1.0, 0.0]),
    )
    losses = replay.replayed_losses(problem, params, drawn, jnp.int32(2))
    for i in range(4):
        logits = problem.logits(params, drawn.x[i : i + 1], drawn.task_id[i])[0]
        expected = -jax.nn.log_softmax(logits)[i] * drawn.weight[i]
        np.testing.assert_allclose(losses[i], expected, rtol=1e-4, atol=1e-6)
    # An old head is trained on replayed examples, but one frozen after the first task is not.
    grads = jax.grad(lambda p: jnp.sum(replay.replayed_losses(problem, p, drawn, jnp.int32(2))))(
        params
    )
    moved = any(bool(jnp.any(leaf != 0)) for leaf in jax.tree.leaves(grads["head"]))
    assert moved == (head != "frozen")
