"""Results of an experiment that was run in parts, put together again."""

from collections.abc import Sequence

import numpy as np

from benchmarks.results import Result, may_be_of


def merged(results: Sequence[Result]) -> list[Result]:
    """The same with one result in place of those that differ in nothing but their seeds.

    So an experiment may be run in parts, a few seeds on each machine. Results that share a seed
    are not put together.
    """
    groups: list[list[Result]] = []
    # The largest first: a single seed that is tried beside a whole result does not get in its way.
    for result in sorted(results, key=lambda result: (-len(result.seeds), result.seeds)):
        for group in groups:
            # Each of them: one whose data are unknown goes with any, but those may not go together.
            if all(_may_join(other, result) for other in group):
                group.append(result)
                break
        else:
            groups.append([result])
    return [group[0] if len(group) == 1 else _joined(group) for group in groups]


def _may_join(one: Result, other: Result) -> bool:
    names = ("benchmark", "method", "preset", "changes", "config")
    same = all(getattr(one, name) == getattr(other, name) for name in names)
    return same and may_be_of(one, other.data) and set(one.seeds).isdisjoint(other.seeds)


def _joined(parts: Sequence[Result]) -> Result:
    parts = sorted(parts, key=lambda part: part.seeds)
    trains = [part.train for part in parts if part.train is not None]
    devices = dict.fromkeys(part.provenance["device"] for part in parts)
    return parts[-1]._replace(
        seeds=[seed for part in parts for seed in part.seeds],
        r=np.concatenate([part.r for part in parts]),
        losses=np.concatenate([part.losses for part in parts]),
        train=np.concatenate(trains) if len(trains) == len(parts) else None,
        seconds={
            "compile": sum(part.seconds["compile"] for part in parts),
            "tasks": np.sum([part.seconds["tasks"] for part in parts], axis=0).tolist(),
            "total": sum(part.seconds["total"] for part in parts),
        },
        provenance=parts[-1].provenance | {"device": "; ".join(devices)},
    )
