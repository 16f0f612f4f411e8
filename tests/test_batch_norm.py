"""Batch normalisation under RGO: what leaks between tasks, and the warning about it."""

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


class LinenNet(nn.Module):
    norm: type[nn.Module]

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(4)(x)
        x = self.norm(use_running_average=False)(x) if self.norm is nn.BatchNorm else self.norm()(x)
        return nn.Dense(2)(nn.relu(x))


def params_of(norm):
    return LinenNet(norm).init(jax.random.key(0), jnp.ones((2, 3)))["params"]


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
def test_linen(tx):
    with pytest.warns(rgo_jax.BatchNormWarning, match="'BatchNorm_0' looks like .* running mean"):
        tx.init(params_of(nn.BatchNorm))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tx.init(params_of(nn.LayerNorm))


@pytest.mark.parametrize("name", ["bn1", "bn", "batch_norm", "my_batchnorm", "batch_stats"])
def test_usual_names(name):
    with pytest.warns(rgo_jax.BatchNormWarning, match=f"'block/{name}' looks like"):
        rgo_jax.scale_by_rgo().init({"block": {name: {"scale": jnp.ones(3)}}})


@pytest.mark.parametrize("name", ["norm", "bnet", "turbn", "GroupNorm_0"])
def test_other_names(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rgo_jax.scale_by_rgo().init({name: {"scale": jnp.ones(3)}})


def test_nnx_whatever_the_name():
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


def test_what_the_warning_says_is_so():
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
