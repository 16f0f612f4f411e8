"""Networks small enough to try."""

from functools import partial

import jax
import numpy as np

from benchmarks import presets
from benchmarks.data import tasks
from benchmarks.methods import METHODS
from benchmarks.networks.architectures import (
    ARCHITECTURES,
    Architecture,
    ConvLayer,
    FeedForward,
)
from benchmarks.run import problem as problems

KEY = jax.random.key(1)


CONVS = (ConvLayer(3, 4, (2, 2)), ConvLayer(3, 4, (3, 2)))


def network_of(convs=(), hidden=(8,), **changes):
    """A small one for four tasks of three classes."""
    given = {"num_classes": 3, "num_tasks": 4, "head": "shared", "fel": False} | changes
    return FeedForward(convs=convs, hidden=hidden, **given)


def examples(*shape):
    return jax.random.normal(jax.random.key(0), (5, *shape))


def params_of(network, x):
    return network.init(KEY, x, 0)["params"]


def problem_of(*shape, method="rgo", **changes):
    """A network of the benchmarks, for three tasks of four classes."""
    given = {"network": "mlp-100", "num_tasks": 3} | changes
    config = presets.config("permuted-digits", method=METHODS[method], **given)
    sequence = tasks.Sequence(4, shape, 1, 1, False, None, None)
    return problems.make_problem(config, METHODS[method], sequence, "none", jax.random.key(7))


def narrow_problem(monkeypatch, method, *shape, convs=(), hidden=(4, 3), **changes):
    """As `problem_of`, of a narrow plain network with a head for each task."""
    build = partial(FeedForward, convs=convs, hidden=hidden)
    monkeypatch.setitem(ARCHITECTURES, "mlp-100", Architecture(build, ()))
    return problem_of(*shape, method=method, head="per_task", **changes)


def is_nonzero(tree):
    return jax.tree.map(lambda leaf: bool(np.any(np.asarray(leaf) != 0)), tree)
