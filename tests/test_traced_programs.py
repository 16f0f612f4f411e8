"""Which axes are fan-in, of parameters that a plain program moves about before it uses them."""

import jax
import jax.numpy as jnp
import optax
import pytest

import rgo_jax
from rgo_jax import ProjectionSpec


def spec(*axes, blocks=1, diagonal=False):
    return ProjectionSpec(axes, blocks, diagonal)


X = jax.ShapeDtypeStruct((2, 8), jnp.float32)


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def hand_stacked(w, x):
    for layer in range(3):
        x = jnp.tanh(x @ w[layer])
    return x


def looped(w, x):
    return jax.lax.fori_loop(0, 3, lambda i, x: jnp.tanh(x @ w[i]), x)


def in_the_carry(w, x):
    (_, y), _ = jax.lax.scan(lambda c, _: ((c[0], jnp.tanh(c[1] @ c[0].T)), None), (w, x), None, 3)
    return y


PLAIN = {
    "stored [out, in]": (lambda w, x: jax.vmap(lambda x: w @ x)(x), (5, 8), spec(1)),
    "stored [out, in], one output": (lambda w, x: w @ x.T, (1, 8), spec(1)),
    "one input": (lambda w, x: x[:, :1] @ w, (1, 5), spec(0)),
    "a vector of weights": (lambda w, x: x @ w, (8,), spec(0)),
    "compiled and remembered": (jax.jit(jax.checkpoint(lambda w, x: x @ w.T)), (5, 8), spec(1)),
    "merged": (lambda w, x: x @ w.reshape(8, 6), (2, 4, 3, 2), spec(0, 1)),
    "split": (lambda w, x: jnp.einsum("bi,ijk->bjk", x, w.reshape(8, 3, 2)), (8, 6), spec(0)),
    "split and merged": (lambda w, x: x @ w.reshape(5, 2, 4).reshape(5, 8).T, (5, 8), spec(1)),
    "queries, keys and values": (
        lambda w, x: (x @ w[:, :4], x @ w[:, 4:8], x @ w[:, 8:]),
        (8, 12),
        spec(0),
    ),
    "masked": (lambda w, x: x @ (w * jnp.tri(8, 5)), (8, 5), spec(0)),
    "scaled": (lambda w, x: x @ (w * 0.1), (8, 5), spec(0)),
    "experts": (lambda w, x: jnp.einsum("bi,eio->ebo", x, w), (3, 8, 5), spec(1)),
    "experts with inputs of their own": (
        lambda w, x: jnp.einsum("ebi,eio->ebo", jnp.stack([x, x, x]), w),
        (3, 8, 5),
        spec(0, 1, blocks=3),
    ),
    "stacked by hand": (hand_stacked, (3, 8, 8), spec(0, 1, blocks=3)),
    "stacked and looped over": (looped, (3, 8, 8), spec(0, 1, blocks=3)),
    "one output at a time": (lambda w, x: (x @ w[0], x @ w[1]), (2, 8), spec(1)),
    "one output and the others": (lambda w, x: (x @ w[:, :1], x @ w[:, 1:]), (8, 5), spec(0)),
    "in the carry of a scan": (in_the_carry, (8, 8), spec(1)),
    "under a condition": (
        lambda w, x: jax.lax.cond(x[0, 0] > 0, lambda w, x: x @ w.T, lambda w, x: x, w, x),
        (8, 8),
        spec(1),
    ),
    "a bias of each task": (lambda w, x: x + w[2][None], (3, 8), spec(0, 1, blocks=3)),
    "a number for each layer": (lambda w, x: x * w[0] + x * w[1], (2,), spec(0)),
    "learned positions": (lambda w, x: x + w, (2, 8), spec(0, 1, diagonal=True)),
    "a token of classes": (
        lambda w, x: jnp.concatenate([w, x]),
        (1, 8),
        spec(0, 1, diagonal=True),
    ),
    "a scalar": (lambda w, x: x * w, (), None),
    "not used": (lambda w, x: x, (8, 8), None),
    "in a loop of unknown length": (
        lambda w, x: jax.lax.while_loop(lambda x: x[0, 0] < 9, lambda x: x @ w, x),
        (8, 8),
        None,
    ),
    "multiplied by itself": (lambda w, x: x @ (w @ w), (8, 8), spec(0)),
}


@pytest.mark.parametrize("name", PLAIN)
def test_plain_jax(name):
    fn, sizes, expected = PLAIN[name]
    params = {"weight": shape(*sizes)}
    found = rgo_jax.infer_specs(lambda p, x: fn(p["weight"], x), params, X)["weight"]
    is_default = expected is not None and expected.axes == (0,) and len(sizes) == 1
    assert found == (None if is_default else expected)


def test_one_array():
    """Not in a tree."""
    specs = rgo_jax.infer_specs(lambda w, x: x @ w.T, shape(5, 8), X)
    state = jax.eval_shape(rgo_jax.scale_by_rgo(specs=specs).init, shape(5, 8))
    assert state.projection.shape == (8, 8)


def test_data_that_is_closed_over():
    x = jnp.ones((2, 8))
    with pytest.raises(ValueError, match=r"There is no data: expected fn\(params, \*args\)"):
        rgo_jax.infer_specs(lambda w: x @ w, shape(8, 3))


def test_masked_parameters():
    params = {"w": shape(5, 8), "frozen": optax.MaskedNode()}
    specs = rgo_jax.infer_specs(lambda p, x: p["w"] @ x.T, params, X)
    assert specs["w"] == spec(1)
