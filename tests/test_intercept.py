"""`consolidate` has Flax's own layers compute as the fused ones: the same numbers, faster."""

from functools import partial

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import errors, nnx

import rgo_jax
import rgo_jax.linen
import rgo_jax.nnx


class Net(nn.Module):
    conv: type = nn.Conv

    @nn.compact
    def __call__(self, x):
        x = nn.relu(self.conv(4, (3, 3), strides=2, name="conv")(x))
        return nn.Dense(3, name="head")(x.reshape(len(x), -1))


class NnxNet(nnx.Module):
    def __init__(self, conv, rngs):
        self.conv = conv(2, 4, (3, 3), strides=2, rngs=rngs)
        self.head = nnx.Linear(36, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.conv(x))
        return self.head(x.reshape(len(x), -1))


class Subclass(nn.Conv):
    """Not Flax's own, so what it computes is its author's business."""


class NnxSubclass(nnx.Conv):
    """So too."""


X = jax.random.normal(jax.random.key(0), (4, 5, 6, 6, 2))
Y = jax.random.randint(jax.random.key(1), (4, 5), 0, 3)
PARAMS = Net().init(jax.random.key(2), X[0])["params"]
TX = rgo_jax.rgo(0.1)


def output(net, params, batch):
    return rgo_jax.curvature_output(net.apply({"params": params}, batch[0]), batch[1])


def consolidated(net, with_params=True, **options):
    fn = partial(output, net)
    if with_params:
        return rgo_jax.consolidate(TX.init(PARAMS), fn, (X, Y), PARAMS, alpha=0.1, **options)
    grad_fn = lambda batch: jax.grad(fn)(PARAMS, batch)  # noqa: E731
    return rgo_jax.consolidate(TX.init(PARAMS), grad_fn, (X, Y), alpha=0.1, **options)


def one_by_one(**options):
    """By Flax's layers as they are."""
    state = TX.init(PARAMS)
    for batch in zip(X, Y, strict=True):
        grads = jax.grad(partial(output, Net()))(PARAMS, batch)
        state = rgo_jax.rls_update(state, grads, alpha=0.1, **options)
    return state


@pytest.mark.parametrize(
    ("with_params", "options"),
    [(True, {}), (False, {}), pytest.param(True, {"columns": "each"}, marks=pytest.mark.slow)],
)
def test_the_same_as_by_flax(with_params, options):
    found = jax.jit(lambda: consolidated(Net(), with_params, **options))()
    chex.assert_trees_all_close(found, one_by_one(**options), rtol=1e-4, atol=1e-5)
    assert np.abs(found[0].projection["conv"]["kernel"] - np.eye(18)).max() > 1e-2


def convolutions(function):
    return str(jax.make_jaxpr(function)()).count("conv_general_dilated[")


@pytest.mark.parametrize("with_params", [True, False])
def test_no_convolution_of_xla_is_left_in_the_loop(with_params):
    """On a CPU it would take many times as long as the product of patches."""
    assert convolutions(lambda: consolidated(Net(), with_params)) == 0
    # What is not Flax's own stays as it is, and so do Flax's layers elsewhere.
    assert convolutions(lambda: consolidated(Net(Subclass), with_params)) > 0
    own = partial(nn.Conv, conv_general_dilated=jax.lax.conv_general_dilated)
    assert convolutions(lambda: consolidated(Net(own), with_params)) > 0
    assert convolutions(lambda: Net().apply({"params": PARAMS}, X[0])) == 1


def consolidated_nnx(conv):
    model = NnxNet(conv, nnx.Rngs(0))
    nnx.update(model, PARAMS)
    optimizer = nnx.Optimizer(model, TX, wrt=nnx.Param)

    def output(model, batch):
        return rgo_jax.curvature_output(model(batch[0]), batch[1])

    rgo_jax.nnx.consolidate(model, optimizer, output, (X, Y), alpha=0.1)
    # The model itself is as it was.
    assert model.conv.conv_general_dilated is jax.lax.conv_general_dilated
    projection = optax.tree.get(optimizer.opt_state, "projection")
    return {path: projection[path]["kernel"][...] for path in ("conv", "head")}


def test_nnx():
    found, expected = jax.jit(lambda: consolidated_nnx(nnx.Conv))(), one_by_one()[0].projection
    for path, p in found.items():
        np.testing.assert_allclose(p, expected[path]["kernel"], rtol=1e-4, atol=1e-5)
    assert convolutions(lambda: consolidated_nnx(nnx.Conv)) == 0
    assert convolutions(lambda: consolidated_nnx(NnxSubclass)) > 0


def test_interceptors_of_the_user_see_each_layer_once():
    seen = []

    def doubled(method, args, kwargs, context):
        y = method(*args, **kwargs)
        if context.method_name != "__call__" or not isinstance(context.module, nn.Conv):
            return y
        seen.append(context.module)
        return 2 * y

    with nn.intercept_methods(doubled):
        found, expected = jax.jit(lambda: consolidated(Net()))(), one_by_one()
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-5)
    assert float(found[0].energy["head"]["kernel"][0]) > 2 * float(
        one_by_one()[0].energy["head"]["kernel"][0]
    )
    assert all(layer.conv_general_dilated is None for layer in seen)


def test_a_layer_is_as_before_after_an_error():
    layers = []

    class Failing(nn.Module):
        @nn.compact
        def __call__(self, x):
            layers.append(nn.Dense(3))
            return layers[-1](x)

    params = {"Dense_0": {"kernel": jnp.ones((4, 3))}}  # no bias
    batches = (jnp.ones((1, 2, 4)), Y[:1, :2])
    with pytest.raises(errors.ScopeParamNotFoundError):
        rgo_jax.consolidate(TX.init(params), partial(output, Failing()), batches, params)
    assert layers[-1].dot_general is None
