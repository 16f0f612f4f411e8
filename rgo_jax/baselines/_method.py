"""What a task is, what a method is, and what the methods have in common."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import rgo_jax
from rgo_jax import _next_task

Batch = tuple[jax.Array, jax.Array]
Apply = Callable[[Any, jax.Array, jax.Array], jax.Array]
Losses = Callable[[jax.Array, jax.Array], jax.Array]

cross_entropies: Losses = optax.softmax_cross_entropy_with_integer_labels


class Task(NamedTuple):
    """What a method sees of the task at hand.

    Attributes:
      id: int32 scalar, from 0.
      load: from example indices ``[b]`` to ``(x [b, ...], y [b, ...])``.
      batches: int32 ``[num_batches, batch_size]``: one epoch, as example indices.
      epochs: how many times the method's ``step`` goes through as many batches.
    """

    id: jax.Array
    load: Callable[[jax.Array], Batch]
    batches: jax.Array
    epochs: int = 1


class Method(NamedTuple):
    """A method: pure functions around a state of its own, any pytree of arrays of fixed shapes.

    They run under `jax.jit`, `jax.vmap` and `jax.lax.scan`, with the task's id traced; so whatever
    a method remembers (a buffer, a Fisher matrix, bases, masks) is an array of fixed size in its
    state. `train_sequence` takes a method through a list of tasks; a training loop of your own
    calls the functions in the order in which they stand here.

    Attributes:
      init: ``(params, x, key) -> state``, once. ``x [b, ...]`` are examples, of which only shape
        and dtype matter. The parameters at any time are the state's ``params``.
      start_task: ``(state, task, key) -> state``, before a task's first step.
      step: ``(state, (x, y), task) -> (state, loss)``, once a batch.
      end_task: ``(state, task) -> state``, after the last step; ``task.batches`` and
        ``task.load`` give one more pass over the task's data.
      apply: ``(state, x, task_id) -> outputs``, for evaluation on any task so far.
      memory: ``(state) -> pytree``: what the state keeps from one task for the next beside the
        model and its optimizer.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from rgo_jax import baselines
      >>> method = baselines.ewc(lambda params, x, task_id: x @ params, optax.sgd(0.1))
      >>> x, y = jnp.eye(4), jnp.array([0, 1, 2, 0])
      >>> state = method.init(jnp.zeros((4, 3)), x, jax.random.key(0))
      >>> for task_id in range(2):
      ...     batches = jnp.arange(4).reshape(2, 2)
      ...     task = baselines.Task(jnp.int32(task_id), lambda i: (x[i], y[i]), batches)
      ...     state = method.start_task(state, task, jax.random.key(task_id))
      ...     for batch in batches:
      ...         state, loss = method.step(state, task.load(batch), task)
      ...     state = method.end_task(state, task)
      >>> state.params.shape
      (4, 3)
    """

    init: Callable[..., Any]
    start_task: Callable[[Any, Task, jax.Array], Any]
    step: Callable[[Any, Batch, Task], tuple[Any, jax.Array]]
    end_task: Callable[[Any, Task], Any]
    apply: Callable[[Any, jax.Array, jax.Array], jax.Array]
    memory: Callable[[Any], Any]


def loss_and_grads(
    apply_fn: Apply,
    losses: Losses,
    params: Any,
    batch: Batch,
    task_id: jax.Array,
    rgo_state: Any = None,
) -> tuple[jax.Array, Any]:
    """Mean loss of a batch and its gradient, with ``rgo_state`` as `rgo_jax.value_and_grad` has it.

    Args:
      apply_fn: the model.
      losses: of single examples.
      params: its parameters.
      batch: examples and labels.
      task_id: int32 scalar.
      rgo_state: an optimizer state with projections; by default the gradient is the plain one.
    """
    x, y = batch

    def loss_fn(params: Any) -> jax.Array:
        return jnp.mean(losses(apply_fn(params, x, task_id), y))

    if rgo_state is None:
        return jax.value_and_grad(loss_fn)(params)
    return rgo_jax.value_and_grad(loss_fn, rgo_state)(params)


def fresh_optimizer(
    tx: optax.GradientTransformation,
) -> Callable[[Any, Task, jax.Array], Any]:
    """The ``start_task`` of most methods: all of the optimizer but P starts anew.

    Momentum that has built up in one task would move the parameters in the next, and no method
    protects earlier tasks from that.
    """

    def start_task(state: Any, task: Task, key: jax.Array) -> Any:
        del task, key
        return state._replace(opt_state=_next_task.restart(tx, state.opt_state, state.params))

    return start_task


def nothing_to_end(state: Any, task: Task) -> Any:
    """The ``end_task`` of a method that has nothing to do there."""
    del task
    return state
