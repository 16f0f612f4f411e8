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


# name or function -> targets [num_examples, num_outputs] or [num_examples] of each
LOSSES = {
    "softmax_cross_entropy": lambda rng, b, k: rng.integers(0, k, b),
    "sigmoid_binary_cross_entropy": lambda rng, b, k: rng.integers(0, 2, (b, k)).astype(np.float32),
    "squared_error": lambda rng, b, k: rng.normal(size=(b, k)).astype(np.float32),
    "of one's own": lambda rng, b, k: rng.normal(size=(b, k)).astype(np.float32),
}


def own_loss(f, y):
    """With a Hessian that differs from output to output and depends on them."""
    return jnp.sum(jnp.cosh(f - y))


def problem(seed, name, shape=(4, 5)):
    """Outputs, targets and loss; the outputs' shape is given."""
    rng = np.random.default_rng(seed)
    outputs = rng.normal(size=shape).astype(np.float32)
    size, num_outputs = int(np.prod(shape[:-1])), shape[-1]
    targets = LOSSES[name](rng, size, num_outputs)
    targets = targets.reshape(*shape[:-1], *targets.shape[1:])
    return outputs, targets, own_loss if name == "of one's own" else name


step_by_step = jax.value_and_grad(rgo_jax.curvature_output)
compiled = jax.jit(step_by_step, static_argnums=2)


def value_and_grad(outputs, targets, loss="softmax_cross_entropy", debug_nans=False, **options):
    """`curvature_output` and its gradient in the outputs."""
    outputs, targets, options = jax.tree.map(jnp.asarray, (outputs, targets, options))
    if debug_nans:  # finds them only where it sees each step
        with jax.debug_nans(True):
            found = step_by_step(outputs, targets, loss, **options)
    else:
        found = compiled(outputs, targets, loss, **options)
    return jax.tree.map(np.asarray, found)


masks = st.lists(st.booleans(), min_size=5, max_size=5).filter(lambda mask: sum(mask) > 1)
examples = st.lists(st.booleans(), min_size=4, max_size=4).filter(any)
seeds = st.integers(0, 10_000)


@hypothesis.given(seed=seeds, mask=masks, hidden=st.sampled_from([0.0, 7.0, np.nan, -np.inf]))
def test_classes_where_nothing_counts_are_as_if_left_out(seed, mask, hidden):
    """One mask for all examples; whatever the outputs are that it hides."""
    mask, rng = np.array(mask), np.random.default_rng(seed)
    outputs, _, loss = problem(seed, "softmax_cross_entropy")
    among = rng.integers(0, mask.sum(), 4)
    expected, expected_grad = value_and_grad(outputs[:, mask], among, loss)
    labels = np.flatnonzero(mask)[among]
    with_hidden = np.where(mask, outputs, np.float32(hidden))
    value, grad = value_and_grad(with_hidden, labels, loss, debug_nans=True, where=mask)
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(grad[:, mask], expected_grad, rtol=1e-5, atol=1e-6)
    assert not grad[:, ~mask].any()
    if mask.sum() < 5:  # the softmax has changed, not only the sum
        _, over_all = value_and_grad(outputs, labels, loss)
        assert np.abs(over_all - grad)[over_all > 0].max() > 1e-4


@hypothesis.given(seed=seeds, masks=st.lists(masks, min_size=4, max_size=4))
def test_each_example_may_have_classes_of_its_own(seed, masks):
    outputs, _, loss = problem(seed, "softmax_cross_entropy")
    mask, labels = np.array(masks), np.array([np.flatnonzero(mask)[seed % 2] for mask in masks])
    value, grad = value_and_grad(outputs, labels, loss, where=mask)
    alone = [
        value_and_grad(outputs[i : i + 1], labels[i : i + 1], loss, where=mask[i]) for i in range(4)
    ]
    np.testing.assert_allclose(value, sum(v for v, _ in alone), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(grad, np.concatenate([g for _, g in alone]), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", [*LOSSES][1:])
def test_outputs_where_nothing_counts_of_other_losses(name):
    """They are independent, so what is left is as it was."""
    outputs, targets, loss = problem(0, name)
    mask = np.random.default_rng(1).random((4, 5)) < 0.6
    _, grad = value_and_grad(outputs, targets, loss, where=mask)
    _, over_all = value_and_grad(outputs, targets, loss)
    np.testing.assert_allclose(grad, np.where(mask, over_all, 0), rtol=1e-6)
    assert over_all.min() > 0
    assert 0 < mask.sum() < mask.size


@hypothesis.given(seed=seeds, mask=masks)
def test_weights_where_are_hessians_of_optax_with_the_same_where(seed, mask):
    mask, rng = np.array(mask), np.random.default_rng(seed)
    outputs, _, loss = problem(seed, "softmax_cross_entropy")
    labels = rng.choice(np.flatnonzero(mask), 4)
    _, weights = value_and_grad(outputs, labels, loss, where=mask)

    @jax.vmap
    def diagonal(f, y):
        def of_optax(f):
            return optax.softmax_cross_entropy(f, y, where=jnp.asarray(mask))

        return jnp.diagonal(jax.hessian(of_optax)(f))

    hessian = diagonal(jnp.asarray(outputs), jnp.eye(5)[labels])
    np.testing.assert_allclose(weights**2, hessian * np.eye(5)[labels], atol=1e-6)


@pytest.mark.parametrize("where", ["label", "all"])
def test_a_label_where_nothing_counts_counts_for_nothing(where):
    """Neither a label that is left out, nor an example of which everything is."""
    outputs, labels, loss = problem(3, "softmax_cross_entropy")
    mask = np.ones((4, 5), bool)
    mask[2, labels[2] if where == "label" else slice(None)] = False
    value, grad = value_and_grad(outputs, labels, loss, debug_nans=True, where=mask)
    others = np.array([0, 1, 3])
    expected, expected_grad = value_and_grad(outputs[others], labels[others], loss)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(grad[others], expected_grad, rtol=1e-6)
    assert not grad[2].any()


@pytest.mark.parametrize("name", LOSSES)
@hypothesis.given(seed=seeds, kept=examples, padding=st.sampled_from([0.0, np.inf, np.nan]))
def test_examples_of_weight_0_are_as_if_left_out(name, seed, kept, padding):
    kept = np.array(kept)
    outputs, targets, loss = problem(seed, name)
    expected, expected_grad = value_and_grad(outputs[kept], targets[kept], loss)
    outputs[~kept] = padding
    targets[~kept] = -100 if targets.ndim == 1 else padding
    value, grad = value_and_grad(outputs, targets, loss, weights=kept.astype(np.float32))
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(grad[kept], expected_grad, rtol=1e-5)
    assert not grad[~kept].any()
    booleans, _ = value_and_grad(outputs, targets, loss, weights=kept)
    np.testing.assert_array_equal(booleans, value)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("function", [step_by_step, compiled], ids=["step by step", "compiled"])
def test_padding_of_nan_passes_a_search_for_nan(name, function):
    outputs, targets, loss = problem(0, name)
    outputs[1] = np.nan

    outputs, targets, weights = map(jnp.asarray, (outputs, targets, np.array([1, 0, 1, 1])))
    with jax.debug_nans(True):
        _, grad = function(outputs, targets, loss, weights=weights)
    assert not grad[1].any()
    assert grad[2].any()


@pytest.mark.parametrize("name", LOSSES)
@hypothesis.given(seed=seeds, times=st.lists(st.sampled_from([0, 1, 2]), min_size=4, max_size=4))
def test_weights_say_how_often_an_example_counts(name, seed, times):
    """In W of a linear model, where the gradients of examples add up."""
    outputs, targets, loss = problem(seed, name)
    x = np.random.default_rng(seed).normal(size=(4, 3)).astype(np.float32)
    repeated = np.repeat(np.arange(4), times)
    _, grad = value_and_grad(outputs, targets, loss, weights=np.array(times))
    # Sums over examples and over copies: one program for any number of them.
    _, once = value_and_grad(outputs, targets, loss)
    np.testing.assert_allclose(x.T @ grad, x[repeated].T @ once[repeated], rtol=1e-4, atol=1e-5)


def test_an_example_of_weight_2_is_that_example_twice():
    outputs, targets, loss = problem(0, "softmax_cross_entropy")
    twice = value_and_grad(np.r_[outputs, outputs[:1]], np.r_[targets, targets[:1]], loss)
    value, grad = value_and_grad(outputs, targets, loss, weights=np.array([2, 1, 1, 1]))
    np.testing.assert_allclose(value, twice[0], rtol=1e-6)
    np.testing.assert_allclose(grad[1:], twice[1][1:4], rtol=1e-6)
    np.testing.assert_allclose(grad[0], twice[1][0] + twice[1][4], rtol=1e-6)


@hypothesis.given(seed=seeds, lengths=st.lists(st.integers(0, 6), min_size=3, max_size=3))
def test_padded_sequences(seed, lengths):
    """Tokens ``[b, t]``, as many of each sequence as it is long."""
    outputs, labels, loss = problem(seed, "softmax_cross_entropy", shape=(3, 6, 5))
    real = np.arange(6)[None] < np.array(lengths)[:, None]
    by_token = [
        value_and_grad(outputs[b, t][None], labels[b, t][None], loss)[1][0]
        for b, t in zip(*np.nonzero(real), strict=True)
    ]
    outputs[~real], labels[~real] = np.nan, -1
    value, grad = value_and_grad(outputs, labels, loss, weights=real)
    np.testing.assert_allclose(grad[real], np.reshape(by_token, (-1, 5)), rtol=1e-5, atol=1e-7)
    assert not grad[~real].any()
    np.testing.assert_allclose(value, np.sum(grad[real] * outputs[real]), rtol=1e-4, atol=1e-5)


def test_weights_and_where_broadcast():
    outputs, labels, loss = problem(0, "softmax_cross_entropy", shape=(3, 6, 5))
    labels = np.minimum(labels, 3)
    mask, steps = np.array([True, True, True, True, False]), np.array([0, 1, 2, 1, 0, 3.0])
    expected = value_and_grad(
        outputs,
        labels,
        loss,
        where=np.broadcast_to(mask, outputs.shape),
        weights=np.broadcast_to(steps, (3, 6)),
    )
    found = value_and_grad(outputs, labels, loss, where=mask, weights=steps)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    _, by_sequence = value_and_grad(outputs, labels, loss, weights=np.array([[1.0], [0], [2]]))
    _, once = value_and_grad(outputs, labels, loss)
    np.testing.assert_allclose(by_sequence, once * np.array([1.0, 0, 2])[:, None, None], rtol=1e-6)
    everything = value_and_grad(outputs, labels, loss, where=np.True_, weights=np.array(1))
    jax.tree.map(np.testing.assert_array_equal, everything, value_and_grad(outputs, labels, loss))


def test_no_gradient_flows_through_the_weights_of_examples():
    outputs, labels, loss = problem(0, "softmax_cross_entropy")

    def output(weights):
        return rgo_jax.curvature_output(
            jnp.asarray(outputs), jnp.asarray(labels), loss, weights=weights
        )

    assert not jax.grad(output)(jnp.ones(4)).any()


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int64])
def test_labels_of_any_integers(dtype):
    """Also of those that cannot count all outputs, of which they name some."""
    outputs = np.random.default_rng(0).normal(size=(3, 300)).astype(np.float32)
    labels = np.array([3, 44, 127])
    _, expected = value_and_grad(outputs, labels.astype(np.int32))
    _, grad = value_and_grad(outputs, labels.astype(dtype))
    np.testing.assert_array_equal(grad, expected)
    rows, columns = np.nonzero(grad)
    np.testing.assert_array_equal(rows, [0, 1, 2])
    np.testing.assert_array_equal(columns, labels)


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
