import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import data
from benchmarks.data import pixels, tasks


def dataset(shape=(4, 5), num_classes=6, per_class=8, **fields):
    """Images that tell their class and number: the first pixel and the second."""
    labels = np.tile(np.arange(num_classes, dtype=np.int32), per_class)
    images = np.zeros((len(labels), *shape), np.uint8)
    images[:, 0, 0, ...] = labels.reshape(-1, *[1] * (len(shape) - 2)) * 10
    images[:, 0, 1, ...] = np.arange(len(labels)).reshape(-1, *[1] * (len(shape) - 2))
    half = len(labels) // 2
    return data.Dataset("made", images, labels, images[half:], labels[half:], **fields)


def test_permuted_tasks_are_bijections_that_differ_by_task_and_seed():
    made = dataset()
    sequence = tasks.permuted(made, 3)
    assert (sequence.num_classes, sequence.input_shape, sequence.smallest) == (6, (20,), 48)
    image = jnp.arange(20, dtype=jnp.uint8).reshape(1, 4, 5)
    seen = set()
    for seed in range(3):
        for task in range(3):
            key, task_id = jax.random.key(seed), jnp.int32(task)
            pixels, labels = sequence.encode(key, task_id)(image, jnp.array([3]))
            permutation = np.rint(np.asarray(pixels[0]) * 255)
            np.testing.assert_array_equal(np.sort(permutation), np.arange(20))
            seen.add(tuple(permutation.tolist()))
            assert labels.tolist() == [3]
            assert len(sequence.pool("test", key, task_id).indices) == 24
    assert len(seen) == 9
    assert tuple(range(20)) not in seen  # the first task is permuted too


def test_rotated_tasks_are_the_same_for_every_seed():
    sequence = tasks.rotated(dataset((8, 8)), 20)
    image = jnp.arange(1, 65, dtype=jnp.uint8).reshape(1, 8, 8)
    for task in (0, 19):
        a, b = (
            sequence.encode(jax.random.key(seed), jnp.int32(task))(image, jnp.zeros(1))[0]
            for seed in (0, 1)
        )
        np.testing.assert_array_equal(a, b)
        index = pixels.rotation_index(8, 8, tasks.LOS_ANGLES[task])
        np.testing.assert_allclose(a[0] * 255, np.append(image.ravel(), 0)[index], rtol=1e-6)
        between = tasks.rotated(dataset((8, 8)), 20, "bilinear").encode(
            jax.random.key(0), jnp.int32(task)
        )(image, jnp.zeros(1))[0]
        index, weights = pixels.bilinear_rotation(8, 8, tasks.LOS_ANGLES[task])
        expected = (np.append(image.ravel(), 0)[index] * weights).sum(axis=0)
        np.testing.assert_allclose(between[0] * 255, expected, rtol=1e-5, atol=1e-5)


def tasks_of(sequence, made, seed, num_tasks):
    """For each task the classes in it, as the images tell them, by label."""
    found = []
    for task in range(num_tasks):
        key, task_id = jax.random.key(seed), jnp.int32(task)
        classes: dict = {}
        for split, images, labels in (
            ("train", made.x_train, made.y_train),
            ("test", made.x_test, made.y_test),
        ):
            pool = sequence.pool(split, key, task_id)
            indices = np.asarray(pool.indices)
            if pool.valid is not None:
                indices = indices[np.asarray(pool.valid)]
            assert len(np.unique(indices)) == len(indices)
            x, y = sequence.encode(key, task_id)(
                jnp.asarray(images[indices]), jnp.asarray(labels[indices])
            )
            assert x.shape == (len(indices), *sequence.input_shape)
            mean = np.float64(made.x_train).mean(0).reshape(sequence.input_shape)
            original = np.asarray(x) * 255 + mean
            for label, image in zip(np.asarray(y), original, strict=True):
                classes.setdefault(int(label), set()).add(round(float(image[0, 0, 0]) / 10))
        assert set(classes) == set(range(sequence.num_classes))
        assert all(len(values) == 1 for values in classes.values())
        found.append([classes[label].pop() for label in range(sequence.num_classes)])
    return found


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 3)])
def test_split_deals_every_class_to_one_task(shape):
    made = dataset(shape)
    sequence = tasks.split(made, 3)
    assert (sequence.num_classes, sequence.smallest) == (2, 16)
    orders = [tasks_of(sequence, made, seed, 3) for seed in range(4)]
    for order in orders:
        assert sorted(np.ravel(order)) == list(range(6))
    assert len({str(order) for order in orders}) > 1


@pytest.mark.slow
def test_tasks_of_different_sizes_have_all_their_examples_and_as_many_steps():
    made = dataset(num_classes=4, per_class=40)
    kept = {0: 3, 1: 40, 2: 20, 3: 1}
    keep = np.concatenate([np.flatnonzero(made.y_train == c)[:n] for c, n in kept.items()])
    made = made._replace(x_train=made.x_train[keep], y_train=made.y_train[keep])
    sequence = tasks.split(made, 2)
    assert (sequence.smallest, sequence.largest) == (4, 60)
    for seed in range(2):
        assert sorted(np.ravel(tasks_of(sequence, made, seed, 2))) == [0, 1, 2, 3]
        for task in range(2):
            key = jax.random.key(seed)
            pool = sequence.pool("train", key, jnp.int32(task))
            own = np.asarray(pool.indices)[np.asarray(pool.valid)]
            batches = np.asarray(tasks.draw_batches(key, pool, 60, 2, 12))
            assert batches.shape == (2, 5, 12)
            for epoch in batches:
                # Each example of the task as often as any other, but for what does not divide 60.
                found, times = np.unique(epoch, return_counts=True)
                np.testing.assert_array_equal(found, np.sort(own))
                assert times.max() - times.min() <= 1
            fewer = np.asarray(tasks.draw_batches(key, pool, 4, 1, 4))
            assert len(np.unique(fewer)) == 4


def test_superclasses_tell_the_sizes_of_their_tasks():
    made = dataset(num_classes=4, superclasses=np.array([0, 1, 1, 0], np.int32))
    keep = np.concatenate([np.arange(8) * 4 + c for c in (0, 1, 2)] + [np.array([3])])
    made = made._replace(x_train=made.x_train[keep], y_train=made.y_train[keep])
    sequence = tasks.superclass(made, 2)
    assert (sequence.smallest, sequence.largest) == (9, 16)


def test_pools_take_no_more_than_the_data():
    """However many classes there are, and however large the largest."""
    labels = np.concatenate([np.zeros(50_000, np.int32), np.arange(1, 50_000, dtype=np.int32)])
    made = data.Dataset("made", np.zeros((len(labels), 1, 1), np.uint8), labels, labels, labels)
    made = made._replace(x_test=made.x_train)
    sequence = tasks.split(made, 2)
    pool = jax.eval_shape(lambda key: sequence.pool("train", key, 0), jax.random.key(0))
    assert pool.indices.size == sequence.largest == 50_000 + 24_999


def test_every_class_has_examples():
    made = dataset()
    untested = made._replace(y_test=np.where(made.y_test == 4, 5, made.y_test))
    with pytest.raises(ValueError, match=r"made: class 4 has no examples in the test data.*mixed"):
        tasks.split(untested, 3)
    renumbered = untested._replace(labels=np.array([2, 3, 5, 7, 11, 13]))
    with pytest.raises(ValueError, match=r"class 4 \(label 11\) has no examples"):
        tasks.split(renumbered, 3)


def test_superclasses_are_tasks():
    made = dataset(superclasses=np.array([1, 0, 2, 2, 0, 1], np.int32))
    sequence = tasks.superclass(made, 3)
    for seed in range(3):
        found = tasks_of(sequence, made, seed, 3)
        assert sorted(map(sorted, found)) == [[0, 5], [1, 4], [2, 3]]


@pytest.mark.parametrize(
    ("sequence", "changes", "num_tasks", "match"),
    [
        ("permuted", {"shape": (4, 5, 3)}, 3, r"shape \(4, 5, 3\).*need grey ones"),
        ("rotated", {}, 21, "--num-tasks is 21.*20 angles. Set --num-tasks to 20 or less"),
        (
            "split",
            {},
            4,
            "--num-tasks is 4, but made has 6 classes; expected a divisor.*one of 1, 2, 3",
        ),
        ("split", {}, 6, "at least 2"),
        ("split", {"num_classes": 5}, 2, r"Set --num-tasks to 1\."),
        ("split", {"num_classes": 1}, 1, "made has one class; expected at least 2"),
        ("superclass", {}, 3, "made has no superclasses"),
        ("superclass", {"superclasses": np.array([0, 0, 0, 1, 1, 2])}, 3, "of 1 to 3 classes; ex"),
        ("superclass", {"superclasses": np.array([0, 0, 1, 1, 2, 2])}, 4, "to 3 or less"),
    ],
)
def test_sequences_that_cannot_be(sequence, changes, num_tasks, match):
    with pytest.raises(ValueError, match=match):
        tasks.SEQUENCES[sequence](dataset(**changes), num_tasks)


def test_batches_are_drawn_without_replacement_and_shuffled_each_epoch():
    pool = tasks.Pool(jnp.arange(100))
    batches = np.asarray(tasks.draw_batches(jax.random.key(0), pool, 47, 3, 10))
    assert batches.shape == (3, 4, 10)
    for epoch in batches:
        assert len(np.unique(epoch)) == 40
    drawn = [set(epoch.ravel()) for epoch in batches]
    assert len(set.union(*drawn)) <= 47
    assert not np.array_equal(batches[0], batches[1])
    other = np.asarray(tasks.draw_batches(jax.random.key(1), pool, 47, 3, 10))
    assert set(other.ravel()) != set(batches.ravel())
