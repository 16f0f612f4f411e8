"""What a method is given, what it is, and what all methods of gradients share."""

import dataclasses
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import rgo_jax
from benchmarks.data.limits import MAX_COUNT
from benchmarks.data.tasks import Task

Batch = tuple[jax.Array, jax.Array]


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
      logits: ``(params, x, task_id, statistics=None) -> [b, num_classes]``. With ``statistics``
        batch normalisation is by them, without by the batch's own.
      protected: from parameters to a mask (a prefix tree of bools): those of layers that more than
        one task trains, their biases too.
      freeze: ``(params, task_id) -> params`` with the same values, through which no gradient flows
        to parameters that this task does not train any more. For methods whose loss in one task
        has examples of another; `logits` sees to it where all are of one.
      losses: ``(logits [b, num_classes], labels int [b]) -> [b]``: what is trained on.
      learning_rate: schedule over the steps of the whole sequence.
      options: the method's own, of the type that its `MethodSpec` names.
      dataset: the name of the dataset, for hyper-parameters that a paper chose for each.
      input_shape: of one example.
      num_classes: outputs of each head; labels are below it.
      num_tasks: the length of the sequence.
      steps_per_task: optimizer steps in each.
      statistics: of batch normalisation.
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
    steps_per_task: int
    statistics: Statistics = NO_STATISTICS


class Method(NamedTuple):
    """A method: pure functions around a state of its own, any pytree of fixed shapes.

    They run inside one compiled program, under `jax.vmap` or `jax.lax.map` over seeds, with the
    task's id traced; so whatever a method remembers (a buffer, a Fisher matrix, bases, masks) is
    an array of fixed size in its state.

    Attributes:
      init: ``(key) -> state``, once.
      start_task: ``(state, task, key) -> state``, before a task's first step.
      step: ``(state, (x, y), task) -> (state, loss)``, once a batch.
      end_task: ``(state, task) -> state``, after the last step; ``task.batches`` and
        ``task.load`` give one more pass over the task's data.
      logits: ``(state, x, task_id) -> [b, num_classes]``, for evaluation on any task so far.
      memory: ``(state) -> pytree``: what the state keeps from one task for the next beside the
        network and its optimizer; `benchmarks.run.experiment.memory_bytes` counts it.
    """

    init: Callable[[jax.Array], Any]
    start_task: Callable[[Any, Task, jax.Array], Any]
    step: Callable[[Any, Batch, Task], tuple[Any, jax.Array]]
    end_task: Callable[[Any, Task], Any]
    logits: Callable[[Any, jax.Array, jax.Array], jax.Array]
    memory: Callable[[Any], Any]


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

    def make_options(self, given: Mapping[str, Any]) -> Any:
        """The method's own options, of which some are given; others' are left out."""
        own = {field.name for field in dataclasses.fields(self.options)}
        return self.options(**{name: value for name, value in given.items() if name in own})


class TrainState(NamedTuple):
    """The state of a method that remembers nothing beside its optimizer's state."""

    params: Any
    opt_state: Any
    statistics: Any


def loss_and_grads(
    problem: Problem, params: Any, batch: Batch, task_id: jax.Array, rgo_state: Any = None
) -> tuple[jax.Array, Any]:
    """Mean loss of a batch and its gradient, with ``rgo_state`` as `rgo_jax.value_and_grad` has it.

    Args:
      problem: the network.
      params: its parameters.
      batch: examples and labels.
      task_id: int32 scalar.
      rgo_state: an optimizer state with projections; by default the gradient is the plain one.
    """
    x, y = batch

    def loss_fn(params: Any) -> jax.Array:
        return jnp.mean(problem.losses(problem.logits(params, x, task_id), y))

    if rgo_state is None:
        return jax.value_and_grad(loss_fn)(params)
    return rgo_jax.value_and_grad(loss_fn, rgo_state)(params)


def sgd_optimizer(problem: Problem) -> optax.GradientTransformation:
    """SGD at the problem's rate, with the momentum that the method's options tell, if any."""
    return optax.sgd(problem.learning_rate, problem.options.momentum or None)


def gradient_method(
    problem: Problem,
    optimizer: optax.GradientTransformation,
    is_rgo: bool = False,
) -> Method:
    """Training with an optax optimizer and nothing else; ``is_rgo``: RGO is part of it."""

    def init(key: jax.Array) -> TrainState:
        params = problem.init(key)
        return TrainState(params, optimizer.init(params), problem.statistics.init())

    def start_task(state: TrainState, task: Task, key: jax.Array) -> TrainState:
        del task, key
        if not problem.options.momentum:
            return state
        # What has built up in one task would move the parameters in the next, unprotected.
        still = jax.tree.map(jnp.zeros_like, optax.tree.get(state.opt_state, "trace"))
        return state._replace(opt_state=optax.tree.set(state.opt_state, trace=still))

    def step(state: TrainState, batch: Batch, task: Task) -> tuple[TrainState, jax.Array]:
        rgo_state = state.opt_state if is_rgo else None
        loss, grads = loss_and_grads(problem, state.params, batch, task.id, rgo_state)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        # The same forward pass as the loss's, which XLA sees.
        statistics = problem.statistics.update(state.statistics, state.params, batch[0], task.id)
        return TrainState(optax.apply_updates(state.params, updates), opt_state, statistics), loss

    def logits(state: TrainState, x: jax.Array, task_id: jax.Array) -> jax.Array:
        return problem.logits(state.params, x, task_id, statistics=state.statistics)

    return Method(init, start_task, step, nothing_to_end, logits, memory=lambda state: ())


def nothing_to_start(state: Any, task: Task, key: jax.Array) -> Any:
    """The ``start_task`` of a method that has nothing to do there."""
    del task, key
    return state


def nothing_to_end(state: Any, task: Task) -> Any:
    """The ``end_task`` of a method that has nothing to do there."""
    del task
    return state
