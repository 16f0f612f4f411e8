"""EWC, by hand."""

import jax
import jax.numpy as jnp
import numpy as np

from rgo_jax import baselines
from rgo_jax.baselines import _fisher as fisher_of
from tests.small_models import RATE, SGD, cross_entropy_grad, linear, task_of

KEY = jax.random.key(0)
PARAMS = {"w": jnp.zeros((2, 2))}


def test_ewc_running_fisher_by_hand():
    fisher = fisher_of.RunningFisher(jnp.zeros(2), jnp.zeros(2), jnp.int32(0))
    for grad in ([1.0, 0.0], [2.0, 1.0], [3.0, 0.0], [4.0, 0.0]):
        fisher = fisher_of.update_fisher(fisher, jnp.array(grad), decay=0.9, every=2)
    # Updated before steps 2 and 4, with the squares of step 1, then of steps 2 and 3.
    first = 0.9 * np.array([1, 0]) / 2
    np.testing.assert_allclose(fisher.average, 0.1 * first + 0.9 * np.array([4 + 9, 1]) / 2)
    np.testing.assert_allclose(fisher.squares, [16, 0])
    scaled = fisher_of.normalize_fisher({"a": jnp.array([1.0, 3.0]), "b": jnp.array([2.0, 5.0])})
    np.testing.assert_allclose(scaled["a"], [0, 0.5])
    np.testing.assert_allclose(scaled["b"], [0.25, 1])
    np.testing.assert_array_equal(fisher_of.normalize_fisher({"a": jnp.zeros(3)})["a"], np.zeros(3))


def test_ewc_penalty_by_hand():
    method = baselines.ewc(linear, SGD, strength=10, every=1)
    x, y = jnp.array([[1.0, 2.0]]), jnp.array([0])
    task = task_of(x, y)
    state = method.init(PARAMS, x, KEY)
    grad = cross_entropy_grad(np.zeros((2, 2)), x, y)
    np.testing.assert_allclose(grad, [[-0.5, 0.5], [-1, 1]])
    state, _ = method.step(state, (x, y), task)
    # The first task is plain SGD.
    np.testing.assert_allclose(state.params["w"], -RATE * grad, rtol=1e-6)
    state, _ = method.step(state, (x, y), task)
    state = method.end_task(state, task)
    # Step 1's squares are 1/4 and 1; scaled to [0, 1], the second feature's weights have all.
    np.testing.assert_allclose(state.penalty.importance["w"], [[0, 0], [1, 1]], atol=1e-6)
    anchor = np.asarray(state.params["w"])
    np.testing.assert_array_equal(state.penalty.anchor["w"], anchor)

    moved = anchor + 0.3
    state = state._replace(params={"w": jnp.asarray(moved)})
    after, _ = method.step(state, (x, y), task._replace(id=jnp.int32(1)))
    expected = cross_entropy_grad(moved, x, y) + 10 * 2 * np.array([[0, 0], [1, 1]]) * 0.3
    np.testing.assert_allclose(after.params["w"], moved - RATE * expected, rtol=1e-5)


def test_textbook_fisher_and_penalty_by_hand():
    method = baselines.ewc_textbook(linear, SGD, strength=10, batches=2)
    # Both classes have probability 1/2, so whichever label is drawn the squares are x^2 / 4.
    x, y = [[1.0, 2.0], [3.0, 0.0], [5.0, 5.0], [7.0, 7.0]], [0, 1, 0, 1]
    task = task_of(x, y, batch_size=2)
    state = method.init(PARAMS, jnp.array(x), KEY)
    with_one_batch = fisher_of.fisher_information(
        linear, state.params, task, task.batches[:1], jax.random.key(1), fisher_of.sampled_loss
    )
    squares = np.array([(1 + 9) / 2, (4 + 0) / 2]) / 4
    np.testing.assert_allclose(with_one_batch["w"], np.stack([squares] * 2, 1), rtol=1e-6)

    state = method.end_task(method.start_task(state, task, jax.random.key(1)), task)
    assert (np.asarray(state.penalty.importance["w"]) > 0).all()
    # Two tasks' parabolas added up, against the sum of their gradients.
    first, second = {"w": jnp.array([[1.0, 0.0]])}, {"w": jnp.array([[2.0, 3.0]])}
    fishers = {"w": jnp.array([[0.5, 0.0]])}, {"w": jnp.array([[1.5, 2.0]])}
    zeros = jax.tree.map(jnp.zeros_like, first)
    penalty = fisher_of.add_task(fisher_of.Penalty(zeros, zeros), first, fishers[0])
    penalty = fisher_of.add_task(penalty, second, fishers[1])
    at = {"w": jnp.array([[4.0, 4.0]])}
    grads = fisher_of.penalty_grads(penalty, at, strength=10 / 2)
    np.testing.assert_allclose(grads["w"], [[10 * (0.5 * 3 + 1.5 * 2), 10 * 2 * 1]], rtol=1e-6)


def test_empirical_fisher_is_of_the_given_labels_and_loss():
    def squared_errors(outputs, y):
        return jnp.sum((outputs - y) ** 2, axis=-1)

    method = baselines.ewc_textbook(linear, SGD, empirical=True, losses=squared_errors)
    x, y = np.array([[1.0, 2.0], [3.0, 0.0]]), np.array([[1.0, 0.0], [0.0, 2.0]], np.float32)
    task = task_of(x, y)
    state = method.end_task(method.init(PARAMS, jnp.array(x), KEY), task)
    # At zero the gradient of one example is -2 x y'.
    expected = np.mean([(2 * np.outer(*pair)) ** 2 for pair in zip(x, y, strict=True)], axis=0)
    np.testing.assert_allclose(state.penalty.importance["w"], expected, rtol=1e-6)
