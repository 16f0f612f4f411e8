"""Specifications, layers' inputs and outputs under several tasks for Flax NNX."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from rgo_jax import _infer, _layer_inputs, task_inference
from rgo_jax._transform import DEFAULT_MAX_FAN_IN
from rgo_jax.nnx import _gradients


def infer_specs(
    model: nnx.Module,
    *args: Any,
    wrt: Any = nnx.Param,
    specs: Any = None,
    max_fan_in: int = DEFAULT_MAX_FAN_IN,
    diagonal_vectors: bool = False,
) -> Any:
    """`rgo_jax.infer_specs` of the program ``model(*args)``. The model is not changed.

    Args:
      model: the model.
      *args: its inputs, or their shapes (`jax.ShapeDtypeStruct`).
      wrt: which of its variables are trained, as in `flax.nnx.Optimizer`.
      specs: as for `rgo_jax.infer_specs`.
      max_fan_in: as for `rgo_jax.infer_specs`.
      diagonal_vectors: as for `rgo_jax.infer_specs`.

    Returns:
      As `rgo_jax.infer_specs`.

    Raises:
      ValueError: as `rgo_jax.infer_specs`.

    Example:
      >>> import jax.numpy as jnp, rgo_jax, rgo_jax.nnx
      >>> from flax import nnx
      >>> model = nnx.MultiHeadAttention(2, 8, decode=False, rngs=nnx.Rngs(0))
      >>> specs = rgo_jax.nnx.infer_specs(model, jnp.ones((1, 5, 8)))
      >>> optimizer = nnx.Optimizer(model, rgo_jax.rgo(0.1, specs=specs), wrt=nnx.Param)
      >>> optimizer.opt_state[0].projection["query"]["kernel"].shape
      (8, 8)
    """
    fn, params = _split(model, wrt)
    return _infer.infer_specs(
        fn,
        params,
        *args,
        specs=specs,
        max_fan_in=max_fan_in,
        diagonal_vectors=diagonal_vectors,
    )


def layer_inputs(model: nnx.Module, *args: Any, wrt: Any = nnx.Param) -> dict[str, jax.Array]:
    """`rgo_jax.layer_inputs` of the program ``model(*args)``. The model is not changed.

    Args:
      model: the model.
      *args: its inputs.
      wrt: which of its variables are trained, as in `flax.nnx.Optimizer`.

    Returns:
      Under each kernel's path what it is multiplied by.

    Raises:
      ValueError: as `rgo_jax.layer_inputs`.

    Example:
      >>> import jax.numpy as jnp, rgo_jax.nnx
      >>> from flax import nnx
      >>> model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
      >>> rgo_jax.nnx.layer_inputs(model, jnp.ones((2, 4)))["kernel"].shape
      (2, 4)
    """
    fn, params = _split(model, wrt)
    return _layer_inputs.layer_inputs(fn, params, *args)


def logits_by_task(model: nnx.Module, x: jax.Array, tasks: jax.typing.ArrayLike) -> jax.Array:
    """`rgo_jax.task_inference.logits_by_task` of ``model(x, task_id)``. The model is not changed.

    Args:
      model: the model; ``model.eval()`` before, if it has dropout or batch normalisation.
      x: ``[b, ...]``.
      tasks: int ``[tasks]``: the ids; or how many there are, counted from 0.

    Returns:
      ``[tasks, b, classes]``.

    Example:
      >>> import jax, jax.numpy as jnp, rgo_jax.nnx
      >>> from flax import nnx
      >>> class Net(nnx.Module):
      ...     def __init__(self, rngs):
      ...         self.encode = rgo_jax.nnx.FeatureEncoding()
      ...         self.dense = nnx.Linear(4, 3, rngs=rngs)
      ...     def __call__(self, x, task_id):
      ...         return self.dense(self.encode(x, task_id))
      >>> rgo_jax.nnx.logits_by_task(Net(nnx.Rngs(0)), jnp.ones((2, 4)), 5).shape
      (5, 2, 3)
    """
    fn, params = _split(model, nnx.Param)
    return task_inference.logits_by_task(fn, params, x, tasks)


def _split(model: nnx.Module, wrt: Any) -> tuple[Callable[..., Any], Any]:
    """A model as a function of its parameters and its inputs."""
    graph, params, rest = nnx.split(model, wrt, ...)  # type: ignore[misc]
    structure = jax.tree.structure(params)

    def fn(params: Any, *args: Any) -> Any:
        params = jax.tree.unflatten(structure, jax.tree.leaves(params))
        # A copy of what else there is: a forward pass may count its steps or draw random numbers.
        return nnx.merge(graph, params, rest, copy=True)(*args)

    return fn, _gradients.arrays(params)
