"""rgo_jax.value_and_grad: only the gradient is projected, all of it, and once."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rgo_jax
import rgo_jax.linen
from tests.gradients import projected

X = jax.random.normal(jax.random.key(0), (4, 8))
Y = jax.random.normal(jax.random.key(1), (4, 8))
# Of an earlier task, which uses the first four inputs.
OLD = jnp.zeros((8, 8)).at[:4].set(10 * jax.random.normal(jax.random.key(2), (4, 8)))


class Twice(nn.Module):
    """A kernel that is used a second time, transposed."""

    layer: type = rgo_jax.linen.Dense

    @nn.compact
    def __call__(self, x):
        layer = self.layer(8, use_bias=False, name="d")
        y = jnp.tanh(layer(x))
        return y @ layer.variables["params"]["kernel"].T


class Wrapped(nn.Module):
    """A layer inside weight or spectral normalisation: its kernel is not the parameter."""

    wrapper: type
    options: tuple = ()
    layer: type = rgo_jax.linen.Dense

    @nn.compact
    def __call__(self, x):
        options = {"update_stats": False} if self.wrapper is nn.SpectralNorm else {}
        layer = self.layer(8, use_bias=False, name="d")
        return self.wrapper(layer, **dict(self.options))(x, **options)


class Recomputed(nn.Module):
    layer: type = rgo_jax.linen.Dense

    @nn.compact
    def __call__(self, x):
        return nn.remat(self.layer)(8, use_bias=False, name="d")(x)


class Once(nn.Module):
    layer: type = rgo_jax.linen.Dense

    @nn.compact
    def __call__(self, x):
        return self.layer(8, use_bias=False, name="d")(x)


def penalised(params):
    return 0.1 * optax.tree.norm(params, squared=True)


def nothing(params):
    del params
    return 0.0


MODELS = {
    "a layer": (Once, nothing),
    "an L2 penalty": (Once, penalised),
    "a tied kernel": (Twice, nothing),
    "a tied kernel and a penalty": (Twice, penalised),
    "weight normalisation": (lambda **o: Wrapped(nn.WeightNorm, **o), nothing),
    "weight normalisation without a scale": (
        lambda **o: Wrapped(nn.WeightNorm, (("use_scale", False),), **o),
        nothing,
    ),
    "spectral normalisation": (lambda **o: Wrapped(nn.SpectralNorm, **o), nothing),
    "recomputation": (Recomputed, nothing),
}


@pytest.mark.parametrize("name", MODELS)
def test_what_is_projected_is_the_whole_gradient(name):
    """Whatever the parameter is used for beside the layer, or done to before it."""
    build, penalty = MODELS[name]
    variables = dict(build().init(jax.random.key(3), X))
    params = variables.pop("params")
    tx = rgo_jax.scale_by_rgo(normalize=False)
    old = jax.tree.map(jnp.zeros_like, params)
    old["d"]["kernel"] = OLD
    state = rgo_jax.rls_update(tx.init(params), old, columns="each")

    def loss(params, model):
        y = model.apply({"params": params, **variables}, X)
        return jnp.mean((y - Y) ** 2) + penalty(params)

    plain = jax.grad(loss)(params, build(layer=nn.Dense))
    expected, _ = tx.update(plain, state)
    for jit in (lambda f: f, jax.jit):
        own = jit(lambda params: projected(loss, state, params, build()))(params)
        chex.assert_trees_all_close(own, expected, rtol=1e-4, atol=1e-6)
    # What the earlier task uses moves less than a hundredth as much as the rest; unprojected more.
    kernel, raw = own["d"]["kernel"], plain["d"]["kernel"]
    assert np.abs(kernel[:4]).max() < 1e-2 * np.abs(kernel[4:]).max()
    assert np.abs(raw[:4]).max() > 0.1 * np.abs(raw[4:]).max()


def test_only_the_layer_costs_a_product():
    """No [d, d] x [d, m] where a layer alone uses the kernel and its batch is small."""

    def products(model, penalty):
        params = model.init(jax.random.key(3), X)["params"]
        state = rgo_jax.scale_by_rgo().init(params)

        def loss(params):
            return jnp.mean(model.apply({"params": params}, X)) + penalty(params)

        text = str(jax.make_jaxpr(lambda p: rgo_jax.value_and_grad(loss, state)(p)[1])(params))
        return text.count("dot_general")

    few = products(Once(), nothing)
    assert few == 4  # x W, x P, (x P)' D, and D W', which nothing uses
    assert products(Once(), penalised) == few + 1  # P of the penalty's gradient
    assert products(Once(layer=nn.Dense), nothing) == 3  # x W, x' D, P g


def test_the_value_the_auxiliary_output_and_the_arguments():
    params = {"w": jnp.arange(3.0), "other": jnp.ones(2)}
    state = optax.masked(rgo_jax.scale_by_rgo(), {"w": True, "other": False}).init(params)

    def loss(params, x, *, scale):
        return scale * jnp.sum(params["w"] * x) + jnp.sum(params["other"]), {"x": x}

    with_grad = rgo_jax.value_and_grad(loss, state, has_aux=True)
    (value, aux), grads = with_grad(params, jnp.ones(3), scale=2.0)
    assert float(value) == 8
    np.testing.assert_array_equal(aux["x"], jnp.ones(3))
    assert isinstance(grads["w"], rgo_jax.ProjectedGradient)
    np.testing.assert_array_equal(grads["w"].gradient, 2 * jnp.ones(3))
    # What RGO does not cover comes as it is.
    np.testing.assert_array_equal(grads["other"], jnp.ones(2))


def test_boxes_around_parameters():
    """Linen's Partitioned stays around the gradient, as with jax.value_and_grad."""
    init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
    model = rgo_jax.linen.Dense(9, kernel_init=init)
    params = model.init(jax.random.key(0), X)["params"]
    tx = rgo_jax.scale_by_rgo()
    plain = jax.tree.map(jnp.ones_like, params)
    state = rgo_jax.rls_update(tx.init(params), plain)

    def loss(params):
        return jnp.sum(model.apply({"params": params}, X) ** 2)

    expected, _ = tx.update(jax.grad(loss)(params), state)
    updates, _ = tx.update(rgo_jax.value_and_grad(loss, state)(params)[1], state)
    assert isinstance(updates["kernel"], nn.Partitioned)
    chex.assert_trees_all_close(updates, expected, rtol=1e-4, atol=1e-5)


PARAMS = {"kernel": jnp.ones((8, 8))}
RGO = rgo_jax.rgo(0.1)


def loss_of_params(params):
    return jnp.mean((X @ params["kernel"] - Y) ** 2)


def step(tx, with_projected):
    """The update after an old task, from plain or projected gradients."""
    state = rgo_jax.rls_update(tx.init(PARAMS), {"kernel": OLD}, columns="each")
    if with_projected:
        _, grads = rgo_jax.value_and_grad(loss_of_params, state)(PARAMS)
    else:
        grads = jax.grad(loss_of_params)(PARAMS)
    return tx.update(grads, state, PARAMS)[0]["kernel"]


@pytest.mark.parametrize("decay", [0.5, {"kernel": 0.5}, {"kernel": jnp.float32(0.5)}])
@pytest.mark.parametrize("with_projected", [False, True])
def test_weight_decay_is_projected(decay, with_projected):
    tx = rgo_jax.rgo(0.1, weight_decay=decay)
    updates = step(tx, with_projected)
    penalised = optax.chain(optax.add_decayed_weights(0.5), RGO)
    np.testing.assert_allclose(updates, step(penalised, False), rtol=1e-4, atol=1e-6)
    assert np.abs(updates[:4]).max() < 1e-2 * np.abs(updates[4:]).max()
    assert np.abs(updates - step(RGO, with_projected)).max() > 0.01
    # Added after RGO it moves what is protected.
    after = step(optax.chain(rgo_jax.scale_by_rgo(), optax.add_decayed_weights(0.5)), False)
    assert np.abs(after[:4]).max() > 0.1 * np.abs(after[4:]).max()


def test_weight_decay_where_it_is_named():
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    tx = rgo_jax.scale_by_rgo(weight_decay={"kernel": 0.5})
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    np.testing.assert_array_equal(updates["kernel"], 0.5 * params["kernel"])
    np.testing.assert_array_equal(updates["bias"], 0 * params["bias"])
    traced = optax.inject_hyperparams(rgo_jax.scale_by_rgo)(weight_decay=0.5)
    state = traced.init(params)
    updates, _ = jax.jit(traced.update)(jax.tree.map(jnp.zeros_like, params), state, params)
    np.testing.assert_array_equal(updates["bias"], 0.5 * params["bias"])


def test_weight_decay_errors():
    grads = {"kernel": jnp.ones((2, 2))}
    for decay, message in (
        (-0.1, r"weight_decay is -0\.1 for 'kernel'"),
        (float("inf"), "weight_decay is inf"),
        ({"other": 0.1}, "weight_decay names 'other'"),
    ):
        tx = rgo_jax.scale_by_rgo(weight_decay=decay)
        with pytest.raises(ValueError, match=message):
            tx.update(grads, tx.init(grads), grads)
    tx = rgo_jax.scale_by_rgo(weight_decay=0.1)
    with pytest.raises(ValueError, match=r"needs the parameters: update\(grads, state, params\)"):
        tx.update(grads, tx.init(grads))


def everywhere(value):
    return lambda tree: jax.tree.map(lambda _: value, tree)


@pytest.mark.parametrize(
    "tx",
    [
        RGO,
        optax.chain(optax.masked(rgo_jax.scale_by_rgo(), everywhere(True)), optax.sgd(0.1)),
        optax.partition({"rgo": RGO}, everywhere("rgo")),
        optax.inject_hyperparams(rgo_jax.rgo)(0.1),
        optax.chain(optax.clip_by_global_norm(1e9), RGO),
        optax.chain(optax.scale(1.0), RGO),
        rgo_jax.rgo(0.1, momentum=0.9),
        optax.chain(rgo_jax.scale_by_rgo(), optax.apply_if_finite(optax.sgd(0.1), 3)),
    ],
)
def test_what_may_stand_around_projected_gradients(tx):
    np.testing.assert_allclose(step(tx, True), step(tx, False), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "tx",
    [
        optax.chain(optax.scale_by_adam(), RGO),
        optax.chain(optax.scale_by_rms(), RGO),
        optax.chain(optax.trace(0.9), RGO),
        optax.chain(optax.add_decayed_weights(0.1), RGO),
        optax.MultiSteps(RGO, 2),
        optax.apply_if_finite(RGO, 3),
        optax.chain(optax.adaptive_grad_clip(0.1), RGO),
    ],
)
def test_what_may_not(tx):
    """What keeps numbers for each parameter: the error names what it can't take."""
    step(tx, False)
    with pytest.raises((ValueError, TypeError), match="ProjectedGradient"):
        step(tx, True)


def test_an_optimizer_without_rgo_refuses_projected_gradients():
    state = RGO.init(PARAMS)
    _, grads = rgo_jax.value_and_grad(loss_of_params, state)(PARAMS)
    tx = optax.sgd(0.1)
    updates, _ = tx.update(grads, tx.init(PARAMS))
    with pytest.raises((ValueError, TypeError), match="ProjectedGradient"):
        optax.apply_updates(PARAMS, updates)


@pytest.mark.parametrize("is_jitted", [False, True])
def test_projected_gradients_are_refused_in_consolidation(is_jitted):
    """Also of a function that was traced before."""
    state = RGO.init(PARAMS)

    def grad_fn(x):
        def output(params):
            return rgo_jax.curvature_output(x @ params["kernel"], jnp.zeros(4, jnp.int32))

        return rgo_jax.value_and_grad(output, state)(PARAMS)[1]

    grad_fn = jax.jit(grad_fn) if is_jitted else grad_fn
    grads = grad_fn(X)
    with pytest.raises(ValueError, match=r"leaf 'kernel' is projected.*with jax\.grad"):
        rgo_jax.rls_update(state, grads)
    with pytest.raises(ValueError, match=r"leaf 'kernel' is projected.*with jax\.grad"):
        rgo_jax.consolidate(state, grad_fn, X[None])


def test_parameters_that_do_not_match():
    with pytest.raises(ValueError, match="parameters have no leaf 'kernel'"):
        rgo_jax.value_and_grad(loss_of_params, RGO.init(PARAMS))({"other": jnp.ones(3)})
    with pytest.raises(ValueError, match=r"'kernel' has shape \(3,\), but the parameter has"):
        rgo_jax.value_and_grad(loss_of_params, RGO.init(PARAMS))({"kernel": jnp.ones(3)})
    with pytest.raises(ValueError, match="No RgoState"):
        rgo_jax.value_and_grad(loss_of_params, optax.sgd(0.1).init(PARAMS))


def test_gradients_of_parts_of_a_batch_add_up():
    """What is accumulated over pieces of a batch is as good as the whole batch's gradient."""
    state = rgo_jax.rls_update(RGO.init(PARAMS), {"kernel": OLD})

    def loss(params, x, y):
        return jnp.sum((x @ params["kernel"] - y) ** 2)

    with_grad = rgo_jax.value_and_grad(loss, state)
    halves = [with_grad(PARAMS, X[i : i + 2], Y[i : i + 2])[1] for i in (0, 2)]
    together = RGO.update(jax.tree.map(jnp.add, *halves), state)[0]
    whole = RGO.update(with_grad(PARAMS, X, Y)[1], state)[0]
    chex.assert_trees_all_close(together, whole, rtol=1e-4, atol=1e-5)
