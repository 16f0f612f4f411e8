"""Linen's layers that project their gradients: as Flax's own, under its transforms, and errors."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rgo_jax
import rgo_jax.linen


def test_fused_dense_is_flax_dense_otherwise():
    x = jax.random.normal(jax.random.key(0), (2, 5, 6))
    for options in ({}, {"use_bias": False}, {"dtype": jnp.bfloat16}):
        ours, theirs = rgo_jax.linen.Dense(4, **options), nn.Dense(4, **options)
        variables = ours.init(jax.random.key(1), x)
        chex.assert_trees_all_close(variables, theirs.init(jax.random.key(1), x), rtol=0)
        handed = rgo_jax.linen.projections(rgo_jax.rgo(0.1).init(variables["params"]))
        for extra in ({}, {"projections": handed}):
            y = ours.apply(variables | extra, x)
            assert y.dtype == theirs.apply(variables, x).dtype
            np.testing.assert_allclose(
                np.asarray(y, np.float32),
                np.asarray(theirs.apply(variables, x), np.float32),
                rtol=1e-5,
            )


def test_fused_dense_gives_the_same_input_gradient_and_maps_over_seeds():
    x = jax.random.normal(jax.random.key(0), (3, 4, 6))
    model = rgo_jax.linen.Dense(9)
    params = model.init(jax.random.key(1), x[0])["params"]
    tx = rgo_jax.scale_by_rgo(normalize=False)  # layers yield P g
    state = rgo_jax.rls_update(tx.init(params), params)

    def grads(x, collections):
        def loss(params, x):
            return jnp.sum(model.apply({"params": params} | collections, x) ** 2)

        return jax.grad(loss, argnums=(0, 1))(params, x)

    handed = {"projections": rgo_jax.linen.projections(state)}
    for i in range(3):
        plain, plain_x = grads(x[i], {})
        projected, projected_x = grads(x[i], handed)
        np.testing.assert_allclose(projected_x, plain_x, rtol=1e-5)
        chex.assert_trees_all_close(projected, tx.update(plain, state)[0], rtol=1e-3, atol=1e-4)
        after, _ = rgo_jax.scale_by_rgo(projected=True).update(projected, state)
        with_trace_rule, _ = rgo_jax.scale_by_rgo().update(plain, state)
        chex.assert_trees_all_close(after, with_trace_rule, rtol=1e-3, atol=1e-4)
        assert np.abs(after["kernel"] - projected["kernel"]).max() > 0.1
        mapped, _ = jax.vmap(lambda x: grads(x, handed))(x)
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

    def grads(collections):
        def penalty(params):
            def output(x):
                return jnp.sum(jnp.tanh(model.apply({"params": params} | collections, x)))

            return jnp.sum(jax.grad(output)(x) ** 2)

        return jax.grad(penalty)(params)

    expected, _ = tx.update(grads({}), state)
    ours = grads({"projections": rgo_jax.linen.projections(state)})
    chex.assert_trees_all_close(ours, expected, rtol=1e-4, atol=1e-5)


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
    state = rgo_jax.rls_update(rgo_jax.scale_by_rgo().init(params), params)
    handed = rgo_jax.linen.projections(state)

    def grads(x, remat=False):
        def loss(params):
            model = Model(remat)
            return jnp.sum(model.apply({"params": params, "projections": handed}, x) ** 2)

        return jax.grad(loss)(params)

    one_by_one = jax.tree.map(lambda *g: jnp.stack(g), *map(jax.jit(grads), x))
    _, scanned = jax.lax.scan(lambda _, x: (None, grads(x)), None, x)
    mapped = jax.jit(jax.vmap(grads))(x)
    remat = jax.jit(jax.vmap(lambda x: grads(x, remat=True)))(x)
    for other in (mapped, scanned, remat):
        chex.assert_trees_all_close(other, one_by_one, rtol=1e-4, atol=1e-4)


def test_mixed_model_is_right_with_projected_by():
    """A fused and a plain layer in one model: each gradient is projected once."""

    class Mixed(nn.Module):
        first: type
        second: type

        @nn.compact
        def __call__(self, x, task_id):
            x = rgo_jax.linen.FeatureEncoding()(x, task_id)
            return self.second(3, name="b")(nn.relu(self.first(8, name="a")(x)))

    x, task = jax.random.normal(jax.random.key(0), (4, 6)), 1
    plain = Mixed(nn.Dense, nn.Dense)
    params = plain.init(jax.random.key(1), x, task)["params"]
    tx = rgo_jax.scale_by_rgo()
    state = rgo_jax.rls_update(tx.init(params), params)

    def grads(model, **collections):
        def loss(params):
            return jnp.sum(model.apply({"params": params} | collections, x, task) ** 2)

        return jax.grad(loss)(params)

    expected, _ = tx.update(grads(plain), state)
    for first, second in ((nn.Dense, rgo_jax.linen.Dense), (rgo_jax.linen.Dense, nn.Dense)):
        model = Mixed(first, second)
        marks = rgo_jax.linen.projected_by(model, params, x, task_id=task)
        fused = {"a": first is not nn.Dense, "b": second is not nn.Dense}
        assert marks == {k: {"bias": fused[k], "kernel": fused[k]} for k in "ab"}
        own = grads(model, projections=rgo_jax.linen.projections(state))
        updates, _ = rgo_jax.scale_by_rgo(projected=marks).update(own, state)
        chex.assert_trees_all_close(updates, expected, rtol=1e-3, atol=1e-4)


def test_stacked_layers_with_projected_by():
    """Layers under scan and vmap, beside one that keeps averages: each projected once."""

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.relu(rgo_jax.linen.Dense(9, name="dense")(x)), None

    class Stack(nn.Module):
        @nn.compact
        def __call__(self, x, handed_on=("params", "projections")):
            axes = dict.fromkeys(handed_on, 0)
            lifted = nn.scan(Block, axes, split_rngs={"params": True}, length=3)
            x, _ = lifted(name="blocks")(x, None)
            seen = self.variable("averages", "seen", lambda: jnp.zeros(9))
            if self.is_mutable_collection("averages"):
                seen.value = jnp.mean(x, axis=0)
            return nn.Dense(2, name="head")(x)

    x = jax.random.normal(jax.random.key(0), (4, 9))
    params = Stack().init(jax.random.key(1), x)["params"]
    own = rgo_jax.linen.projected_by(Stack(), params, x)
    assert own == {
        "blocks": {"dense": {"kernel": True, "bias": True}},
        "head": {"kernel": False, "bias": False},
    }
    without = rgo_jax.linen.projected_by(Stack(), params, x, handed_on=("params",))
    assert not any(jax.tree.leaves(without))
    mapped = nn.vmap(
        rgo_jax.linen.Dense, {"params": 0, "projections": 0}, split_rngs={"params": True}
    )(5)
    stacked = mapped.init(jax.random.key(0), x[None])["params"]
    assert rgo_jax.linen.projected_by(mapped, stacked, x[None]) == {"kernel": True, "bias": True}

    kernel, bias = rgo_jax.FanIn(blocks=3), rgo_jax.FanIn(num_axes=1, blocks=3)
    fan_in = {"blocks": {"dense": {"kernel": kernel, "bias": bias}}}
    tx = rgo_jax.scale_by_rgo(fan_in=fan_in)
    state = rgo_jax.rls_update(tx.init(params), params)

    def grads(**collections):
        variables = {"params": params, "averages": {"seen": jnp.zeros(9)}} | collections
        return jax.grad(
            lambda params: jnp.sum(Stack().apply(variables | {"params": params}, x) ** 2)
        )(params)

    expected, _ = tx.update(grads(), state)
    fused = grads(projections=rgo_jax.linen.projections(state))
    updates, _ = rgo_jax.scale_by_rgo(fan_in=fan_in, projected=own).update(fused, state)
    chex.assert_trees_all_close(updates, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("rows", [2, 8])  # fewer and more than outputs
@pytest.mark.parametrize("is_jitted", [False, True])
def test_projected_gradients_are_refused_in_consolidation(rows, is_jitted):
    """Also of a function that was traced before, whose layers are not asked again."""
    x, y = jax.random.normal(jax.random.key(0), (5, rows, 6)), jnp.zeros((5, rows), jnp.int32)
    model = rgo_jax.linen.Dense(3)
    params = model.init(jax.random.key(0), x[0])["params"]
    state = rgo_jax.rgo(0.1, projected=True).init(params)

    def grad_fn(batch, collections):
        def output(params):
            logits = model.apply({"params": params} | collections, batch[0])
            return rgo_jax.curvature_output(logits, batch[1])

        return jax.grad(output)(params)

    grad_fn = jax.jit(grad_fn) if is_jitted else grad_fn
    handed = {"projections": rgo_jax.linen.projections(state)}
    grad_fn((x[0], y[0]), handed)
    with pytest.raises(ValueError, match=r"grad_fn yields projected gradients.*Leave them out"):
        rgo_jax.consolidate(state, lambda batch: grad_fn(batch, handed), (x, y))
    folded = rgo_jax.consolidate(state, lambda batch: grad_fn(batch, {}), (x, y))
    assert float(jnp.trace(folded[0].projection["kernel"])) < 6


@pytest.mark.parametrize("rows", [1, 3, 9])
def test_complex_inputs_of_real_kernels(rows):
    """Spectra: the gradient of a real kernel is the real part, projected."""
    x = jax.random.normal(jax.random.key(0), (rows, 6)) + 1j * jax.random.normal(
        jax.random.key(1), (rows, 6)
    )
    plain, projecting = nn.Dense(8), rgo_jax.linen.Dense(8)
    params = plain.init(jax.random.key(2), x)["params"]
    tx = rgo_jax.scale_by_rgo(normalize=False)
    state = rgo_jax.rls_update(tx.init(params), jax.tree.map(lambda p: p + 1, params))

    def grads(model, **collections):
        def loss(params):
            y = model.apply({"params": params, **collections}, x)
            return jnp.mean(jnp.abs(y - (1 + 2j)) ** 2)

        return jax.grad(loss)(params)

    expected, _ = tx.update(grads(plain), state)
    handed = rgo_jax.linen.projections(state)
    chex.assert_trees_all_close(grads(projecting, projections=handed), expected, atol=1e-5)


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
    handed = rgo_jax.linen.projections(rgo_jax.scale_by_rgo().init(params))
    grads = jax.grad(
        lambda p: model.apply({"params": p, "projections": handed}, jnp.zeros((0, 6))).sum()
    )(params)
    chex.assert_trees_all_equal(grads, jax.tree.map(jnp.zeros_like, params))


def test_projections_errors():
    variables = rgo_jax.linen.Dense(2).init(jax.random.key(0), jnp.ones((1, 3)))
    with pytest.raises(ValueError, match=r"only key is 'params'.*variables\['params'\]"):
        rgo_jax.linen.projections(rgo_jax.rgo(0.1, projected=True).init(variables))
    with pytest.raises(ValueError, match="No RgoState"):
        rgo_jax.linen.projections(optax.sgd(0.1).init(jnp.zeros(3)))
    with pytest.raises(TypeError, match="expected nested dicts"):
        rgo_jax.linen.projections(rgo_jax.rgo(0.1).init([jnp.zeros(3)]))
    conv = rgo_jax.linen.Conv(2, (1, 1), mask=jnp.ones((1, 1, 3, 2)))
    with pytest.raises(ValueError, match=r"mask is set.*flax\.linen\.Conv"):
        conv.init(jax.random.key(0), jnp.ones((1, 4, 4, 3)))
    model = rgo_jax.linen.Dense(2, dot_general=jax.lax.dot_general)
    with pytest.raises(ValueError, match="dtype is int32; expected floating point"):
        rgo_jax.linen.Dense(3, dtype=jnp.int32).init(jax.random.key(0), jnp.zeros((1, 2)))
    with pytest.raises(ValueError, match=r"dot_general is set on 'Dense'.*flax\.linen\.Dense"):
        model.init(jax.random.key(0), jnp.ones((1, 3)))


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
        state = rgo_jax.consolidate(state, lambda v: {"kernel": v[:, None]}, vectors)
        handed = rgo_jax.linen.projections(state)

        def loss(params, model=model, handed=handed, x=x):
            y = model.apply({"params": params, "projections": handed}, x)
            return jnp.sum(jnp.sin(y.astype(jnp.float32)))

        gradient = np.asarray(jax.grad(loss)(params)["kernel"])
        assert gradient.dtype == np.float32
        ratio = np.linalg.norm(old.T @ gradient) / np.linalg.norm(free.T @ gradient)
        assert ratio < 1e-4  # rounding P x or P g to bfloat16 gives 2e-3
