"""curvature_output's where and weights: what does not count is as if left out."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import strategies as st

import rgo_jax

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


@pytest.mark.slow
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
