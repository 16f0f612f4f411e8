"""What methods that project gradients layer by layer have in common.

A layer here is a parameter of one of `rgo_jax.linen`'s layers: a kernel, seen as ``[d, m]``, whose
inputs are what the layer multiplies by it; or a bias, seen as ``[1, m]``, whose input is always 1.
Parameters of other layers, such as heads that one task trains, are left alone.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

import rgo_jax
import rgo_jax.linen
from benchmarks.data.tasks import Task
from benchmarks.methods.base import Batch, Method, Problem, loss_and_grads, nothing_to_start


class ProjectedState(NamedTuple):
    """The state of `projecting_method`.

    Attributes:
      params: the network's.
      opt_state: the optimizer's.
      memory: the method's.
      projections: what is made of it: nested dicts like ``params`` of symmetric ``[d, d]``, without
        the parameters of other layers.
    """

    params: Any
    opt_state: Any
    memory: Any
    projections: Any


def layer_inputs(problem: Problem, params: Any, x: jax.Array, task_id: jax.Array) -> dict[str, Any]:
    """What each layer receives when the network is given some examples.

    Args:
      problem: the network.
      params: its parameters.
      x: ``[b, *input_shape]``.
      task_id: int32 scalar.

    Returns:
      Nested dicts like ``params``, in the order in which the layers are called, of arrays
      ``[b, positions, d]``. A convolution has a position for each place of its window; a dense
      layer and a bias have one. Parameters of other layers have no key.
    """
    found: dict[str, Any] = {}

    def record(
        call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext
    ) -> Any:
        layer = context.module
        if context.method_name == "__call__" and isinstance(layer, _LAYERS):
            (inputs,) = args
            seen = _patches(layer, inputs) if isinstance(layer, nn.Conv) else inputs
            node = found
            for name in layer.path:
                node = node.setdefault(name, {})
            node["kernel"] = seen.reshape(len(inputs), -1, seen.shape[-1])
            if layer.use_bias:
                node["bias"] = jnp.ones((len(inputs), 1, 1), seen.dtype)
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        problem.logits(params, x, task_id)
    return found


def projecting_method(
    problem: Problem,
    empty: Callable[[Any], Any],
    fold: Callable[[Any, Any, Task], Any],
    matrices: Callable[[Any], Any],
) -> Method:
    """SGD along projected gradients.

    Args:
      problem: the network.
      empty: from the dimension d of each layer (nested dicts) to a memory of nothing.
      fold: ``(memory, params, task) -> memory`` with a finished task in it.
      matrices: from a memory to the projection ``[d, d]`` of each layer.
    """
    optimizer = optax.sgd(problem.learning_rate)

    def init(key: jax.Array) -> ProjectedState:
        params = problem.init(key)
        blank = jnp.zeros((1, *problem.input_shape))
        inputs = jax.eval_shape(lambda p: layer_inputs(problem, p, blank, jnp.int32(0)), params)
        memory = empty(jax.tree.map(lambda shape: shape.shape[-1], inputs))
        return ProjectedState(params, optimizer.init(params), memory, matrices(memory))

    def step(state: ProjectedState, batch: Batch, task: Task) -> tuple[ProjectedState, jax.Array]:
        projections = traverse_util.flatten_dict(state.projections)
        rgo_state = _rgo_state(traverse_util.flatten_dict(state.params), projections)
        loss, grads = loss_and_grads(problem, state.params, batch, task.id, rgo_state)

        def project(path: tuple[str, ...], gradient: Any) -> jax.Array:
            if isinstance(gradient, rgo_jax.ProjectedGradient):
                return gradient.gradient
            return gradient * projections[path][0, 0] if path in projections else gradient

        flat = traverse_util.flatten_dict(grads)
        grads = traverse_util.unflatten_dict({path: project(path, g) for path, g in flat.items()})
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return state._replace(params=params, opt_state=opt_state), loss

    def end_task(state: ProjectedState, task: Task) -> ProjectedState:
        memory = fold(state.memory, state.params, task)
        return state._replace(memory=memory, projections=matrices(memory))

    def logits(state: ProjectedState, x: jax.Array, task_id: jax.Array) -> jax.Array:
        return problem.logits(state.params, x, task_id)

    return Method(init, nothing_to_start, step, end_task, logits, memory=lambda state: state.memory)


# Those whose inputs are asked for.
_LAYERS = (rgo_jax.linen.Dense, rgo_jax.linen.Conv)


def _rgo_state(params: dict[tuple[str, ...], Any], projections: dict[tuple[str, ...], Any]) -> Any:
    """A state for `rgo_jax.value_and_grad`, with projections of our own for the kernels."""
    kernels = [path for path in projections if path[-1] == "kernel"]

    def nested(flat: dict[tuple[str, ...], Any]) -> Any:
        return traverse_util.unflatten_dict({path: flat[path] for path in kernels})

    largest = max(len(projections[path]) for path in kernels)
    fresh = rgo_jax.scale_by_rgo(max_fan_in=largest).init(nested(params))
    return fresh._replace(projection=nested(projections))


def _patches(layer: nn.Conv, x: jax.Array) -> jax.Array:
    """What a convolution's kernel ``[*window, cin, m]`` meets: ``[b, *spatial, d]``."""
    cin = x.shape[-1]
    window = layer.kernel_size
    window = (window,) if isinstance(window, int) else tuple(window)
    kernel = jnp.eye(cin * math.prod(window)).reshape(*window, cin, -1)
    # A convolution with the identity as its kernel; apart from the network it is called in.
    identity = nn.Conv(
        kernel.shape[-1],
        layer.kernel_size,
        layer.strides,
        layer.padding,
        kernel_dilation=layer.kernel_dilation,
        use_bias=False,
        precision=jax.lax.Precision.HIGHEST,
        parent=None,
    )
    return jnp.asarray(identity.apply({"params": {"kernel": kernel}}, x))
