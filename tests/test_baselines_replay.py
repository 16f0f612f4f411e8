"""A-GEM and ER-Ring, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rgo_jax import baselines
from rgo_jax.baselines import _replay, ring
from tests.small_models import RATE, SGD, cross_entropy_grad, linear, task_of


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

    found = _replay.project_to_agree(tree(grad), tree(reference))
    np.testing.assert_allclose([found["a"][0], found["b"][0, 0]], expected, atol=1e-7)


def empty_ring(num_tasks=3, num_classes=4):
    return ring.empty(jnp.zeros((1, 2)), num_tasks, num_classes)


def test_ring_keeps_the_last_example_of_each_class_and_task():
    x = jnp.arange(12.0).reshape(6, 2)
    memory = ring.store(empty_ring(), (x, jnp.array([2, 0, 2, 1, 0, 2])), jnp.int32(0))
    memory = ring.store(memory, (x[:1] + 100, jnp.array([1])), jnp.int32(0))
    memory = ring.store(memory, (x[:2] - 50, jnp.array([3, 3])), jnp.int32(2))
    np.testing.assert_array_equal(memory.x[0, :3], [x[4], x[0] + 100, x[5]])
    np.testing.assert_array_equal(memory.x[2, 3], x[1] - 50)
    np.testing.assert_array_equal(memory.filled, [[1, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]])


def test_draws_come_from_earlier_tasks_without_replacement():
    memory = empty_ring()
    for task in range(3):
        x = jnp.array([[10.0 * task + k, 0.0] for k in range(4)])
        memory = ring.store(memory, (x, jnp.arange(4)), jnp.int32(task))
    seen = set()
    for seed in range(20):
        drawn = ring.draw(memory, jax.random.key(seed), jnp.int32(2), batch_size=5)
        np.testing.assert_array_equal(drawn.x[:, 0], 10 * drawn.task_id + drawn.y)
        np.testing.assert_array_equal(drawn.weight, np.ones(5))
        values = set(np.asarray(drawn.x[:, 0]).tolist())
        assert len(values) == 5
        assert all(value < 20 for value in values)
        seen |= values
    assert len(seen) == 8
    # In the second task four are all there are, and in the first none.
    assert sorted(ring.draw(memory, jax.random.key(0), jnp.int32(1), 5).weight) == [0, 1, 1, 1, 1]
    assert not ring.draw(memory, jax.random.key(0), jnp.int32(0), 5).weight.any()


@pytest.mark.slow
def test_er_trains_on_the_batch_and_the_replayed_examples_alike():
    w = np.array([[0.1, -0.2], [0.3, 0.4]])
    method = baselines.er_ring(linear, SGD, num_tasks=2, num_classes=2)
    old_x, old_y = jnp.array([[1.0, 2.0], [3.0, -1.0]]), jnp.array([0, 1])
    x, y = jnp.array([[0.5, 0.5], [1.0, 0.0], [2.0, 2.0]]), jnp.array([0, 1, 1])
    state = method.init({"w": jnp.float32(w)}, x, jax.random.key(0))
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
