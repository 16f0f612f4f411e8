"""Tasks that have some of a dataset's classes each, at random or by superclass.

A task's data is an index into the examples, so that no task copies the dataset.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.data.dataset import Dataset
from benchmarks.data.task import Pool, Sequence


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
        own_classes=True,
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
