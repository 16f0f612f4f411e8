"""Results of an experiment that was run in parts, put together again."""

from collections.abc import Sequence

import numpy as np

from benchmarks.run.measurements import Measurements
from benchmarks.run.results import Result


def merge(results: Sequence[Result]) -> list[Result]:
    """The same with one result in place of those that differ in nothing but their seeds.

    So an experiment may be run in parts, a few seeds on each machine. Results that share a seed
    are not put together.
    """
    groups: list[list[Result]] = []
    # The largest first: a single seed that is tried beside a whole result does not get in its way.
    for result in sorted(results, key=lambda result: (-len(result.seeds), result.seeds)):
        for group in groups:
            if all(_may_join(other, result) for other in group):
                group.append(result)
                break
        else:
            groups.append([result])
    return [group[0] if len(group) == 1 else _concatenate(group) for group in groups]


def _may_join(one: Result, other: Result) -> bool:
    names = ("method", "changes", "data")
    same = all(getattr(one, name) == getattr(other, name) for name in names)
    same = same and one.config.same_training(other.config)
    return same and set(one.seeds).isdisjoint(other.seeds)


def _concatenate(parts: Sequence[Result]) -> Result:
    parts = sorted(parts, key=lambda part: part.seeds)
    measured = [part.measured for part in parts]
    devices = dict.fromkeys(part.provenance["device"] for part in parts)
    return parts[-1]._replace(
        seeds=[seed for part in parts for seed in part.seeds],
        measured=Measurements(
            r=np.concatenate([each.r for each in measured]),
            initial=np.concatenate([each.initial for each in measured]),
            train=np.concatenate([each.train for each in measured]),
            capacity=np.concatenate([each.capacity for each in measured]),
            losses=np.concatenate([each.losses for each in measured]),
            task_seconds=np.sum([each.task_seconds for each in measured], axis=0),
            compile_seconds=sum(each.compile_seconds for each in measured),
        ),
        provenance=parts[-1].provenance | {"device": "; ".join(devices)},
    )
