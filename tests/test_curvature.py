import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import strategies as st

import rgo_jax
from tests import oracle

rng = np.random.default_rng(0)


X = rng.normal(size=(10, 6)).astype(np.float32)


W = rng.normal(size=(6, 4)).astype(np.float32)


LABELS = rng.integers(0, 4, 10)


TARGETS = rng.normal(size=(10, 4)).astype(np.float32)


def gradient(targets, loss):
    """The library's gradient in W of a linear model."""
    return jax.grad(lambda w: rgo_jax.curvature_output(X @ w, jnp.asarray(targets), loss))(W)


def from_hessian(hessian):
    """d/dW sum_i sum_k sqrt(h_ik) f_ik for f = X W, by hand."""
    return X.T.astype(np.float64) @ np.sqrt(hessian)


def test_softmax_is_line_9():
    a = oracle.softmax((X @ W).astype(np.float64))
    chosen = np.eye(4)[LABELS]
    expected = from_hessian(a * (1 - a) * chosen)
    np.testing.assert_allclose(gradient(LABELS, "softmax_cross_entropy"), expected, atol=1e-6)
    assert np.abs(expected).max() > 0.01


def test_sigmoid():
    a = 1 / (1 + np.exp(-(X @ W).astype(np.float64)))
    ours = gradient(rng.integers(0, 2, (10, 4)), "sigmoid_binary_cross_entropy")
    np.testing.assert_allclose(ours, from_hessian(a * (1 - a)), atol=1e-6)


def test_squared_error():
    expected = from_hessian(np.full((10, 4), 2.0))
    np.testing.assert_allclose(gradient(TARGETS, "squared_error"), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "loss", "targets"),
    [
        ("squared_error", lambda f, y: jnp.sum(optax.squared_error(f, y)), TARGETS),
        (
            "sigmoid_binary_cross_entropy",
            lambda f, y: jnp.sum(optax.sigmoid_binary_cross_entropy(f, y)),
            rng.integers(0, 2, (10, 4)).astype(np.float32),
        ),
    ],
)
def test_a_loss_of_ones_own_agrees_with_the_named_one(name, loss, targets):
    np.testing.assert_allclose(gradient(targets, loss), gradient(targets, name), atol=1e-5)


def test_named_weights_are_optax_hessians():
    """The squared weights are the Hessian diagonal of optax's own losses."""
    logits = jnp.asarray(X @ W)
    weights = jax.grad(rgo_jax.curvature_output)(logits, jnp.asarray(LABELS))
    hessian = jax.vmap(
        lambda f, y: jnp.diagonal(
            jax.hessian(optax.softmax_cross_entropy_with_integer_labels)(f, y)
        )
    )(logits, jnp.asarray(LABELS))
    np.testing.assert_allclose(weights**2, hessian * np.eye(4)[LABELS], atol=1e-6)


def test_targets_of_ones_own_loss_may_be_a_tree():
    def loss(f, target):
        return jnp.sum(target["weight"] * optax.squared_error(f, target["y"]))

    tree = {"y": jnp.asarray(TARGETS), "weight": jnp.full(10, 2.0)}
    ours = jax.grad(lambda w: rgo_jax.curvature_output(X @ w, tree, loss))(W)
    np.testing.assert_allclose(ours, from_hessian(np.full((10, 4), 4.0)), atol=1e-5)


def test_a_loss_that_curves_downwards_has_no_weight():
    def loss(f, y):
        return -(f[0] ** 2) + f[1] ** 2 + y * f[2]

    ours = gradient(LABELS.astype(np.float32), loss)
    expected = from_hessian(np.tile([0.0, 2.0, 0.0, 0.0], (10, 1)))
    np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_leading_axes_are_all_examples():
    flat = rgo_jax.curvature_output(jnp.asarray(X @ W), jnp.asarray(LABELS))
    folded = rgo_jax.curvature_output(
        jnp.asarray(X @ W).reshape(2, 5, 4), jnp.asarray(LABELS).reshape(2, 5)
    )
    np.testing.assert_allclose(folded, flat, rtol=1e-6)


@hypothesis.given(logit=st.floats(0, 1e4), label=st.integers(0, 1))
def test_saturated_logits_give_finite_gradients(logit, label):
    logits = jnp.array([[logit, 0.0]], jnp.float32)
    value = jax.grad(rgo_jax.curvature_output)(logits, jnp.array([label]))
    assert np.isfinite(value).all()
    assert (np.asarray(value) >= 0).all()
    a = 1 / (1 + np.exp(-np.float64(np.float32(logit))))
    exact = np.sqrt(a * (1 / (1 + np.exp(min(np.float64(np.float32(logit)), 700)))))
    np.testing.assert_allclose(value[0, label], exact, rtol=1e-3, atol=1e-12)


def test_masked_logits_have_no_weight():
    """Classes of other tasks at -inf."""
    masked, whole = jnp.array([[1.0, 2.0, -jnp.inf]]), jnp.array([[1.0, 2.0]])
    for labels in (jnp.array([0]), jnp.array([1])):
        with jax.debug_nans(True):
            value, grads = jax.value_and_grad(rgo_jax.curvature_output)(masked, labels)
        expected = jax.value_and_grad(rgo_jax.curvature_output)(whole, labels)
        np.testing.assert_allclose(value, expected[0], rtol=1e-6)
        np.testing.assert_allclose(grads[:, :2], expected[1], rtol=1e-6)
        assert float(grads[0, 2]) == 0


def test_no_gradient_flows_through_the_weights():
    with_flow = jax.grad(
        lambda w: jnp.sum(
            jnp.sqrt(jax.nn.softmax(X @ w) * (1 - jax.nn.softmax(X @ w)))
            * (X @ w)
            * jnp.eye(4)[LABELS]
        )
    )(W)
    ours = gradient(LABELS, "softmax_cross_entropy")
    assert np.abs(ours - with_flow).max() > 0.01


def test_a_softmax_of_one_output_is_refused():
    logits, labels = jnp.ones((4, 1)), jnp.zeros(4, jnp.int32)
    with pytest.raises(ValueError, match=r"\(4, 1\).*single.*sigmoid_binary_cross_entropy"):
        rgo_jax.curvature_output(logits, labels)
    rgo_jax.curvature_output(logits, jnp.zeros((4, 1)), "sigmoid_binary_cross_entropy")


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"where": np.ones(4)}, TypeError, "where has dtype float32; expected bool"),
        ({"where": np.ones(10, bool)}, ValueError, r"where has shape \(10,\).*to \(10, 4\)"),
        ({"where": np.ones((1, 10, 4), bool)}, ValueError, r"where has shape \(1, 10, 4\)"),
        ({"weights": np.ones(4)}, ValueError, r"weights has shape \(4,\).*to \(10,\)"),
        ({"weights": np.ones((10, 1))}, ValueError, r"weights has shape \(10, 1\)"),
        ({"weights": np.ones(10, complex)}, TypeError, "weights have dtype complex64.*real"),
    ],
)
def test_errors_of_where_and_weights(options, error, match):
    options = {name: jnp.asarray(array) for name, array in options.items()}
    for loss, targets in (("softmax_cross_entropy", LABELS), ("squared_error", TARGETS)):
        with pytest.raises(error, match=match):
            rgo_jax.curvature_output(jnp.asarray(X @ W), jnp.asarray(targets), loss, **options)


@pytest.mark.parametrize(
    ("outputs", "targets", "loss", "error", "match"),
    [
        (X @ W, LABELS.astype(np.float32), "softmax_cross_entropy", TypeError, "integer labels"),
        (X @ W, LABELS[:5], "softmax_cross_entropy", ValueError, r"shape \(5,\).*shape \(10,\)"),
        (X @ W, np.eye(4, dtype=int)[LABELS], "softmax_cross_entropy", ValueError, r"\(10, 4\)"),
        (X @ W, LABELS, "squared_error", ValueError, "same shape"),
        (X @ W, TARGETS[:, :2], "sigmoid_binary_cross_entropy", ValueError, "same shape"),
        (X @ W, LABELS, "hinge", ValueError, "'hinge'; expected one of 'softmax_cross_entropy'"),
        (X @ W, LABELS[:5], lambda f, y: f[0], ValueError, r"begin with the axes \(10,\)"),
        (X @ W, TARGETS, optax.squared_error, ValueError, r"returns shape \(4,\).*jnp.sum"),
        (np.float32(1), LABELS, "softmax_cross_entropy", ValueError, r"expected \[\.\.\., num"),
        (LABELS, LABELS, "squared_error", TypeError, "floating point"),
    ],
)
def test_errors(outputs, targets, loss, error, match):
    with pytest.raises(error, match=match):
        rgo_jax.curvature_output(jnp.asarray(outputs), jnp.asarray(targets), loss)
