"""rgo_jax.linen.Conv against Flax's own, in all its options."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rgo_jax
import rgo_jax.linen
from tests.gradients import gradients
from tests.marks import slow_but

CONVS = {
    "plain": ((3, 3), {}, (2, 8, 8, 3)),
    "even window": ((4, 4), {}, (2, 7, 9, 3)),
    "strides": ((3, 3), {"strides": (2, 3)}, (2, 8, 9, 3)),
    "valid": ((3, 2), {"padding": "VALID"}, (2, 8, 8, 3)),
    "explicit padding": ((3, 3), {"padding": ((2, 0), (1, 3))}, (2, 6, 6, 3)),
    "circular": ((3, 3), {"padding": "CIRCULAR"}, (2, 6, 6, 3)),
    "causal": ((3,), {"padding": "CAUSAL"}, (2, 9, 3)),
    "dilation": ((3, 3), {"kernel_dilation": 2, "strides": 2}, (2, 9, 9, 3)),
    "input dilation": ((3, 3), {"input_dilation": 2, "padding": ((1, 1), (1, 1))}, (2, 4, 4, 3)),
    "groups": ((3, 3), {"feature_group_count": 2}, (2, 6, 6, 4)),
    "three dimensions": ((2, 2, 2), {}, (1, 4, 4, 4, 2)),
    "one row": ((3, 3), {"padding": "VALID"}, (1, 3, 3, 3)),
    "no batch": ((3, 3), {}, (6, 6, 3)),
    "two batch axes": ((3, 3), {"strides": 4}, (2, 2, 6, 6, 3)),
    "bfloat16": ((3, 3), {"dtype": jnp.bfloat16}, (2, 6, 6, 3)),
    "window larger than the image": ((3, 3), {"padding": "VALID"}, (2, 2, 2, 3)),
    "empty batch": ((3, 3), {}, (0, 6, 6, 3)),
    "no bias": ((3, 3), {"use_bias": False}, (2, 6, 6, 3)),
}


# With 4 features rows are more than features, with 256 fewer.
@pytest.mark.parametrize(
    ("name", "backend", "features"),
    slow_but(
        [
            *((name, "cpu", 4) for name in CONVS),
            *((name, "tpu", 4) for name in ("plain", "strides", "groups", "causal", "no batch")),
            *((name, "tpu", 256) for name in ("plain", "strides", "dilation", "one row", "valid")),
        ],
        *((name, "cpu", 4) for name in ("plain", "strides", "dilation", "groups", "no batch")),
        ("strides", "tpu", 4),
        ("plain", "tpu", 256),
    ),
)
def test_fused_conv(name, backend, features, monkeypatch):
    """As patches (on a CPU, a GPU, and where rows are few) and as XLA's convolution (elsewhere)."""
    window, options, shape = CONVS[name]
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    x = jax.random.normal(jax.random.key(0), shape)
    ours, theirs = (
        rgo_jax.linen.Conv(features, window, **options),
        nn.Conv(features, window, **options),
    )
    params = ours.init(jax.random.key(1), x)["params"]
    chex.assert_trees_all_close(params, theirs.init(jax.random.key(1), x)["params"], rtol=0)
    tx = rgo_jax.scale_by_rgo(normalize=False)  # layers yield P g
    state = rgo_jax.rls_update(tx.init(params), params)
    low = "dtype" in options
    tolerance = {"rtol": 5e-2, "atol": 5e-1} if low else {"rtol": 2e-3, "atol": 2e-3}

    def loss(both, model):
        y = model.apply({"params": both[0]}, both[1])
        return jnp.sum(jnp.sin(y.astype(jnp.float32))), y

    # The inputs as one more parameter, which RGO does not cover.
    outer = state._replace(projection=(state.projection, None), geometry=(state.geometry, None))
    both = (params, x)
    plain_grad = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)
    projected_grad = jax.jit(rgo_jax.value_and_grad(loss, outer, has_aux=True), static_argnums=1)
    (plain, plain_x), plain_y = plain_grad(both, theirs)
    (_, y), (marked, projected_x) = projected_grad(both, ours)
    projected = gradients(marked)
    assert y.dtype == plain_y.dtype
    chex.assert_trees_all_close(jnp.float32(y), jnp.float32(plain_y), **tolerance)
    chex.assert_trees_all_close(projected_x, plain_x, **tolerance)
    expected, _ = tx.update(plain, state)
    chex.assert_trees_all_close(projected, expected, **tolerance)
    after, _ = rgo_jax.scale_by_rgo().update(marked, state)
    with_trace_rule, _ = rgo_jax.scale_by_rgo().update(plain, state)
    chex.assert_trees_all_close(after, with_trace_rule, **tolerance)
    if plain_y.size and not low:
        assert np.abs(expected["kernel"] - plain["kernel"]).max() > 0.05
    (unprojected, _), _ = plain_grad(both, ours)
    chex.assert_trees_all_close(unprojected, plain, **tolerance)


@pytest.mark.parametrize(("platform", "largest"), [("cpu", 2**28), ("gpu", 2**25), ("tpu", 0)])
def test_which_convolutions_are_patches(platform, largest, monkeypatch):
    """Those whose patches have so many bytes at most; the backward pass as the forward pass."""
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    model = rgo_jax.linen.Conv(1, (4, 4))
    bytes_of_patches = 4 * 16 * 64 * 64  # of one image of one channel

    def convolutions(batch):
        x = jax.ShapeDtypeStruct((batch, 64, 64, 1), jnp.float32)
        params = jax.eval_shape(model.init, jax.random.key(0), x)

        def loss(params, x):
            return jnp.sum(model.apply(params, x))

        jaxpr = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(params, x)
        return str(jaxpr).count("conv_general_dilated[")

    fitting = largest // bytes_of_patches
    if fitting:
        assert convolutions(fitting) == 0
    assert convolutions(fitting + 1) == 3
