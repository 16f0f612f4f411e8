"""The layout of a Flax NNX model's parameters."""

from typing import Any

import jax
from flax import nnx

from rgo_jax import _infer
from rgo_jax._transform import DEFAULT_MAX_FAN_IN
from rgo_jax.nnx import _gradients


def infer_specs(
    model: nnx.Module,
    *args: Any,
    wrt: Any = nnx.Param,
    max_fan_in: int = DEFAULT_MAX_FAN_IN,
    diagonal_vectors: bool = False,
) -> Any:
    """`rgo_jax.infer_specs` of ``model(*args)``.

    Args:
      model: the model. It is not changed.
      *args: what it takes, arrays or shapes.
      wrt: as in `flax.nnx.Optimizer`: which parameters are trained.
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
    graph, params, rest = nnx.split(model, wrt, ...)  # type: ignore[misc]
    structure = jax.tree.structure(params)

    def forward(params: Any, *args: Any) -> Any:
        params = jax.tree.unflatten(structure, jax.tree.leaves(params))
        # A copy: a forward pass may count its steps or draw random numbers.
        return nnx.merge(graph, params, rest, copy=True)(*args)

    return _infer.infer_specs(
        forward,
        _gradients.arrays(params),
        *args,
        max_fan_in=max_fan_in,
        diagonal_vectors=diagonal_vectors,
    )
