"""What R tells beside ACC and BWT: as markup."""

from collections.abc import Sequence

import numpy as np

import rgo_jax
from benchmarks.methods import METHODS
from benchmarks.report import markup
from benchmarks.run.results import Result

_INTRODUCTION = """
## Learning, forgetting, transfer

Every preset as it stands, in percent.

* LA, learning accuracy: the mean accuracy on each task just after it was learned.
* Intransigence: how far LA is below single-task learning with the same network, preset and seeds.
* Forgetting: how far each task is at last below the best accuracy that it has had.
* FWT, forward transfer: how much better each task is known just before it is learned than before
  all training. Measured with `--forward-transfer`.
"""
_COLUMNS = ("benchmark", "method", "preset", "LA", "intransigence", "forgetting", "BWT", "FWT")


def markdown(results: Sequence[Result]) -> str:
    """A table of all that have nothing changed; empty without any of several tasks."""
    plain = [
        result
        for result in results
        if not result.changes
        and not result.diverged.any()
        and not METHODS[result.method].single_task
    ]
    if not plain:
        return ""
    rows = [
        [
            result.benchmark,
            METHODS[result.method].label,
            result.preset,
            markup.mean_and_spread(result.learning_accuracy),
            _intransigence(result, results),
            markup.mean_and_spread(result.forgetting),
            markup.mean_and_spread(result.bwt),
            "-" if np.isnan(result.fwt).any() else markup.mean_and_spread(result.fwt),
        ]
        for result in plain
    ]
    return "\n".join([_INTRODUCTION, *markup.table(_COLUMNS, rows)]) + "\n"


def _intransigence(result: Result, results: Sequence[Result]) -> str:
    """Against STL with the same network, preset and seeds."""
    for other in results:
        same = (
            METHODS[other.method].single_task
            and (other.benchmark, other.preset, other.seeds)
            == (result.benchmark, result.preset, result.seeds)
            and (other.config.network, other.config.num_tasks)
            == (result.config.network, result.config.num_tasks)
        )
        if same and not other.diverged.any():
            alone = np.diagonal(other.measured.r, axis1=1, axis2=2)
            values = 100 * np.asarray(rgo_jax.intransigence(result.measured.r, alone))
            return markup.mean_and_spread(values)
    return "-"
