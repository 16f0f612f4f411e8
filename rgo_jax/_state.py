"""``RgoState``, and how its projections are found and paired with trees like the parameters."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rgo_jax import _geometry, _projection, _tree
from rgo_jax._projected import Projected
from rgo_jax._tree import Path


class RgoState(NamedTuple):
    """State of `rgo_jax.scale_by_rgo`.

    The trees are like the parameters, but for Flax's boxes around single arrays.

    Attributes:
      num_updates: int32 scalar, how many batches have been folded in so far.
      projection: a leaf seen as ``[d, m]`` has a ``P [d, d]``, symmetric positive definite, in
        float32 or better, not normalised: it equals ``alpha (alpha I + sum v v')^-1`` over all
        vectors ``v`` folded in. Where a `rgo_jax.FanIn` asks for it, ``P`` is ``[blocks, b, b]`` or
        its diagonal ``[d]``.
      num_skipped: int32 scalars, how many vectors were left out because they were not finite.
      energy: ``[2]``: the sum of ``|v|^2`` over all vectors, and that of the mean ``|column|^2`` of
        the gradients that they were made of, as a random combination of columns estimates it. See
        `ProjectionStats.coverage`.
    """

    num_updates: jax.Array
    projection: Any
    num_skipped: Any
    energy: Any


def find_states(opt_state: Any) -> list[RgoState]:
    """Every `RgoState` inside an optimizer state, however deep it is wrapped.

    Raises:
      ValueError: there is none.
    """
    found = [node for node in jax.tree.leaves(opt_state, is_leaf=_is_state) if _is_state(node)]
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
        lambda node: next(following) if _is_state(node) else node, opt_state, is_leaf=_is_state
    )


def find_projections(opt_state: Any) -> dict[Path, jax.Array]:
    """The projections of all of `find_states`, by the paths of their parameters.

    Raises:
      ValueError: as `find_states`.
    """
    states = find_states(opt_state)
    return {p: leaf for s in states for p, leaf in _tree.leaves_by_path(s.projection).items()}


def _is_state(node: Any) -> bool:
    return isinstance(node, RgoState)


def check_paths(projections: dict[Path, Any], leaves: dict[Path, Any], what: str) -> None:
    """Refuses a tree that lacks leaves which the projections have.

    Leaves without a projection are no error here: a masked transform sees only some of them.
    """
    missing = [path for path in projections if path not in leaves]
    if missing:
        raise ValueError(
            f"The {what} have no leaf {_tree.path_name(missing[0])!r}, for which the RgoState "
            f"has a projection. They have {_tree.names(leaves)}. Pass a tree like the parameters "
            "that the optimizer was initialised with."
        )


def pair(
    path: Path, leaf: Any, projections: dict[Path, jax.Array], what: str
) -> tuple[jax.Array, jax.Array]:
    """A leaf's projection and the leaf as its ``[d, m]`` matrix, checked against each other."""
    name = _tree.path_name(path)
    if path not in projections:
        raise ValueError(
            f"The {what} have a leaf {name!r} for which the RgoState has no projection. Pass a "
            "tree like the parameters that the optimizer was initialised with."
        )
    projection, shape = projections[path], jnp.shape(leaf)
    d = _projection.dim(projection)
    if not _geometry.is_fan_in(shape, d):
        raise ValueError(
            f"The {what} leaf {name!r} has shape {shape}, but its projection has shape "
            f"{projection.shape}: expected leading axes with a product, the fan-in, of {d}. Pass a "
            "tree like the parameters that the optimizer was initialised with."
        )
    return projection, _geometry.to_matrix(jnp.asarray(leaf), d)


def check_shapes(leaves: dict[Path, Any], params: Any) -> None:
    """Refuses gradients of other shapes than the parameters have."""
    shapes = {path: jnp.shape(leaf) for path, leaf in _tree.leaves_by_path(params).items()}
    for path, leaf in leaves.items():
        found = jnp.shape(leaf.gradient if isinstance(leaf, Projected) else leaf)
        if shapes.get(path, found) != found:
            raise ValueError(
                f"The gradients leaf {_tree.path_name(path)!r} has shape {found}, "
                f"but the parameter has shape {shapes[path]}."
            )
