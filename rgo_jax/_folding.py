"""How the gradients of batches are folded into a state; `_rls` and `_consolidate` share it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rgo_jax import _columns, _state, _tree, _warnings
from rgo_jax._columns import Columns, Curvature
from rgo_jax._projected import Projected

# How many vectors are folded in at once.
BLOCK_SIZE = 128


def curvatures(
    state: _state.RgoState,
    grads: optax.Updates,
    columns: Columns,
    key: jax.Array,
    index: jax.Array,
    rank: int | None = None,
) -> Any:
    """A tree like ``state.projection`` of `Curvature`: what one batch has to say of each leaf.

    Args:
      state: whose leaves.
      grads: of the batch.
      columns: as for `rgo_jax.rls_update`; the rest likewise.
      key: as above.
      index: the number of the batch.
      rank: with ``columns="each"``: try with so many vectors a leaf.
    """
    leaves = _tree.leaves_by_path(grads)
    projections = _tree.leaves_by_path(state.projection)
    _state.check_paths(projections, leaves, "grads")
    for path, leaf in leaves.items():
        if isinstance(leaf, Projected):
            raise ValueError(
                f"The grads leaf {_tree.path_name(path)!r} is projected, and P would become wrong. "
                "Take the gradient of curvature_output with jax.grad, not with value_and_grad of "
                "rgo_jax."
            )
    # Where they only serve an estimate, the same for all batches: XLA draws them once.
    index = index if columns == "signs" else jnp.int32(0)
    numbers = {path: number for number, path in enumerate(projections)}

    def leaf_curvature(path: _tree.Path, projection: jax.Array) -> Curvature:
        _, matrix = _state.pair(path, leaves[path], projections, "grads")
        if rank is not None:
            return _columns.of_rank(matrix.astype(projection.dtype), rank)
        signs = _columns.draw_signs(key, index, numbers[path], matrix.shape[1])
        return _columns.curvature(
            matrix.astype(projection.dtype), columns, signs.astype(projection.dtype)
        )

    return _tree.map_with_path(leaf_curvature, state.projection)


def joined(stacked: Any) -> Any:
    """Those of all batches, stacked by a scan, as if of one."""

    def join(leaf: Curvature) -> Curvature:
        return Curvature(
            vectors=leaf.vectors.reshape(-1, leaf.vectors.shape[-1]),
            energy=jnp.sum(leaf.energy, axis=0),
            num_skipped=jnp.sum(leaf.num_skipped, dtype=jnp.int32),
            is_whole=jnp.all(leaf.is_whole),
        )

    return jax.tree.map(join, stacked, is_leaf=lambda node: isinstance(node, Curvature))


def fold(
    state: _state.RgoState,
    found: Any,
    alphas: dict[_tree.Path, Any],
    num_batches: int,
    update: Callable[[jax.Array, jax.Array, Any], jax.Array],
) -> _state.RgoState:
    """The state with the vectors of `curvatures` folded in.

    Args:
      state: the one to start from.
      found: of `curvatures`.
      alphas: each leaf's, by path.
      num_batches: how many batches ``found`` is of.
      update: from a projection, vectors ``[k, d]`` and alpha to the new projection.
    """

    def fold_leaf(path: _tree.Path, projection: jax.Array, leaf: Curvature) -> jax.Array:
        return update(projection, leaf.vectors, alphas[path])

    def add(_: _tree.Path, skipped: jax.Array, leaf: Curvature) -> jax.Array:
        return skipped + leaf.num_skipped

    def add_energy(_: _tree.Path, energy: jax.Array, leaf: Curvature) -> jax.Array:
        return energy + leaf.energy

    return state._replace(
        num_updates=state.num_updates + num_batches,
        projection=_tree.map_with_path(fold_leaf, state.projection, found),
        num_skipped=_tree.map_with_path(add, state.num_skipped, found),
        energy=_tree.map_with_path(add_energy, state.energy, found),
    )


def warn_of_layer_norm(state: _state.RgoState, columns: Columns) -> None:
    """Warns of parameters that the mean over columns leaves unprotected."""
    if columns == "mean":
        _warnings.warn_of_layer_norm(_tree.leaves_by_path(state.projection, optax.MaskedNode))
