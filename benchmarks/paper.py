"""The paper's own numbers: Tables 1 and 3 and section 6.3 of https://arxiv.org/abs/2201.12522."""

from typing import Any

# (ACC, BWT) in percent, None where it gives none.
Numbers = tuple[float, float | None]

# By benchmark, network and epochs, then by method.
TABLES: dict[tuple[str, str, int], dict[str, Numbers]] = {
    ("permuted-mnist", "mlp", 1): {
        "rgo": (91.15, -2.05),
        "rgo-2": (87.95, -5.65),
        "gpm": (83.29, -8.45),
        "er-ring": (79.84, -12.88),
        "a-gem": (72.32, -19.94),
        "ewc": (67.79, -24.38),
        "sgd": (46.11, -46.06),
        "stl": (91.33, None),
    },
    ("rotated-mnist", "mlp", 1): {
        "rgo": (91.25, -1.59),
        "rgo-2": (72.26, None),
        "gpm": (70.02, None),
        "er-ring": (69.20, None),
        "a-gem": (53.26, None),
        "ewc": (43.27, None),
        "sgd": (44.82, None),
        "stl": (91.09, None),
    },
    ("split-cifar100", "resnet-18", 8): {
        "rgo": (73.18, -1.67),
        "gpm": (53.41, None),
        "er-ring": (53.74, None),
        "a-gem": (49.56, None),
        "ewc": (47.71, None),
        "sgd": (37.02, None),
        "stl": (74.90, None),
    },
    ("split-cifar100", "lenet-5", 20): {"rgo": (81.03, -0.99), "stl": (75.01, None)},
    ("split-cifar100", "alexnet-6", 20): {"rgo": (82.22, -1.45), "stl": (81.60, None)},
    ("split-cifar100", "vgg-11", 20): {"rgo": (79.81, -4.00), "stl": (79.51, None)},
    ("split-cifar100", "vgg-13", 20): {"rgo": (77.43, -4.86), "stl": (75.64, None)},
}


def numbers(
    benchmark: str, method: str, config: dict[str, Any]
) -> tuple[float | None, float | None]:
    """The paper's ACC and BWT for a configuration, None where it has none."""
    # Results from before there was a choice of networks are of the perceptron.
    key = (benchmark, config.get("network", "mlp"), config.get("epochs", 1))
    return TABLES.get(key, {}).get(method, (None, None))
