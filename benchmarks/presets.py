"""The numbers of every protocol and preset; those of one method are in its own file."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import optax

from benchmarks.models import ARCHITECTURES, HEADS
from benchmarks.tasks import SEQUENCES

SCHEDULES = ("constant", "cosine")
_POSITIVE = ("num_tasks", "examples_per_task", "epochs", "batch_size", "learning_rate", "alpha")


@dataclasses.dataclass(frozen=True)
class Config:
    """One experiment but for its method and seeds.

    Attributes:
      sequence: a key of `SEQUENCES`.
      dataset: a name of `benchmarks.data.NAMES`, or the path of an ``.npz`` file.
      preset: the key of `PRESETS` that the rest began with.
      head: a key of `HEADS`.
      learning_rate: of SGD, at the start of each task.
      schedule: "constant", or "cosine": from learning_rate to 0 inside each task.
      num_tasks: the length of the sequence.
      examples_per_task: drawn anew from the training data for each task.
      epochs: over those examples.
      batch_size: in training and in the curvature pass.
      network: a key of `ARCHITECTURES`.
      alpha: RGO's alpha.
      normalize: whether RGO has the trace rule.
      label_smoothing: what each label gives up, dealt out to all classes alike.
      fel: whether the network has feature encoding layers; None: as the method has it.
      fel_on_convs: whether they come before convolutions too, not before dense layers only.
      validation: measure accuracy on held-out training data instead of the test data.
    """

    sequence: str
    dataset: str
    preset: str
    head: str
    learning_rate: float
    schedule: str
    num_tasks: int
    examples_per_task: int
    epochs: int
    batch_size: int
    network: str
    alpha: float = 1.0
    normalize: bool = True
    label_smoothing: float = 0.0
    fel: bool | None = None
    fel_on_convs: bool = True
    validation: bool = False

    @property
    def steps_per_task(self) -> int:
        """Optimizer steps in one task."""
        return self.epochs * (self.examples_per_task // self.batch_size)

    def learning_rate_schedule(self) -> optax.Schedule:
        """The learning rate over the steps of the whole sequence, the same in every task."""
        if self.schedule == "constant":
            return optax.constant_schedule(self.learning_rate)
        within_task = optax.cosine_decay_schedule(self.learning_rate, self.steps_per_task)
        return lambda count: within_task(count % self.steps_per_task)


# What makes a protocol, beside network and epochs; a result with one of these changed is not
# comparable with the paper's.
PROTOCOL_FIELDS = frozenset(
    {"num_tasks", "examples_per_task", "batch_size", "fel", "fel_on_convs", "validation"}
)

# The paper's protocols, each with its own setting: of Table 1 on MNIST, a small one for the
# embedded digits, and those on colour images.
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
_SMALL = _LOS | {"network": "mlp-100", "num_tasks": 10, "examples_per_task": 1_000, "epochs": 5}
_SPLIT_DIGITS = _SMALL | {"head": "per_task", "num_tasks": 5, "examples_per_task": 250}
_CIFAR = _LOS | {
    "network": "lenet-5",
    "head": "per_task",
    "learning_rate": 0.03,
    "examples_per_task": 2_500,
    "epochs": 20,
}
_MINI_IMAGENET = _CIFAR | {"network": "alexnet-7", "learning_rate": 0.01}
# Where Table 1, of 2000 steps a task, has another rate than Table 3.
_TABLE_1_RATES = {("split", "mini-imagenet"): {8: 0.03}}

# From (sequence, dataset) to protocol; the first is the default.
_PROTOCOLS: dict[tuple[str, str], dict[str, Any]] = {
    ("permuted", "digits"): _SMALL,
    ("rotated", "digits"): _SMALL,
    ("split", "digits"): _SPLIT_DIGITS,
    ("permuted", "mnist"): _LOS,
    ("rotated", "mnist"): _LOS,
    ("split", "cifar100"): _CIFAR,
    ("superclass", "cifar100"): _CIFAR,
    ("split", "mini-imagenet"): _MINI_IMAGENET,
}
# The same for data of the user's own.
_OWN_DATA = {"permuted": _LOS, "rotated": _LOS, "split": _CIFAR, "superclass": _CIFAR}

# Swept with LeNet-5 only. Tasks have the same kind of images, and filters learned in one serve the
# next. An alpha of 0.1 is better than 1 with twenty epochs, and worse with four. The rate is ahead
# of a constant 0.03 by little, on two seeds.
_RECOMMENDED_IMAGES: dict[str, Any] = {
    "fel_on_convs": False,
    "normalize": False,
    "alpha": 0.1,
    "schedule": "cosine",
    "learning_rate": 0.1,
}

# Named changes to a protocol, by sequence.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    # The paper's own setting, as far as the paper tells.
    "paper": {},
    # Learning rate and schedule are the best of a small sweep on held-out training data, whose
    # results are in benchmarks/results/validation. A head per task is as good (0.1 more); a frozen
    # one keeps the network's size fixed.
    "recommended": {
        "permuted": {"head": "frozen", "schedule": "cosine", "learning_rate": 0.2},
        "rotated": {"head": "frozen", "schedule": "cosine", "learning_rate": 0.2},
        "split": _RECOMMENDED_IMAGES,
        "superclass": _RECOMMENDED_IMAGES,
    },
}

# What a field has where it is not told; and so in results from before there was that field.
DEFAULTS = {
    field.name: field.default
    for field in dataclasses.fields(Config)
    if field.default is not dataclasses.MISSING
}

BENCHMARKS = tuple(f"{sequence}-{dataset}" for sequence, dataset in _PROTOCOLS)


def config(
    benchmark: str,
    preset: str = "paper",
    data: str | None = None,
    learning_rates: Mapping[str, float] = MappingProxyType({}),
    **changes: Any,
) -> Config:
    """Resolves a benchmark's name, a preset and single changes to a `Config`.

    Args:
      benchmark: one of `BENCHMARKS`; or, with ``data``, a key of `SEQUENCES`.
      preset: a key of `PRESETS`.
      data: the path of an ``.npz`` file to make tasks of.
      learning_rates: the method's own, by dataset, in place of the protocol's and the preset's.
      **changes: fields of `Config` that override all else; None leaves a field as it is.

    Returns:
      The `Config`.

    Raises:
      ValueError: an unknown name; a value outside its range.
    """
    if data is not None:
        _check_known("benchmark for --data", benchmark, tuple(SEQUENCES))
        if not data.endswith(".npz"):
            raise ValueError(
                f"--data is {data!r}; expected the path of an .npz file. Datasets of the paper are "
                f"part of a benchmark's name: {', '.join(BENCHMARKS)}."
            )
        sequence, dataset, protocol = benchmark, data, _OWN_DATA[benchmark]
    else:
        _check_known("benchmark", benchmark, BENCHMARKS)
        sequence, dataset = benchmark.split("-", 1)
        protocol = _PROTOCOLS[sequence, dataset]
        rates = _TABLE_1_RATES.get((sequence, dataset), {})
        if changes.get("epochs") in rates:
            protocol = protocol | {"learning_rate": rates[changes["epochs"]]}
    _check_known("preset", preset, tuple(PRESETS))
    named = PRESETS[preset].get(sequence, {})
    given = {name: value for name, value in changes.items() if value is not None}
    own = {"learning_rate": learning_rates[dataset]} if dataset in learning_rates else {}
    values = {"sequence": sequence, "dataset": dataset, "preset": preset}
    resolved = Config(**(values | protocol | named | own | given))
    _check_known("network", resolved.network, tuple(ARCHITECTURES))
    _check_known("head", resolved.head, tuple(HEADS))
    _check_known("schedule", resolved.schedule, SCHEDULES)
    for name in _POSITIVE:
        if not getattr(resolved, name) > 0:
            raise ValueError(f"{name} is {getattr(resolved, name)}; expected more than 0.")
    if not 0 <= resolved.label_smoothing < 1:
        raise ValueError(f"label_smoothing is {resolved.label_smoothing}; expected 0 to below 1.")
    return resolved


def _check_known(what: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise ValueError(f"Unknown {what} {name!r}; expected one of {', '.join(known)}.")
