"""Images whose pixels are put in another order, or rotated."""

import math

import jax
import jax.numpy as jnp
import numpy as np


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
    row, column = _rotated_from(height, width, degrees)
    index = _pixel_index(np.floor(row), np.floor(column), height, width)
    return index.ravel().astype(np.int32)


def bilinear_rotation(height: int, width: int, degrees: float) -> tuple[np.ndarray, np.ndarray]:
    """`rotation_index` with each pixel of the result between four of the image.

    Returns:
      int32 and float32 ``[4, height * width]``: which four, and their weights, which sum to 1. The
      same as ``PIL.Image.rotate(degrees)`` with bilinear interpolation but for the rounding, and
      for pixels at the border, which there are blank or not interpolated, and here fade into it.
    """
    row, column = (x - 0.5 for x in _rotated_from(height, width, degrees))
    indices, weights = [], []
    for y in (np.floor(row), np.floor(row) + 1):
        for x in (np.floor(column), np.floor(column) + 1):
            indices.append(_pixel_index(y, x, height, width))
            weights.append((1 - np.abs(row - y)) * (1 - np.abs(column - x)))
    flat = (4, height * width)
    return (
        np.stack(indices).reshape(flat).astype(np.int32),
        np.stack(weights).reshape(flat).astype(np.float32),
    )


def _rotated_from(height: int, width: int, degrees: float) -> tuple[np.ndarray, np.ndarray]:
    """Where the centre of each pixel of the result lies in the image: row and column, from 0."""
    angle = math.radians(degrees % 360)
    cos, sin = math.cos(angle), math.sin(angle)
    row, column = np.mgrid[:height, :width]
    y, x = row + 0.5 - height / 2, column + 0.5 - width / 2
    # The rotation backwards.
    return sin * x + cos * y + height / 2, cos * x - sin * y + width / 2


def _pixel_index(row: np.ndarray, column: np.ndarray, height: int, width: int) -> np.ndarray:
    """The number of a pixel, one past the last for those outside."""
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    return np.where(inside, row * width + column, height * width).astype(int)


def gather_pixels(
    images: jax.Array, index: jax.Array, weights: jax.Array | None = None
) -> jax.Array:
    """Images ``[b, height, width]`` as float32 ``[b, height * width]`` in a task's pixel order.

    Args:
      images: uint8, 0 to 255, or float32.
      index: int32 ``[height * width]``, which pixel of the image comes where; one past the last
        stands for a blank. With weights ``[k, height * width]``.
      weights: of the k pixels that are summed for each of the result.
    """
    flat = images.reshape(len(images), -1)

    def gather(index: jax.Array) -> jax.Array:
        pixels = jnp.take(flat, index, axis=1, mode="fill", fill_value=0)
        return pixels.astype(jnp.float32) / 255 if pixels.dtype == jnp.uint8 else pixels

    if weights is None:
        return gather(index)
    # One after the other: XLA's CPU backend takes several times as long for all in one gather.
    return sum(
        (gather(index[k]) * weights[k][None] for k in range(1, len(index))),
        start=gather(index[0]) * weights[0][None],
    )
