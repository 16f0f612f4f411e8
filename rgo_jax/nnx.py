"""RGO's layers and consolidation for Flax NNX."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from rgo_jax import _fel, _rls


class FeatureEncoding(nnx.Module):
    """Feature Encoding Layer: permutes the features for the task at hand.

    Put one on the input and after each layer, each with its own ``layer`` number. It has no
    parameters. See `rgo_jax.fel_encode`; `rgo_jax.linen.FeatureEncoding` is the same for Linen.

    Args:
      layer: integer, different for each layer of a network.
      seed: integer, the same for a whole network.
      axis: the axis of the features: the last one, channels for a convolution.

    Example:
      >>> import jax.numpy as jnp, rgo_jax.nnx
      >>> encode = rgo_jax.nnx.FeatureEncoding(layer=1)
      >>> print(encode(jnp.arange(5), task_id=3))
      [0 4 3 2 1]

    References:
      Section 4.4. https://arxiv.org/abs/2201.12522
    """

    def __init__(self, layer: int = 0, seed: int = 0, axis: int = -1) -> None:
        self.layer = layer
        self.seed = seed
        self.axis = axis

    def __call__(self, x: jax.Array, task_id: jax.typing.ArrayLike) -> jax.Array:
        """Permutes ``x`` along the feature axis for ``task_id``, an integer that may be traced."""
        return _fel.fel_encode(x, task_id, seed=self.seed, layer=self.layer, axis=self.axis)


def consolidate(
    model: nnx.Module,
    optimizer: nnx.Optimizer,
    output_fn: Callable[[Any, Any], jax.Array],
    batches: Any,
    *,
    alpha: jax.typing.ArrayLike = 1.0,
    block_size: int = 128,
) -> None:
    """Folds a finished task into the state of an NNX optimizer, in place.

    `rgo_jax.consolidate` for `flax.nnx.Optimizer`; call it inside your own `nnx.jit`.

    Args:
      model: the model that the optimizer trains. It is not changed.
      optimizer: an optimizer whose transform contains `rgo_jax.scale_by_rgo`.
      output_fn: ``(model, batch) -> scalar``, the `rgo_jax.curvature_output` of one batch.
      batches: as for `rgo_jax.consolidate`.
      alpha: as for `rgo_jax.consolidate`.
      block_size: as for `rgo_jax.consolidate`.

    Raises:
      ValueError: as `rgo_jax.consolidate`.

    Example:
      >>> import jax.numpy as jnp, rgo_jax, rgo_jax.nnx
      >>> from flax import nnx
      >>> model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
      >>> optimizer = nnx.Optimizer(model, rgo_jax.rgo(0.1), wrt=nnx.Param)
      >>> @nnx.jit
      ... def end_of_task(model, optimizer, x, y):
      ...     def output(model, batch):
      ...         return rgo_jax.curvature_output(model(batch[0]), batch[1])
      ...     rgo_jax.nnx.consolidate(model, optimizer, output, (x, y))
      >>> x, y = jnp.ones((5, 10, 4)), jnp.zeros((5, 10), jnp.int32)
      >>> end_of_task(model, optimizer, x, y)
      >>> int(optimizer.opt_state[0].num_updates[...])
      5
    """
    graph, params, rest = nnx.split(model, optimizer.wrt, ...)  # type: ignore[misc]

    def output(params: Any, batch: Any) -> jax.Array:
        return output_fn(nnx.merge(graph, params, rest), batch)

    state = _rls.consolidate(
        _arrays(optimizer.opt_state),
        lambda batch: _arrays(jax.grad(output)(params, batch)),
        batches,
        alpha=alpha,
        block_size=block_size,
    )
    nnx.update(optimizer.opt_state, nnx.state(state))


def _arrays(tree: Any) -> Any:
    """The tree without NNX's Variables: grads and optimizer state wrap theirs differently."""
    if hasattr(nnx, "as_pure"):  # flax 0.12
        return nnx.as_pure(tree)
    return nnx.to_arrays(nnx.pure(tree))  # type: ignore[attr-defined]
