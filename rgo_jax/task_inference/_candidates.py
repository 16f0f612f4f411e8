"""A network's outputs under the ids of several tasks."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rgo_jax.task_inference._scores import scores

Apply = Callable[[Any, jax.Array, jax.Array], jax.Array]


def logits_by_task(
    apply_fn: Apply,
    params: Any,
    x: jax.Array,
    tasks: jax.typing.ArrayLike,
) -> jax.Array:
    """A network's outputs under the ids of several tasks, in one vmapped pass.

    It costs as many forward passes as there are tasks; see `halve` for less.

    Args:
      apply_fn: ``(params, x [b, ...], task_id) -> logits [b, classes]``; for a Linen module
        ``lambda params, x, task_id: module.apply({"params": params}, x, task_id)``. See
        `rgo_jax.nnx.logits_by_task` for NNX.
      params: its parameters.
      x: ``[b, ...]``.
      tasks: int ``[tasks]``: the ids; or how many there are, counted from 0.

    Returns:
      ``[tasks, b, classes]``.

    Example:
      >>> import jax.numpy as jnp, rgo_jax
      >>> from rgo_jax import task_inference
      >>> def apply(params, x, task_id):
      ...     return rgo_jax.fel_encode(x, task_id) @ params
      >>> task_inference.logits_by_task(apply, jnp.ones((4, 3)), jnp.ones((2, 4)), 5).shape
      (5, 2, 3)
    """
    return jax.vmap(lambda task_id: apply_fn(params, x, task_id))(_ids(tasks))


def _ids(tasks: jax.typing.ArrayLike) -> jax.Array:
    return jnp.asarray(tasks) if jnp.ndim(tasks) else jnp.arange(tasks)


def halve(
    apply_fn: Apply,
    params: Any,
    x: jax.Array,
    tasks: jax.typing.ArrayLike,
    *,
    score: str = "uniform",
    first: int = 1,
) -> jax.Array:
    """The task that all of ``x`` are of, among many: successive halving of the candidates.

    All tasks see the first examples; the better half of them sees twice as many more, and so on.
    That is about ``first * tasks * log2(tasks)`` forward passes of single examples, where
    `logits_by_task` of all takes ``b * tasks``.

    Args:
      apply_fn: as for `logits_by_task`.
      params: its parameters.
      x: ``[b, ...]``: one group of examples. With fewer than ``first * (tasks - 1)`` the
        last comparison is among several tasks.
      tasks: as for `logits_by_task`.
      score: as for `scores`.
      first: how many examples all tasks see.

    Returns:
      int32 scalar: a task's id.

    Raises:
      ValueError: ``first`` is not from 1 to the number of examples; as `scores`.

    Example:
      >>> import jax.numpy as jnp
      >>> from rgo_jax import task_inference
      >>> def apply(params, x, task_id):  # sure under task 3
      ...     return jnp.stack([x[:, 0], jnp.where(task_id == 3, 9.0, 0.0) + x[:, 0]], axis=1)
      >>> int(task_inference.halve(apply, None, jnp.zeros((8, 1)), 10))
      3

    References:
      Successive halving: Karnin et al., ICML 2013.
    """
    if not 1 <= first <= len(x):
        raise ValueError(f"first is {first}; expected 1 to {len(x)}, the number of examples.")
    ids = _ids(tasks)
    totals, begin, size = jnp.zeros(len(ids)), 0, first
    while True:
        logits = logits_by_task(apply_fn, params, x[begin : begin + size], ids)
        totals += jnp.sum(scores(logits, score), axis=1)
        begin, size = begin + size, 2 * size
        if begin >= len(x) or len(ids) == 1:
            return ids[jnp.argmax(totals)].astype(jnp.int32)
        totals, best = jax.lax.top_k(totals, (len(ids) + 1) // 2)
        ids = ids[best]
