"""Consolidation for Flax NNX, in place."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from rgo_jax import _consolidate, _folding, _warnings
from rgo_jax._columns import Columns
from rgo_jax.nnx import _gradients, _layers


def consolidate(
    model: nnx.Module,
    optimizer: nnx.Optimizer,
    output_fn: Callable[[Any, Any], jax.Array],
    batches: Any,
    *,
    alpha: Any = 0.01,
    relative_alpha: bool = False,
    columns: Columns = "mean",
    key: jax.Array | None = None,
    block_size: int = _folding.BLOCK_SIZE,
) -> None:
    """Folds a finished task into the state of an NNX optimizer, in place.

    `rgo_jax.consolidate` for `flax.nnx.Optimizer`; call it inside your own `nnx.jit`. `nnx.Linear`
    and `nnx.Conv` themselves are fused here.

    Args:
      model: the model that the optimizer trains. It is not changed.
      optimizer: an optimizer whose transform contains `rgo_jax.scale_by_rgo`.
      output_fn: ``(model, batch) -> scalar``, the `rgo_jax.curvature_output` of one batch.
      batches: as for `rgo_jax.consolidate`.
      alpha: as for `rgo_jax.consolidate`.
      relative_alpha: as for `rgo_jax.consolidate`.
      columns: as for `rgo_jax.consolidate`.
      key: as for `rgo_jax.consolidate`.
      block_size: as for `rgo_jax.consolidate`.

    Raises:
      ValueError: as `rgo_jax.consolidate`.

    Warns:
      BatchNormWarning: if the model has batch normalisation.
      UnprotectedWarning: as `rgo_jax.consolidate`.

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
    if nnx.to_flat_state(nnx.state(model, nnx.BatchStat)):
        _warnings.warn_of_running_statistics(f"{type(model).__name__} has batch normalisation")
    graph, params, rest = nnx.split(model, optimizer.wrt, ...)  # type: ignore[misc]

    structure = jax.tree.structure(params)

    def output(params: Any, batch: Any) -> jax.Array:
        params = jax.tree.unflatten(structure, jax.tree.leaves(params))
        # A copy of what else there is: a forward pass may count its steps or draw random numbers.
        copied = nnx.merge(graph, params, rest, copy=True)
        _layers.fuse(copied)
        return output_fn(copied, batch)

    state = _consolidate.consolidate(
        _gradients.arrays(optimizer.opt_state),
        output,
        batches,
        _gradients.arrays(params),
        alpha=alpha,
        relative_alpha=relative_alpha,
        columns=columns,
        key=key,
        block_size=block_size,
    )
    nnx.update(optimizer.opt_state, nnx.state(state))
