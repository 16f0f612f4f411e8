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
from benchmarks.limits import check_memory
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
      largest: those that a task has, at most.
      pool: ``(split, key, task_id) -> Pool`` for the split "train" or "test".
      encode: ``(key, task_id) -> (images, labels) -> (x, y)``: from the dataset's examples to the
        network's float32 ``[b, *input_shape]`` and int32 ``[b]``.
    """

    num_classes: int
    input_shape: tuple[int, ...]
    smallest: int
    largest: int
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
            f"--num-tasks is {num_tasks}; the rotated protocol has {len(LOS_ANGLES)} angles. Set "
            f"--num-tasks to {len(LOS_ANGLES)} or less."
        )
    # Of a bilinear rotation each pixel has four pixels and their weights, of four bytes each.
    check_memory(
        f"{dataset.name}: where the {height} x {width} pixels come from in {num_tasks} rotations",
        num_tasks * height * width * (32 if interpolation == "bilinear" else 4),
        "Scale the images down, or lower --num-tasks.",
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
            "tasks need grey ones. Name split in their place."
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
        largest=sizes["train"],
        pool=pool,
        encode=encode,
    )


def split(dataset: Dataset, num_tasks: int, interpolation: str = "nearest") -> Sequence:
    """Classes are dealt out to the tasks, in an order drawn from the run's key.

    Raises:
      ValueError: the tasks do not divide the classes.
    """
    del interpolation
    if dataset.num_classes < 2:
        raise ValueError(f"{dataset.name} has one class; expected at least 2, to be told apart.")
    if dataset.num_classes % num_tasks or num_tasks == dataset.num_classes:
        divisors = [n for n in range(1, dataset.num_classes) if dataset.num_classes % n == 0]
        raise ValueError(
            f"--num-tasks is {num_tasks}, but {dataset.name} has {dataset.num_classes} classes; "
            "expected a divisor, so that each task has as many, at least 2. Set --num-tasks to "
            f"{'one of ' if len(divisors) > 1 else ''}{', '.join(map(str, divisors))}."
        )

    def classes(key: jax.Array) -> jax.Array:
        return jax.random.permutation(key, dataset.num_classes).reshape(num_tasks, -1)

    in_a_task = dataset.num_classes // num_tasks
    counts = np.sort(np.bincount(dataset.y_train, minlength=dataset.num_classes))
    sizes = int(counts[:in_a_task].sum()), int(counts[-in_a_task:].sum())
    return _by_classes(dataset, classes, in_a_task, sizes)


def superclass(dataset: Dataset, num_tasks: int, interpolation: str = "nearest") -> Sequence:
    """Each task is a superclass, in an order drawn from the run's key.

    Raises:
      ValueError: the dataset has no superclasses, or fewer than tasks, or of different sizes.
    """
    del interpolation
    if dataset.superclasses is None:
        raise ValueError(
            f"{dataset.name} has no superclasses. Name split in place of superclass, or add the "
            "array superclasses to the file."
        )
    members = np.bincount(dataset.superclasses)
    if members.min() != members.max():
        raise ValueError(
            f"{dataset.name} has superclasses of {members.min()} to {members.max()} classes; "
            "expected all of one size. Leave classes out, or name split in place of superclass."
        )
    if num_tasks > len(members):
        raise ValueError(
            f"--num-tasks is {num_tasks}, but {dataset.name} has {len(members)} superclasses. Set "
            f"--num-tasks to {len(members)} or less."
        )
    table = np.argsort(dataset.superclasses, kind="stable").reshape(len(members), -1)
    sizes = np.bincount(dataset.y_train, minlength=dataset.num_classes)[table].sum(axis=1)

    def classes(key: jax.Array) -> jax.Array:
        return jnp.asarray(table)[jax.random.permutation(key, len(table))]

    return _by_classes(dataset, classes, table.shape[1], (int(sizes.min()), int(sizes.max())))


def _by_classes(
    dataset: Dataset,
    classes: Callable[[jax.Array], jax.Array],
    num_classes: int,
    sizes: tuple[int, int],
) -> Sequence:
    """Tasks that have some of the classes.

    Labels count from 0 in each task. The mean training image is subtracted.

    Args:
      dataset: the data.
      classes: gives for a key the classes of all tasks, ``[tasks, num_classes]``.
      num_classes: of each task.
      sizes: the training examples that a task has, at least and at most.
    """
    pools = {
        "train": _pool_of_classes(dataset, "train", dataset.y_train, num_classes),
        "test": _pool_of_classes(dataset, "test", dataset.y_test, num_classes),
    }
    shape = dataset.x_train.shape[1:]
    shape = shape if len(shape) == 3 else (*shape, 1)
    mean = jnp.asarray(dataset.x_train.mean(axis=0, dtype=np.float64).reshape(shape), jnp.float32)
    scale = 1 / 255 if dataset.x_train.dtype == np.uint8 else 1.0

    def pool(split: str, key: jax.Array, task_id: jax.Array) -> Pool:
        return pools[split](classes(key)[task_id])

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
        smallest=sizes[0],
        largest=sizes[1],
        pool=pool,
        encode=encode,
    )


def _pool_of_classes(
    dataset: Dataset, split: str, labels: np.ndarray, num_classes: int
) -> Callable[[jax.Array], Pool]:
    """From so many classes to the pool of their examples, class after class.

    Raises:
      ValueError: a class has no examples.
    """
    counts = np.bincount(labels, minlength=dataset.num_classes)
    if not counts.all():
        raise ValueError(
            f"{dataset.name}: {dataset.class_name(int(counts.argmin()))} has no examples in the "
            f"{split} data; expected some of each of the {dataset.num_classes} classes, in "
            "training and in test data. With --validation the last sixth of the training data is "
            "held out, and with --training-images the first are used: store them in mixed order."
        )
    by_class = np.argsort(labels, kind="stable")
    starts = np.cumsum(counts) - counts
    most = int(np.sort(counts)[-num_classes:].sum())
    is_even = counts.min() == counts.max()

    def pool(classes: jax.Array) -> Pool:
        own = jnp.asarray(counts)[classes]
        ends = jnp.cumsum(own)
        place = jnp.arange(most)
        which = jnp.repeat(jnp.arange(len(own)), own, total_repeat_length=most)
        within = place - (ends - own)[which]
        # What lies past the last example is clipped to some other.
        indices = jnp.asarray(by_class)[jnp.asarray(starts)[classes][which] + within]
        return Pool(indices, None if is_even else place < ends[-1])

    return pool


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

    A pool of fewer examples is gone through again until there are as many as are to be drawn.

    Returns:
      int32 ``[epochs, num_batches, batch_size]``; what does not fill a batch is left out.
    """
    draw, shuffle = jax.random.split(key)
    order = jax.random.permutation(draw, len(pool.indices))
    if pool.valid is not None:
        order = order[jnp.argsort(~pool.valid[order], stable=True)]
        order = order[jnp.arange(num_examples) % jnp.sum(pool.valid)]
    examples = pool.indices[order[:num_examples]]
    shuffled = jax.vmap(partial(jax.random.permutation, x=examples))(
        jax.random.split(shuffle, epochs)
    )
    num_batches = num_examples // batch_size
    return shuffled[:, : num_batches * batch_size].reshape(epochs, num_batches, batch_size)
