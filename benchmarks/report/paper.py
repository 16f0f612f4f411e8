"""The paper's own numbers: Tables 1 to 3 and section 6.3 of https://arxiv.org/abs/2201.12522."""

from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.methods import METHODS
from benchmarks.run.results import Result

# (ACC, BWT) in percent, None where this file has none.
Numbers = tuple[float | None, float | None]


class Setting(NamedTuple):
    """What the paper's tables tell apart beside methods.

    Attributes:
      benchmark: a name of `benchmarks.presets.BENCHMARKS`.
      protocol: "table-1" or "table-3".
      network: a key of `benchmarks.networks.architectures.ARCHITECTURES`.
    """

    benchmark: str
    protocol: str
    network: str


# Twenty tasks; 2000 steps a task on colour images.
TABLE_1: dict[Setting, dict[str, Numbers]] = {
    Setting("permuted-mnist", "table-1", "mlp"): {
        "rgo": (91.15, -2.05),
        "rgo-2": (87.95, -5.65),
        "los": (86.56, -4.10),
        "gpm": (83.29, -8.45),
        "er-ring": (79.84, -12.88),
        "a-gem": (72.32, -19.94),
        "ewc": (67.79, -24.38),
        "sgd": (46.11, -46.06),
        "stl": (91.33, None),
    },
    Setting("rotated-mnist", "table-1", "mlp"): {
        "rgo": (91.25, -1.59),
        "rgo-2": (72.26, None),
        "los": (80.21, None),
        "gpm": (70.02, None),
        "er-ring": (69.20, None),
        "a-gem": (53.26, None),
        "ewc": (43.27, None),
        "sgd": (44.82, None),
        "stl": (91.09, None),
    },
    Setting("split-cifar100", "table-1", "resnet-18"): {
        "rgo": (73.18, -1.67),
        "los": (56.20, None),
        "gpm": (53.41, None),
        "er-ring": (53.74, None),
        "a-gem": (49.56, None),
        "ewc": (47.71, None),
        "sgd": (37.02, None),
        "stl": (74.90, None),
    },
    Setting("split-mini-imagenet", "table-1", "resnet-18"): {
        "rgo": (70.33, -1.64),
        "stl": (67.76, None),
    },
}

# What RGO's ACC is above that of a model per task, in percentage points. The paper sets its own
# number, of the random split, beside other methods' of the superclasses.
TABLE_2: dict[Setting, float | None] = {
    Setting("split-cifar100", "table-3", "lenet-5"): 6.02,
    Setting("superclass-cifar100", "table-3", "lenet-5"): None,
}

# Of networks that grow: ACC, and how many percent of the network's numbers they had in use.
GROWING: dict[str, tuple[float | None, int]] = {
    "pgn": (None, 271),
    "den": (51.10, 191),
    "rcl": (51.99, 184),
    "apd": (56.81, 130),
}

# Twenty epochs a task.
TABLE_3: dict[Setting, dict[str, Numbers]] = {
    Setting("split-cifar100", "table-3", "lenet-5"): {"rgo": (81.03, -0.99), "stl": (75.01, None)},
    Setting("split-cifar100", "table-3", "alexnet-6"): {
        "rgo": (82.22, -1.45),
        "stl": (81.60, None),
    },
    Setting("split-cifar100", "table-3", "vgg-11"): {"rgo": (79.81, -4.00), "stl": (79.51, None)},
    Setting("split-cifar100", "table-3", "vgg-13"): {"rgo": (77.43, -4.86), "stl": (75.64, None)},
    Setting("split-mini-imagenet", "table-3", "alexnet-7"): {
        "rgo": (72.63, -1.98),
        "stl": (None, None),
    },
    Setting("split-mini-imagenet", "table-3", "vgg-11"): {
        "rgo": (71.14, None),
        "stl": (None, None),
    },
    Setting("split-mini-imagenet", "table-3", "vgg-13"): {
        "rgo": (66.24, None),
        "stl": (None, None),
    },
    Setting("split-mini-imagenet", "table-3", "resnet-18"): {
        "rgo": (71.00, -5.20),
        "stl": (None, None),
    },
}


def own(setting: Setting, method: str) -> Setting:
    """A setting of the paper with the network that its authors trained a method with."""
    networks = METHODS[method].networks
    return setting._replace(network=networks.get(setting.network, setting.network))


def numbers(setting: Setting, method: str) -> Numbers:
    """The paper's ACC and BWT for what was run in a setting, None where it has none."""
    for theirs, methods in (TABLE_1 | TABLE_3).items():
        if method in methods and own(theirs, method) == setting:
            return methods[method]
    return None, None


def setting_of(result: Result) -> Setting:
    """Where a result belongs in the paper's tables, if `is_literal`."""
    config = result.config
    return Setting(config.benchmark, config.protocol, config.network)


def is_literal(result: Result) -> bool:
    """Whether a result is of a protocol and a preset as they stand, with any network."""
    return set(result.changes) <= {"network", "protocol"}


def find(results: Sequence[Result], setting: Setting, method: str, preset: str) -> Result | None:
    """The result with a place in the paper's tables, if there is one: that with the most seeds."""
    found = [
        result
        for result in results
        if (setting_of(result), result.method, result.preset) == (setting, method, preset)
        and is_literal(result)
    ]
    return max(found, key=lambda result: len(result.seeds), default=None)
