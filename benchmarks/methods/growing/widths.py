"""Plain networks with room for more units, each of which is born with a task.

Arrays have the size of the widest network. A unit is in use from the task on with which it is born,
so each task goes through the network that there was when it was trained.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.methods.base import Problem, network_size
from benchmarks.networks.feed_forward import activate, classify, pre_activation

# For each layer int32 [units], the task that each unit is born with; `num_tasks` for none.
Born = tuple[jax.Array, ...]


def by_unit(kernel: jax.Array, inputs: int) -> jax.Array:
    """A kernel as ``[places, inputs, m]``, whose last axes are the units at both of its ends.

    Places are those of a convolution's window, or of an image that a fully connected layer or a
    head receives.

    Args:
      kernel: ``[..., m]``, the inputs last on the axes before.
      inputs: units or channels that it receives.
    """
    return kernel.reshape(-1, inputs, kernel.shape[-1])


def inputs_of(problem: Problem, born: Born) -> list[int]:
    """How many units there is room for in what each layer receives, the head last."""
    return [problem.input_shape[-1], *(len(layer) for layer in born)]


def widen(problem: Problem, params: Any, room: Sequence[int]) -> tuple[Any, Born]:
    """The same network with unused units, whose parameters are 0.

    Args:
      problem: whose network it is.
      params: of the network as it is.
      room: how many units each hidden layer gets.

    Returns:
      The wider parameters, and when units are born.
    """

    def padded(leaf: jax.Array, inputs: int, more_inputs: int, more: int) -> jax.Array:
        """Of the shape of a kernel ``[..., inputs, m]`` with more of both."""
        *window, rows, columns = leaf.shape
        places = leaf.reshape(*window, rows // inputs, inputs, columns)
        before = [(0, 0)] * (places.ndim - 2)
        places = jnp.pad(places, (*before, (0, more_inputs), (0, more)))
        return places.reshape(*window, -1, columns + more)

    wide = {}
    inputs, more_inputs = problem.input_shape[-1], 0
    for layer, more in zip(problem.layers, room, strict=True):
        own = params[layer.name]
        wide[layer.name] = {"kernel": padded(own["kernel"], inputs, more_inputs, more)}
        if "bias" in own:
            wide[layer.name]["bias"] = jnp.pad(own["bias"], (0, more))
        inputs, more_inputs = layer.features, more
    wide["head"] = {
        "kernels": padded(params["head"]["kernels"], inputs, more_inputs, 0),
        "biases": params["head"]["biases"],
    }
    born = tuple(
        jnp.where(jnp.arange(layer.features + more) < layer.features, 0, problem.num_tasks)
        for layer, more in zip(problem.layers, room, strict=True)
    )
    return wide, born


def logits(
    problem: Problem, params: Any, born: Born, x: jax.Array, task_id: jax.Array
) -> jax.Array:
    """Logits ``[b, num_classes]`` of ``x`` by the units that are born with this task or before."""
    for layer, tasks in zip(problem.layers, born, strict=True):
        own = params[layer.name]
        x = activate(layer, pre_activation(layer, own["kernel"], own.get("bias"), x))
        x = jnp.where((tasks <= task_id).reshape(*(1,) * (x.ndim - 1), -1), x, 0)
    return classify(params["head"], x, task_id)


def add_units(tasks: jax.Array, count: jax.Array, task_id: jax.Array, num_tasks: int) -> jax.Array:
    """When units of a layer are born, with so many more born with this task, or all there are."""
    is_free = tasks == num_tasks
    return jnp.where(is_free & (jnp.cumsum(is_free) <= count), task_id, tasks)


def pairs(
    problem: Problem, of_units: Sequence[jax.Array], of_inputs: int | bool
) -> list[tuple[jax.Array, jax.Array]]:
    """What units of two layers that follow one another are, ready to be compared.

    Args:
      problem: whose network it is.
      of_units: ``[units]`` of each hidden layer.
      of_inputs: what inputs of the network are.

    Returns:
      ``[inputs, 1]`` and ``[1, units]`` for each hidden layer.
    """
    senders = [jnp.full(problem.input_shape[-1], of_inputs), *of_units[:-1]]
    return [(a[:, None], b[None]) for a, b in zip(senders, of_units, strict=True)]


def edges(
    problem: Problem, params: Any, chosen: Sequence[jax.Array], units: Sequence[jax.Array]
) -> Any:
    """Masks of hidden layers' parameters.

    Args:
      problem: whose network it is.
      params: of the network with room.
      chosen: bool ``[inputs, units]`` of each hidden layer, between which units.
      units: bool ``[units]`` of each hidden layer, whose biases.
    """
    found: dict[str, dict[str, jax.Array]] = {}
    for layer, pair, own in zip(problem.layers, chosen, units, strict=True):
        kernel = params[layer.name]["kernel"]
        places = by_unit(kernel, len(pair)).shape
        found[layer.name] = {"kernel": jnp.broadcast_to(pair[None], places).reshape(kernel.shape)}
        if "bias" in params[layer.name]:
            found[layer.name]["bias"] = own
    return found


def body_of(params: Any) -> Any:
    """The hidden layers' parameters."""
    return {name: layer for name, layer in params.items() if name != "head"}


def capacity(problem: Problem, params: Any, born: Born, num_tasks: jax.Array) -> jax.Array:
    """Parameters of the units in use, over those of the network as it was.

    Args:
      problem: whose network it is.
      params: of the network with room.
      born: when units are born.
      num_tasks: int32 scalar, how many tasks are finished. Heads of tasks to come have all units.
    """
    # Whole numbers, so that a network that has not grown has exactly its own.
    inputs, used = jnp.ones(problem.input_shape[-1], int), jnp.int32(0)
    for layer, tasks in zip(problem.layers, born, strict=True):
        own = params[layer.name]
        units = (tasks < problem.num_tasks).astype(int)
        places = by_unit(own["kernel"], len(inputs)).shape[0]
        used += (places * jnp.sum(inputs) + ("bias" in own)) * jnp.sum(units)
        inputs = units
    kernels, biases = params["head"]["kernels"], params["head"]["biases"]
    last = jnp.minimum(jnp.arange(problem.num_tasks), num_tasks - 1)
    seen = jnp.sum(born[-1][None] <= last[:, None])
    places = kernels.shape[1] // len(inputs)
    used += places * seen * problem.num_classes + biases.size
    size = network_size(problem)
    # XLA may divide by multiplying with the inverse, which rounds.
    return used // size + (used % size) / size
