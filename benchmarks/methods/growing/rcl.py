"""Reinforced continual learning: a controller tries out how many units a task needs.

Xu and Zhu 2018, https://arxiv.org/abs/1805.12369.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from benchmarks.methods.base import Problem, check_count, check_not_negative, check_positive, option
from benchmarks.methods.growing import controller, widths
from rgo_jax.baselines import Method, Task

# The controller chooses among these many counts for each layer, from 0.
_COUNTS = 30
# Initial size of weights from or to a new unit.
_NEW_WEIGHTS = 0.01
# One batch in so many is held out to compare trials.
_HELD_OUT = 10


@dataclasses.dataclass(frozen=True)
class Rcl:
    """Options of `rcl`.

    Raises:
      ValueError: a value outside its range.
    """

    rcl_trials: int = option(8, "RCL: how many ways to grow are tried out for a task")
    rcl_child: float = option(0.25, "RCL: of a task's steps, the share that each trial trains for")
    rcl_price: float = option(1e-4, "RCL: what each added unit takes off the reward")
    rcl_rate: float = option(1e-2, "RCL: the controller's learning rate")
    rcl_decay: float = option(1e-4, "RCL: weight decay")
    room: float = option(1.0, "DEN, RCL: a layer may grow by so many times its width")

    def __post_init__(self) -> None:
        """Checks them."""
        check_count("rcl_trials", self.rcl_trials)
        for name in ("rcl_child", "rcl_rate", "room"):
            check_positive(name, getattr(self, name))
        for name in ("rcl_price", "rcl_decay"):
            check_not_negative(name, getattr(self, name))


class RclState(NamedTuple):
    """The state of `rcl`.

    Attributes:
      params: of the network with room.
      born: when units are born: `widths.Born`.
      controller: of all tasks so far.
      num_steps: int32 scalar, taken in this task.
      num_tasks: int32 scalar, how many have begun.
    """

    params: Any
    born: widths.Born
    controller: controller.Controller
    num_steps: jax.Array
    num_tasks: jax.Array


class _Child(NamedTuple):
    """A network that has been tried out."""

    params: Any
    born: widths.Born
    reward: jax.Array


def rcl(problem: Problem) -> Method:
    """RCL on a plain network: all parameters between units of earlier tasks stay as they are.

    Before each task but the first, a controller proposes how many units to add to each layer,
    ``rcl_trials`` times. Each time a child is trained for ``rcl_child`` of a task's steps on nine
    tenths of its batches. Its accuracy on the rest is the reward, less the price of its units. The
    best child is trained on by the task's own steps. So a task costs ``1 + rcl_trials *
    rcl_child`` times SGD's steps, 3 times by default, each of a network with all its room. The
    published 50 trials of the full length cost 51 times. The controller goes on from task to task.
    """
    options: Rcl = problem.options
    num_layers = len(problem.layers)
    tx = optax.adam(options.rcl_rate)

    def init(key: jax.Array) -> RclState:
        params_key, controller_key = jax.random.split(key)
        room = [math.ceil(options.room * layer.features) for layer in problem.layers]
        params, born = widths.widen(problem, problem.init(params_key), room)
        chooser = controller.init(controller_key, _COUNTS, tx)
        return RclState(params, born, chooser, jnp.int32(0), jnp.int32(0))

    def train(
        params: Any,
        born: widths.Born,
        batch: tuple[jax.Array, jax.Array],
        task_id: jax.Array,
        num_steps: jax.Array,
    ) -> tuple[Any, jax.Array]:
        """A step of what is the task's own."""
        x, y = batch

        def loss_of(params: Any) -> jax.Array:
            outputs = widths.logits(problem, params, born, x, task_id)
            return jnp.mean(problem.losses(outputs, y))

        loss, grads = jax.value_and_grad(loss_of)(params)
        rate = problem.learning_rate(num_steps)
        body = jax.tree.map(
            lambda p, g, own: jnp.where(own, p - rate * (g + options.rcl_decay * p), p),
            widths.body_of(params),
            widths.body_of(grads),
            own_edges(problem, params, born, task_id),
        )
        head = jax.tree.map(lambda p, g: p - rate * g, params["head"], grads["head"])
        return body | {"head": head}, loss

    def try_out(state: RclState, task: Task, counts: jax.Array, key: jax.Array) -> _Child:
        held_out = max(1, len(task.batches) // _HELD_OUT)
        trained_on = task.batches[: max(1, len(task.batches) - held_out)]
        num_steps = max(1, round(options.rcl_child * task.epochs * len(task.batches)))
        params, born = grow(problem, state.params, state.born, counts, task.id, key)

        def step(params: Any, i: jax.Array) -> tuple[Any, jax.Array]:
            batch = task.load(trained_on[i % len(trained_on)])
            return train(params, born, batch, task.id, i)

        params, _ = jax.lax.scan(step, params, jnp.arange(num_steps))

        def accuracy(indices: jax.Array) -> jax.Array:
            x, y = task.load(indices)
            outputs = widths.logits(problem, params, born, x, task.id)
            return jnp.mean(jnp.argmax(outputs, axis=-1) == y)

        found = jnp.mean(jax.lax.map(accuracy, task.batches[-held_out:]))
        return _Child(params, born, reward_of(found, born, task.id, options.rcl_price))

    def search(state: RclState, task: Task, key: jax.Array) -> RclState:
        def trial(carry: tuple[Any, _Child], key: jax.Array) -> tuple[tuple[Any, _Child], None]:
            chooser, best = carry
            choose_key, child_key = jax.random.split(key)
            counts = controller.sample(chooser.policy, choose_key, num_layers)
            child = try_out(state, task, counts, child_key)
            chooser = controller.learn(chooser, counts, child.reward, tx)
            is_better = child.reward > best.reward
            best = jax.tree.map(lambda a, b: jnp.where(is_better, a, b), child, best)
            return (chooser, best), None

        nothing = _Child(state.params, state.born, jnp.float32(-jnp.inf))
        keys = jax.random.split(key, options.rcl_trials)
        (chooser, best), _ = jax.lax.scan(trial, (state.controller, nothing), keys)
        return state._replace(params=best.params, born=best.born, controller=chooser)

    def start_task(state: RclState, task: Task, key: jax.Array) -> RclState:
        state = state._replace(num_steps=jnp.int32(0), num_tasks=task.id + 1)
        return jax.lax.cond(
            task.id > 0, lambda state: search(state, task, key), lambda state: state, state
        )

    def step(
        state: RclState, batch: tuple[jax.Array, jax.Array], task: Task
    ) -> tuple[RclState, jax.Array]:
        params, loss = train(state.params, state.born, batch, task.id, state.num_steps)
        return state._replace(params=params, num_steps=state.num_steps + 1), loss

    def apply(state: RclState, x: jax.Array, task_id: jax.Array) -> jax.Array:
        return widths.logits(problem, state.params, state.born, x, task_id)

    return Method(
        init,
        start_task,
        step,
        lambda state, task: state,
        apply,
        memory=lambda state: (state.born, state.controller),
    )


def capacity(problem: Problem, state: RclState) -> jax.Array:
    """Parameters of the units in use over those of the network as it was."""
    return widths.capacity(problem, state.params, state.born, state.num_tasks)


def own_edges(problem: Problem, params: Any, born: widths.Born, task_id: jax.Array) -> Any:
    """Masks of hidden layers' parameters: those of a unit that is born with this task."""
    chosen = [
        jnp.maximum(sender, receiver) == task_id
        for sender, receiver in widths.pairs(problem, born, 0)
    ]
    return widths.edges(problem, params, chosen, [tasks == task_id for tasks in born])


def grow(
    problem: Problem,
    params: Any,
    born: widths.Born,
    counts: jax.Array,
    task_id: jax.Array,
    key: jax.Array,
) -> tuple[Any, widths.Born]:
    """Adds units to each layer, with small random weights from and to them.

    Args:
      problem: whose network it is.
      params: of the network with room.
      born: when units are born.
      counts: int32 ``[num_layers]``, how many units; fewer where there is no room for as many.
      task_id: of the task they are born with.
      key: for the weights.
    """
    born = tuple(
        widths.add_units(tasks, count, task_id, problem.num_tasks)
        for tasks, count in zip(born, counts, strict=True)
    )
    own = own_edges(problem, params, born, task_id)
    grown = dict(params)
    for i, layer in enumerate(problem.layers):
        kernel = params[layer.name]["kernel"]
        drawn = _NEW_WEIGHTS * jax.random.normal(jax.random.fold_in(key, i), kernel.shape)
        kernel = jnp.where(own[layer.name]["kernel"], drawn, kernel)
        grown[layer.name] = params[layer.name] | {"kernel": kernel}
    return grown, born


def reward_of(
    accuracy: jax.Array, born: widths.Born, task_id: jax.Array, price: float
) -> jax.Array:
    """A child's accuracy, less the price of the units that are born with this task."""
    return accuracy - price * sum(jnp.sum(tasks == task_id) for tasks in born)
