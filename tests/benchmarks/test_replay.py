"""Replay in the networks of the benchmarks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.data import tasks
from benchmarks.methods import METHODS
from benchmarks.networks.layers import HEADS
from benchmarks.run import problem as problems
from rgo_jax.baselines import _replay, ring
from tests.benchmarks.problems import two_tasks


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
    drawn = ring.Drawn(
        jax.random.uniform(jax.random.key(1), (4, 64)),
        jnp.arange(4),
        jnp.array([0, 1, 1, 0]),
        jnp.array([1.0, 1.0, 1.0, 0.0]),
    )

    def replayed(params):
        """In the third task."""
        frozen = problem.freeze(params, jnp.int32(2))
        return _replay.replayed_losses(problem.logits, problem.losses, frozen, drawn)

    losses = replayed(params)
    for i in range(4):
        logits = problem.logits(params, drawn.x[i : i + 1], drawn.task_id[i])[0]
        expected = -jax.nn.log_softmax(logits)[i] * drawn.weight[i]
        np.testing.assert_allclose(losses[i], expected, rtol=1e-4, atol=1e-6)
    # An old head is trained on replayed examples, but one frozen after the first task is not.
    grads = jax.grad(lambda params: jnp.sum(replayed(params)))(params)
    moved = any(bool(jnp.any(leaf != 0)) for leaf in jax.tree.leaves(grads["head"]))
    assert moved == (head != "frozen")
