"""What a sequence of tasks is."""

from collections.abc import Callable
from typing import NamedTuple

import jax


class Pool(NamedTuple):
    """The examples that a task draws from.

    Attributes:
      indices: int32 ``[n]``, of examples in the dataset.
      valid: bool ``[n]``, false for what only fills up; or None if all are valid.
    """

    indices: jax.Array
    valid: jax.Array | None = None


class Sequence(NamedTuple):
    """A sequence of tasks, as pure functions of a seed's key and a task's id, which may be traced.

    Attributes:
      num_classes: the number of classes in a task.
      input_shape: of one example, as the network gets it.
      smallest: the training examples that each task has, at least.
      largest: those that a task has, at most.
      own_classes: whether each task has classes of its own, in place of all tasks the same.
      pool: ``(split, key, task_id) -> Pool`` for the split "train" or "test".
      encode: ``(key, task_id) -> (images, labels) -> (x, y)``: from the dataset's examples to the
        network's float32 ``[b, *input_shape]`` and int32 ``[b]``.
    """

    num_classes: int
    input_shape: tuple[int, ...]
    smallest: int
    largest: int
    own_classes: bool
    pool: Callable[[str, jax.Array, jax.Array], Pool]
    encode: Callable[
        [jax.Array, jax.Array], Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
    ]
