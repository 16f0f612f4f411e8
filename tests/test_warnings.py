"""What RGO does not protect, and the warnings about it.

Through batch normalisation tasks leak into one another. Before a normalisation over features the
columns of a gradient cancel in their mean.
"""

import functools
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import rgo_jax
import rgo_jax.nnx
from tests.marks import slow_but

NORMS = {
    "BatchNorm": lambda name: nn.BatchNorm(use_running_average=False, name=name),
    "LayerNorm": lambda name: nn.LayerNorm(name=name),
    "GroupNorm": lambda name: nn.GroupNorm(2, name=name),
    "RMSNorm": lambda name: nn.RMSNorm(name=name),
    "none": lambda name: lambda x: x,
}


class LinenNet(nn.Module):
    norm: str
    name_of_norm: str | None = None

    @nn.compact
    def __call__(self, x):
        x = NORMS[self.norm](self.name_of_norm)(nn.Dense(8)(x))
        return nn.Dense(2)(nn.relu(x))


def params_of(net):
    return net.init(jax.random.key(0), jnp.ones((2, 3)))["params"]


class NnxNet(nnx.Module):
    def __init__(self, norm, rngs):
        self.hidden = nnx.Linear(3, 4, rngs=rngs)
        self.between = norm(4, rngs=rngs)
        self.out = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.out(nnx.relu(self.between(self.hidden(x))))


def curvature(model, batch):
    return rgo_jax.curvature_output(model(batch[0]), batch[1])


@pytest.mark.parametrize(
    "tx",
    [
        rgo_jax.rgo(0.1),
        optax.chain(optax.scale_by_adam(), rgo_jax.scale_by_rgo()),
        optax.masked(rgo_jax.scale_by_rgo(), lambda p: {k: "Dense" in k for k in p}),
    ],
)
def test_batch_norm_in_linen(tx):
    with pytest.warns(rgo_jax.BatchNormWarning, match="'BatchNorm_0' looks like .* running mean"):
        tx.init(params_of(LinenNet("BatchNorm")))
    with pytest.warns(rgo_jax.BatchNormWarning, match="LayerNorm or GroupNorm and columns='signs'"):
        tx.init(params_of(LinenNet("BatchNorm")))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tx.init(params_of(LinenNet("LayerNorm")))


@pytest.mark.parametrize("name", ["bn1", "bn", "batch_norm", "my_batchnorm", "batch_stats"])
def test_usual_names_of_batch_norm(name):
    with pytest.warns(rgo_jax.BatchNormWarning, match=f"'block/{name}' looks like"):
        rgo_jax.scale_by_rgo().init({"block": {name: {"scale": jnp.ones(3)}}})


@pytest.mark.parametrize("name", ["norm", "bnet", "turbn", "GroupNorm_0"])
def test_other_names_are_no_batch_norm(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rgo_jax.scale_by_rgo().init({name: {"scale": jnp.ones(3)}})


@pytest.mark.slow
def test_batch_norm_in_nnx_whatever_the_name():
    batches = (jnp.ones((5, 2, 3)), jnp.zeros((5, 2), jnp.int32))
    for norm, leaks in ((nnx.BatchNorm, True), (nnx.LayerNorm, False)):
        model = NnxNet(norm, nnx.Rngs(0))
        model.eval()
        optimizer = nnx.Optimizer(model, rgo_jax.rgo(0.1), wrt=nnx.Param)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            rgo_jax.nnx.consolidate(model, optimizer, curvature, batches)
        told = [w for w in caught if w.category is rgo_jax.BatchNormWarning]
        assert len(told) == leaks
        if leaks:
            assert "NnxNet has batch normalisation" in str(told[0].message)
            assert told[0].filename == __file__


@pytest.mark.slow
def test_what_the_warning_of_batch_norm_says_is_so():
    """Outputs for an old task change though no parameter does."""
    model = NnxNet(nnx.BatchNorm, nnx.Rngs(0))
    old = jax.random.normal(jax.random.key(0), (8, 3))
    model.eval()
    before = model(old)
    model.train()
    params = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    model(3 + old)  # a forward pass of another task
    model.eval()
    assert float(jnp.abs(model(old) - before).max()) > 0.01
    after = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), params, after))


@functools.cache
def problem(norm, name=None):
    """Parameters, a ``grad_fn`` and five batches of a small network."""
    net = LinenNet(norm, name)
    x = jax.random.normal(jax.random.key(1), (5, 10, 3))
    y = jax.random.randint(jax.random.key(2), (5, 10), 0, 2)
    params = params_of(net)

    def grad_fn(batch):
        def output(params):
            return rgo_jax.curvature_output(net.apply({"params": params}, batch[0]), batch[1])

        return jax.grad(output)(params)

    return params, grad_fn, (x, y)


def caught(function, *args):
    """What a function returns, and the messages of the `UnprotectedWarning`s, all of this file."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        result = function(*args)
    told = [w for w in found if w.category is rgo_jax.UnprotectedWarning]
    assert all(w.filename == __file__ for w in told)
    return result, [str(w.message) for w in told]


BY_NAME = "{name!r} looks like a normalisation over features"
BY_NUMBER = "Nearly all of the gradients of 'Dense_0/kernel' cancelled in the mean over columns"
REMEDY = "columns='signs'"


def assert_told(messages, *beginnings):
    assert len(messages) == len(beginnings)
    for message, beginning in zip(messages, beginnings, strict=True):
        assert message.startswith(beginning)
        assert REMEDY in message


@pytest.mark.parametrize("norm", slow_but(["LayerNorm", "GroupNorm"], "LayerNorm"))
def test_the_mean_does_not_protect_what_is_before_a_normalisation(norm):
    """And the warnings say which kernel it is, and what protects it."""
    params, grad_fn, batches = problem(norm)
    state = rgo_jax.rgo(0.1).init(params)
    by_name = BY_NAME.format(name=f"{norm}_0")

    mean, told = caught(lambda: rgo_jax.consolidate(state, grad_fn, batches))
    assert_told(told, by_name, BY_NUMBER)
    stats, told = caught(rgo_jax.projection_stats, mean)
    assert_told(told, BY_NUMBER)
    assert float(stats["Dense_0/kernel"].coverage) < 1e-6
    np.testing.assert_allclose(mean[0].projection["Dense_0"]["kernel"], np.eye(3), atol=1e-6)
    assert all(
        float(other.coverage) > 0.01 and float(other.trace) < other.dim - 0.1
        for name, other in stats.items()
        if name != "Dense_0/kernel"
    )

    for columns in ("signs", "each"):

        def protected(columns=columns):
            folded = rgo_jax.consolidate(state, grad_fn, batches, columns=columns)
            return rgo_jax.projection_stats(folded)["Dense_0/kernel"]

        kernel, told = caught(protected)
        assert_told(told)
        assert float(kernel.trace) < 2
        np.testing.assert_allclose(kernel.coverage, 1, rtol=1e-5)


@pytest.mark.parametrize("norm", slow_but(["none", "RMSNorm"], "none"))
@pytest.mark.parametrize("columns", slow_but(["mean", "signs", "each"], "mean"))
def test_ordinary_networks_are_protected_without_a_warning(norm, columns):
    params, grad_fn, batches = problem(norm)

    def folded():
        state = rgo_jax.rgo(0.1).init(params)
        state = rgo_jax.consolidate(state, grad_fn, batches, columns=columns)
        grads = grad_fn((batches[0][0], batches[1][0]))
        return rgo_jax.projection_stats(rgo_jax.rls_update(state, grads, columns=columns))

    stats, told = caught(folded)
    assert_told(told)
    assert float(stats["Dense_0/kernel"].trace) < 2.8
    assert float(stats["Dense_0/kernel"].coverage) > 0.01


@pytest.mark.slow
def test_by_name_when_a_function_is_traced():
    """Numbers are not known then; `projection_stats` tells of them afterwards."""
    params, grad_fn, batches = problem("LayerNorm")
    grads = grad_fn((batches[0][0], batches[1][0]))
    state = rgo_jax.rgo(0.1).init(params)
    by_name = BY_NAME.format(name="LayerNorm_0")
    for columns, beginnings in (("mean", [by_name]), ("signs", []), ("each", [])):
        end_of_task = jax.jit(
            lambda state, columns=columns: rgo_jax.consolidate(
                state, grad_fn, batches, columns=columns
            )
        )
        folded, told = caught(end_of_task, state)
        assert_told(told, *beginnings)
        _, told = caught(end_of_task, folded)  # compiled
        assert_told(told)
        _, told = caught(lambda: rgo_jax.rls_update(state, grads, columns=columns))  # noqa: B023
        assert_told(told, *beginnings)
        _, told = caught(rgo_jax.projection_stats, folded)
        assert_told(told, *[BY_NUMBER for _ in beginnings])


def test_by_number_where_no_name_tells():
    params, grad_fn, batches = problem("LayerNorm", name="before_relu")
    state = rgo_jax.rgo(0.1).init(params)
    _, told = caught(lambda: rgo_jax.consolidate(state, grad_fn, batches))
    assert_told(told, BY_NUMBER)
    folded, told = caught(jax.jit(lambda s: rgo_jax.consolidate(s, grad_fn, batches)), state)
    assert_told(told)
    _, told = caught(rgo_jax.projection_stats, folded)
    assert_told(told, BY_NUMBER)


def test_by_name_of_parameters_that_a_mask_leaves_out():
    """What is not protected is the kernel before them."""
    params, grad_fn, batches = problem("LayerNorm")
    tx = optax.masked(rgo_jax.scale_by_rgo(), lambda p: {name: "Dense" in name for name in p})
    _, told = caught(lambda: rgo_jax.consolidate(tx.init(params), grad_fn, batches))
    assert_told(told, BY_NAME.format(name="LayerNorm_0"), BY_NUMBER)


@pytest.mark.parametrize(
    "name",
    ["LayerNorm_3", "layer_norm", "final_layernorm", "GroupNorm_0", "InstanceNorm_0", "ln_1"],
)
def test_usual_names_of_normalisations_over_features(name):
    params = {"block": {name: {"scale": jnp.ones(3)}}}
    state = rgo_jax.scale_by_rgo().init(params)
    _, told = caught(lambda: rgo_jax.rls_update(state, params))
    assert_told(told, BY_NAME.format(name=f"block/{name}"))


@pytest.mark.parametrize("name", ["norm", "RMSNorm_0", "lnet", "kiln", "BatchEnsemble"])
def test_other_names_are_no_normalisations_over_features(name):
    params = {"block": {name: {"scale": jnp.ones(3)}}}
    state = rgo_jax.scale_by_rgo().init(params)
    _, told = caught(lambda: rgo_jax.rls_update(state, params))
    assert_told(told)


@pytest.mark.slow
def test_normalisations_over_features_in_nnx():
    """Called outside of jit, it tells by numbers; those of the state tell in any case."""
    batches = (jax.random.normal(jax.random.key(0), (5, 8, 3)), jnp.zeros((5, 8), jnp.int32))
    beginning = BY_NUMBER.replace("Dense_0", "hidden")
    for columns, beginnings in (("mean", [beginning]), ("signs", [])):
        model = NnxNet(nnx.LayerNorm, nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, rgo_jax.rgo(0.1), wrt=nnx.Param)
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            rgo_jax.nnx.consolidate(model, optimizer, curvature, batches, columns=columns)
        assert_told([str(w.message) for w in found], *beginnings)
        _, told = caught(rgo_jax.projection_stats, optimizer.opt_state)
        assert_told(told, *beginnings)


def test_gradients_of_zero_are_no_reason_for_a_warning():
    params = {"kernel": jnp.zeros((3, 2))}
    state = rgo_jax.rgo(0.1).init(params)
    folded, told = caught(
        lambda: rgo_jax.consolidate(state, lambda g: g, {"kernel": jnp.zeros((4, 3, 2))})
    )
    assert_told(told)
    stats, told = caught(rgo_jax.projection_stats, folded)
    assert_told(told)
    assert np.isnan(stats["kernel"].coverage)
