"""rgo_jax.linen.Dense and Conv: as Flax's own, and under its transforms."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rgo_jax
import rgo_jax.linen
from tests.gradients import gradients, projected


def test_fused_dense_is_flax_dense_otherwise():
    x = jax.random.normal(jax.random.key(0), (2, 5, 6))
    for options in ({}, {"use_bias": False}, {"dtype": jnp.bfloat16}):
        ours, theirs = rgo_jax.linen.Dense(4, **options), nn.Dense(4, **options)
        variables = ours.init(jax.random.key(1), x)
        chex.assert_trees_all_close(variables, theirs.init(jax.random.key(1), x), rtol=0)
        y = ours.apply(variables, x)
        state = rgo_jax.rgo(0.1).init(variables["params"])

        def outputs(params, ours=ours):
            y = ours.apply({"params": params}, x)
            return jnp.sum(y.astype(jnp.float32)), y

        with_grad = rgo_jax.value_and_grad(outputs, state, has_aux=True)
        (_, inside), _ = with_grad(variables["params"])
        expected = theirs.apply(variables, x)
        for found in (y, inside):
            assert found.dtype == expected.dtype
            np.testing.assert_allclose(
                np.asarray(found, np.float32), np.asarray(expected, np.float32), rtol=1e-5
            )


def test_fused_dense_gives_the_same_input_gradient_and_maps_over_seeds():
    x = jax.random.normal(jax.random.key(0), (3, 4, 6))
    model = rgo_jax.linen.Dense(9)
    params = model.init(jax.random.key(1), x[0])["params"]
    tx = rgo_jax.scale_by_rgo(normalize=False)  # layers yield P g
    state = rgo_jax.rls_update(tx.init(params), params)

    def loss(both):
        params, x = both
        return jnp.sum(model.apply({"params": params}, x) ** 2)

    def projected_grads(x):
        # The inputs as one more parameter, which RGO does not cover.
        outer = state._replace(projection=(state.projection, None), geometry=(state.geometry, None))
        return rgo_jax.value_and_grad(loss, outer)((params, x))[1]

    for i in range(3):
        plain, plain_x = jax.grad(loss)((params, x[i]))
        projected, projected_x = projected_grads(x[i])
        np.testing.assert_allclose(projected_x, plain_x, rtol=1e-5)
        chex.assert_trees_all_close(
            gradients(projected), tx.update(plain, state)[0], rtol=1e-3, atol=1e-4
        )
        after, _ = rgo_jax.scale_by_rgo().update(projected, state)
        with_trace_rule, _ = rgo_jax.scale_by_rgo().update(plain, state)
        chex.assert_trees_all_close(after, with_trace_rule, rtol=1e-3, atol=1e-4)
        assert np.abs(after["kernel"] - projected["kernel"].gradient).max() > 0.1
        mapped, _ = jax.vmap(projected_grads)(x)
        chex.assert_trees_all_close(
            jax.tree.map(lambda g, i=i: g[i], mapped), projected, rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("rows", [3, 8])  # fewer and more than features: both backward passes
def test_losses_with_input_gradients_are_projected(rows):
    """A gradient penalty reaches the kernel through the gradient in the inputs."""
    model, x = rgo_jax.linen.Dense(6), jax.random.normal(jax.random.key(0), (rows, 4))
    params = model.init(jax.random.key(1), x)["params"]
    tx = rgo_jax.scale_by_rgo(normalize=False)
    state = tx.init(params)
    kernel = jnp.diag(jnp.array([1, 0.5, 0.1, 0.01]))
    state = state._replace(projection=state.projection | {"kernel": kernel})

    def penalty(params):
        def output(x):
            return jnp.sum(jnp.tanh(model.apply({"params": params}, x)))

        return jnp.sum(jax.grad(output)(x) ** 2)

    expected, _ = tx.update(jax.grad(penalty)(params), state)
    chex.assert_trees_all_close(projected(penalty, state, params), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_fused_layers_under_remat_scan_and_vmap():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.relu(rgo_jax.linen.Conv(5, (3, 3))(x))

    class Model(nn.Module):
        remat: bool

        @nn.compact
        def __call__(self, x):
            x = (nn.remat(Block) if self.remat else Block)(name="block")(x)
            return rgo_jax.linen.Dense(2)(x.reshape(len(x), -1))

    x = jax.random.normal(jax.random.key(0), (3, 2, 4, 4, 3))
    params = Model(False).init(jax.random.key(1), x[0])["params"]
    tx = rgo_jax.scale_by_rgo(normalize=False)
    state = rgo_jax.rls_update(tx.init(params), params)

    def grads(x, remat=False):
        def loss(params):
            return jnp.sum(Model(remat).apply({"params": params}, x) ** 2)

        return projected(loss, state, params)

    one_by_one = jax.tree.map(lambda *g: jnp.stack(g), *map(jax.jit(grads), x))
    _, scanned = jax.lax.scan(lambda _, x: (None, grads(x)), None, x)
    mapped = jax.jit(jax.vmap(grads))(x)
    remat = jax.jit(jax.vmap(lambda x: grads(x, remat=True)))(x)
    plain = jax.vmap(
        jax.grad(lambda params, x: jnp.sum(Model(False).apply({"params": params}, x) ** 2)),
        in_axes=(None, 0),
    )(params, x)
    expected = jax.vmap(lambda g: tx.update(g, state)[0])(plain)
    for other in (mapped, scanned, remat, expected):
        chex.assert_trees_all_close(other, one_by_one, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_models_that_mix_layers():
    """Of rgo_jax and of Flax: each gradient is projected once."""

    class Mixed(nn.Module):
        first: type
        second: type

        @nn.compact
        def __call__(self, x, task_id):
            x = rgo_jax.linen.FeatureEncoding()(x, task_id)
            return self.second(3, name="b")(nn.relu(self.first(8, name="a")(x)))

    x, task = jax.random.normal(jax.random.key(0), (4, 6)), 1
    params = Mixed(nn.Dense, nn.Dense).init(jax.random.key(1), x, task)["params"]
    tx = rgo_jax.scale_by_rgo()
    state = rgo_jax.rls_update(tx.init(params), params)

    def loss(params, model):
        return jnp.sum(model.apply({"params": params}, x, task) ** 2)

    expected, _ = tx.update(jax.grad(loss)(params, Mixed(nn.Dense, nn.Dense)), state)
    for first in (nn.Dense, rgo_jax.linen.Dense):
        for second in (nn.Dense, rgo_jax.linen.Dense):
            _, own = rgo_jax.value_and_grad(loss, state)(params, Mixed(first, second))
            updates, _ = tx.update(own, state)
            chex.assert_trees_all_close(updates, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("transpose_kernel", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_transposed_convolutions(transpose_kernel):
    """Flax's own, between layers of ours; its kernel may be ``[*window, out, in]``."""

    class Decoder(nn.Module):
        conv: type
        dense: type

        @nn.compact
        def __call__(self, x):
            x = self.conv(8, (2, 2), name="conv")(x)
            up = nn.ConvTranspose(
                8, (2, 2), (2, 2), transpose_kernel=transpose_kernel, name="transposed"
            )
            return self.dense(40, name="dense")(up(nn.tanh(x)).reshape(len(x), -1))

    x = jax.random.normal(jax.random.key(0), (1, 2, 2, 3))
    plain, ours = (
        Decoder(nn.Conv, nn.Dense),
        Decoder(rgo_jax.linen.Conv, rgo_jax.linen.Dense),
    )
    params = plain.init(jax.random.key(1), x)["params"]
    tx = rgo_jax.scale_by_rgo(normalize=False)
    state = rgo_jax.rls_update(tx.init(params), params)

    def loss(params, model):
        return jnp.sum(model.apply({"params": params}, x) ** 2)

    expected, _ = tx.update(jax.grad(loss)(params, plain), state)
    chex.assert_trees_all_close(
        projected(loss, state, params, ours), expected, rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("rows", [1, 3, 9])
def test_complex_inputs_of_real_kernels(rows):
    """Spectra: the gradient of a real kernel is the real part, projected."""
    x = jax.random.normal(jax.random.key(0), (rows, 6)) + 1j * jax.random.normal(
        jax.random.key(1), (rows, 6)
    )
    plain, ours = nn.Dense(8), rgo_jax.linen.Dense(8)
    params = plain.init(jax.random.key(2), x)["params"]
    tx = rgo_jax.scale_by_rgo(normalize=False)
    state = rgo_jax.rls_update(tx.init(params), jax.tree.map(lambda p: p + 1, params))

    def loss(params, model):
        return jnp.mean(jnp.abs(model.apply({"params": params}, x) - (1 + 2j)) ** 2)

    expected, _ = tx.update(jax.grad(loss)(params, plain), state)
    chex.assert_trees_all_close(projected(loss, state, params, ours), expected, atol=1e-5)


def test_captured_intermediates_are_the_outputs():
    x = jax.random.normal(jax.random.key(0), (2, 5, 5, 3))
    for layer in (
        rgo_jax.linen.Dense(4, bias_init=nn.initializers.ones),
        rgo_jax.linen.Conv(4, (3, 3), bias_init=nn.initializers.ones),
    ):
        variables = layer.init(jax.random.key(1), x)
        y, kept = layer.apply(variables, x, capture_intermediates=True)
        (captured,) = kept["intermediates"]["__call__"]
        np.testing.assert_array_equal(captured, y)


def test_interceptors_see_one_layer():
    def double(call, args, kwargs, context):
        return (2 if context.method_name == "__call__" else 1) * call(*args, **kwargs)

    for layer, shape in (
        (rgo_jax.linen.Dense(4), (2, 3)),
        (rgo_jax.linen.Conv(4, (3, 3)), (2, 5, 5, 3)),
    ):
        x = jax.random.normal(jax.random.key(0), shape)
        variables = layer.init(jax.random.key(1), x)
        with nn.intercept_methods(double):
            doubled = layer.apply(variables, x)
        np.testing.assert_allclose(doubled, 2 * layer.apply(variables, x), rtol=1e-6)


def test_empty_batch():
    model = rgo_jax.linen.Dense(9)
    params = model.init(jax.random.key(0), jnp.zeros((1, 6)))["params"]
    state = rgo_jax.scale_by_rgo().init(params)
    grads = projected(lambda p: model.apply({"params": p}, jnp.zeros((0, 6))).sum(), state, params)
    chex.assert_trees_all_equal(grads, jax.tree.map(jnp.zeros_like, params))


@pytest.mark.slow
def test_what_users_set_is_used():
    """A map of their own or a mask: as with Flax's layer, and the gradient is projected too."""

    def doubled(x, kernel, dimension_numbers, precision=None):
        return 2 * jax.lax.dot_general(x, kernel, dimension_numbers, precision)

    mask = jnp.ones((1, 1, 3, 8)).at[..., 0].set(0)
    for ours, theirs, options, shape in (
        (rgo_jax.linen.Dense, nn.Dense, {"features": 8, "dot_general": doubled}, (2, 3)),
        (
            rgo_jax.linen.Conv,
            nn.Conv,
            {"features": 8, "kernel_size": (1, 1), "mask": mask},
            (1, 2, 2, 3),
        ),
    ):
        x = jax.random.normal(jax.random.key(0), shape)
        ours, theirs = ours(**options), theirs(**options)
        params = ours.init(jax.random.key(1), x)["params"]
        tx = rgo_jax.scale_by_rgo(normalize=False)
        state = rgo_jax.rls_update(tx.init(params), params)

        def loss(params, model, x=x):
            return jnp.sum(model.apply({"params": params}, x) ** 2)

        np.testing.assert_allclose(loss(params, ours), loss(params, theirs), rtol=1e-6)
        expected, _ = tx.update(jax.grad(loss)(params, theirs), state)
        chex.assert_trees_all_close(
            projected(loss, state, params, ours), expected, rtol=1e-4, atol=1e-5
        )


@pytest.mark.slow
def test_low_precision_layers_keep_their_protection():
    """Nothing is rounded to bfloat16 after the projection: old directions stay protected."""
    d, rank = 64, 16
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(d, d)))[0].astype(np.float32)
    old, free = basis[:, :rank], basis[:, rank:]
    for rows, features in ((4, 32), (64, 32)):
        model = rgo_jax.linen.Dense(features, dtype=jnp.bfloat16, use_bias=False)
        x = jax.random.normal(jax.random.key(1), (rows, d))
        params = model.init(jax.random.key(2), x)["params"]
        state = rgo_jax.scale_by_rgo().init(params)
        vectors = jax.random.normal(jax.random.key(3), (200, rank)) @ old.T * 100

        def columns(v, features=features):
            return {"kernel": jnp.broadcast_to(v[:, None], (d, features))}

        state = rgo_jax.consolidate(state, columns, vectors)

        def loss(params, model=model, x=x):
            y = model.apply({"params": params}, x)
            return jnp.sum(jnp.sin(y.astype(jnp.float32)))

        gradient = np.asarray(projected(loss, state, params)["kernel"])
        assert gradient.dtype == np.float32
        ratio = np.linalg.norm(old.T @ gradient) / np.linalg.norm(free.T @ gradient)
        assert ratio < 1e-4  # rounding P x or P g to bfloat16 gives 2e-3
