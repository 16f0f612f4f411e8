"""All methods on models of other kinds: plain Linen, NNX, a transformer."""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import rgo_jax
from rgo_jax import baselines
from tests.marks import slow_but
from tests.small_models import apply_of, params_of

CLASSES = 3


def vector_tasks():
    """Three classes around points in four of ten dimensions, other four in each task."""
    rng = np.random.default_rng(0)
    points = 1.5 * rng.normal(size=(CLASSES, 4))
    bases = [rng.normal(size=(4, 10)) / 2 for _ in range(2)]
    return [made(rng, partial(vectors, points, basis)) for basis in bases]


def vectors(points, basis, rng, y):
    return np.float32((points[y] + 0.5 * rng.normal(size=(len(y), 4))) @ basis)


def token_tasks():
    """Which of three tokens is in the sequence; in the second task others, with one as noise."""
    rng = np.random.default_rng(0)
    return [made(rng, partial(tokens, *of_task)) for of_task in (([0, 1, 2], 6), ([4, 5, 3], 2))]


def tokens(marks, first, rng, y):
    x = rng.choice([n for n in range(first, 10) if n not in marks], size=(len(y), 5))
    x[np.arange(len(y)), rng.integers(5, size=len(y))] = np.array(marks)[y]
    return x


def made(rng, inputs):
    found = []
    for size in (200, 100):
        y = rng.integers(CLASSES, size=size)
        found += [inputs(rng, y), y]
    return tuple(found)


class Mlp(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(CLASSES)(nn.relu(nn.Dense(20)(x)))


class Transformer(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Embed(10, 16)(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=2)(nn.LayerNorm()(x))
        x = x + nn.Dense(16)(nn.relu(nn.Dense(24)(nn.LayerNorm()(x))))
        return nn.Dense(CLASSES)(jnp.mean(nn.LayerNorm()(x), axis=1))


def linen_model(module, x):
    return apply_of(module), params_of(module, x)


def nnx_model(x):
    rngs = nnx.Rngs(0)
    net = nnx.Sequential(
        nnx.Linear(x.shape[1], 20, rngs=rngs), nnx.relu, nnx.Linear(20, CLASSES, rngs=rngs)
    )
    graph, params, rest = nnx.split(net, nnx.Param, ...)

    def apply_fn(params, x, task_id):
        return nnx.merge(graph, params, rest, copy=True)(x)

    return apply_fn, params


# Each with its tasks, its learning rate and how many epochs it needs.
MODELS = {
    "linen": (partial(linen_model, Mlp()), vector_tasks, 0.1, 5),
    "nnx": (nnx_model, vector_tasks, 0.1, 5),
    "transformer": (partial(linen_model, Transformer()), token_tasks, 0.1, 20),
}
SGD = "finetune"
METHODS = ("rgo", "ewc", "ewc_textbook", "a_gem", "er_ring", "gpm", "sgp", "owm", "owm_online")
QUICK = [("linen", "rgo"), ("linen", "ewc"), ("nnx", "er_ring"), ("transformer", "gpm")]


def trained(model, name):
    make, make_tasks, rate, epochs = MODELS[model]
    tasks = make_tasks()
    x = jnp.asarray(tasks[0][0][:1])
    apply_fn, params = make(x)
    tx, given = optax.sgd(rate), {}
    if name == "rgo":
        specs = rgo_jax.infer_specs(lambda p, x: apply_fn(p, x, 0), params, x)
        # Before a layer normalisation the mean over columns vanishes.
        tx, given = rgo_jax.rgo(rate, specs=specs), {"columns": "signs"}
    elif name == "ewc_textbook":
        # Where a model is sure the Fisher information is small.
        given = {"strength": 1e6 if model == "transformer" else 100}
    elif name in ("a_gem", "er_ring"):
        given = {"num_tasks": 2, "num_classes": CLASSES}
    elif name == "owm_online":
        name, given = "owm", {"online": True}
    method = getattr(baselines, name)(apply_fn, tx, **given)
    r, _ = baselines.train_sequence(method, params, tasks, batch_size=10, epochs=epochs)
    return r


@pytest.fixture(scope="module")
def sgd():
    """What plain training forgets, for each model; trained once."""
    found = {}

    def of(model):
        if model not in found:
            found[model] = trained(model, SGD)
        return found[model]

    return of


@pytest.mark.parametrize(
    ("model", "name"), slow_but([(model, name) for model in MODELS for name in METHODS], *QUICK)
)
def test_it_forgets_less_than_sgd(sgd, model, name):
    plain, r = sgd(model), trained(model, name)
    assert plain[1, 0] < plain[0, 0] - 0.1
    assert r[1, 0] - r[0, 0] > plain[1, 0] - plain[0, 0] + 0.05
    assert r[0, 0] > 0.8
    assert r[1, 1] > 0.55  # chance is a third
