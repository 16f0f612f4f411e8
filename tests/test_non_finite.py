"""Gradients that are not finite: their vectors are left out and counted, all else is folded in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rgo_jax
from rgo_jax import ProjectionSpec
from tests import oracle
from tests.marks import slow_but

ALPHA = 1.0
COLUMNS = ("mean", "signs", "each")
NUM_BATCHES, BAD_BATCH, BAD_ROW, BAD_COLUMN = 5, 2, 3, 1
SHAPES = {"a": (6, 4), "b": (6, 4), "bias": (4,)}
SPECS = {
    "full": ProjectionSpec(),
    "blocks": ProjectionSpec(blocks=2),
    "diagonal": ProjectionSpec(diagonal=True),
}


def gradients():
    rng = np.random.default_rng(0)
    return {
        name: rng.normal(size=(NUM_BATCHES, *shape)).astype(np.float32)
        for name, shape in SHAPES.items()
    }


def with_bad(value, column=BAD_COLUMN):
    grads = gradients()
    grads["a"][BAD_BATCH, BAD_ROW, column] = value
    return grads


def start(form="full"):
    tx = rgo_jax.scale_by_rgo(specs={"a": SPECS[form]})
    return tx.init({name: jnp.zeros(shape) for name, shape in SHAPES.items()})


def one_by_one(state, grads, **options):
    for index in range(NUM_BATCHES):
        batch = {name: jnp.asarray(leaf[index]) for name, leaf in grads.items()}
        state = rgo_jax.rls_update(state, batch, alpha=ALPHA, **options)
    return state


def together(state, grads, **options):
    grads = jax.tree.map(jnp.asarray, grads)
    return rgo_jax.consolidate(state, lambda g: g, grads, alpha=ALPHA, block_size=4, **options)


@pytest.mark.parametrize("form", slow_but(SPECS, "full"))
@pytest.mark.parametrize("columns", slow_but(COLUMNS, "mean"))
@pytest.mark.parametrize("fold", [one_by_one, together])
def test_only_the_vector_that_is_not_finite_is_left_out(fold, columns, form):
    """The rest is as if it were zero, which changes nothing."""
    without = gradients()
    without["a"][BAD_BATCH, :, BAD_COLUMN if columns == "each" else slice(None)] = 0
    expected = fold(start(form), without, columns=columns)
    whole = fold(start(form), gradients(), columns=columns)
    assert np.abs(whole.projection["a"] - expected.projection["a"]).max() > 0.01
    for value in (np.nan, np.inf, -np.inf, 1e30):
        state = fold(start(form), with_bad(value), columns=columns)
        jax.tree.map(
            lambda p, e: np.testing.assert_allclose(p, e, rtol=1e-5, atol=1e-7),
            state.projection,
            expected.projection,
        )
        assert {name: int(count) for name, count in state.num_skipped.items()} == {
            "a": 1,
            "b": 0,
            "bias": 0,
        }
        assert int(state.num_updates) == NUM_BATCHES
        assert all(np.isfinite(energy).all() for energy in state.energy.values())


@pytest.mark.parametrize("fold", [one_by_one, together])
def test_what_is_left_in_against_float64(fold):
    for columns in ("mean", "each"):
        state = fold(start(), with_bad(np.nan), columns=columns)
        columns_of_a = np.moveaxis(gradients()["a"], 1, 2).astype(np.float64)  # [batch, m, d]
        if columns == "mean":
            vectors = np.delete(columns_of_a.mean(axis=1), BAD_BATCH, axis=0)
        else:
            rows = columns_of_a.reshape(-1, 6) / np.sqrt(4)
            vectors = np.delete(rows, 4 * BAD_BATCH + BAD_COLUMN, axis=0)
        expected = oracle.projection_of(vectors, ALPHA)
        np.testing.assert_allclose(state.projection["a"], expected, atol=5e-6)
        if columns == "mean":
            of_b = oracle.projection(gradients()["b"], ALPHA)
            np.testing.assert_allclose(state.projection["b"], of_b, atol=5e-6)


@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize("fold", [one_by_one, together])
def test_a_batch_of_nothing_but_nan(fold, columns):
    """All vectors are left out, of each the four columns; later tasks count on."""
    state = start()
    for count in (1, 2):
        grads = gradients()
        grads["a"][BAD_BATCH] = np.nan
        grads["bias"][BAD_BATCH] = np.nan
        state = fold(state, grads, columns=columns)
        vectors = 4 if columns == "each" else 1
        assert int(state.num_skipped["a"]) == count * vectors
        assert int(state.num_skipped["bias"]) == count
        assert int(state.num_skipped["b"]) == 0
    assert all(np.isfinite(p).all() for p in state.projection.values())
    stats = rgo_jax.projection_stats(state)
    assert int(stats["a"].num_skipped) == int(state.num_skipped["a"])
    assert float(stats["a"].trace) < 5
    assert 0 < float(stats["a"].coverage) < 3
    assert int(stats["b"].num_skipped) == 0


@pytest.mark.slow
def test_float16_gradients_are_judged_in_the_dtype_of_p():
    """Their squares are far beyond float16 and well within float32."""
    params = {"w": jnp.zeros((3, 1), jnp.float16)}
    grads = {"w": jnp.array([[6e4], [0], [0]], jnp.float16)}
    state = rgo_jax.rls_update(rgo_jax.scale_by_rgo().init(params), grads)
    assert int(state.num_skipped["w"]) == 0
    np.testing.assert_allclose(jnp.diagonal(state.projection["w"]), [0, 1, 1], atol=1e-5)


def test_skipped_vectors_do_not_end_in_other_signs():
    """The signs of later batches are those that they would have had."""
    grads = gradients()
    bad, zero = with_bad(np.nan), with_bad(0.0)
    zero["a"][BAD_BATCH] = 0
    key = jax.random.key(4)
    a, b, c = (one_by_one(start(), g, columns="signs", key=key) for g in (bad, zero, grads))
    np.testing.assert_array_equal(a.projection["b"], c.projection["b"])
    np.testing.assert_allclose(a.projection["a"], b.projection["a"], atol=1e-6)


@pytest.mark.parametrize("length", [1e9, 1e19])
def test_a_long_vector_protects_its_direction(length):
    """As long as its square is finite."""
    tx = rgo_jax.scale_by_rgo()
    grads = jnp.zeros((4, 1)).at[1].set(length)
    for fold in (
        lambda state: rgo_jax.rls_update(state, grads),
        lambda state: rgo_jax.consolidate(state, lambda g: g, grads[None]),
    ):
        state = fold(tx.init(grads))
        assert int(state.num_skipped) == 0
        p = np.asarray(state.projection)
        assert p[1, 1] < 1e-4
        np.testing.assert_array_equal(np.delete(np.diagonal(p), 1), np.ones(3))
