"""Progressive networks: a narrow network for each task, which sees the features of older ones.

Rusu et al. 2016, https://arxiv.org/abs/1606.04671.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from benchmarks.methods.base import Problem, check_positive, network_size, option
from benchmarks.networks.feed_forward import Layer, activate, pre_activation
from rgo_jax.baselines import Method, Task

# By layer, then by parameter, arrays. Those of one column, or of all on a leading axis.
Columns = dict[str, dict[str, jax.Array]]

# Of what comes from older columns; the paper has a small random value.
_INITIAL_SCALE = 0.1


@dataclasses.dataclass(frozen=True)
class Pgn:
    """Options of `pgn`.

    Raises:
      ValueError: a value outside its range.
    """

    pgn_width: float = option(
        1.117,
        "PGN: units of all columns together, over those of the network; a column has at most as "
        "many as that",
    )

    def __post_init__(self) -> None:
        """Checks them."""
        check_positive("pgn_width", self.pgn_width)


class PgnState(NamedTuple):
    """The state of `pgn`.

    Attributes:
      params: of all columns.
      opt_state: the optimizer's, of one column.
    """

    params: Columns
    opt_state: Any


def pgn(problem: Problem) -> Method:
    """PGN with columns for all tasks from the beginning; only a task's own is trained.

    Each layer but the first also gets, from the layer below it in all older columns, an adapter's
    outputs: ``relu(V (scale * features) + b)`` with as many units as its own column has there (for
    convolutions V is 1 x 1), and then a kernel like the layer's own. The head has one, too.

    Older columns are evaluated in each step, all at once; the gradient goes through one. Columns of
    tasks to come are evaluated in vain, so every step costs the same: forwards about twice the
    network, if columns are as wide together, and backwards a small part of it.
    """
    optimizer = optax.sgd(problem.learning_rate)

    def init(key: jax.Array) -> PgnState:
        params = init_columns(problem, key)
        return PgnState(params, optimizer.init(of_column(params, jnp.int32(0))))

    def start_task(state: PgnState, task: Task, key: jax.Array) -> PgnState:
        del key
        return state._replace(opt_state=optimizer.init(of_column(state.params, task.id)))

    def step(
        state: PgnState, batch: tuple[jax.Array, jax.Array], task: Task
    ) -> tuple[PgnState, jax.Array]:
        x, y = batch
        older = features_of_all(problem, state.params, x)
        column = of_column(state.params, task.id)

        def loss_fn(column: Columns) -> jax.Array:
            return jnp.mean(problem.losses(column_logits(problem, column, task.id, x, older), y))

        loss, grads = jax.value_and_grad(loss_fn)(column)
        updates, opt_state = optimizer.update(grads, state.opt_state, column)
        column = optax.apply_updates(column, updates)
        params = jax.tree.map(lambda all_, own: all_.at[task.id].set(own), state.params, column)
        return PgnState(params, opt_state), loss

    def apply(state: PgnState, x: jax.Array, task_id: jax.Array) -> jax.Array:
        older = features_of_all(problem, state.params, x)
        return column_logits(problem, of_column(state.params, task_id), task_id, x, older)

    def memory(state: PgnState) -> Columns:
        # The columns of the other tasks.
        return jax.tree.map(lambda leaf: leaf[1:], state.params)

    return Method(init, start_task, step, lambda state, task: state, apply, memory)


def capacity(problem: Problem, state: PgnState) -> jax.Array:
    """Of adapters only what comes from older columns: the first column has none."""
    sizes = {
        layer: {name: leaf[0].size for name, leaf in own.items()}
        for layer, own in state.params.items()
    }
    columns = problem.num_tasks * sum(own["kernel"] + own.get("bias", 0) for own in sizes.values())
    adapters = 0
    for own in (own for own in sizes.values() if "lateral" in own):
        fixed = sum(own[name] for name in ("scale", "squeeze_bias", "lateral"))
        for older in range(1, problem.num_tasks):
            adapters += fixed + own["squeeze"] * older // problem.num_tasks
    return jnp.float32((columns + adapters) / network_size(problem))


def width_of(problem: Problem, units: int) -> int:
    """How many of a layer's units a column has, one at least."""
    options: Pgn = problem.options
    return min(max(round(options.pgn_width * units / problem.num_tasks), 1), units)


def init_columns(problem: Problem, key: jax.Array) -> Columns:
    """All columns, each cut out of parameters of a network of its own."""
    layers = _with_head(problem)

    def column(args: tuple[jax.Array, jax.Array]) -> Columns:
        index, key = args
        whole, for_laterals = (_one_head(problem.init(k)) for k in jax.random.split(key))
        made: Columns = {}
        # Units below, in the whole network and in a column; the network's inputs are not cut.
        all_below, below = None, 0
        for layer in layers:
            kernel, units = whole[layer.name]["kernel"], layer.features
            width = units if layer.name == "head" else width_of(problem, units)
            fan_in = kernel.shape[-2]
            if all_below is not None:
                # A fully connected layer receives each channel once for every pixel.
                fan_in = below * (fan_in // all_below)
            own = {"kernel": cut(kernel, fan_in, width)}
            if "bias" in whole[layer.name]:
                own["bias"] = whole[layer.name]["bias"][:width]
            if all_below is not None:
                squeeze_key = jax.random.fold_in(key, len(made))
                inputs = problem.num_tasks * below
                own |= {
                    "scale": jnp.float32(_INITIAL_SCALE),
                    "squeeze": jax.random.normal(squeeze_key, (inputs, below))
                    / jnp.sqrt(below * jnp.maximum(index, 1)),
                    "squeeze_bias": jnp.zeros(below),
                    "lateral": cut(for_laterals[layer.name]["kernel"], fan_in, width),
                }
            made[layer.name] = own
            all_below, below = units, width
        return made

    indices = jnp.arange(problem.num_tasks)
    return jax.lax.map(column, (indices, jax.random.split(key, problem.num_tasks)))


def cut(kernel: jax.Array, fan_in: int, width: int) -> jax.Array:
    """A part of initial values, as large as those of so narrow a layer would be.

    Args:
      kernel: ``[..., d, m]``.
      fan_in: how many of its d inputs are left; numbers grow by the root of what is left out.
      width: how many of its m outputs are left.

    Returns:
      ``[..., fan_in, width]``.
    """
    return kernel[..., :fan_in, :width] * math.sqrt(kernel.shape[-2] / fan_in)


def of_column(params: Columns, index: jax.Array) -> Columns:
    """One column's parameters."""
    return jax.tree.map(lambda leaf: leaf[index], params)


def features_of_all(problem: Problem, params: Columns, x: jax.Array) -> list[jax.Array]:
    """What each hidden layer of each column gives, ``[num_tasks, b, ..., width]`` a layer."""
    indices = jnp.arange(problem.num_tasks)
    found: list[jax.Array] = []
    for layer in problem.layers:
        older = found[-1] if found else None

        def of_one(
            own: dict[str, jax.Array],
            index: jax.Array,
            x: jax.Array,
            layer: Layer = layer,
            older: jax.Array | None = older,
        ) -> jax.Array:
            return activate(layer, layer_of(layer, own, index, x, older))

        x = jax.vmap(of_one, (0, 0, 0 if found else None))(params[layer.name], indices, x)
        found.append(x)
    return found


def column_logits(
    problem: Problem, column: Columns, index: jax.Array, x: jax.Array, features: list[jax.Array]
) -> jax.Array:
    """Logits ``[b, classes]`` of one column.

    Args:
      problem: whose layers there are.
      column: its parameters.
      index: its task, int32 scalar.
      x: ``[b, ...]``.
      features: `features_of_all` of ``x``; only those of older columns matter.
    """
    older: jax.Array | None = None
    for layer, found in zip(problem.layers, features, strict=True):
        x = activate(layer, layer_of(layer, column[layer.name], index, x, older))
        older = found
    head = _with_head(problem)[-1]
    return layer_of(head, column["head"], index, x, older)


def layer_of(
    layer: Layer,
    own: dict[str, jax.Array],
    index: jax.Array,
    x: jax.Array,
    features: jax.Array | None,
) -> jax.Array:
    """What a layer of one column makes of its inputs, before ReLU.

    Args:
      layer: which.
      own: the column's parameters of it.
      index: the column's task, int32 scalar.
      x: what the column's layer below gives, or an example.
      features: ``[num_tasks, b, ..., width]``: what that layer gives in all columns; None below
        the first.
    """
    z = pre_activation(layer, own["kernel"], own.get("bias"), x)
    if features is None:
        return z
    is_older = jnp.arange(len(features)) < index
    seen = jnp.where(is_older.reshape(-1, *[1] * (features.ndim - 1)), features, 0)
    wide = jnp.moveaxis(seen, 0, -2).reshape(*features.shape[1:-1], -1)
    squeezed = (own["scale"] * wide) @ own["squeeze"]
    squeezed = jax.nn.relu(squeezed + jnp.broadcast_to(own["squeeze_bias"], squeezed.shape))
    # The first column has none, and no bias of an adapter either.
    return z + pre_activation(layer, own["lateral"], None, jnp.where(index > 0, squeezed, 0))


def _with_head(problem: Problem) -> tuple[Layer, ...]:
    return (*problem.layers, Layer("head", problem.num_classes, None, None))


def _one_head(params: Any) -> Any:
    """The parameters of a network with the first task's head as one more layer."""
    head = {"kernel": params["head"]["kernels"][0], "bias": params["head"]["biases"][0]}
    return params | {"head": head}
