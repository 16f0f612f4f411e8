"""Dynamically expandable networks: retrain what a task needs, add units, split what has drifted.

Yoon et al. 2018, https://arxiv.org/abs/1708.01547.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.methods.base import Problem, check_count, check_not_negative, check_positive, option
from benchmarks.methods.growing import selection, widths
from benchmarks.methods.growing.decomposition import shrink
from rgo_jax.baselines import Method, Task

# The phases of a task, and at which share of its steps each begins. The first task has one only.
_HEAD, _RETRAIN, _EXPAND, _SPLIT, _FIRST = range(5)
_BEGINS = (0.0, 0.1, 0.5, 0.8)
# Of the running mean of the loss.
_MEMORY = 0.98
# Initial size of what new units receive.
_NEW_UNITS = 0.01


@dataclasses.dataclass(frozen=True)
class Den:
    """Options of `den`.

    Raises:
      ValueError: a value outside its range.
    """

    den_l1: float = option(1e-4, "DEN: sparsity of the first task, of heads and of new units")
    den_group: float = option(1e-2, "DEN: group sparsity of what new units receive")
    den_pull: float = option(0.01, "DEN: strength of the pull to the values before the task")
    den_decay: float = option(1e-4, "DEN: weight decay of the first task and of new units")
    den_loss: float = option(0.01, "DEN: units are added where a task's loss stays above")
    den_units: int = option(10, "DEN: how many units are added to each layer")
    den_drift: float = option(0.05, "DEN: units split that have moved further in a task")
    den_splits: int = option(10, "DEN: how many units of a layer split in a task, at most")
    room: float = option(1.0, "DEN, RCL: a layer may grow by so many times its width")

    def __post_init__(self) -> None:
        """Checks them."""
        for name in ("den_loss", "den_drift", "room"):
            check_positive(name, getattr(self, name))
        for name in ("den_units", "den_splits"):
            check_count(name, getattr(self, name))
        for name in ("den_l1", "den_group", "den_pull", "den_decay"):
            check_not_negative(name, getattr(self, name))


class DenState(NamedTuple):
    """The state of `den`.

    Attributes:
      params: of the network with room.
      old: those of the hidden layers that the task at hand is pulled to.
      born: when units are born: `widths.Born`.
      path: bool ``[units]`` of each hidden layer, the units that the task retrains.
      loss: the running mean of the task's loss.
      num_steps: int32 scalar, taken in this task.
      num_tasks: int32 scalar, how many have begun.
      key: for the values of new units.
    """

    params: Any
    old: Any
    born: widths.Born
    path: tuple[jax.Array, ...]
    loss: jax.Array
    num_steps: jax.Array
    num_tasks: jax.Array
    key: jax.Array


def den(problem: Problem) -> Method:
    """DEN on a plain network; a task's steps are divided among its phases.

    The first task trains all of the network with sparsity. Each later one trains a new head for a
    tenth of its steps, with sparsity and from 0. For four tenths it retrains the units from which
    weights that are not 0 lead to that head, pulled to their old values. If the loss is still too
    high, it adds units and trains what they receive for three tenths, with group sparsity. Units
    that have drifted are split, and for the last two tenths what is new is trained, pulled to its
    values after the split; the published program trains the restored units again too, and what was
    restored is lost again. New units feed each other and the head of their task, no older unit.

    Sparsity is a proximal step, in units of the rate; at a rate of 0.1 a step takes off a weight
    what it does in the published program. The units split that have moved most, as the paper's text
    suggests; its program takes the ones that moved least. The pull is a fiftieth of the published
    one, with which the steps there are learned too little.
    """
    options: Den = problem.options
    names = [layer.name for layer in problem.layers]

    def init(key: jax.Array) -> DenState:
        params = problem.init(key)
        room = [math.ceil(options.room * layer.features) for layer in problem.layers]
        wide, born = widths.widen(problem, params, room)
        path = tuple(jnp.zeros(len(tasks), bool) for tasks in born)
        zero = jnp.int32(0)
        return DenState(wide, widths.body_of(wide), born, path, jnp.float32(0), zero, zero, key)

    def start_task(state: DenState, task: Task, key: jax.Array) -> DenState:
        head = state.params["head"]
        # What its sparsity keeps at 0 is on no path.
        kernels = head["kernels"].at[task.id].multiply(task.id == 0)
        params = state.params | {"head": head | {"kernels": kernels}}
        return state._replace(
            params=params,
            old=widths.body_of(params),
            loss=jnp.float32(0),
            num_steps=jnp.int32(0),
            num_tasks=task.id + 1,
            key=key,
        )

    def select(state: DenState, task_id: jax.Array) -> DenState:
        head = state.params["head"]["kernels"][task_id]
        kernels = [*(state.params[name]["kernel"] for name in names), head]
        path = selection.path(kernels, widths.inputs_of(problem, state.born))
        return state._replace(path=path)

    def expand(state: DenState, task_id: jax.Array) -> DenState:
        count = jnp.where(state.loss > options.den_loss, options.den_units, 0)
        born = tuple(
            widths.add_units(tasks, count, task_id, problem.num_tasks) for tasks in state.born
        )
        is_new = [tasks == task_id for tasks in born]
        edges = _edges(problem, state.params, born, [tasks <= task_id for tasks in born], is_new)
        params = dict(state.params)
        for i, name in enumerate(names):
            kernel = params[name]["kernel"]
            drawn = _NEW_UNITS * jax.random.normal(jax.random.fold_in(state.key, i), kernel.shape)
            kernel = jnp.where(edges[name]["kernel"], drawn, kernel)
            params[name] = params[name] | {"kernel": kernel}
        return state._replace(params=params, born=born)

    def split(state: DenState, task_id: jax.Array) -> DenState:
        params, born = selection.drop(problem, state.params, state.born, task_id)
        params, born = selection.split_units(
            params,
            state.old,
            born,
            names,
            task_id,
            problem.num_tasks,
            options.den_drift,
            options.den_splits,
        )
        # What is new is pulled to what it is now.
        old = {
            name: jax.tree.map(
                lambda p, o, is_new=tasks == task_id: jnp.where(_last_axis(is_new, p.ndim), p, o),
                params[name],
                state.old[name],
            )
            for name, tasks in zip(names, born, strict=True)
        }
        return state._replace(params=params, born=born, old=old)

    def step(
        state: DenState, batch: tuple[jax.Array, jax.Array], task: Task
    ) -> tuple[DenState, jax.Array]:
        x, y = batch
        num_steps = task.epochs * len(task.batches)
        begins = [math.ceil(share * num_steps) for share in _BEGINS]
        is_later = task.id > 0
        for begin, change in zip(begins[1:], (select, expand, split), strict=True):
            state = jax.lax.cond(
                is_later & (state.num_steps == begin), change, lambda s, _: s, state, task.id
            )
        begun = jnp.sum(state.num_steps >= jnp.array(begins)) - 1
        phase = jnp.where(is_later, begun, _FIRST)

        def loss_of(params: Any) -> jax.Array:
            outputs = widths.logits(problem, params, state.born, x, task.id)
            return jnp.mean(problem.losses(outputs, y))

        loss, grads = jax.value_and_grad(loss_of)(state.params)
        params = update(state, grads, task.id, phase)
        return state._replace(
            params=params,
            loss=jnp.where(state.num_steps == 0, loss, _MEMORY * state.loss + (1 - _MEMORY) * loss),
            num_steps=state.num_steps + 1,
        ), loss

    def update(state: DenState, grads: Any, task_id: jax.Array, phase: jax.Array) -> Any:
        """A step of SGD of what the phase trains, with its penalties."""
        rate = problem.learning_rate(state.num_steps)
        is_sparse = (phase == _FIRST) | (phase == _EXPAND)
        l1 = jnp.where(is_sparse, rate * options.den_l1, 0)
        decay = jnp.where(is_sparse, options.den_decay, 0)
        pull = jnp.where(is_sparse, 0, options.den_pull)
        is_new = [tasks == task_id for tasks in state.born]
        is_there = [tasks <= task_id for tasks in state.born]
        # Of what is there: all, or what the path leads through, or what is new.
        senders = [
            jnp.where(phase == _RETRAIN, path, there)
            for path, there in zip(state.path, is_there, strict=True)
        ]
        receivers = [
            jnp.where((phase == _EXPAND) | (phase == _SPLIT), new, sender) & (phase != _HEAD)
            for new, sender in zip(is_new, senders, strict=True)
        ]
        edges = _edges(problem, state.params, state.born, senders, receivers)

        def trained(
            path: Any, p: jax.Array, g: jax.Array, old: jax.Array, edge: jax.Array
        ) -> jax.Array:
            moved = p - rate * (g + pull * (p - old) + decay * p)
            is_bias = path[-1].key == "bias"
            return jnp.where(edge, moved if is_bias else shrink(moved, l1), p)

        body = jax.tree.map_with_path(
            trained, widths.body_of(state.params), widths.body_of(grads), state.old, edges
        )

        def shrink_new(body: Any) -> Any:
            return {
                name: body[name]
                | {
                    "kernel": selection.shrink_groups(
                        body[name]["kernel"], jnp.where(new, rate * options.den_group, 0)
                    )
                }
                for name, new in zip(names, is_new, strict=True)
            }

        body = jax.lax.cond(phase == _EXPAND, shrink_new, lambda body: body, body)
        head = jax.tree.map(lambda p, g: p - rate * g, state.params["head"], grads["head"])
        sparse_head = (phase == _FIRST) | (phase == _HEAD)
        own = shrink(head["kernels"][task_id], jnp.where(sparse_head, rate * options.den_l1, 0))
        return body | {"head": head | {"kernels": head["kernels"].at[task_id].set(own)}}

    def apply(state: DenState, x: jax.Array, task_id: jax.Array) -> jax.Array:
        return widths.logits(problem, state.params, state.born, x, task_id)

    return Method(
        init, start_task, step, lambda state, task: state, apply, memory=lambda state: state.born
    )


def capacity(problem: Problem, state: DenState) -> jax.Array:
    """Parameters of the units in use over those of the network as it was."""
    return widths.capacity(problem, state.params, state.born, state.num_tasks)


def _edges(
    problem: Problem,
    params: Any,
    born: widths.Born,
    senders: Sequence[jax.Array],
    receivers: Sequence[jax.Array],
) -> Any:
    """Masks of what some units receive from others that are no newer, and of their biases."""
    flags = widths.pairs(problem, senders, True)
    chosen = [
        sends & receives[None] & (sender <= receiver)
        for (sends, _), receives, (sender, receiver) in zip(
            flags, receivers, widths.pairs(problem, born, 0), strict=True
        )
    ]
    return widths.edges(problem, params, chosen, receivers)


def _last_axis(mask: jax.Array, ndim: int) -> jax.Array:
    """A mask of units, for arrays with ``ndim`` axes."""
    return mask.reshape(*(1,) * (ndim - 1), -1)
