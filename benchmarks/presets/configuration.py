"""The configuration of an experiment, and which values are possible."""

import dataclasses
from typing import Any

import optax

from benchmarks.data.tasks import INTERPOLATIONS
from benchmarks.methods.base import check_choice, check_count, check_positive
from benchmarks.networks.architectures import ARCHITECTURES
from benchmarks.networks.initializers import INITIAL_VALUES
from benchmarks.networks.layers import BIASES, HEADS

SCHEDULES = ("constant", "cosine")
# Fields that add measurements and change no other number: no change of the experiment.
MEASURED = frozenset({"forward_transfer", "infer_task"})
_COUNTS = ("num_tasks", "training_images", "examples_per_task", "epochs", "batch_size")


@dataclasses.dataclass(frozen=True)
class Config:
    """One experiment but for its method and seeds.

    Defaults are as in the paper's text, and in the harness of Chaudhry et al. from which the paper
    takes its baselines' numbers.

    Attributes:
      sequence: a key of `SEQUENCES`.
      dataset: a name of `benchmarks.data.NAMES`, or the path of an ``.npz`` file.
      protocol: the name of the paper's table that the numbers are of, or "small".
      preset: the key of `benchmarks.presets.PRESETS` that the rest began with.
      head: a key of `HEADS`.
      learning_rate: of SGD, at the start of each task.
      schedule: "constant", or "cosine": from learning_rate to 0 inside each task.
      num_tasks: the length of the sequence.
      examples_per_task: drawn anew from the training data for each task.
      epochs: over those examples.
      batch_size: in training and in the curvature pass.
      network: a key of `ARCHITECTURES`.
      initial_values: a key of `INITIAL_VALUES`.
      biases: a key of `BIASES`; "input" is of fully connected layers only.
      conv_biases: whether convolutions have biases.
      interpolation: a name of `INTERPOLATIONS`, of rotated images.
      training_images: so many of the first in the dataset are used; None for all.
      scrambled: whether colour images are scrambled as `Dataset.scrambled` has it.
      label_smoothing: what each label gives up, dealt out to all classes alike.
      fel: whether the network has feature encoding layers; None: as the method has it.
      fel_on_convs: whether they come before convolutions too, not before dense layers only.
      fel_on_input: whether there is one before the first layer.
      fel_per_layer: whether each has permutations of its own; or those of equal width share theirs.
      fel_on_first_task: whether the first task is permuted.
      validation: measure accuracy on held-out training data instead of the test data.
      forward_transfer: measure accuracy on tasks to come too, and on all before the first. Nothing
        else depends on it but times.
      infer_task: measure accuracy without task ids too; nothing else depends on it but times.
      options: the method's own, fields of its `MethodSpec.options`.
    """

    sequence: str
    dataset: str
    protocol: str
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
    scrambled: bool = False
    label_smoothing: float = 0.0
    fel: bool | None = None
    fel_on_convs: bool = True
    fel_on_input: bool = True
    fel_per_layer: bool = True
    fel_on_first_task: bool = True
    validation: bool = False
    forward_transfer: bool = False
    infer_task: bool = False
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def has_fel(self, default: bool) -> bool:
        """Whether the network has FEL, of a method that has it by ``default`` or not."""
        return default if self.fel is None else self.fel

    @property
    def benchmark(self) -> str:
        """What is run, such as "permuted-mnist"."""
        return f"{self.sequence}-{self.dataset}"

    @property
    def flat(self) -> dict[str, Any]:
        """All fields by name, the method's options among them."""
        fields = dataclasses.asdict(self)
        return fields | fields.pop("options")

    def same_training(self, other: "Config") -> bool:
        """Whether the other differs at most in what is measured."""
        return self.flat.keys() == other.flat.keys() and all(
            value == other.flat[name] for name, value in self.flat.items() if name not in MEASURED
        )

    @property
    def steps_per_task(self) -> int:
        """Optimizer steps in one task."""
        return self.epochs * (self.examples_per_task // self.batch_size)

    def learning_rate_schedule(self) -> optax.Schedule:
        """The learning rate over the steps of a task; after them it repeats itself."""
        if self.schedule == "constant":
            return optax.constant_schedule(self.learning_rate)
        within_task = optax.cosine_decay_schedule(self.learning_rate, self.steps_per_task)
        return lambda count: within_task(count % self.steps_per_task)


# What a field has where it is not told; and so in results from before there was that field.
DEFAULTS = {
    field.name: field.default
    for field in dataclasses.fields(Config)
    if field.default is not dataclasses.MISSING
} | {"options": {}}


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
