"""What a method is given, and what the registry says of it.

A method is a `rgo_jax.baselines.Method` whose ``init`` takes a key alone.
"""

import dataclasses
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from benchmarks.data.limits import MAX_COUNT
from benchmarks.networks.feed_forward import Layer
from rgo_jax.baselines import Method


class Statistics(NamedTuple):
    """The running averages of batch normalisation, for methods that keep them.

    Attributes:
      init: ``() -> tree``, before the first step.
      update: ``(statistics, params, x, task_id) -> statistics``, with one batch.
    """

    init: Callable[[], Any]
    update: Callable[[Any, Any, jax.Array, jax.Array], Any]


# Of networks without batch normalisation.
NO_STATISTICS = Statistics(lambda: (), lambda statistics, params, x, task_id: statistics)


class Problem(NamedTuple):
    """What a method is given.

    Attributes:
      init: from a key to fresh parameters.
      logits: ``(params, x, task_id, statistics=None, encoding_id=None) -> [b, num_classes]``. With
        ``statistics`` batch normalisation is by them, without by the batch's own. FEL is that of
        ``encoding_id``, by default of ``task_id``.
      protected: from parameters to a mask (a prefix tree of bools): those of layers that more than
        one task trains, their biases too.
      freeze: ``(params, task_id) -> params`` with the same values, through which no gradient flows
        to parameters that this task does not train any more. For methods whose loss in one task
        has examples of another; `logits` sees to it where all are of one.
      losses: ``(logits [b, num_classes], labels int [b]) -> [b]``: what is trained on.
      learning_rate: schedule over the steps of a task. It repeats itself, for optimizers that do
        not start anew in each task.
      options: the method's own, of the type that its `MethodSpec` names.
      dataset: the name of the dataset, for hyper-parameters that a paper chose for each.
      input_shape: of one example.
      num_classes: outputs of each head; labels are below it.
      num_tasks: the length of the sequence.
      statistics: of batch normalisation.
      layers: the hidden layers of a network that is a plain list of them, `()` of any other.
    """

    init: Callable[[jax.Array], Any]
    logits: Callable[..., jax.Array]
    protected: Callable[[Any], Any]
    freeze: Callable[[Any, jax.Array], Any]
    losses: Callable[[jax.Array, jax.Array], jax.Array]
    learning_rate: optax.Schedule
    options: Any
    dataset: str
    input_shape: tuple[int, ...]
    num_classes: int
    num_tasks: int
    statistics: Statistics = NO_STATISTICS
    layers: tuple[Layer, ...] = ()


def network_size(problem: Problem) -> int:
    """How many numbers the network's parameters are, with all heads."""
    params = jax.eval_shape(problem.init, jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def on_problem(problem: Problem, method: Method) -> Method:
    """A method of the library; its ``init`` takes a key alone: parameters are the problem's."""
    blank = jnp.zeros((1, *problem.input_shape))
    return method._replace(init=lambda key: method.init(problem.init(key), blank, key))


@dataclasses.dataclass(frozen=True)
class NoOptions:
    """Of a method whose numbers are not to be changed from outside."""


def option(default: Any, text: str, type_: type | None = None) -> Any:
    """A field of a method's options; the command line has it under its name.

    Args:
      default: the value.
      text: what ``--help`` says.
      type_: of the value; by default the default's.
    """
    return dataclasses.field(
        default=default, metadata={"help": text, "type": type_ or type(default)}
    )


def switch(name: str) -> str:
    """What the command line calls a field of the configuration."""
    return f"--{name.replace('_', '-')}"


def check_positive(name: str, value: float) -> None:
    """Refuses what is no finite number above 0.

    Raises:
      ValueError: it is none.
    """
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{switch(name)} is {value}; expected a finite number above 0.")


def check_not_negative(name: str, value: float) -> None:
    """Refuses what is no finite number from 0.

    Raises:
      ValueError: it is none.
    """
    if not (value >= 0 and math.isfinite(value)):
        raise ValueError(f"{switch(name)} is {value}; expected a finite number from 0.")


def check_count(name: str, value: int) -> None:
    """Refuses what is no integer from 1 to `MAX_COUNT`.

    Raises:
      ValueError: it is none.
    """
    if not (isinstance(value, numbers.Integral) and 1 <= value <= MAX_COUNT):
        raise ValueError(f"{switch(name)} is {value}; expected an integer from 1 to {MAX_COUNT}.")


def check_choice(name: str, value: str, known: Sequence[str]) -> None:
    """Refuses an unknown name.

    Raises:
      ValueError: it is unknown.
    """
    if value not in known:
        raise ValueError(f"{switch(name)} is {value!r}; expected one of {', '.join(known)}.")


def check_momentum(value: float) -> None:
    """Refuses a momentum that no sum of gradients converges with.

    Raises:
      ValueError: it is not from 0 to below 1.
    """
    if not 0 <= value < 1:
        raise ValueError(f"--momentum is {value}; expected 0 to below 1.")


def _no_encodings(options: Any) -> int:
    """Of methods that train under those of the tasks."""
    del options
    return 0


class MethodSpec(NamedTuple):
    """An entry of `benchmarks.methods.METHODS`.

    Attributes:
      build: from a problem to the method.
      label: what tables and plots call it.
      fel: whether the network has feature encoding layers, unless the experiment says otherwise.
      single_task: whether each task gets a model of its own, kept as it is afterwards. Its
        accuracy is then measured once, and no head policy applies.
      learning_rates: its authors', by dataset, where they are not the protocol's.
      networks: its authors', by the protocol's network, where they are not that.
      setting: a key of `benchmarks.presets.protocols.SETTINGS`: whose its results in the paper are.
      options: a dataclass of the numbers and choices that are its own.
      batch_norm: whether it keeps `Statistics`, so that networks may have batch normalisation.
      capacity: ``(problem, state) -> scalar``: how many numbers it has in use after the tasks so
        far, over `network_size`. None: those of the network, so 1; or, with ``single_task``, those
        of a network for each task.
      heads: the head policies that it works with, keys of `benchmarks.networks.layers.HEADS`; None
        for all.
      unused_encodings: from its options to how many encodings (FEL) it trains under that no task
        has; a method that does so needs feature encoding layers.
      plain_network: whether it needs ``Problem.layers``, with biases that all tasks train and
        without feature encoding in between.
    """

    build: Callable[[Problem], Method]
    label: str
    fel: bool
    single_task: bool = False
    learning_rates: Mapping[str, float] = MappingProxyType({})
    networks: Mapping[str, str] = MappingProxyType({})
    setting: str = "harness"
    options: type[Any] = NoOptions
    batch_norm: bool = False
    capacity: Callable[[Problem, Any], jax.Array] | None = None
    heads: tuple[str, ...] | None = None
    unused_encodings: Callable[[Any], int] = _no_encodings
    plain_network: bool = False

    def make_options(self, given: Mapping[str, Any]) -> Any:
        """The method's own options, of which some are given; others' are left out."""
        own = {field.name for field in dataclasses.fields(self.options)}
        return self.options(**{name: value for name, value in given.items() if name in own})


def sgd_optimizer(problem: Problem) -> optax.GradientTransformation:
    """SGD at the problem's rate, with the momentum that the method's options tell, if any."""
    return optax.sgd(problem.learning_rate, problem.options.momentum or None)
