"""Orthogonal weights modification: recursive least squares on the inputs of each layer."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_factor, cho_solve

from benchmarks.methods.base import Method, Problem
from benchmarks.methods.layers import layer_inputs, projecting_method
from benchmarks.tasks import Task

_matmul = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


@dataclasses.dataclass(frozen=True)
class Owm:
    """Hyper-parameters of `owm`. As they are, the authors' for Permuted MNIST.

    Attributes:
      alpha: how weakly inputs are protected, for a task's first batch.
      decay: lambda: the last batch's alpha is ``alpha * decay``, and between them it falls
        exponentially.
    """

    alpha: float = 1.0
    decay: float = 1.0


def owm(problem: Problem, hyper: Owm | None = None) -> Method:
    """OWM: gradients across the mean inputs of earlier tasks' batches.

    Zeng et al. 2019, https://arxiv.org/abs/1810.01256. As in the paper, the P of the finished tasks
    projects, and a task's batches are folded in at its end, at the final parameters. The authors'
    programs fold each in as it is trained on, and one of them keeps the epoch that is best on the
    test data; nothing is selected here. A bias is a kernel whose input is always 1.
    """
    hyper = hyper or Owm()

    def empty(dims: Any) -> Any:
        return jax.tree.map(jnp.eye, dims)

    def fold(memory: Any, params: Any, task: Task) -> Any:
        count = len(task.batches)
        alphas = hyper.alpha * hyper.decay ** (jnp.arange(1, count + 1) / count)

        def fold_batch(memory: Any, batch: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
            indices, alpha = batch
            x, _ = task.load(indices)
            inputs = layer_inputs(problem, params, x, task.id)
            return jax.tree.map(
                lambda p, seen: rls(p, jnp.mean(seen, axis=0), alpha), memory, inputs
            ), None

        memory, _ = jax.lax.scan(fold_batch, memory, (task.batches, alphas))
        # Products round differently above and below the diagonal.
        return jax.tree.map(lambda p: (p + p.T) / 2, memory)

    return projecting_method(problem, empty, fold, matrices=lambda memory: memory)


def rls(projection: jax.Array, vectors: jax.Array, alpha: jax.typing.ArrayLike) -> jax.Array:
    """Recursive least squares: ``P - P V' (alpha I + V P V')^-1 V P``.

    Args:
      projection: ``P [d, d]``, symmetric positive definite.
      vectors: ``V [k, d]``; one for a dense layer, one for each position of a convolution.
      alpha: scalar, positive.

    Returns:
      ``[d, d]``: the inverse of ``P^-1 + V' V / alpha``.
    """
    if len(vectors) > vectors.shape[1]:
        # The same V' V in fewer rows.
        vectors = jnp.linalg.qr(vectors, mode="r")
    vp = _matmul(vectors, projection)
    gram = _matmul(vp, vectors.T) + alpha * jnp.eye(len(vectors))
    return projection - _matmul(vp.T, cho_solve(cho_factor(gram), vp))
