"""What `den` does with units: the path to a head, groups that vanish, units that split."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.methods.base import Problem
from benchmarks.methods.growing.widths import Born, by_unit


def path(kernels: Sequence[jax.Array], inputs: Sequence[int]) -> tuple[jax.Array, ...]:
    """The hidden units from which a chain of weights that are not 0 leads to an output.

    Args:
      kernels: of the hidden layers, and then of the head ``[..., classes]``.
      inputs: how many units each of them receives, as `widths.inputs_of` has it.

    Returns:
      bool ``[units]`` for each hidden layer.
    """
    found: list[jax.Array] = []
    reached = jnp.ones(kernels[-1].shape[-1], bool)
    for kernel, count in zip(reversed(kernels[1:]), reversed(inputs[1:]), strict=True):
        reached = jnp.any((by_unit(kernel, count) != 0) & reached[None, None], axis=(0, 2))
        found.append(reached)
    return tuple(reversed(found))


def column_norms(kernel: jax.Array) -> jax.Array:
    """Of what each unit receives: ``[m]`` of a kernel ``[..., m]``."""
    return jnp.sqrt(jnp.sum(kernel**2, axis=tuple(range(kernel.ndim - 1))))


def shrink_groups(kernel: jax.Array, by: jax.Array) -> jax.Array:
    """The proximal step of the group lasso: columns are shorter by so much, 0 at the least.

    Args:
      kernel: ``[..., m]``.
      by: ``[m]``, what each column loses.
    """
    norms = column_norms(kernel)
    scale = jnp.where(norms > by, 1 - by / jnp.where(norms > 0, norms, 1), 0)
    return kernel * scale.reshape(*(1,) * (kernel.ndim - 1), -1)


class Split(NamedTuple):
    """Which units of a layer split.

    Attributes:
      unit: int32 ``[most]``.
      copy: int32 ``[most]``, the place of its copy; past the end for no split.
    """

    unit: jax.Array
    copy: jax.Array


def choose_splits(drift: jax.Array, is_free: jax.Array, threshold: float, most: int) -> Split:
    """The units that have drifted most split, as far as there is room.

    Args:
      drift: ``[units]``; 0 or less for those that must not.
      is_free: bool ``[units]``, places without a unit.
      threshold: splits are of units that have drifted further.
      most: how many split at most.
    """
    most = min(most, len(drift))
    distance, unit = jax.lax.top_k(drift, most)
    (places,) = jnp.nonzero(is_free, size=most, fill_value=len(drift))
    # Those that split come first, so they get the first places.
    return Split(unit, jnp.where(distance > threshold, places, len(drift)))


def split_columns(kernel: jax.Array, old: jax.Array, split: Split) -> jax.Array:
    """Copies get the columns ``[..., m]`` of units, which get back their old ones."""
    restored = jnp.where(split.copy < kernel.shape[-1], split.unit, kernel.shape[-1])
    moved = kernel.at[..., split.copy].set(kernel[..., split.unit], mode="drop")
    return moved.at[..., restored].set(old[..., split.unit], mode="drop")


def hand_over(kernel: jax.Array, split: Split, columns: jax.Array, inputs: int) -> jax.Array:
    """Copies take the place of units in what some columns receive.

    Args:
      kernel: ``[..., m]``, of the layer that receives the units, or of a head.
      split: of those units.
      columns: bool ``[m]``.
      inputs: how many units the kernel receives.

    Returns:
      The kernel, in whose columns the copies have the units' rows, and the units have none.
    """
    places = by_unit(kernel, inputs)
    rows = places[:, split.unit]
    empty = jnp.where(split.copy < inputs, split.unit, inputs)
    taken = places.at[:, split.copy].set(rows, mode="drop").at[:, empty].set(0, mode="drop")
    return jnp.where(columns[None, None], taken, places).reshape(kernel.shape)


def split_units(
    params: Any,
    old: Any,
    born: Born,
    names: Sequence[str],
    task_id: jax.Array,
    num_tasks: int,
    threshold: float,
    most: int,
) -> tuple[Any, Born]:
    """Splits units of all hidden layers that have drifted.

    The unit gets back what it received before, so for earlier tasks it is what it was. The copy
    keeps what was learned, and stands for the unit where this task alone is concerned: in its head
    and in the units born with it.

    Args:
      params: hidden layers and heads.
      old: the hidden layers' parameters before the task.
      born: when units are born.
      names: of the hidden layers, in their order.
      task_id: of the task at hand.
      num_tasks: the length of the sequence.
      threshold: as in `choose_splits`.
      most: likewise.

    Returns:
      The parameters with copies, and when units are born.
    """
    params = dict(params)
    heads = dict(params["head"])
    when = list(born)
    for i in reversed(range(len(names))):
        own, before = params[names[i]], old[names[i]]
        drift = _drift(own, before)
        split = choose_splits(
            jnp.where(born[i] < task_id, drift, 0), born[i] == num_tasks, threshold, most
        )
        params[names[i]] = {key: split_columns(own[key], before[key], split) for key in own}
        when[i] = born[i].at[split.copy].set(task_id, mode="drop")
        if i + 1 < len(names):
            above = dict(params[names[i + 1]])
            above["kernel"] = hand_over(
                above["kernel"], split, when[i + 1] == task_id, len(born[i])
            )
            params[names[i + 1]] = above
            continue
        kernel = heads["kernels"][task_id]
        every = jnp.ones(kernel.shape[-1], bool)
        kernel = hand_over(kernel, split, every, len(born[i]))
        heads["kernels"] = heads["kernels"].at[task_id].set(kernel)
    return params | {"head": heads}, tuple(when)


def drop(problem: Problem, params: Any, born: Born, task_id: jax.Array) -> tuple[Any, Born]:
    """Removes new units that receive nothing, and what they send.

    Args:
      problem: whose network it is.
      params: of the network with room.
      born: when units are born.
      task_id: new units are born with this task.
    """
    kept, kept_born = dict(params), []
    inputs, before = problem.input_shape[-1], jnp.ones(problem.input_shape[-1], bool)
    for layer, tasks in zip(problem.layers, born, strict=True):
        own = params[layer.name]
        is_idle = (tasks == task_id) & (column_norms(own["kernel"]) == 0)
        stays = ~is_idle
        places = by_unit(own["kernel"], inputs)
        edge = before[:, None] & stays[None]
        kept[layer.name] = {"kernel": jnp.where(edge[None], places, 0).reshape(own["kernel"].shape)}
        if "bias" in own:
            kept[layer.name]["bias"] = jnp.where(stays, own["bias"], 0)
        kept_born.append(jnp.where(is_idle, problem.num_tasks, tasks))
        inputs, before = len(tasks), stays
    kernels = params["head"]["kernels"]
    places = kernels.reshape(len(kernels), -1, inputs, kernels.shape[-1])
    places = jnp.where(before[None, None, :, None], places, 0)
    kept["head"] = params["head"] | {"kernels": places.reshape(kernels.shape)}
    return kept, tuple(kept_born)


def _drift(own: Any, before: Any) -> jax.Array:
    """How far what each unit of a layer receives has moved, its bias with it."""
    squares = column_norms(own["kernel"] - before["kernel"]) ** 2
    if "bias" in own:
        squares += (own["bias"] - before["bias"]) ** 2
    return jnp.sqrt(squares)
