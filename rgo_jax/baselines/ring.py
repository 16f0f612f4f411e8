"""A tiny memory of examples, in arrays of fixed size: the last of each class in each task.

Chaudhry et al. 2019, "On tiny episodic memories in continual learning", its ring buffer.
https://arxiv.org/abs/1902.10486
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rgo_jax.baselines._method import Batch, Task


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


def empty(x: jax.Array, num_tasks: int, num_classes: int) -> Ring:
    """A ring with nothing in it.

    Args:
      x: ``[b, ...]``, examples of which only shape and dtype matter.
      num_tasks: the length of the sequence.
      num_classes: labels are below it.
    """
    shape = (num_tasks, num_classes)
    return Ring(jnp.zeros((*shape, *x.shape[1:]), x.dtype), jnp.zeros(shape, bool))


def check_room(ring: Ring, task: Task) -> None:
    """Refuses a task that the ring has no place for, outside `jax.jit`; inside nothing is known.

    Raises:
      ValueError: its number, or one of its labels, is too large.
    """
    if isinstance(task.id, jax.core.Tracer) or isinstance(task.batches, jax.core.Tracer):
        return
    num_tasks, num_classes = ring.filled.shape
    if task.id >= num_tasks:
        raise ValueError(
            f"Task {int(task.id)}, counted from 0, has no place in memory: num_tasks is "
            f"{num_tasks}. Give the method as many as there will be."
        )
    # Not under jit, which would compile for each task anew.
    _, labels = task.load(task.batches.reshape(-1))
    low, high = int(jnp.min(labels)), int(jnp.max(labels))
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"Task {int(task.id)} has labels from {low} to {high}, but the memory has places for "
            f"0 to {num_classes - 1}: num_classes is {num_classes}. Give the method as many as "
            "there are."
        )


def store(ring: Ring, batch: Batch, task_id: jax.Array) -> Ring:
    """A ring that has seen a batch: of each class in it, the last example replaces the old one.

    Raises:
      ValueError: labels are not ``[b]``.
    """
    x, y = batch
    if y.ndim != 1:
        raise ValueError(
            f"Labels have shape {y.shape}; expected [b], a class for each example: the memory has "
            "one of each class."
        )
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
