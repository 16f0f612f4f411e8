"""Orthogonal weights modification: recursive least squares on the inputs of each layer.

Zeng et al. 2019, https://arxiv.org/abs/1810.01256. Once as the paper has it and once as the
authors' programs do. A bias is a kernel whose input is always 1.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.scipy.linalg import cho_factor, cho_solve

from rgo_jax.baselines._method import Apply, Batch, Losses, Method, Task, cross_entropies
from rgo_jax.baselines._projecting import ProjectedState, inputs_of, projecting_method
from rgo_jax.lapack import one_by_one_on_cpu

_matmul = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


def owm(
    apply_fn: Apply,
    tx: optax.GradientTransformation,
    *,
    alpha: float = 1.0,
    decay: float = 1.0,
    online: bool = False,
    mask: Any = True,
    fused: bool = False,
    losses: Losses = cross_entropies,
) -> Method:
    """OWM: gradients across the mean inputs of earlier tasks' batches.

    As in the paper, the P of the finished tasks projects, and a task's batches are folded in at its
    end, at the final parameters. ``online`` is as in the authors' programs: each batch is folded in
    before it is trained on, from the first task on, so gradients are projected across the inputs of
    the task at hand too. One of those programs keeps the epoch that is best on the test data;
    nothing is selected here. The defaults are the authors' for Permuted MNIST.

    Args:
      apply_fn: as for `gpm`.
      tx: as for `gpm`.
      alpha: how weakly inputs are protected, for a task's first batch.
      decay: lambda: the last batch's alpha is ``alpha * decay``, and between them it falls
        exponentially.
      online: whether to fold each batch in before its own step, and not the task at its end.
      mask: as for `gpm`.
      fused: as for `gpm`.
      losses: as for `finetune`.

    Returns:
      The `Method`.

    Example:
      >>> import flax.linen as nn, optax
      >>> from rgo_jax import baselines
      >>> model = nn.Dense(3)
      >>> def apply_fn(params, x, task_id):
      ...     return model.apply({"params": params}, x)
      >>> method = baselines.owm(apply_fn, optax.sgd(0.1))

    References:
      Zeng et al. 2019. https://arxiv.org/abs/1810.01256
    """

    def fold_batch(memory: Any, params: Any, x: jax.Array, task: Task, alpha: Any) -> Any:
        inputs = inputs_of(apply_fn, mask, params, x, task.id)
        return jax.tree.map(lambda p, seen: rls(p, jnp.mean(seen, axis=0), alpha), memory, inputs)

    def fold(memory: Any, params: Any, task: Task) -> Any:
        if online:
            return _symmetric(memory)
        count = len(task.batches)
        alphas = alpha * decay ** (jnp.arange(1, count + 1) / count)

        def fold_next(memory: Any, batch: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
            indices, alpha = batch
            x, _ = task.load(indices)
            return fold_batch(memory, params, x, task, alpha), None

        return _symmetric(jax.lax.scan(fold_next, memory, (task.batches, alphas))[0])

    method = projecting_method(
        apply_fn, tx, losses, mask, _identities, fold, lambda memory: memory, fused
    )
    if not online:
        return method

    def step(state: ProjectedState, batch: Batch, task: Task) -> tuple[ProjectedState, jax.Array]:
        x, _ = batch
        steps = task.epochs * len(task.batches)
        now = alpha * decay ** (state.steps / steps)
        memory = fold_batch(state.memory, state.params, x, task, now)
        return method.step(state._replace(memory=memory, projections=memory), batch, task)

    return method._replace(step=step)


def _identities(dims: Any) -> Any:
    return jax.tree.map(jnp.eye, dims)


def _symmetric(memory: Any) -> Any:
    # Products round differently above and below the diagonal.
    return jax.tree.map(lambda p: (p + p.T) / 2, memory)


@one_by_one_on_cpu
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
    # Of one number, as a dense layer has in each step, without a call of LAPACK.
    solved = vp / gram if len(vectors) == 1 else cho_solve(cho_factor(gram), vp)
    return projection - _matmul(vp.T, solved)
