"""Replay from a `ring`: A-GEM and experience replay.

What is drawn in a step comes from earlier tasks only, and each example goes through the model as
one of its own task.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rgo_jax.baselines import ring
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

Freeze = Callable[[Any, jax.Array], Any]


class ReplayState(NamedTuple):
    """The state of both methods.

    Attributes:
      params: the model's parameters.
      opt_state: the optimizer's state.
      ring: the memory.
      key: to draw from it.
    """

    params: Any
    opt_state: Any
    ring: ring.Ring
    key: jax.Array


def a_gem(
    apply_fn: Apply,
    tx: optax.GradientTransformation,
    *,
    num_tasks: int,
    num_classes: int,
    batch_size: int = 10,
    freeze: Freeze = lambda params, task_id: params,
    losses: Losses = cross_entropies,
) -> Method:
    """A-GEM: no step may, to first order, raise the loss of the examples drawn from memory.

    Args:
      apply_fn: as for `finetune`. Examples drawn from memory go through it with their own task's
        id, under `jax.vmap`.
      tx: the optimizer, of the direction that A-GEM has made of the gradient.
      num_tasks: how many tasks there is room for.
      num_classes: labels are integers ``[b]`` below it; one example of each is kept.
      batch_size: how many examples are drawn from memory in a step.
      freeze: ``(params, task_id) -> params`` with the same values, through which no gradient flows
        to parameters that this task does not train, when examples of other tasks are replayed.
      losses: as for `finetune`.

    Returns:
      The `Method`.

    Raises:
      ValueError: from ``start_task``, outside `jax.jit`: for a task or a label without a place.

    Example:
      >>> import optax
      >>> from rgo_jax import baselines
      >>> method = baselines.a_gem(
      ...     lambda params, x, task_id: x @ params, optax.sgd(0.1), num_tasks=5, num_classes=10
      ... )

    References:
      Chaudhry et al. 2019. https://arxiv.org/abs/1812.00420
    """

    def loss_and_direction(
        params: Any, batch: Batch, drawn: ring.Drawn, task_id: jax.Array
    ) -> tuple[jax.Array, Any]:
        def replayed_loss(params: Any) -> jax.Array:
            params = freeze(params, task_id)
            total = jnp.sum(replayed_losses(apply_fn, losses, params, drawn))
            return total / jnp.maximum(jnp.sum(drawn.weight), 1)

        loss, grads = loss_and_grads(apply_fn, losses, params, batch, task_id)
        return loss, project_to_agree(grads, jax.grad(replayed_loss)(params))

    return _replay_method(apply_fn, tx, num_tasks, num_classes, batch_size, loss_and_direction)


def er_ring(
    apply_fn: Apply,
    tx: optax.GradientTransformation,
    *,
    num_tasks: int,
    num_classes: int,
    batch_size: int = 10,
    freeze: Freeze = lambda params, task_id: params,
    losses: Losses = cross_entropies,
) -> Method:
    """Experience replay: each batch is trained together with examples drawn from memory.

    Args:
      apply_fn: as for `a_gem`.
      tx: the optimizer, of the mean loss of both together.
      num_tasks: as for `a_gem`.
      num_classes: as for `a_gem`.
      batch_size: as for `a_gem`.
      freeze: as for `a_gem`.
      losses: as for `finetune`.

    Returns:
      The `Method`.

    Raises:
      ValueError: as from `a_gem`.

    Example:
      >>> import optax
      >>> from rgo_jax import baselines
      >>> method = baselines.er_ring(
      ...     lambda params, x, task_id: x @ params, optax.sgd(0.1), num_tasks=5, num_classes=10
      ... )

    References:
      Chaudhry et al. 2019, On tiny episodic memories in continual learning, its ring buffer.
      https://arxiv.org/abs/1902.10486
    """

    def loss_and_direction(
        params: Any, batch: Batch, drawn: ring.Drawn, task_id: jax.Array
    ) -> tuple[jax.Array, Any]:
        x, y = batch

        def loss_fn(params: Any) -> tuple[jax.Array, jax.Array]:
            own = losses(apply_fn(params, x, task_id), y)
            replayed = replayed_losses(apply_fn, losses, freeze(params, task_id), drawn)
            total = jnp.sum(own) + jnp.sum(replayed)
            return total / (len(y) + jnp.sum(drawn.weight)), jnp.mean(own)

        grads, loss = jax.grad(loss_fn, has_aux=True)(params)
        return loss, grads

    return _replay_method(apply_fn, tx, num_tasks, num_classes, batch_size, loss_and_direction)


def project_to_agree(grads: Any, reference: Any) -> Any:
    """A-GEM's projection: the nearest direction whose product with the reference is not negative.

    Args:
      grads: a tree of gradients.
      reference: another like it, as one vector; zero where there is none.

    Returns:
      A tree like ``grads``, the same where the product is not negative as it is.
    """
    product, length = optax.tree.vdot(grads, reference), optax.tree.vdot(reference, reference)
    # Negative products come with a length; the other quotients are not used, but must be numbers.
    factor = jnp.where(product < 0, product / jnp.where(product < 0, length, 1), 0)
    return jax.tree.map(lambda g, r: g - factor * r, grads, reference)


def replayed_losses(apply_fn: Apply, losses: Losses, params: Any, drawn: ring.Drawn) -> jax.Array:
    """Losses ``[b]`` of replayed examples, each as one of its own task; 0 where none was drawn."""

    def outputs(x: jax.Array, own_task: jax.Array) -> jax.Array:
        return apply_fn(params, x[None], own_task)[0]

    return drawn.weight * losses(jax.vmap(outputs)(drawn.x, drawn.task_id), drawn.y)


def _replay_method(
    apply_fn: Apply,
    tx: optax.GradientTransformation,
    num_tasks: int,
    num_classes: int,
    batch_size: int,
    loss_and_direction: Callable[[Any, Batch, ring.Drawn, jax.Array], tuple[jax.Array, Any]],
) -> Method:
    """Training along a direction made from a batch and from what is drawn beside it."""

    def init(params: Any, x: jax.Array, key: jax.Array) -> ReplayState:
        empty = ring.empty(x, num_tasks, num_classes)
        return ReplayState(params, tx.init(params), empty, key)

    def start_task(state: ReplayState, task: Task, key: jax.Array) -> ReplayState:
        ring.check_room(state.ring, task)
        return fresh_optimizer(tx)(state, task, key)._replace(key=key)

    def step(state: ReplayState, batch: Batch, task: Task) -> tuple[ReplayState, jax.Array]:
        key, own_key = jax.random.split(state.key)
        drawn = ring.draw(state.ring, own_key, task.id, batch_size)
        loss, direction = loss_and_direction(state.params, batch, drawn, task.id)
        updates, opt_state = tx.update(direction, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return ReplayState(params, opt_state, ring.store(state.ring, batch, task.id), key), loss

    def apply(state: ReplayState, x: jax.Array, task_id: jax.Array) -> jax.Array:
        return apply_fn(state.params, x, task_id)

    return Method(init, start_task, step, nothing_to_end, apply, memory=lambda state: state.ring)
