"""What head policy and feature encoding layers make of every method: as markup."""

from collections.abc import Sequence

from benchmarks.methods import METHODS
from benchmarks.report import markup
from benchmarks.run.results import Result

_HEADS = ("shared", "per_task")
_INTRODUCTION = """
## With and without FEL, one head or one per task

ACC / BWT in the paper's setting but for these two. A head per task needs to know which task an
example is of; so do feature encoding layers. Only RGO has them in the paper; without them it is
RGO-2.
"""


def markdown(results: Sequence[Result]) -> str:
    """A table of all methods that were run in more than one of these ways; empty without any."""
    found = {
        (result.benchmark, _name(result.method), result.config.head, _has_fel(result)): result
        for result in sorted(results, key=lambda result: len(result.seeds))
        if result.preset == "paper" and set(result.changes) <= {"head", "fel"}
    }
    rows = []
    for benchmark, name in dict.fromkeys(key[:2] for key in found):
        cells = [_cell(found.get((benchmark, name, *way))) for way in _ways()]
        if sum(cell != "-" for cell in cells) > 1:
            rows.append([benchmark, name, *cells])
    if not rows:
        return ""
    header = ["benchmark", "method", *(f"{head}{', FEL' if fel else ''}" for head, fel in _ways())]
    return "\n".join([_INTRODUCTION, *markup.table(header, rows)]) + "\n"


def _ways() -> list[tuple[str, bool]]:
    return [(head, fel) for head in _HEADS for fel in (False, True)]


def _name(method: str) -> str:
    """RGO-2 is RGO without FEL: methods that are one but for that have the first one's name."""
    build = METHODS[method].build
    return next(spec.label for spec in METHODS.values() if spec.build == build)


def _has_fel(result: Result) -> bool:
    return result.config.has_fel(METHODS[result.method].fel)


def _cell(result: Result | None) -> str:
    if result is None:
        return "-"
    acc = markup.mean_and_spread(result.acc)
    return acc if result.diverged.any() else f"{acc} / {result.bwt.mean():.2f}"
