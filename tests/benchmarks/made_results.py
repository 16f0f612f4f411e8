"""Results as runs would have left them."""

import dataclasses

import numpy as np

from benchmarks import presets
from benchmarks.methods import METHODS
from benchmarks.run import inference, results
from benchmarks.run.measurements import Measurements

ORIGIN = {"command": "c", "commit": "x" * 40, "versions": {}, "device": "d", "date": ""}


def make_result(
    method, acc, benchmark="split-cifar100", preset="paper", seeds=3, train=100, **changes
):
    """A result that forgets nothing; with each seed ACC is one percent more."""
    config = presets.config(benchmark, method=METHODS[method], **changes)
    tasks = config.num_tasks
    r = np.full((seeds, tasks, tasks), acc / 100) + np.arange(seeds)[:, None, None] / 100
    return results.Result(
        method=method,
        config=dataclasses.replace(config, preset=preset),
        changes=changes,
        seeds=list(range(seeds)),
        measured=Measurements(
            r=np.where(np.tri(tasks, dtype=bool), r, np.nan),
            initial=np.full((seeds, tasks), np.nan),
            train=np.full((seeds, tasks), train / 100),
            capacity=np.full(seeds, np.nan),
            losses=np.zeros((seeds, tasks)),
            task_seconds=np.full(tasks, 80 / tasks),
            compile_seconds=10.0,
            inference=inference.not_measured(seeds, tasks),
        ),
        memory_bytes=1000,
        data="0123456789ab",
        provenance=ORIGIN,
    )


def diverge(result, seeds, task=0):
    """The same, but some seeds (by their place) are lost from a task on."""
    r, train, losses = (getattr(result.measured, n).copy() for n in ("r", "train", "losses"))
    r[seeds, task:] = losses[seeds, task:] = train[seeds] = np.nan
    return result._replace(measured=result.measured._replace(r=r, train=train, losses=losses))
