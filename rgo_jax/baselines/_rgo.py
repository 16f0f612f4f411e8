"""Recursive Gradient Optimization, the library's own method, as one beside the others."""

from collections.abc import Callable
from typing import Any

import jax
import optax

import rgo_jax
from rgo_jax.baselines._finetune import TrainState, gradient_method
from rgo_jax.baselines._method import Apply, Losses, Method, Task, cross_entropies


def rgo(
    apply_fn: Apply,
    tx: optax.GradientTransformation,
    *,
    alpha: Any = 0.01,
    relative_alpha: bool = False,
    columns: Any = "mean",
    batches: int | None = None,
    curvature: Callable[[jax.Array, jax.Array], jax.Array] = rgo_jax.curvature_output,
    fused: bool = True,
    losses: Losses = cross_entropies,
) -> Method:
    """RGO: `rgo_jax.value_and_grad` in each step, `rgo_jax.consolidate` after each task.

    Args:
      apply_fn: as for `finetune`.
      tx: `rgo_jax.rgo`, or any optimizer that contains `rgo_jax.scale_by_rgo`.
      alpha: as for `rgo_jax.consolidate`.
      relative_alpha: as for `rgo_jax.consolidate`.
      columns: as for `rgo_jax.consolidate`.
      batches: how many of a task's batches are folded in; None for all.
      curvature: ``(outputs, y) -> scalar``: `rgo_jax.curvature_output`, perhaps with arguments.
      fused: False for plain gradients, which an optimizer with a preconditioner before RGO needs.
      losses: as for `finetune`.

    Returns:
      The `Method`.

    Example:
      >>> import rgo_jax
      >>> from rgo_jax import baselines
      >>> method = baselines.rgo(lambda params, x, task_id: x @ params, rgo_jax.rgo(0.1))

    References:
      Liu and Liu, ICLR 2022, Algorithm 1. https://arxiv.org/abs/2201.12522
    """

    def end_task(state: TrainState, task: Task) -> TrainState:
        def output(params: Any, indices: jax.Array) -> jax.Array:
            x, y = task.load(indices)
            return curvature(apply_fn(params, x, task.id), y)

        opt_state = rgo_jax.consolidate(
            state.opt_state,
            output,
            task.batches[:batches],
            state.params,
            alpha=alpha,
            relative_alpha=relative_alpha,
            columns=columns,
        )
        return state._replace(opt_state=opt_state)

    def memory(state: TrainState) -> Any:
        return [kept for _, kept in optax.tree.get_all_with_path(state.opt_state, "projection")]

    method = gradient_method(apply_fn, tx, losses, projected=fused)
    return method._replace(end_task=end_task, memory=memory)
