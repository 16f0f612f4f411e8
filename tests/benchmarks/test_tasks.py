import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from benchmarks import tasks


@pytest.mark.parametrize("degrees", [*tasks.LOS_ANGLES, 0.0, 90.0, 180.0, -30.0, 400.0])
@pytest.mark.parametrize("shape", [(28, 28), (8, 8)])
def test_rotation_is_pillows(degrees, shape):
    image = np.random.default_rng(0).integers(1, 256, shape).astype(np.uint8)
    expected = np.asarray(Image.fromarray(image).rotate(degrees, Image.Resampling.NEAREST))
    index = tasks.rotation_index(*shape, degrees)
    ours = np.append(image.ravel(), 0)[index].reshape(shape)
    # Pillow reckons in 16-bit fixed point: where a source coordinate falls within 2^-16 of the edge
    # of a pixel, it can take the neighbour (2 of 784 pixels at one of the 20 angles).
    assert np.sum(ours != expected) <= 2


def test_rotation_is_counter_clockwise():
    image = np.zeros((3, 3), np.uint8)
    image[0, 1] = 255  # twelve o'clock
    ours = np.append(image.ravel(), 0)[tasks.rotation_index(3, 3, 90.0)].reshape(3, 3)
    assert ours[1, 0] == 255  # nine o'clock


def test_gather_pixels_permutes_scales_and_blanks():
    images = jnp.asarray([[[0, 51], [102, 255]]], jnp.uint8)
    out = tasks.gather_pixels(images, jnp.asarray([3, 4, 1, 2]))  # 4 is past the last pixel
    np.testing.assert_allclose(out, [[1.0, 0.0, 0.2, 0.4]], rtol=1e-6)
    floats = tasks.gather_pixels(jnp.asarray([[[0.5, -1.0]]]), jnp.asarray([1, 2]))
    np.testing.assert_array_equal(floats, [[-1.0, 0.0]])


def test_permuted_tasks_are_bijections_that_differ_by_task_and_seed():
    index = tasks.permuted(4, 5, 3)
    seen = set()
    for seed in range(3):
        for task in range(3):
            permutation = np.asarray(index(jax.random.key(seed), jnp.int32(task)))
            np.testing.assert_array_equal(np.sort(permutation), np.arange(20))
            seen.add(tuple(permutation.tolist()))
    assert len(seen) == 9
    assert tuple(range(20)) not in seen  # the first task is permuted too


def test_rotated_tasks_are_the_same_for_every_seed():
    index = tasks.rotated(8, 8, 20)
    for task in (0, 19):
        a = index(jax.random.key(0), jnp.int32(task))
        b = index(jax.random.key(1), jnp.int32(task))
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, tasks.rotation_index(8, 8, tasks.LOS_ANGLES[task]))
    with pytest.raises(ValueError, match=r"num_tasks is 21.*20 angles"):
        tasks.rotated(8, 8, 21)


def test_batches_are_drawn_without_replacement_and_shuffled_each_epoch():
    batches = np.asarray(tasks.draw_batches(jax.random.key(0), 100, 47, 3, 10))
    assert batches.shape == (3, 4, 10)
    for epoch in batches:
        assert len(np.unique(epoch)) == 40
    drawn = [set(epoch.ravel()) for epoch in batches]
    assert len(set.union(*drawn)) <= 47
    assert not np.array_equal(batches[0], batches[1])
    other = np.asarray(tasks.draw_batches(jax.random.key(1), 100, 47, 3, 10))
    assert set(other.ravel()) != set(batches.ravel())
