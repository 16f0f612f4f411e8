"""Pixels in another order, and images rotated."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from benchmarks.data import pixels
from benchmarks.data.tasks import LOS_ANGLES


@pytest.mark.parametrize("degrees", [*LOS_ANGLES, 0.0, 90.0, 180.0, -30.0, 400.0])
@pytest.mark.parametrize("shape", [(28, 28), (8, 8)])
def test_rotation_is_pillows(degrees, shape):
    image = np.random.default_rng(0).integers(1, 256, shape).astype(np.uint8)
    expected = np.asarray(Image.fromarray(image).rotate(degrees, Image.Resampling.NEAREST))
    index = pixels.rotation_index(*shape, degrees)
    ours = np.append(image.ravel(), 0)[index].reshape(shape)
    # Pillow reckons in 16-bit fixed point: where a source coordinate falls within 2^-16 of the edge
    # of a pixel, it can take the neighbour (2 of 784 pixels at one of the 20 angles).
    assert np.sum(ours != expected) <= 2


def test_rotation_is_counter_clockwise():
    image = np.zeros((3, 3), np.uint8)
    image[0, 1] = 255  # twelve o'clock
    ours = np.append(image.ravel(), 0)[pixels.rotation_index(3, 3, 90.0)].reshape(3, 3)
    assert ours[1, 0] == 255  # nine o'clock


@pytest.mark.parametrize("degrees", [*LOS_ANGLES, 90.0, -30.0, 400.0])
@pytest.mark.parametrize("shape", [(28, 28), (8, 8), (9, 6)])
def test_bilinear_rotation_is_pillows(degrees, shape):
    image = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    expected = np.asarray(Image.fromarray(image).rotate(degrees, Image.Resampling.BILINEAR))
    index, weights = pixels.bilinear_rotation(*shape, degrees)
    assert index.shape == weights.shape == (4, image.size)
    assert (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(axis=0), 1, rtol=1e-6)
    ours = (np.append(image.ravel(), 0)[index] * weights).sum(axis=0)
    # Where all that counts is inside the image; at the border Pillow has rules of its own.
    inside = np.all((index < image.size) | (weights < 1e-6), axis=0)
    assert inside.mean() > 0.3
    differences = np.abs(ours - expected.ravel())[inside]
    assert differences.max() < 1  # it rounds, and reckons in fixed point
    # It is no other rotation by accident.
    nearest = np.append(image.ravel(), 0)[pixels.rotation_index(*shape, degrees)]
    if degrees % 90:
        assert np.abs(nearest - expected.ravel())[inside].max() > 10


def test_bilinear_rotation_by_nothing_is_the_identity():
    index, weights = pixels.bilinear_rotation(5, 4, 0.0)
    np.testing.assert_array_equal(weights, np.array([1, 0, 0, 0])[:, None] + np.zeros((1, 20)))
    np.testing.assert_array_equal(index[0], np.arange(20))


def test_bilinear_rotation_by_hand():
    """Of two pixels in a row: by 45 degrees both centres come to lie 0.354 off the middle."""
    index, weights = pixels.bilinear_rotation(1, 2, 45.0)
    off = 0.5 * np.cos(np.pi / 4)
    # Each is blank by as much as the centre lies above or below the row, and else a mixture.
    own, other = (1 - off) * (0.5 + off), (1 - off) * (0.5 - off)
    found = np.zeros((2, 3))
    for which in range(4):
        for pixel in range(2):
            found[pixel, index[which, pixel]] += weights[which, pixel]
    np.testing.assert_allclose(found, [[own, other, off], [other, own, off]], rtol=1e-6)


def test_gather_pixels_adds_up_with_weights():
    images = jnp.asarray([[[0, 51], [102, 255]]], jnp.uint8)
    index = jnp.asarray([[3, 4, 1], [0, 2, 2]])  # 4 is past the last pixel
    weights = jnp.asarray([[0.5, 0.75, 1.0], [0.5, 0.25, 0.0]])
    out = pixels.gather_pixels(images, index, weights)
    np.testing.assert_allclose(out, [[0.5, 0.1, 0.2]], rtol=1e-6)
    floats = pixels.gather_pixels(jnp.asarray([[[0.5, -1.0]]]), index[:, :1] - 2, weights[:, :1])
    np.testing.assert_allclose(floats, [[0.5 * -1.0 + 0.5 * 0.5]], rtol=1e-6)


def test_gather_pixels_permutes_scales_and_blanks():
    images = jnp.asarray([[[0, 51], [102, 255]]], jnp.uint8)
    out = pixels.gather_pixels(images, jnp.asarray([3, 4, 1, 2]))  # 4 is past the last pixel
    np.testing.assert_allclose(out, [[1.0, 0.0, 0.2, 0.4]], rtol=1e-6)
    floats = pixels.gather_pixels(jnp.asarray([[[0.5, -1.0]]]), jnp.asarray([1, 2]))
    np.testing.assert_array_equal(floats, [[-1.0, 0.0]])
