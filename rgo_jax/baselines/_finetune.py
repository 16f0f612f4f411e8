"""Training with an optimizer and nothing else: what a method has to beat."""

from typing import Any, NamedTuple

import jax
import optax

from rgo_jax.baselines._method import (
    Apply,
    Batch,
    Losses,
    Method,
    Task,
    cross_entropies,
    fresh_optimizer,
    loss_and_grads,
    nothing_to_end,
)


class TrainState(NamedTuple):
    """The state of a method that remembers nothing beside its optimizer's state.

    Attributes:
      params: the model's parameters.
      opt_state: the optimizer's state.
    """

    params: Any
    opt_state: Any


def finetune(
    apply_fn: Apply, tx: optax.GradientTransformation, *, losses: Losses = cross_entropies
) -> Method:
    """Plain training through all tasks, which forgets: the lower bound.

    Args:
      apply_fn: the model: ``(params, x, task_id) -> outputs``, ``[b, num_classes]`` for a
        classifier. The task's id is a traced int32 scalar.
      tx: the optimizer.
      losses: ``(outputs, y) -> [b]``: of single examples; by default the cross-entropy with integer
        labels.

    Returns:
      The `Method`.

    Example:
      >>> import optax
      >>> from rgo_jax import baselines
      >>> method = baselines.finetune(lambda params, x, task_id: x @ params, optax.sgd(0.1))
    """
    return gradient_method(apply_fn, tx, losses, projected=False)


def gradient_method(
    apply_fn: Apply, tx: optax.GradientTransformation, losses: Losses, *, projected: bool
) -> Method:
    """Training with an optimizer; ``projected``: on gradients of `rgo_jax.value_and_grad`."""

    def init(params: Any, x: jax.Array, key: jax.Array) -> TrainState:
        del x, key
        return TrainState(params, tx.init(params))

    def step(state: TrainState, batch: Batch, task: Task) -> tuple[TrainState, jax.Array]:
        rgo_state = state.opt_state if projected else None
        loss, grads = loss_and_grads(apply_fn, losses, state.params, batch, task.id, rgo_state)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        return TrainState(optax.apply_updates(state.params, updates), opt_state), loss

    def apply(state: TrainState, x: jax.Array, task_id: jax.Array) -> jax.Array:
        return apply_fn(state.params, x, task_id)

    return Method(init, fresh_optimizer(tx), step, nothing_to_end, apply, memory=lambda state: ())
