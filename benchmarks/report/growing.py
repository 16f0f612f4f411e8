"""Methods that need a head per task and have more or fewer numbers in use than one network."""

from collections.abc import Sequence

import numpy as np

from benchmarks.methods import METHODS
from benchmarks.report import markup, paper
from benchmarks.run.results import Result

_NOT_RUN = "not yet run"
_IMAGES = {False: "true", True: "scrambled"}
# All that is done alike, and whether images are scrambled.
_SETTINGS = (
    (paper.Setting("permuted-mnist", "table-1", "mlp"), False),
    (paper.Setting("superclass-cifar100", "table-3", "lenet-5"), False),
    (paper.Setting("superclass-cifar100", "table-3", "lenet-5"), True),
)
_COLUMNS = (
    "benchmark", "images", "method", "paper", "ACC", "BWT", "capacity", "kept MiB", "seeds",
    "device", "minutes",
)  # fmt: skip
_INTRODUCTION = """
## Networks that grow

The methods that the paper sets beside RGO in Table 2, and later ones that share a network among
tasks in other ways; all of them know which task an example is of, and have a head for each.
*Capacity* is how many numbers a method has in use after the last task, over those of the network
with its heads; RGO has the network's own. The paper's numbers for PGN, DEN, RCL and APD agree
with those published for the superclasses. APD's program trains on images with their bytes out of
order, so they stand beside `--scrambled`.
"""


def markdown(results: Sequence[Result]) -> str:
    """A row for each such method and setting, and one for RGO; what has not been run says so."""
    growing = [name for name, spec in METHODS.items() if spec.heads is not None]
    rows = [
        _row(results, setting, scrambled, method)
        for setting, scrambled in _SETTINGS
        for method in ("rgo", *growing)
    ]
    return "\n".join([_INTRODUCTION, *markup.table(_COLUMNS, rows)])


def capacity(result: Result) -> str:
    """The mean over seeds of the numbers in use, in percent of the network's."""
    spec = METHODS[result.method]
    if spec.capacity is not None:
        used = result.measured.capacity
        return "-" if np.isnan(used).any() else f"{100 * used.mean():.1f} %"
    return f"{100 * (result.config.num_tasks if spec.single_task else 1)} %"


def _row(
    results: Sequence[Result], setting: paper.Setting, scrambled: bool, method: str
) -> list[str]:
    result = _find(results, setting, scrambled, method)
    published = paper.GROWING.get(method) if scrambled else None
    cells = [
        setting.benchmark,
        _IMAGES[scrambled],
        METHODS[method].label,
        "-" if published is None else _published(*published),
    ]
    if result is None:
        return [*cells, _NOT_RUN, *["-"] * 6]
    return [
        *cells,
        markup.mean_and_spread(result.acc),
        markup.mean_and_spread(result.bwt),
        capacity(result),
        f"{result.memory_bytes / 2**20:.2f}",
        str(len(result.seeds)),
        result.provenance["device"],
        f"{result.measured.seconds / 60:.1f}",
    ]


def _published(acc: float | None, percent: int) -> str:
    return f"{'-' if acc is None else f'{acc:.2f}'} at {percent} %"


def _find(
    results: Sequence[Result], setting: paper.Setting, scrambled: bool, method: str
) -> Result | None:
    """The result with a head per task if there is one, then that with the most seeds."""
    found = [
        result
        for result in results
        if (result.method, result.preset) == (method, "paper")
        and paper.setting_of(result) == setting
        and result.config.scrambled == scrambled
        and result.changes.keys() <= {"head", "network", "protocol", "scrambled"}
    ]
    return max(
        found,
        key=lambda result: (result.config.head == "per_task", len(result.seeds)),
        default=None,
    )
