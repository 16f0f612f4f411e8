"""The projections and the modified gradients against float64."""

from functools import partial

import hypothesis
import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
from hypothesis import strategies as st

import rgo_jax
from tests import oracle
from tests.marks import slow_but

SHAPES = {"vector": (7,), "dense": (12, 5), "conv": (3, 3, 4, 6), "column": (9, 1), "row": (1, 9)}


def random_grads(seed, shape, count, scale=1.0):
    return scale * np.random.default_rng(seed).normal(size=(count, *shape)).astype(np.float32)


def fold_one_by_one(state, grads, alpha):
    for grad in grads:
        state = rgo_jax.rls_update(state, {"w": jnp.asarray(grad)}, alpha=alpha)
    return state


def fold_together(state, grads, alpha, block_size=128):
    return rgo_jax.consolidate(
        state, lambda g: {"w": g}, jnp.asarray(grads), alpha=alpha, block_size=block_size
    )


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("alpha", slow_but([0.01, 0.1, 1.0], 0.01))
@pytest.mark.parametrize("fold", [fold_one_by_one, fold_together])
def test_projection_and_modified_gradient(name, alpha, fold):
    shape = SHAPES[name]
    grads = random_grads(0, shape, count=15)
    tx = rgo_jax.scale_by_rgo()
    state = fold(tx.init({"w": jnp.zeros(shape)}), grads, alpha)

    expected = oracle.projection(grads, alpha)
    np.testing.assert_allclose(state.projection["w"], expected, atol=3e-6)
    assert int(state.num_updates) == 15

    gradient = random_grads(1, shape, count=1)[0]
    updates, after = tx.update({"w": jnp.asarray(gradient)}, state)
    modified = oracle.modified_gradient(expected, gradient)
    np.testing.assert_allclose(updates["w"], modified, rtol=2e-3, atol=2e-5)
    assert after is state
    if name != "row":  # with d = 1 the trace rule leaves nothing to modify
        assert np.abs(modified - gradient).max() > 0.1


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("blocks", [1, 2])
def test_many_seeds_and_layers_at_once(blocks):
    """Batched calls of LAPACK for several layers at once wait for ever on a CPU of few cores."""
    seeds, layers, d = 8, 12, 96
    params = {f"layer_{i}": jnp.zeros((d, 4)) for i in range(layers)}
    specs = dict.fromkeys(params, rgo_jax.ProjectionSpec(blocks=blocks))
    state = rgo_jax.scale_by_rgo(specs=specs).init(params)

    def fold(key):
        def grad_fn(key):
            keys = jax.random.split(key, layers)
            return {
                name: jax.random.normal(key, leaf.shape)
                for key, (name, leaf) in zip(keys, params.items(), strict=True)
            }

        folded = rgo_jax.consolidate(state, grad_fn, jax.random.split(key, 40))
        stats = rgo_jax.projection_stats(folded)
        return folded.projection, {name: layer.eigenvalues[0] for name, layer in stats.items()}

    keys = jax.random.split(jax.random.key(0), seeds)
    together = jax.jit(jax.vmap(fold))(keys)
    in_turn = jax.jit(lambda keys: jax.lax.map(fold, keys))(keys)
    jax.tree.map(partial(np.testing.assert_allclose, atol=3e-6), together, in_turn)


@pytest.mark.slow
def test_derivative_in_alpha_and_gradients():
    with oracle.enable_x64():
        grads = jax.random.normal(jax.random.key(0), (7, 5, 3), jnp.float64)
        state = rgo_jax.scale_by_rgo().init({"w": jnp.zeros((5, 3), jnp.float64)})

        def projection(grads, alpha):
            return fold_together(state, grads, alpha, block_size=4).projection["w"]

        jax.test_util.check_grads(jax.jit(projection), (grads, 1.0), order=2)


def test_two_tasks_accumulate():
    grads = random_grads(2, (8, 3), count=20)
    tx = rgo_jax.scale_by_rgo()
    state = tx.init({"w": jnp.zeros((8, 3))})
    state = fold_together(fold_together(state, grads[:12], 0.1), grads[12:], 0.1)
    np.testing.assert_allclose(state.projection["w"], oracle.projection(grads, 0.1), atol=3e-6)


@hypothesis.given(
    seed=st.integers(0, 1000),
    d=st.sampled_from([1, 2, 6]),
    count=st.sampled_from([1, 5, 13]),
    block_size=st.sampled_from([1, 4, 200]),
    scale=st.sampled_from([1e-3, 1.0, 30.0]),
)
def test_block_form_equals_rank_one_updates(seed, d, count, block_size, scale):
    grads = random_grads(seed, (d, 2), count, scale)
    state = rgo_jax.scale_by_rgo().init({"w": jnp.zeros((d, 2))})
    single = fold_one_by_one(state, grads, 1.0).projection["w"]
    block = fold_together(state, grads, 1.0, block_size).projection["w"]
    np.testing.assert_allclose(block, single, atol=1e-5)
    np.testing.assert_allclose(block, oracle.projection(grads, 1.0), atol=1e-5)


@hypothesis.given(seed=st.integers(0, 1000), count=st.sampled_from([1, 8, 40]))
def test_projection_stays_symmetric_positive_definite_and_shrinks(seed, count):
    state = rgo_jax.scale_by_rgo().init({"w": jnp.zeros((10, 3))})
    p = np.asarray(
        fold_together(state, random_grads(seed, (10, 3), count), 1.0).projection["w"], np.float64
    )
    np.testing.assert_array_equal(p, p.T)
    eigenvalues = np.linalg.eigvalsh(p)
    assert eigenvalues.min() > 0
    assert eigenvalues.max() <= 1 + 1e-6
    assert np.trace(p) < 10 - 1e-2


def test_many_updates_stay_near_float64():
    """20 tasks of 1000 batches, as in Permuted MNIST, at the size of a hidden layer."""
    rng = np.random.default_rng(0)
    # Gradients of real networks shrink along some directions much faster than along others.
    spectrum = np.logspace(-1, -3, 256)
    tx = rgo_jax.scale_by_rgo()
    state = tx.init({"w": jnp.zeros(256)})
    precision = 0.01 * np.eye(256)
    fold = jax.jit(lambda state, grads: rgo_jax.consolidate(state, lambda g: {"w": g}, grads))
    for _ in range(20):
        grads = (rng.normal(size=(1000, 256)) * spectrum).astype(np.float32)
        state = fold(state, jnp.asarray(grads))
        precision += grads.T.astype(np.float64) @ grads
    expected = 0.01 * np.linalg.inv(precision)
    np.testing.assert_allclose(state.projection["w"], expected, atol=5e-6)
    assert np.linalg.eigvalsh(np.asarray(state.projection["w"], np.float64)).min() > 0


@pytest.mark.parametrize("spectrum", ["steep", "few directions"])
def test_stays_positive_definite_over_1000_tasks(spectrum):
    """Eigenvalues from 1 down to 1e-7 and beyond, where float32 has no digits left."""
    d, tasks = 48, 1000
    scale = (
        np.logspace(0, -5, d) if spectrum == "steep" else np.r_[np.full(6, 3.0), np.zeros(d - 6)]
    )
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.normal(size=(d, d)))
    vectors = ((rng.normal(size=(tasks, 50, d)) * scale) @ basis.T).astype(np.float32)

    @jax.jit
    def learn(state, vectors):
        return jax.lax.scan(
            lambda state, v: (rgo_jax.consolidate(state, lambda g: g, v), None), state, vectors
        )[0]

    state = learn(rgo_jax.scale_by_rgo().init(jnp.zeros(d)), vectors)
    p = np.asarray(state.projection, np.float64)
    assert int(state.num_updates) == 50 * tasks
    np.testing.assert_array_equal(p, p.T)
    assert np.linalg.eigvalsh(p).min() > 0
    np.testing.assert_allclose(p, oracle.projection_of(vectors.reshape(-1, d)), atol=2e-6)


@pytest.mark.parametrize("size", [1e2, 3e2, 1e3, 1e5])
@pytest.mark.parametrize("noise", [0.0, 1e-4, 1e-2, 0.3])
@pytest.mark.parametrize("together", [False, True])
def test_large_gradients_leave_the_projection_definite(size, noise, together):
    """Where v' P v is known less exactly than alpha, P must stay usable all the same."""
    d = 24
    rng = np.random.default_rng(0)
    base = rng.normal(size=d) / d**0.5
    grads = size * (base + noise * rng.normal(size=(512, d)) / d**0.5)

    @jax.jit
    def fold(state, grads):
        if together:
            return rgo_jax.consolidate(state, lambda g: g, grads)
        return jax.lax.scan(lambda state, g: (rgo_jax.rls_update(state, g), None), state, grads)[0]

    state = fold(rgo_jax.scale_by_rgo().init(jnp.zeros(d)), grads.astype(np.float32))
    p = np.asarray(state.projection, np.float64)
    assert np.isfinite(p).all()
    # Definite up to what float32 entries of size 1 can express, and the direction is protected.
    assert np.linalg.eigvalsh((p + p.T) / 2).min() > -1e-6
    unit = base / np.linalg.norm(base)
    assert abs(unit @ p @ unit) < 1e-4


@pytest.mark.parametrize("place", [0, 60, 127])
@pytest.mark.parametrize("directions", ["axes", "random"])
@pytest.mark.parametrize("columns", ["mean", "each"])
def test_a_long_vector_does_not_unprotect_the_directions_of_short_ones(place, directions, columns):
    """In one block with 127 others: the bound on rounding is of each vector alone."""
    d, used = 24, 8
    rng = np.random.default_rng(0)
    basis = np.eye(d) if directions == "axes" else np.linalg.qr(rng.normal(size=(d, d)))[0]
    short = rng.normal(size=(127, used))
    short = short / np.linalg.norm(short, axis=1, keepdims=True) @ basis[:, :used].T
    vectors = np.insert(short, place, 3000 * basis[:, used], axis=0).astype(np.float32)
    if columns == "each":
        columns_of_one, batches = jnp.asarray(vectors.T) * 128**0.5, jnp.zeros(1)
        state = rgo_jax.scale_by_rgo().init(jnp.zeros((d, 128)))
        state = rgo_jax.consolidate(state, lambda _: columns_of_one, batches, columns="each")
    else:
        state = rgo_jax.scale_by_rgo().init(jnp.zeros(d))
        state = rgo_jax.consolidate(state, lambda v: v, jnp.asarray(vectors))
    expected = oracle.projection_of(vectors)
    ours = np.asarray(state.projection, np.float64)
    along = [np.diagonal(basis.T @ p @ basis) for p in (ours, expected)]
    assert along[1][:used].max() < 2e-3  # protected
    np.testing.assert_allclose(along[0][:used], along[1][:used], rtol=0.05)
    # That of the long one as the docstring of consolidate says.
    assert abs(along[0][used]) < 1.01 * 16 * 128 * np.finfo(np.float32).eps
    np.testing.assert_allclose(along[0][used + 1 :], 1, rtol=1e-5)


def test_float64_parameters_keep_a_float64_projection():
    with oracle.enable_x64():
        grads = np.random.default_rng(0).normal(size=(30, 6, 2))
        state = rgo_jax.scale_by_rgo().init({"w": jnp.zeros((6, 2))})
        folded = fold_together(state, grads, 1.0)
        assert folded.projection["w"].dtype == folded.energy["w"].dtype == jnp.float64
        expected = oracle.projection(grads, 1.0)
        np.testing.assert_allclose(folded.projection["w"], expected, atol=1e-13)
        each = rgo_jax.consolidate(state, lambda g: {"w": g}, grads, alpha=1.0, columns="each")
        assert jax.tree.map(jnp.result_type, each) == jax.tree.map(jnp.result_type, state)
        columns = np.moveaxis(grads, 2, 1).reshape(-1, 6) / 2**0.5
        expected = oracle.projection_of(columns, 1.0)
        np.testing.assert_allclose(each.projection["w"], expected, atol=1e-13)
