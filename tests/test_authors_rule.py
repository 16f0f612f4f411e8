"""The rule as the paper's authors run it, by hand for a linear layer with three classes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rgo_jax

ALPHA = 0.01
W = np.array([[0.5, -0.3, 0.2], [-0.1, 0.4, 0.3]])
B = np.array([0.1, 0.0, -0.2])
# Two batches of four examples. In the first the classes 0 and 2 occur, in the second 1 and 2.
X = np.array(
    [
        [[0.2, -0.1], [0.05, 0.3], [-0.3, 0.1], [0.1, 0.15]],
        [[0.1, 0.2], [-0.2, 0.25], [0.15, -0.05], [0.3, 0.1]],
    ]
)
LABELS = np.array([[0, 2, 2, 0], [1, 1, 2, 1]])


def gradients_by_hand(occurring_only=True, batch_mean=False):
    """Of ``sum_i sqrt(a_iy (1 - a_iy)) z_iy`` in W and b, of each batch."""
    result = []
    for x, labels in zip(X, LABELS, strict=True):
        classes = sorted(set(labels)) if occurring_only else range(3)
        in_w, in_b = np.zeros((2, 3)), np.zeros(3)
        for example, label in zip(x, labels, strict=True):
            z = example @ W + B
            a = np.exp(z[label]) / sum(np.exp(z[c]) for c in classes)
            weight = np.sqrt(a * (1 - a))
            in_w[:, label] += weight * example
            in_b[label] += weight
        scale = 1 / len(x) if batch_mean else 1
        result.append((scale * in_w, scale * in_b))
    return result


def projections_by_hand(combine=np.mean, **rule):
    """``P <- P - P v v' P / (alpha + v' P v)`` with one v of each batch, of the kernel and bias."""
    p_w, p_b = np.eye(2), np.eye(3)
    for in_w, in_b in gradients_by_hand(**rule):
        v = combine(in_w, axis=1)  # over all three columns, the absent class's too
        p_w = p_w - np.outer(p_w @ v, p_w @ v) / (ALPHA + v @ p_w @ v)
        p_b = p_b - np.outer(p_b @ in_b, p_b @ in_b) / (ALPHA + in_b @ p_b @ in_b)
    return p_w, p_b


def output(params, x, labels):
    logits = x @ params["kernel"] + params["bias"][None]
    where = jnp.isin(jnp.arange(3), labels)
    return rgo_jax.curvature_output(logits, labels, where=where)


PARAMS = {"kernel": jnp.asarray(W, jnp.float32), "bias": jnp.asarray(B, jnp.float32)}
BATCHES = jnp.asarray(X, jnp.float32), jnp.asarray(LABELS)


def gradient(batch):
    return jax.grad(output)(PARAMS, *batch)


def test_gradients():
    for index, (in_w, in_b) in enumerate(gradients_by_hand()):
        ours = gradient((BATCHES[0][index], BATCHES[1][index]))
        np.testing.assert_allclose(ours["kernel"], in_w, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(ours["bias"], in_b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("together", [False, True])
def test_projections_and_the_next_step(together):
    tx = rgo_jax.rgo(0.1)
    state = tx.init(PARAMS)
    if together:
        state = rgo_jax.consolidate(state, gradient, BATCHES)
    else:
        for index in range(2):
            grads = gradient((BATCHES[0][index], BATCHES[1][index]))
            state = rgo_jax.rls_update(state, grads)
    p_w, p_b = projections_by_hand()
    np.testing.assert_allclose(state[0].projection["kernel"], p_w, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(state[0].projection["bias"], p_b, rtol=1e-4, atol=1e-6)

    # The sum over columns, the softmax over all classes, and the mean over the batch are elsewhere.
    for other in ({"combine": np.sum}, {"occurring_only": False}, {"batch_mean": True}):
        p, _ = projections_by_hand(**other)
        assert np.abs(state[0].projection["kernel"] - p).max() > 0.005

    grads = {"kernel": jnp.asarray(W + 1, jnp.float32), "bias": jnp.asarray(B + 1, jnp.float32)}
    updates, _ = tx.update(grads, state, PARAMS)
    for name, p, g in (("kernel", p_w, W + 1), ("bias", p_b, B + 1)):
        step = -0.1 * len(p) / np.trace(p) * p @ g
        np.testing.assert_allclose(updates[name], step, rtol=1e-3, atol=1e-5)
