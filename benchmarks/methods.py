"""Continual-learning methods as bundles of pure functions.

To add one, write a function from `Problem` to `Method` and give it a line in `METHODS`; the
training loop, the mapping over seeds, the evaluation and the tables take it from there.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import rgo_jax
import rgo_jax.linen
from benchmarks.tasks import Task


class Problem(NamedTuple):
    """What a method is given.

    Attributes:
      init: from a key to fresh parameters.
      logits: ``(params, x, task_id, projections=None) -> [b, num_classes]``; with the collection
        of `rgo_jax.linen.projections` the gradients of protected parameters are projected.
      protected: from parameters to a mask (a prefix tree of bools): those trained in more than
        one task.
      learning_rate: schedule over the steps of the whole sequence.
      alpha: RGO's alpha.
    """

    init: Callable[[jax.Array], Any]
    logits: Callable[..., jax.Array]
    protected: Callable[[Any], Any]
    learning_rate: optax.Schedule
    alpha: float


class Method(NamedTuple):
    """A method: four pure functions around a state of its own, any pytree of fixed shapes.

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
    """

    init: Callable[[jax.Array], Any]
    start_task: Callable[[Any, Task, jax.Array], Any]
    step: Callable[[Any, tuple[jax.Array, jax.Array], Task], tuple[Any, jax.Array]]
    end_task: Callable[[Any, Task], Any]
    logits: Callable[[Any, jax.Array, jax.Array], jax.Array]


class MethodSpec(NamedTuple):
    """An entry of `METHODS`.

    Attributes:
      build: from a problem to the method.
      label: what tables and plots call it.
      fel: whether the network has feature encoding layers.
      single_task: whether each task gets a model of its own, kept as it is afterwards. Its
        accuracy is then measured once, and no head policy applies.
    """

    build: Callable[[Problem], Method]
    label: str
    fel: bool
    single_task: bool = False


class TrainState(NamedTuple):
    """The state of the gradient methods below."""

    params: Any
    opt_state: Any


def _gradient_method(
    problem: Problem,
    optimizer: optax.GradientTransformation,
    projections: Callable[[optax.OptState], Any] | None = None,
) -> Method:
    """Training with an optax optimizer and nothing else.

    Where ``projections`` takes the layers' projections from the optimizer's state, the layers
    project their gradients themselves.
    """

    def init(key: jax.Array) -> TrainState:
        params = problem.init(key)
        return TrainState(params, optimizer.init(params))

    def start_task(state: TrainState, task: Task, key: jax.Array) -> TrainState:
        del task, key
        return state

    def step(
        state: TrainState, batch: tuple[jax.Array, jax.Array], task: Task
    ) -> tuple[TrainState, jax.Array]:
        x, y = batch
        handed = None if projections is None else projections(state.opt_state)

        def loss_fn(params: Any) -> jax.Array:
            logits = problem.logits(params, x, task.id, handed)
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, y))

        loss, grads = jax.value_and_grad(loss_fn)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        return TrainState(optax.apply_updates(state.params, updates), opt_state), loss

    def end_task(state: TrainState, task: Task) -> TrainState:
        del task
        return state

    def logits(state: TrainState, x: jax.Array, task_id: jax.Array) -> jax.Array:
        return problem.logits(state.params, x, task_id)

    return Method(init, start_task, step, end_task, logits)


def sgd(problem: Problem) -> Method:
    """Plain SGD through all tasks: the lower bound."""
    return _gradient_method(problem, optax.sgd(problem.learning_rate))


def stl(problem: Problem) -> Method:
    """Single-task learning: every task by itself, from fresh parameters."""
    method = sgd(problem)

    def start_task(state: TrainState, task: Task, key: jax.Array) -> TrainState:
        del task
        # The optimizer's state stays: all it holds is the count that drives the schedule.
        return state._replace(params=problem.init(key))

    return method._replace(start_task=start_task)


def rgo(problem: Problem) -> Method:
    """Recursive Gradient Optimization, Algorithm 1."""
    optimizer = optax.chain(
        optax.masked(rgo_jax.scale_by_rgo(projected=True), problem.protected),
        optax.sgd(problem.learning_rate),
    )

    def end_task(state: TrainState, task: Task) -> TrainState:
        def curvature_grads(indices: jax.Array) -> Any:
            x, y = task.load(indices)
            return jax.grad(
                lambda params: rgo_jax.curvature_output(problem.logits(params, x, task.id), y)
            )(state.params)

        opt_state = rgo_jax.consolidate(
            state.opt_state, curvature_grads, task.batches, alpha=problem.alpha
        )
        return state._replace(opt_state=opt_state)

    method = _gradient_method(problem, optimizer, rgo_jax.linen.projections)
    return method._replace(end_task=end_task)


METHODS = {
    "rgo": MethodSpec(rgo, "RGO", fel=True),
    "rgo-2": MethodSpec(rgo, "RGO-2", fel=False),
    "sgd": MethodSpec(sgd, "SGD", fel=False),
    "stl": MethodSpec(stl, "STL", fel=False, single_task=True),
}
