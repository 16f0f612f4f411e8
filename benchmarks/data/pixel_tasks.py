"""Tasks that move pixels: all examples in each of them, permuted or rotated.

Both are an index into an image's pixels, so that no task copies the dataset.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.data.dataset import Dataset
from benchmarks.data.limits import check_memory
from benchmarks.data.pixels import bilinear_rotation, gather_pixels, rotation_index
from benchmarks.data.task import Pool, Sequence

# The 20 rotations of the harness of Chaudhry et al., in degrees counter-clockwise; the same in
# every run.
LOS_ANGLES = (
    7.599797, 17.698082, 20.501815, 35.508837, 39.884129, 48.567038, 57.105131, 69.147087,
    79.353263, 87.098248, 98.922619, 106.190452, 110.190604, 120.896001, 134.619921, 135.283019,
    145.623144, 161.362702, 170.205446, 178.436053,
)  # fmt: skip

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
        own_classes=False,
        pool=pool,
        encode=encode,
    )
