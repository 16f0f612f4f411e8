"""Task sequences: how a dataset becomes many tasks.

A task never copies the dataset. Permuting or rotating images is an index into their pixels, and a
task's training data is an index into the examples.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# The 20 rotations of the protocol "los", in degrees counter-clockwise; the same in every run.
LOS_ANGLES = (
    7.599797, 17.698082, 20.501815, 35.508837, 39.884129, 48.567038, 57.105131, 69.147087,
    79.353263, 87.098248, 98.922619, 106.190452, 110.190604, 120.896001, 134.619921, 135.283019,
    145.623144, 161.362702, 170.205446, 178.436053,
)  # fmt: skip

# A function (key, task_id) -> int32 [height * width]: which pixel of the image comes where.
# An index of height * width, one past the last pixel, stands for a blank.
PixelIndex = Callable[[jax.Array, jax.Array], jax.Array]


class Task(NamedTuple):
    """What a method sees of the task at hand.

    Attributes:
      id: int32 scalar, from 0.
      load: from example indices ``[b]`` to ``(x float32 [b, height * width], y int32 [b])``.
      batches: int32 ``[num_batches, batch_size]``: one epoch, as example indices.
    """

    id: jax.Array
    load: Callable[[jax.Array], tuple[jax.Array, jax.Array]]
    batches: jax.Array


def permuted(height: int, width: int, num_tasks: int) -> PixelIndex:
    """Permuted images: each task, the first too, has a permutation drawn from the run's key."""
    del num_tasks

    def index(key: jax.Array, task_id: jax.Array) -> jax.Array:
        return jax.random.permutation(jax.random.fold_in(key, task_id), height * width)

    return index


def rotated(height: int, width: int, num_tasks: int) -> PixelIndex:
    """Rotated images: the same angles in every run, nearest neighbour, blank corners.

    Raises:
      ValueError: more tasks than the protocol has angles.
    """
    if num_tasks > len(LOS_ANGLES):
        raise ValueError(
            f"num_tasks is {num_tasks}; the rotated protocol has {len(LOS_ANGLES)} angles. Ask for "
            "that many tasks or fewer."
        )
    table = jnp.asarray(
        np.stack([rotation_index(height, width, angle) for angle in LOS_ANGLES[:num_tasks]])
    )

    def index(key: jax.Array, task_id: jax.Array) -> jax.Array:
        del key
        return table[task_id]

    return index


SEQUENCES: dict[str, Callable[[int, int, int], PixelIndex]] = {
    "permuted": permuted,
    "rotated": rotated,
}


def rotation_index(height: int, width: int, degrees: float) -> np.ndarray:
    """Which pixel of an image comes where when it is rotated about its centre.

    Args:
      height: of the image, in pixels.
      width: of the image, in pixels.
      degrees: the angle, counter-clockwise.

    Returns:
      int32 ``[height * width]``, with ``height * width`` for pixels from outside: the same as
      ``PIL.Image.rotate(degrees)`` with nearest neighbour.
    """
    angle = math.radians(degrees % 360)
    cos, sin = math.cos(angle), math.sin(angle)
    row, column = np.mgrid[:height, :width]
    y, x = row + 0.5 - height / 2, column + 0.5 - width / 2
    # Where each pixel of the result comes from: the rotation backwards, in image coordinates.
    from_column = np.floor(cos * x - sin * y + width / 2).astype(int)
    from_row = np.floor(sin * x + cos * y + height / 2).astype(int)
    inside = (from_row >= 0) & (from_row < height) & (from_column >= 0) & (from_column < width)
    return np.where(inside, from_row * width + from_column, height * width).ravel().astype(np.int32)


def gather_pixels(images: jax.Array, index: jax.Array) -> jax.Array:
    """Images ``[b, height, width]`` as float32 ``[b, height * width]`` in a task's pixel order."""
    flat = images.reshape(len(images), -1)
    pixels = jnp.take(flat, index, axis=1, mode="fill", fill_value=0)
    return pixels.astype(jnp.float32) / 255 if pixels.dtype == jnp.uint8 else pixels


def draw_batches(
    key: jax.Array, num_examples: int, examples_per_task: int, epochs: int, batch_size: int
) -> jax.Array:
    """Draws a task's examples without replacement and shuffles them anew for each epoch.

    Returns:
      int32 ``[epochs, num_batches, batch_size]``; what does not fill a batch is left out.
    """
    draw, shuffle = jax.random.split(key)
    examples = jax.random.permutation(draw, num_examples)[:examples_per_task]
    shuffled = jax.vmap(partial(jax.random.permutation, x=examples))(
        jax.random.split(shuffle, epochs)
    )
    num_batches = examples_per_task // batch_size
    return shuffled[:, : num_batches * batch_size].reshape(epochs, num_batches, batch_size)
