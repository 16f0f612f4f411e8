"""Replay from a tiny memory: the last example of each class in each task.

Arrays of fixed size hold it; what is drawn in a step comes from earlier tasks only, and each
example goes through the network as one of its own task.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from benchmarks.data.tasks import Task
from benchmarks.methods.base import Batch, Method, Problem, loss_and_grads, nothing_to_end


@dataclasses.dataclass(frozen=True)
class Replay:
    """Hyper-parameters of `a_gem` and `er_ring`.

    Attributes:
      batch_size: how many examples are drawn from memory in a step.
    """

    batch_size: int = 10


class Ring(NamedTuple):
    """A ring buffer with room for one example of each class in each task.

    Attributes:
      x: ``[num_tasks, num_classes, *input_shape]``.
      filled: bool ``[num_tasks, num_classes]``: where there is one.
    """

    x: jax.Array
    filled: jax.Array


class Drawn(NamedTuple):
    """Examples from a `Ring`.

    Attributes:
      x: ``[b, *input_shape]``.
      y: int32 ``[b]``.
      task_id: int32 ``[b]``: each one's own.
      weight: float32 ``[b]``: 1; 0 where there were no more to draw.
    """

    x: jax.Array
    y: jax.Array
    task_id: jax.Array
    weight: jax.Array


class ReplayState(NamedTuple):
    """The state of both methods: network, optimizer, memory, and a key to draw from it."""

    params: Any
    opt_state: Any
    ring: Ring
    key: jax.Array


def a_gem(problem: Problem, hyper: Replay | None = None) -> Method:
    """A-GEM: no step may, to first order, raise the loss of the examples drawn from memory.

    Chaudhry et al. 2019, https://arxiv.org/abs/1812.00420
    """

    def loss_and_direction(
        params: Any, batch: Batch, drawn: Drawn, task_id: jax.Array
    ) -> tuple[jax.Array, Any]:
        def replayed_loss(params: Any) -> jax.Array:
            total = jnp.sum(replayed_losses(problem, params, drawn, task_id))
            return total / jnp.maximum(jnp.sum(drawn.weight), 1)

        loss, grads = loss_and_grads(problem, params, batch, task_id)
        return loss, project_to_agree(grads, jax.grad(replayed_loss)(params))

    return _replay_method(problem, hyper or Replay(), loss_and_direction)


def er_ring(problem: Problem, hyper: Replay | None = None) -> Method:
    """Experience replay: each batch is trained together with examples drawn from memory.

    Chaudhry et al. 2019, "On tiny episodic memories in continual learning", its ring buffer.
    https://arxiv.org/abs/1902.10486
    """

    def loss_and_direction(
        params: Any, batch: Batch, drawn: Drawn, task_id: jax.Array
    ) -> tuple[jax.Array, Any]:
        x, y = batch

        def loss_fn(params: Any) -> tuple[jax.Array, jax.Array]:
            logits = problem.logits(params, x, task_id)
            own = problem.losses(logits, y)
            total = jnp.sum(own) + jnp.sum(replayed_losses(problem, params, drawn, task_id))
            return total / (len(y) + jnp.sum(drawn.weight)), jnp.mean(own)

        grads, loss = jax.grad(loss_fn, has_aux=True)(params)
        return loss, grads

    return _replay_method(problem, hyper or Replay(), loss_and_direction)


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


def empty_ring(problem: Problem) -> Ring:
    """A ring with nothing in it."""
    shape = (problem.num_tasks, problem.num_classes)
    return Ring(jnp.zeros((*shape, *problem.input_shape)), jnp.zeros(shape, bool))


def store(ring: Ring, batch: Batch, task_id: jax.Array) -> Ring:
    """A ring that has seen a batch: of each class in it, the last example replaces the old one."""
    x, y = batch
    is_class = jax.nn.one_hot(y, ring.filled.shape[1], dtype=bool)
    place = jnp.max(jnp.where(is_class, jnp.arange(len(y))[:, None], -1), axis=0)
    present = (place >= 0).reshape(-1, *[1] * (x.ndim - 1))
    return Ring(
        ring.x.at[task_id].set(jnp.where(present, x[place], ring.x[task_id])),
        ring.filled.at[task_id].set(ring.filled[task_id] | (place >= 0)),
    )


def draw(ring: Ring, key: jax.Array, task_id: jax.Array, batch_size: int) -> Drawn:
    """Draws from a ring without replacement, uniformly among the examples of earlier tasks."""
    num_tasks, num_classes = ring.filled.shape
    slots = num_tasks * num_classes
    open_ = (ring.filled & (jnp.arange(num_tasks)[:, None] < task_id)).reshape(slots)
    order = jnp.where(open_, jax.random.uniform(key, (slots,)), -1)
    _, drawn = jax.lax.top_k(order, min(batch_size, slots))
    return Drawn(
        ring.x.reshape(slots, *ring.x.shape[2:])[drawn],
        drawn % num_classes,
        drawn // num_classes,
        open_[drawn].astype(jnp.float32),
    )


def replayed_losses(problem: Problem, params: Any, drawn: Drawn, task_id: jax.Array) -> jax.Array:
    """Losses ``[b]`` of replayed examples in the task at hand, 0 where none was drawn."""
    params = problem.freeze(params, task_id)

    def logits(x: jax.Array, own_task: jax.Array) -> jax.Array:
        return problem.logits(params, x[None], own_task)[0]

    outputs = jax.vmap(logits)(drawn.x, drawn.task_id)
    return drawn.weight * problem.losses(outputs, drawn.y)


def _replay_method(
    problem: Problem,
    hyper: Replay,
    loss_and_direction: Callable[[Any, Batch, Drawn, jax.Array], tuple[jax.Array, Any]],
) -> Method:
    """SGD along a direction made from a batch and from what is drawn beside it."""
    optimizer = optax.sgd(problem.learning_rate)

    def init(key: jax.Array) -> ReplayState:
        params = problem.init(key)
        return ReplayState(params, optimizer.init(params), empty_ring(problem), key)

    def start_task(state: ReplayState, task: Task, key: jax.Array) -> ReplayState:
        del task
        return state._replace(key=key)

    def step(state: ReplayState, batch: Batch, task: Task) -> tuple[ReplayState, jax.Array]:
        key, own_key = jax.random.split(state.key)
        drawn = draw(state.ring, own_key, task.id, hyper.batch_size)
        loss, direction = loss_and_direction(state.params, batch, drawn, task.id)
        updates, opt_state = optimizer.update(direction, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return ReplayState(params, opt_state, store(state.ring, batch, task.id), key), loss

    def logits(state: ReplayState, x: jax.Array, task_id: jax.Array) -> jax.Array:
        return problem.logits(state.params, x, task_id)

    return Method(init, start_task, step, nothing_to_end, logits, memory=lambda state: state.ring)
