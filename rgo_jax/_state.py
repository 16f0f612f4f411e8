"""``RgoState``, and how its projections are found and paired with trees like the parameters."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rgo_jax import _tree
from rgo_jax._geometry import Geometry
from rgo_jax._projected import ProjectedGradient
from rgo_jax._tree import Path

_LIKE_PARAMETERS = "Pass a tree like the parameters that the optimizer was initialised with."
_STACKED = (
    "Take the mean of gradients of single examples first; a state or gradients that jax.vmap has "
    "stacked are for functions under the same jax.vmap."
)


class RgoState(NamedTuple):
    """State of `rgo_jax.scale_by_rgo`.

    The trees are like the parameters, but for Flax's boxes around single arrays.

    Attributes:
      num_updates: int32 scalar, how many batches have been folded in so far.
      projection: a leaf seen as ``[d, m]`` has a ``P [d, d]``, symmetric positive definite, in
        float32 or better, not normalised: it equals ``alpha (alpha I + sum v v')^-1`` over all
        vectors ``v`` folded in. Where a `rgo_jax.ProjectionSpec` asks for it, ``P`` is
        ``[blocks, b, b]`` or its diagonal ``[d]``.
      num_skipped: int32 scalars, how many vectors were left out because they were not finite.
      energy: ``[2]``: the sum of ``|v|^2`` over all vectors, and that of the mean ``|column|^2`` of
        the gradients that they were made of, as a random combination of columns estimates it. See
        `ProjectionStats.coverage`.
      geometry: a leaf's shape and fan-in axes, as the key of a dict without leaves:
        ``{"8x4:0": None}`` is of shape ``[8, 4]``, axis 0.
    """

    num_updates: jax.Array
    projection: Any
    num_skipped: Any
    energy: Any
    geometry: Any


def find_states(opt_state: Any) -> list[RgoState]:
    """Every `RgoState` inside an optimizer state, however deep it is wrapped.

    Raises:
      ValueError: there is none.
    """
    found = [node for node in jax.tree.leaves(opt_state, is_leaf=is_state) if is_state(node)]
    if not found:
        raise ValueError(
            f"No RgoState in the optimizer state of type {type(opt_state).__name__}. Expected the "
            "state of an optax transform that contains rgo_jax.scale_by_rgo() or rgo_jax.rgo()."
        )
    return found


def replace_states(opt_state: Any, states: Sequence[RgoState]) -> Any:
    """The optimizer state with others in place of those that `find_states` found."""
    following = iter(states)
    return jax.tree.map(
        lambda node: next(following) if is_state(node) else node, opt_state, is_leaf=is_state
    )


def is_state(node: Any) -> bool:
    """Whether it is an `RgoState` itself."""
    return isinstance(node, RgoState)


class Projection(NamedTuple):
    """A P and how its parameter becomes the matrix that it projects."""

    p: jax.Array
    geometry: Geometry


def projections(states: Sequence[RgoState]) -> dict[Path, Projection]:
    """The projections in these states, by the paths of their parameters."""
    found = {}
    for state in states:
        # Its leaves are None, each below the key that tells the geometry.
        nodes, _ = jax.tree_util.tree_flatten_with_path(
            state.geometry, is_leaf=lambda node: node is None
        )
        keys = {path[:-1]: _tree.path_name(path[-1:]) for path, _ in nodes}
        for path, p in _tree.leaves_by_path(state.projection).items():
            found[path] = Projection(p, Geometry.from_key(keys[path]))
    return found


def leaves_of(
    tree: Any, projections: dict[Path, Projection], what: str, *, others: bool = True
) -> dict[Path, Any]:
    """The leaves of a tree like the parameters, checked against their projections.

    Args:
      tree: gradients, plain or projected, or parameters.
      projections: those that it is to be paired with.
      what: what errors call ``tree``.
      others: whether there may be leaves without a projection: a mask may hide them from RGO.

    Raises:
      ValueError: a leaf is missing, has no projection, or is of another shape than the parameter.
    """
    leaves = _tree.leaves_by_path(tree)
    for path, projection in projections.items():
        name, expected = _tree.path_name(path), projection.geometry.shape
        if path not in leaves:
            raise ValueError(
                f"The {what} have no leaf {name!r}, for which the RgoState has a projection. They "
                f"have {_tree.names(leaves)}. {_LIKE_PARAMETERS}"
            )
        shape = jnp.shape(gradient_of(leaves[path]))
        if shape != expected:
            stacked = shape[-len(expected) :] == expected
            raise ValueError(
                f"The {what} leaf {name!r} has shape {shape}, but the parameter has shape "
                f"{expected}. {_STACKED if stacked else _LIKE_PARAMETERS}"
            )
    unknown = [path for path in leaves if path not in projections]
    if unknown and not others:
        raise ValueError(
            f"The {what} have a leaf {_tree.path_name(unknown[0])!r} for which the RgoState has no "
            f"projection. {_LIKE_PARAMETERS}"
        )
    return leaves


def gradient_of(leaf: Any) -> Any:
    """A gradient without the mark that it is projected."""
    return leaf.gradient if isinstance(leaf, ProjectedGradient) else leaf
