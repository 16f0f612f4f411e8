"""The numbers of every protocol and preset; those of one method are in its own file."""

import dataclasses
from pathlib import Path
from typing import Any

import optax

from benchmarks.initializers import INITIAL_VALUES
from benchmarks.layers import BIASES, HEADS
from benchmarks.methods import METHODS, MethodSpec
from benchmarks.methods.base import check_choice, check_count, check_positive
from benchmarks.networks import ARCHITECTURES
from benchmarks.tasks import INTERPOLATIONS, SEQUENCES

SCHEDULES = ("constant", "cosine")
_COUNTS = ("num_tasks", "training_images", "examples_per_task", "epochs", "batch_size")


@dataclasses.dataclass(frozen=True)
class Config:
    """One experiment but for its method and seeds.

    Defaults are as in the paper's text, and in the harness of Chaudhry et al. from which the paper
    takes its baselines' numbers.

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
      initial_values: a key of `INITIAL_VALUES`.
      biases: a key of `BIASES`, of fully connected layers.
      conv_biases: whether convolutions have biases.
      interpolation: a name of `INTERPOLATIONS`, of rotated images.
      training_images: so many of the first in the dataset are used; None for all.
      label_smoothing: what each label gives up, dealt out to all classes alike.
      fel: whether the network has feature encoding layers; None: as the method has it.
      fel_on_convs: whether they come before convolutions too, not before dense layers only.
      fel_on_input: whether there is one before the first layer.
      fel_per_layer: whether each has permutations of its own; or those of equal width share theirs.
      fel_on_first_task: whether the first task is permuted.
      validation: measure accuracy on held-out training data instead of the test data.
      options: the method's own, fields of its `MethodSpec.options`.
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
    initial_values: str = "orthogonal"
    biases: str = "own"
    conv_biases: bool = True
    interpolation: str = "nearest"
    training_images: int | None = None
    label_smoothing: float = 0.0
    fel: bool | None = None
    fel_on_convs: bool = True
    fel_on_input: bool = True
    fel_per_layer: bool = True
    fel_on_first_task: bool = True
    validation: bool = False
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def flat(self) -> dict[str, Any]:
        """All fields by name, the method's options among them."""
        fields = dataclasses.asdict(self)
        return fields | fields.pop("options")

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
    {
        "num_tasks",
        "training_images",
        "examples_per_task",
        "batch_size",
        "interpolation",
        "fel",
        "fel_on_convs",
        "fel_on_input",
        "fel_per_layer",
        "fel_on_first_task",
        "validation",
    }
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
    "schedule": "cosine",
    "learning_rate": 0.2,
    "initial_values": "orthogonal",
    "fel_on_input": True,
    "columns": "signs",
    "alpha": 0.1,
}
_RECOMMENDED_IMAGES: dict[str, Any] = {
    "fel_on_convs": False,
    "normalize": False,
    "schedule": "cosine",
    "learning_rate": 0.1,
}

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
}

# What a field has where it is not told; and so in results from before there was that field.
DEFAULTS = {
    field.name: field.default
    for field in dataclasses.fields(Config)
    if field.default is not dataclasses.MISSING
} | {"options": {}}

BENCHMARKS = tuple(f"{sequence}-{dataset}" for sequence, dataset in _PROTOCOLS)


def config(
    benchmark: str,
    preset: str = "paper",
    method: MethodSpec = METHODS["rgo"],
    data: str | None = None,
    **changes: Any,
) -> Config:
    """Resolves a benchmark's name, a preset, a method and single changes to a `Config`.

    Args:
      benchmark: one of `BENCHMARKS`; or, with ``data``, a key of `SEQUENCES`.
      preset: a key of `PRESETS`.
      method: whose setting, learning rates and networks are its authors', and what options it has.
      data: the path of an ``.npz`` file to make tasks of.
      **changes: fields of `Config` and options of the method that override all else; None leaves
        a field as it is. Options of other methods are left out.

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
        if not Path(data).name.isprintable():
            raise ValueError(
                f"--data is {data!r}; expected a file's name without control characters, since "
                "results are called by it. Rename the file."
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
    settings = SETTINGS[method.setting]
    setting = settings.get(sequence, {}) | settings.get(dataset, {})
    own: dict[str, Any] = {}
    if dataset in method.learning_rates:
        own["learning_rate"] = method.learning_rates[dataset]
    if protocol["network"] in method.networks:
        own["network"] = method.networks[protocol["network"]]
    given = {name: value for name, value in changes.items() if value is not None}
    values = protocol | setting | PRESETS[preset].get(sequence, {}) | own | given
    fields = {field.name for field in dataclasses.fields(Config)}
    options = {name: value for name, value in values.items() if name not in fields}
    _check_known_options(options)
    resolved = Config(
        sequence=sequence,
        dataset=dataset,
        preset=preset,
        **{name: value for name, value in values.items() if name in fields},
        options=dataclasses.asdict(method.make_options(options)),
    )
    check(resolved)
    return resolved


def check(resolved: Config) -> None:
    """Finds out whether the values of a configuration are possible.

    Raises:
      ValueError: an unknown name; a value outside its range.
    """
    for name, known in (
        ("network", tuple(ARCHITECTURES)),
        ("head", tuple(HEADS)),
        ("schedule", SCHEDULES),
        ("initial_values", tuple(INITIAL_VALUES)),
        ("biases", tuple(BIASES)),
        ("interpolation", INTERPOLATIONS),
    ):
        check_choice(name, getattr(resolved, name), known)
    for name in _COUNTS:
        value = getattr(resolved, name)
        if value is not None:
            check_count(name, value)
    check_positive("learning_rate", resolved.learning_rate)
    if not 0 <= resolved.label_smoothing < 1:
        raise ValueError(f"--label-smoothing is {resolved.label_smoothing}; expected 0 to below 1.")
    if (
        resolved.biases == "input"
        and resolved.conv_biases
        and ARCHITECTURES[resolved.network].convs
    ):
        raise ValueError(
            "--biases is 'input', which fully connected layers can have, but the network's "
            "convolutions have biases. Add --no-conv-biases."
        )


def _check_known(what: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise ValueError(f"Unknown {what} {name!r}; expected one of {', '.join(known)}.")


def _check_known_options(options: dict[str, Any]) -> None:
    known = {field.name for spec in METHODS.values() for field in dataclasses.fields(spec.options)}
    for name in options:
        _check_known("option", name, tuple(sorted(known)))
