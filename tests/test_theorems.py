"""What the paper proves about the projection, checked on the library's own output."""

import jax
import jax.numpy as jnp
import numpy as np

import rgo_jax

D = 12
ALPHA = 0.01  # the default


def trained_state():
    """A state after a task whose curvature is far from isotropic, and its Hessian."""
    vectors = jax.random.normal(jax.random.key(0), (40, D)) * jnp.logspace(-0.5, -2.5, D)[None]
    state = rgo_jax.scale_by_rgo().init(jnp.zeros(D))
    state = rgo_jax.consolidate(state, lambda v: v, vectors)
    vectors = np.asarray(vectors, np.float64)
    return state, ALPHA * np.eye(D) + vectors.T @ vectors


def normalised_projection(state):
    """The matrix the transform multiplies gradients by, read off through its public interface."""
    tx = rgo_jax.scale_by_rgo()
    rows = jax.vmap(lambda g: tx.update(g, state)[0])(jnp.eye(D))
    return np.asarray(rows, np.float64)


def test_trace_rule():
    state, _ = trained_state()
    p = normalised_projection(state)
    assert abs(np.trace(state.projection) - D) > 1  # the raw projection does not obey it
    np.testing.assert_allclose(np.trace(p), D, rtol=1e-5)
    assert np.ptp(np.linalg.eigvalsh((p + p.T) / 2)) > 0.5  # and it is not the identity, which does


def test_theorem_1_equal_expected_decrease_under_isotropic_gradients():
    """E[g' P g] = E[g' g]: the first-order decrease of the loss is on average that of SGD."""
    state, _ = trained_state()
    tx = rgo_jax.scale_by_rgo()
    gradients = jax.random.normal(jax.random.key(1), (100_000, D))
    modified = jax.vmap(lambda g: tx.update(g, state)[0])(gradients)
    decrease = np.asarray(jnp.sum(gradients * modified, axis=1))
    sgd = np.asarray(jnp.sum(gradients**2, axis=1))
    # One gradient decreases more, another less; three standard errors of the mean difference.
    difference = decrease - sgd
    assert difference.std() > 1
    assert abs(difference.mean()) < 3 * difference.std() / np.sqrt(len(difference))


def test_theorem_2_no_random_matrix_of_the_same_trace_has_a_lower_bound():
    """P minimises the largest eigenvalue of P H over SPD matrices with trace P = dim P.

    Its value is d / tr(H^-1), the solution of problem (9); the bound on the forgotten loss is
    proportional to it.
    """
    state, hessian = trained_state()

    def bound(p):
        return np.linalg.eigvals(p @ hessian).real.max()

    ours = bound(normalised_projection(state))
    np.testing.assert_allclose(ours, D / np.trace(np.linalg.inv(hessian)), rtol=1e-3)
    rng = np.random.default_rng(2)
    for spread in (0.1, 1.0, 3.0):
        for _ in range(100):
            basis, _ = np.linalg.qr(rng.normal(size=(D, D)))
            eigenvalues = np.exp(spread * rng.normal(size=D))
            p = basis * eigenvalues @ basis.T
            assert ours < bound(p * D / np.trace(p))
    # Matrices that know the Hessian's eigenvectors, but not the best eigenvalues.
    eigenvalues, basis = np.linalg.eigh(hessian)
    for power in (0.0, 0.5, 0.9, 1.1, 2.0):
        p = basis * eigenvalues**-power @ basis.T
        assert ours < bound(p * D / np.trace(p))
