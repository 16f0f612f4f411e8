"""How the gradients of batches are folded into a state; `_rls` and `_consolidate` share it."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rgo_jax import _columns, _combined, _state, _tree, _warnings
from rgo_jax._columns import Columns, Curvature
from rgo_jax._projected import ProjectedGradient

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
    projections = _state.projections([state])
    leaves = _state.leaves_of(grads, projections, "grads")
    for path, leaf in leaves.items():
        if isinstance(leaf, ProjectedGradient):
            raise ValueError(
                f"The grads leaf {_tree.path_name(path)!r} is projected, and P would become wrong. "
                "Take the gradient of curvature_output with jax.grad, not with value_and_grad of "
                "rgo_jax."
            )
    signs = _signs(state, columns, key, index)

    def leaf_curvature(path: _tree.Path, projection: jax.Array) -> Curvature:
        matrix = projections[path].geometry.to_matrix(jnp.asarray(leaves[path]))
        matrix = matrix.astype(projection.dtype)
        if rank is not None:
            return _columns.of_rank(matrix, rank)
        return _columns.curvature(matrix, columns, signs[path])

    return _tree.map_with_path(leaf_curvature, state.projection)


def curvatures_of_output(
    states: list[_state.RgoState],
    output_fn: Callable[[Any], jax.Array],
    params: Any,
    columns: Columns,
    key: jax.Array,
    index: jax.Array,
) -> list[Any]:
    """`curvatures` of "mean" and "signs" for each state, without the gradients.

    Args:
      states: whose leaves.
      output_fn: from parameters to the scalar of the batch whose gradient ``grads`` would be.
      params: where.
      columns: as for `rgo_jax.rls_update`; the rest likewise.
      key: as above.
      index: the number of the batch among those that are folded in together.
    """
    projections = _state.projections(states)
    _state.leaves_of(params, projections, "params")
    taken = {
        path: _columns.combinations(columns, signs)
        for state in states
        for path, signs in _signs(state, columns, key, state.num_updates + index).items()
    }
    products = _combined.column_products(output_fn, params, projections, taken)
    return [
        _tree.map_with_path(
            lambda path, _: _columns.of_products(products[path], taken[path]), state.projection
        )
        for state in states
    ]


def _signs(
    state: _state.RgoState, columns: Columns, key: jax.Array, index: jax.Array
) -> dict[_tree.Path, jax.Array]:
    """Those of each leaf for a batch, in the projection's dtype."""
    # Where they only serve an estimate, the same for all batches: XLA draws them once.
    index = index if columns == "signs" else jnp.int32(0)
    return {
        path: _columns.draw_signs(
            key, index, number, math.prod(geometry.shape) // geometry.dim
        ).astype(p.dtype)
        for number, (path, (p, geometry)) in enumerate(_state.projections([state]).items())
    }


def concatenate(stacked: Any) -> Any:
    """Curvatures of batches that a scan has stacked, as if they were of one batch."""

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
    relative_alpha: bool,
) -> _state.RgoState:
    """The state with the vectors of `curvatures` folded in.

    Args:
      state: the one to start from.
      found: of `curvatures`.
      alphas: each leaf's, by path.
      num_batches: how many batches ``found`` is of.
      update: from a projection, vectors ``[k, d]`` and alpha to the new projection.
      relative_alpha: as for `rgo_jax.rls_update`.
    """
    num_updates = state.num_updates + num_batches

    def fold_leaf(
        path: _tree.Path, projection: jax.Array, leaf: Curvature, energy: jax.Array
    ) -> jax.Array:
        alpha = alphas[path]
        if relative_alpha:
            unit = (energy[0] + leaf.energy[0]) / num_updates
            # Where all vectors are zeros, any alpha will do that is not zero.
            alpha = alpha * jnp.where(unit > 0, unit, 1)
        return update(projection, leaf.vectors, alpha)

    def add(_: _tree.Path, skipped: jax.Array, leaf: Curvature) -> jax.Array:
        return skipped + leaf.num_skipped

    def add_energy(_: _tree.Path, energy: jax.Array, leaf: Curvature) -> jax.Array:
        return energy + leaf.energy

    return state._replace(
        num_updates=num_updates,
        projection=_tree.map_with_path(fold_leaf, state.projection, found, state.energy),
        num_skipped=_tree.map_with_path(add, state.num_skipped, found),
        energy=_tree.map_with_path(add_energy, state.energy, found),
    )


def warn_of_layer_norm(state: _state.RgoState, columns: Columns) -> None:
    """Warns of parameters that the mean over columns leaves unprotected."""
    if columns == "mean":
        _warnings.warn_of_layer_norm(_tree.leaves_by_path(state.projection, optax.MaskedNode))
