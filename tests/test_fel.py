import hashlib

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import strategies as st

import rgo_jax
import rgo_jax.linen
import rgo_jax.nnx

# (task, n, seed, layer) -> permutation. A trained network depends on them: they must never change.
GOLDEN = {
    (0, 8, 0, 0): [0, 4, 5, 6, 1, 7, 2, 3],
    (1, 8, 0, 0): [4, 3, 6, 1, 7, 0, 2, 5],
    (1, 8, 7, 0): [3, 7, 2, 0, 5, 6, 4, 1],
    (1, 8, 0, 3): [7, 1, 5, 0, 2, 4, 3, 6],
    (19, 12, 4, 2): [11, 5, 4, 7, 9, 2, 3, 10, 1, 0, 8, 6],
}


@pytest.mark.parametrize(("task", "n", "seed", "layer"), GOLDEN)
def test_golden(task, n, seed, layer):
    ours = rgo_jax.fel_permutation(task, n, seed=seed, layer=layer)
    assert ours.tolist() == GOLDEN[task, n, seed, layer]


def test_golden_many_features():
    """Above 1600 features jax.random.permutation sorts twice."""
    ours = np.asarray(rgo_jax.fel_permutation(3, 4096, seed=1, layer=2))
    assert hashlib.sha256(ours.astype("<i4").tobytes()).hexdigest()[:16] == "c70a94a3cd597b3a"


@pytest.mark.parametrize("name", ["seed", "layer", "task_id"])
def test_what_is_no_index_is_refused(name):
    def permutation(value):
        return rgo_jax.fel_permutation(**({"task_id": 0, "n": 4} | {name: value}))

    for value in (-1, 2**31, np.int64(2**32), jnp.int32(-1)):
        with pytest.raises(ValueError, match=f"{name} is .*; expected 0 to 2"):
            permutation(value)
    with pytest.raises(ValueError, match=rf"{name} has shape \(1,\); expected a scalar"):
        permutation(np.array([1]))
    with pytest.raises(TypeError, match=rf"{name} is 1\.5; expected an integer"):
        permutation(1.5)
    with pytest.raises(TypeError, match=f"{name} is .*; expected an integer"):
        jax.jit(permutation)(1.5)
    for value in (2**31 - 1, np.int64(5), jnp.uint8(3)):
        assert sorted(permutation(value).tolist()) == [0, 1, 2, 3]


@hypothesis.given(
    task=st.integers(0, 10_000),
    n=st.sampled_from([1, 2, 31, 256]),
    seed=st.integers(0, 2**31 - 1),
    layer=st.integers(0, 200),
)
def test_is_a_bijection(task, n, seed, layer):
    permutation = np.asarray(rgo_jax.fel_permutation(task, n, seed=seed, layer=layer))
    assert permutation.dtype == np.int32
    np.testing.assert_array_equal(np.sort(permutation), np.arange(n))


def test_task_layer_and_seed_each_change_it():
    reference = rgo_jax.fel_permutation(1, 64, seed=2, layer=3).tolist()
    for other in (
        rgo_jax.fel_permutation(2, 64, seed=2, layer=3),
        rgo_jax.fel_permutation(1, 64, seed=3, layer=3),
        rgo_jax.fel_permutation(1, 64, seed=2, layer=4),
        rgo_jax.fel_permutation(3, 64, seed=2, layer=1),  # task and layer are not mixed up
    ):
        assert other.tolist() != reference


def test_permutations_are_uniform():
    """Each feature comes to each place equally often."""
    permutations = jax.vmap(lambda task: rgo_jax.fel_permutation(task, 4))(jnp.arange(4000))
    counts = np.stack([np.bincount(column, minlength=4) for column in np.asarray(permutations).T])
    assert np.abs(counts - 1000).max() < 150  # five standard deviations


def test_is_the_same_traced_mapped_and_under_other_settings():
    expected = rgo_jax.fel_permutation(5, 16, seed=1, layer=2).tolist()
    traced = jax.jit(lambda t, s, k: rgo_jax.fel_permutation(t, 16, seed=s, layer=k))(5, 1, 2)
    assert traced.tolist() == expected
    mapped = jax.vmap(lambda t: rgo_jax.fel_permutation(t, 16, seed=1, layer=2))(jnp.arange(6))
    assert mapped[5].tolist() == expected
    with jax.threefry_partitionable(False):
        assert rgo_jax.fel_permutation(5, 16, seed=1, layer=2).tolist() == expected
    with jax.default_prng_impl("rbg"):
        assert rgo_jax.fel_permutation(5, 16, seed=1, layer=2).tolist() == expected
    jax.config.update("jax_random_seed_offset", 7)
    try:
        assert rgo_jax.fel_permutation(5, 16, seed=1, layer=2).tolist() == expected
    finally:
        jax.config.update("jax_random_seed_offset", 0)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int8, bool])
def test_encode_gathers_along_the_axis(dtype):
    x = jnp.arange(2 * 3 * 5).reshape(2, 3, 5).astype(dtype)
    permutation = np.asarray(rgo_jax.fel_permutation(4, 3, seed=1, layer=2))
    ours = rgo_jax.fel_encode(x, 4, seed=1, layer=2, axis=1)
    assert ours.dtype == x.dtype
    np.testing.assert_array_equal(ours, np.asarray(x)[:, permutation])


def test_gradient_is_the_inverse_permutation():
    weights = jnp.arange(6.0)
    gradient = jax.grad(lambda x: jnp.sum(weights * rgo_jax.fel_encode(x, 3)))(jnp.zeros(6))
    back = np.argsort(np.asarray(rgo_jax.fel_permutation(3, 6)))
    np.testing.assert_array_equal(gradient, weights[back])


def test_linen_and_nnx_are_equal():
    x = jax.random.normal(jax.random.key(0), (3, 4, 10))
    for axis in (-1, 1):
        linen = rgo_jax.linen.FeatureEncoding(layer=2, seed=7, axis=axis)
        variables = linen.init(jax.random.key(0), x, 0)
        ours = rgo_jax.nnx.FeatureEncoding(layer=2, seed=7, axis=axis)
        assert not jax.tree.leaves(variables)
        assert not jax.tree.leaves(nnx.state(ours))
        for task in (0, 3):
            expected = rgo_jax.fel_encode(x, task, layer=2, seed=7, axis=axis)
            np.testing.assert_array_equal(linen.apply(variables, x, task), expected)
            np.testing.assert_array_equal(jax.jit(ours)(x, jnp.int32(task)), expected)


def test_one_program_serves_all_tasks(compilations):
    encode = jax.jit(lambda x, task: rgo_jax.fel_encode(x, task, layer=1))
    x, tasks = jnp.ones((2, 6)), [jnp.int32(t) for t in range(4)]
    encode(x, tasks[0])
    with compilations() as later:
        for task in tasks[1:]:
            encode(x, task)
    assert later.count == 0


def test_is_hoisted_out_of_a_scan_on_a_cpu():
    """Inside a scan the permutation is drawn once, not at each step.

    Counted in the compiled program: the sort that draws it must not be in the loop's body.
    """

    def steps(x, task):
        return jax.lax.scan(
            lambda x, _: (jnp.tanh(rgo_jax.fel_encode(x, task)), None), x, length=50
        )[0]

    text = jax.jit(steps).lower(jnp.ones((2, 256)), jnp.int32(1)).compile().as_text()
    bodies = [
        block for block in text.split("\n\n") if "tanh" in block.lower() and " sort(" in block
    ]
    assert " sort(" in text
    assert not bodies


@pytest.mark.parametrize("num_tasks", [None, 3])
def test_a_pre_trained_network_keeps_its_outputs_where_task_0_is_left_as_it_is(num_tasks):
    """And not without; later tasks have the same permutations either way."""
    x, w = (
        jax.random.normal(jax.random.key(0), (5, 16)),
        jax.random.normal(jax.random.key(1), (16,)),
    )

    def outputs(task, identity_first):
        linen = rgo_jax.linen.FeatureEncoding(identity_first=identity_first, num_tasks=num_tasks)
        by_linen, _ = linen.init_with_output(jax.random.key(0), x, task)
        by_nnx = rgo_jax.nnx.FeatureEncoding(
            identity_first=identity_first, num_tasks=num_tasks, num_features=num_tasks and 16
        )(x, task)
        np.testing.assert_array_equal(by_linen, by_nnx)
        np.testing.assert_array_equal(
            by_linen, rgo_jax.fel_encode(x, task, identity_first=identity_first)
        )
        return np.tanh(by_linen) @ w

    learned = np.tanh(x) @ w
    np.testing.assert_array_equal(outputs(0, True), learned)
    assert np.abs(outputs(0, False) - learned).mean() > 0.1
    np.testing.assert_array_equal(outputs(1, True), outputs(1, False))
