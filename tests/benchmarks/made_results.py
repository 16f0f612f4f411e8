"""Results as runs would have left them."""

import dataclasses

import numpy as np

from benchmarks import presets, results
from benchmarks.methods import METHODS

ORIGIN = {"command": "c", "commit": "x" * 40, "versions": {}, "device": "d", "date": ""}


def made(method, acc, benchmark="split-cifar100", preset="paper", seeds=3, train=None, **changes):
    """A result that forgets nothing; with each seed ACC is one percent more."""
    config = presets.config(benchmark, method=METHODS[method], **changes)
    tasks = config.num_tasks
    r = np.full((seeds, tasks, tasks), acc / 100) + np.arange(seeds)[:, None, None] / 100
    return results.Result(
        benchmark=benchmark,
        method=method,
        preset=preset,
        changes=changes,
        config=dataclasses.replace(config, preset=preset),
        seeds=list(range(seeds)),
        r=np.where(np.tri(tasks, dtype=bool), r, np.nan),
        losses=np.zeros((seeds, tasks)),
        seconds={"compile": 10.0, "tasks": [80 / tasks] * tasks, "total": 90.0},
        provenance=ORIGIN,
        train=None if train is None else np.full((seeds, tasks), train / 100),
    )


def diverging(result, seeds, task=0):
    """The same, but some seeds (by their place) are lost from a task on."""
    r, losses = result.r.copy(), result.losses.copy()
    r[seeds, task:] = losses[seeds, task:] = np.nan
    train = None
    if result.train is not None:
        train = result.train.copy()
        train[seeds] = np.nan
    return result._replace(r=r, losses=losses, train=train)
