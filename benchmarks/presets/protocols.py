"""The numbers of every protocol and preset; those of one method are in its own file."""

from typing import Any

# What makes a protocol, beside the network; a result with one of these changed is not comparable
# with the paper's.
PROTOCOL_FIELDS = frozenset(
    {
        "epochs",
        "num_tasks",
        "training_images",
        "examples_per_task",
        "batch_size",
        "scrambled",
        "interpolation",
        "fel",
        "fel_on_convs",
        "fel_on_input",
        "fel_per_layer",
        "fel_on_first_task",
        "validation",
    }
)

# Table 1 on MNIST.
_LOS: dict[str, Any] = {
    "network": "mlp",
    "head": "shared",
    "learning_rate": 0.1,
    "schedule": "constant",
    "num_tasks": 20,
    "examples_per_task": 10_000,
    "epochs": 1,
    "batch_size": 10,
}
# The same made small, for the digits that scikit-learn brings along.
_SMALL = _LOS | {"network": "mlp-100", "num_tasks": 10, "examples_per_task": 1_000, "epochs": 5}
_SPLIT_DIGITS = _SMALL | {"head": "per_task", "num_tasks": 5, "examples_per_task": 250}
# On colour images: 2000 steps a task in Table 1, 20 epochs in Table 3.
_CIFAR = _LOS | {"head": "per_task", "learning_rate": 0.03, "examples_per_task": 2_500}
_TABLE_1 = _CIFAR | {"network": "resnet-18", "epochs": 8}
_TABLE_3 = _CIFAR | {"network": "lenet-5", "epochs": 20}
_TABLE_3_IMAGENET = _TABLE_3 | {"network": "alexnet-7", "learning_rate": 0.01}
_COLOUR = {"table-3": _TABLE_3, "table-1": _TABLE_1}

Protocols = dict[str, dict[str, Any]]

# From (sequence, dataset) to the protocols there are, by name. Of each the first is the default.
PROTOCOLS: dict[tuple[str, str], Protocols] = {
    ("permuted", "digits"): {"small": _SMALL},
    ("rotated", "digits"): {"small": _SMALL},
    ("split", "digits"): {"small": _SPLIT_DIGITS},
    ("permuted", "mnist"): {"table-1": _LOS},
    ("rotated", "mnist"): {"table-1": _LOS},
    ("split", "cifar100"): _COLOUR,
    ("superclass", "cifar100"): _COLOUR,
    ("split", "mini-imagenet"): {"table-3": _TABLE_3_IMAGENET, "table-1": _TABLE_1},
}
# The same for data of the user's own, by sequence.
OWN_DATA: dict[str, Protocols] = {
    "permuted": {"table-1": _LOS},
    "rotated": {"table-1": _LOS},
    "split": _COLOUR,
    "superclass": _COLOUR,
}

# Whose settings a method's results in the paper are with; see `MethodSpec.setting`.
_AUTHORS: dict[str, Any] = {
    "initial_values": "uniform",
    "fel_on_input": False,
    "fel_per_layer": False,
    "fel_on_first_task": False,
    "curvature_classes": "present",
}
_AUTHORS_IMAGES = _AUTHORS | {"head": "masked", "conv_biases": False, "curvature_batches": 50}
# Changes to a protocol, by sequence and by dataset.
SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    # The authors' program; docs/design.md tells how it is known.
    "authors": {
        "permuted": _AUTHORS,
        "rotated": _AUTHORS | {"interpolation": "bilinear"},
        "split": _AUTHORS_IMAGES,
        "superclass": _AUTHORS_IMAGES,
        # The rest is TensorFlow's validation set.
        "mnist": {"training_images": 55_000},
    },
    # The harness of Chaudhry et al.: the protocol as it stands.
    "harness": {},
}

_RECOMMENDED_MNIST: dict[str, Any] = {
    "head": "frozen",
    "biases": "frozen",
    "schedule": "cosine",
    "learning_rate": 0.2,
    "initial_values": "orthogonal",
    "fel_on_input": True,
    "columns": "signs",
    "alpha": 0.1,
}
# Not chosen in a sweep: no run of it is in benchmarks/results.
_RECOMMENDED_IMAGES: dict[str, Any] = {
    "fel_on_convs": False,
    "normalize": False,
    "schedule": "cosine",
    "learning_rate": 0.1,
}

_WITHOUT_IDS: dict[str, Any] = {"unused_weight": 0.1}

# Named changes to a setting, by sequence.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    # What the paper's numbers are with.
    "paper": {},
    # The best of a sweep on held-out training data: see benchmarks/results/validation.
    "recommended": {
        "permuted": _RECOMMENDED_MNIST,
        "rotated": _RECOMMENDED_MNIST,
        "split": _RECOMMENDED_IMAGES,
        "superclass": _RECOMMENDED_IMAGES,
    },
    # The same, and the network learns what it takes to find out task ids by itself.
    "without-ids": {
        "permuted": _RECOMMENDED_MNIST | _WITHOUT_IDS,
        "rotated": _RECOMMENDED_MNIST | _WITHOUT_IDS,
        "split": _RECOMMENDED_IMAGES | _WITHOUT_IDS,
        "superclass": _RECOMMENDED_IMAGES | _WITHOUT_IDS,
    },
}
