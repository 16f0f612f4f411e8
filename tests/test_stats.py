import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rgo_jax
from tests import oracle


def test_stats_against_float64():
    grads = np.random.default_rng(0).normal(size=(7, 3, 3, 2, 4)).astype(np.float32)
    state = rgo_jax.rgo(0.1).init({"conv": {"kernel": jnp.zeros((3, 3, 2, 4))}})
    state = rgo_jax.consolidate(state, lambda g: {"conv": {"kernel": g}}, jnp.asarray(grads))
    ((path, stats),) = rgo_jax.projection_stats(state).items()
    p = oracle.projection(grads)
    eigenvalues = np.linalg.eigvalsh(p)
    share = eigenvalues / eigenvalues.sum()
    assert path == "conv/kernel"
    assert stats.dim == 18
    assert stats.mib == 18 * 18 * 4 / 2**20
    np.testing.assert_allclose(stats.trace, np.trace(p), rtol=1e-5)
    np.testing.assert_allclose(stats.eigenvalues, eigenvalues, rtol=1e-2)
    np.testing.assert_allclose(stats.eigenvalues[-1], eigenvalues[-1], rtol=1e-5)
    np.testing.assert_allclose(
        stats.effective_rank, np.exp(-(share * np.log(share)).sum()), rtol=1e-4
    )
    assert 11 < stats.effective_rank < 18  # 7 of 18 directions are taken


def test_stats_before_training_and_under_a_mask():
    tx = optax.masked(rgo_jax.scale_by_rgo(), {"a": True, "b": False})
    stats = rgo_jax.projection_stats(tx.init({"a": jnp.zeros((5, 2)), "b": jnp.zeros(3)}))
    assert list(stats) == ["a"]
    np.testing.assert_allclose(stats["a"].effective_rank, 5, rtol=1e-6)
    assert np.isnan(stats["a"].coverage)
    assert int(stats["a"].num_skipped) == 0


@pytest.mark.parametrize("columns", ["mean", "signs", "each"])
def test_coverage(columns):
    """The share of the columns' energy that is folded in."""
    batches, d, m = 300, 5, 8
    rng = np.random.default_rng(0)
    independent = rng.normal(size=(batches, d, m))
    grads = {
        "bias": rng.normal(size=(batches, d)),
        "one column": rng.normal(size=(batches, d, 1)),
        "independent": independent,
        "cancelling": independent - np.mean(independent, axis=2, keepdims=True),
    }
    grads = {name: jnp.asarray(grad, jnp.float32) for name, grad in grads.items()}
    tx = rgo_jax.scale_by_rgo()
    state = tx.init({name: grad[0] for name, grad in grads.items()})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rgo_jax.UnprotectedWarning)
        state = rgo_jax.consolidate(state, lambda g: g, grads, columns=columns)
        stats = rgo_jax.projection_stats(state)
    coverage = {name: float(layer.coverage) for name, layer in stats.items()}
    if columns == "mean":
        assert coverage.pop("cancelling") < 1e-6
        np.testing.assert_allclose(coverage.pop("independent"), 1 / m, rtol=0.2)
    assert len(coverage) == (2 if columns == "mean" else 4)
    np.testing.assert_allclose(list(coverage.values()), 1, rtol=1e-5)


def test_energy_against_float64():
    """Of the vectors exactly; of the columns without bias where it is estimated."""
    matrix = 0.3 + np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    whole = np.sum(matrix.astype(np.float64) ** 2) / 6
    state = rgo_jax.scale_by_rgo().init(jnp.zeros((4, 6)))

    def energy(columns, keys):
        fold = jax.vmap(lambda key: rgo_jax.rls_update(state, matrix, columns=columns, key=key))
        return np.asarray(jax.jit(fold)(keys).energy, np.float64)

    keys = jax.random.split(jax.random.key(0), 4000)
    mean = energy("mean", keys)
    in_mean = np.sum(matrix.astype(np.float64).mean(axis=1) ** 2)
    np.testing.assert_allclose(mean[:, 0], in_mean, rtol=1e-5)
    np.testing.assert_allclose(mean[:, 1].mean(), whole, rtol=0.05)
    signs = energy("signs", keys)
    np.testing.assert_array_equal(signs[:, 0], signs[:, 1])
    np.testing.assert_allclose(signs[:, 0].mean(), whole, rtol=0.05)
    np.testing.assert_allclose(energy("each", keys[:1]), [[whole, whole]], rtol=1e-5)
    assert abs(in_mean / whole - 1) > 0.3


@pytest.mark.parametrize("spec", [{}, {"diagonal": True}, {"blocks": 2}])
def test_states_that_vmap_has_stacked_are_refused(spec):
    tx = rgo_jax.scale_by_rgo(specs={"w": rgo_jax.ProjectionSpec(**spec)})
    params = {"w": jnp.zeros((4, 2))}
    stacked = jax.vmap(tx.init)(jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), params))
    with pytest.raises(ValueError, match=r"projection of 'w' has shape \(3, .* one at a time"):
        rgo_jax.projection_stats(stacked)
    first = rgo_jax.projection_stats(jax.tree.map(lambda leaf: leaf[0], stacked))
    np.testing.assert_allclose(first["w"].eigenvalues, np.ones(4))
