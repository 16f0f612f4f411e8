"""Task sequences: how a dataset becomes many tasks.

A task never copies the dataset. Permuting or rotating images is an index into their pixels, and a
task's data is an index into the examples.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.data import Dataset
from benchmarks.pixels import bilinear_rotation, gather_pixels, rotation_index

# The 20 rotations of the protocol "los", in degrees counter-clockwise; the same in every run.
LOS_ANGLES = (
    7.599797, 17.698082, 20.501815, 35.508837, 39.884129, 48.567038, 57.105131, 69.147087,
    79.353263, 87.098248, 98.922619, 106.190452, 110.190604, 120.896001, 134.619921, 135.283019,
    145.623144, 161.362702, 170.205446, 178.436053,
)  # fmt: skip


class Task(NamedTuple):
    """What a method sees of the task at hand.

    Attributes:
      id: int32 scalar, from 0.
      load: from example indices ``[b]`` to ``(x float32 [b, ...], y int32 [b])``.
      batches: int32 ``[num_batches, batch_size]``: one epoch, as example indices.
    """

    id: jax.Array
    load: Callable[[jax.Array], tuple[jax.Array, jax.Array]]
    batches: jax.Array


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
      pool: ``(split, key, task_id) -> Pool`` for the split "train" or "test".
      encode: ``(key, task_id) -> (images, labels) -> (x, y)``: from the dataset's examples to the
        network's float32 ``[b, *input_shape]`` and int32 ``[b]``.
    """

    num_classes: int
    input_shape: tuple[int, ...]
    smallest: int
    pool: Callable[[str, jax.Array, jax.Array], Pool]
    encode: Callable[
        [jax.Array, jax.Array], Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
    ]


# Of rotated images.
INTERPOLATIONS = ("nearest", "bilinear")


def permuted(dataset: Dataset, num_tasks: int, interpolation: str = "nearest") -> Sequence:
    """Permuted images: each task, the first too, has a permutation drawn from the run's key.

    Raises:
      ValueError: colour images.
    """
    del num_tasks, interpolation
    height, width = _grey_shape(dataset)

    def index(key: jax.Array, task_id: jax.Array) -> tuple[jax.Array, None]:
        return jax.random.permutation(jax.random.fold_in(key, task_id), height * width), None

    return _by_pixels(dataset, index)


def rotated(dataset: Dataset, num_tasks: int, interpolation: str = "nearest") -> Sequence:
    """Rotated images: the same angles in every run, blank corners.

    Raises:
      ValueError: colour images, or more tasks than the protocol has angles.
    """
    height, width = _grey_shape(dataset)
    if num_tasks > len(LOS_ANGLES):
        raise ValueError(
            f"num_tasks is {num_tasks}; the rotated protocol has {len(LOS_ANGLES)} angles. Ask for "
            "that many tasks or fewer."
        )
    angles = LOS_ANGLES[:num_tasks]
    if interpolation == "bilinear":
        rotations = [bilinear_rotation(height, width, angle) for angle in angles]
        indices = jnp.asarray(np.stack([index for index, _ in rotations]))
        weights = jnp.asarray(np.stack([weight for _, weight in rotations]))
        return _by_pixels(dataset, lambda key, task_id: (indices[task_id], weights[task_id]))
    table = jnp.asarray(np.stack([rotation_index(height, width, angle) for angle in angles]))
    return _by_pixels(dataset, lambda key, task_id: (table[task_id], None))


def _grey_shape(dataset: Dataset) -> tuple[int, int]:
    if dataset.x_train.ndim != 3:
        raise ValueError(
            f"{dataset.name} has images of shape {dataset.x_train.shape[1:]}; permuted and rotated "
            "sequences need grey ones. Ask for the sequence split."
        )
    height, width = dataset.x_train.shape[1:]
    return height, width


def _by_pixels(
    dataset: Dataset, index: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array | None]]
) -> Sequence:
    """Tasks that have all examples, with the pixels in an order of their own.

    ``index`` gives for a key and a task what `gather_pixels` takes.
    """
    sizes = {"train": len(dataset.x_train), "test": len(dataset.x_test)}

    def pool(split: str, key: jax.Array, task_id: jax.Array) -> Pool:
        del key, task_id
        return Pool(jnp.arange(sizes[split]))

    def encode(
        key: jax.Array, task_id: jax.Array
    ) -> Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
        order, weights = index(key, task_id)
        return lambda images, labels: (gather_pixels(images, order, weights), labels)

    return Sequence(
        num_classes=dataset.num_classes,
        input_shape=(math.prod(dataset.x_train.shape[1:]),),
        smallest=sizes["train"],
        pool=pool,
        encode=encode,
    )


def split(dataset: Dataset, num_tasks: int, interpolation: str = "nearest") -> Sequence:
    """Classes are dealt out to the tasks, in an order drawn from the run's key.

    Raises:
      ValueError: the tasks do not divide the classes.
    """
    del interpolation
    if dataset.num_classes % num_tasks or num_tasks == dataset.num_classes:
        divisors = [n for n in range(1, dataset.num_classes) if dataset.num_classes % n == 0]
        raise ValueError(
            f"num_tasks is {num_tasks}, but {dataset.name} has {dataset.num_classes} classes; "
            "expected a divisor, so that each task has as many, at least 2. Set --num-tasks to "
            f"one of {', '.join(map(str, divisors)) or 'none: one class is no task'}."
        )

    def classes(key: jax.Array) -> jax.Array:
        return jax.random.permutation(key, dataset.num_classes).reshape(num_tasks, -1)

    return _by_classes(dataset, classes, dataset.num_classes // num_tasks)


def superclass(dataset: Dataset, num_tasks: int, interpolation: str = "nearest") -> Sequence:
    """Each task is a superclass, in an order drawn from the run's key.

    Raises:
      ValueError: the dataset has no superclasses, or fewer than tasks, or of different sizes.
    """
    del interpolation
    if dataset.superclasses is None:
        raise ValueError(f"{dataset.name} has no superclasses. Ask for the sequence split.")
    sizes = np.bincount(dataset.superclasses)
    if sizes.min() != sizes.max() or num_tasks > len(sizes):
        raise ValueError(
            f"num_tasks is {num_tasks}, but {dataset.name} has {len(sizes)} superclasses of "
            f"{sizes.min()} to {sizes.max()} classes; expected at least as many, of one size."
        )
    table = jnp.asarray(np.argsort(dataset.superclasses, kind="stable").reshape(len(sizes), -1))

    def classes(key: jax.Array) -> jax.Array:
        return table[jax.random.permutation(key, len(table))]

    return _by_classes(dataset, classes, int(sizes[0]))


def _by_classes(
    dataset: Dataset, classes: Callable[[jax.Array], jax.Array], num_classes: int
) -> Sequence:
    """Tasks that have some of the classes; ``classes`` gives for a key ``[tasks, num_classes]``.

    Labels count from 0 in each task. The mean training image is subtracted.
    """
    tables = {
        name: _examples_by_class(dataset, name, labels)
        for name, labels in (("train", dataset.y_train), ("test", dataset.y_test))
    }
    shape = dataset.x_train.shape[1:]
    shape = shape if len(shape) == 3 else (*shape, 1)
    mean = jnp.asarray(dataset.x_train.mean(axis=0, dtype=np.float64).reshape(shape), jnp.float32)
    scale = 1 / 255 if dataset.x_train.dtype == np.uint8 else 1.0
    counts = np.sort(np.bincount(dataset.y_train, minlength=dataset.num_classes))

    def pool(split: str, key: jax.Array, task_id: jax.Array) -> Pool:
        indices = jnp.asarray(tables[split])[classes(key)[task_id]].ravel()
        is_full = tables[split].min() >= 0
        return Pool(jnp.maximum(indices, 0), None if is_full else indices >= 0)

    def encode(
        key: jax.Array, task_id: jax.Array
    ) -> Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
        own = classes(key)[task_id]

        def examples(images: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
            x = (images.reshape(-1, *shape).astype(jnp.float32) - mean[None]) * scale
            return x, jnp.argmax(labels[:, None] == own[None], axis=1).astype(jnp.int32)

        return examples

    return Sequence(
        num_classes=num_classes,
        input_shape=shape,
        smallest=int(counts[:num_classes].sum()),
        pool=pool,
        encode=encode,
    )


def _examples_by_class(dataset: Dataset, split: str, labels: np.ndarray) -> np.ndarray:
    """int32 ``[num_classes, most]``: each class's examples, filled up with -1.

    Raises:
      ValueError: a class has no examples.
    """
    num_classes = dataset.num_classes
    counts = np.bincount(labels, minlength=num_classes)
    if not counts.all():
        raise ValueError(
            f"{dataset.name}: class {counts.argmin()} has no examples in the {split} data; "
            f"expected some of each class, 0 to {num_classes - 1}, in training and in test data. "
            "With --validation the last sixth of the training data is held out: store them in "
            "mixed order."
        )
    table = np.full((num_classes, np.bincount(labels).max()), -1, np.int32)
    for label in range(num_classes):
        examples = np.flatnonzero(labels == label)
        table[label, : len(examples)] = examples
    return table


SEQUENCES: dict[str, Callable[[Dataset, int, str], Sequence]] = {
    "permuted": permuted,
    "rotated": rotated,
    "split": split,
    "superclass": superclass,
}


def draw_batches(
    key: jax.Array, pool: Pool, num_examples: int, epochs: int, batch_size: int
) -> jax.Array:
    """Draws a task's examples without replacement and shuffles them anew for each epoch.

    Returns:
      int32 ``[epochs, num_batches, batch_size]``; what does not fill a batch is left out.
    """
    draw, shuffle = jax.random.split(key)
    order = jax.random.permutation(draw, len(pool.indices))
    if pool.valid is not None:
        order = order[jnp.argsort(~pool.valid[order], stable=True)]
    examples = pool.indices[order[:num_examples]]
    shuffled = jax.vmap(partial(jax.random.permutation, x=examples))(
        jax.random.split(shuffle, epochs)
    )
    num_batches = num_examples // batch_size
    return shuffled[:, : num_batches * batch_size].reshape(epochs, num_batches, batch_size)
