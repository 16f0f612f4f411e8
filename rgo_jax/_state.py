"""``RgoState``, and how its projections are found and paired with trees like the parameters."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rgo_jax import _geometry, _projection
from rgo_jax._geometry import Path


class RgoState(NamedTuple):
    """State of `rgo_jax.scale_by_rgo`.

    Attributes:
      num_updates: int32 scalar, how many curvature vectors have been folded in so far.
      projection: a tree like the parameters, but for Flax's boxes around single arrays. A leaf
        seen as ``[d, m]`` has a ``P [d, d]``, symmetric positive definite, in float32 or better,
        not normalised: it equals ``alpha (alpha I + sum v v')^-1`` over all vectors ``v`` folded
        in. Where a `rgo_jax.FanIn` asks for it, ``P`` is ``[blocks, b, b]`` or its diagonal
        ``[d]``.
    """

    num_updates: jax.Array
    projection: Any


def map_states(fn: Callable[[RgoState], Any], opt_state: Any) -> Any:
    """Applies ``fn`` to every `RgoState` inside an optimizer state, however deep it is wrapped.

    Raises:
      ValueError: there is none.
    """
    found = False

    def visit(node: Any) -> Any:
        nonlocal found
        if not isinstance(node, RgoState):
            return node
        found = True
        return fn(node)

    mapped = jax.tree.map(visit, opt_state, is_leaf=lambda node: isinstance(node, RgoState))
    if not found:
        raise ValueError(
            f"No RgoState in the optimizer state of type {type(opt_state).__name__}. Expected the "
            "state of an optax transform that contains rgo_jax.scale_by_rgo() or rgo_jax.rgo()."
        )
    return mapped


def check_paths(projections: dict[Path, Any], leaves: dict[Path, Any], what: str) -> None:
    """Refuses a tree that lacks leaves which the projections have.

    Leaves without a projection are no error here: a masked transform sees only some of them.
    """
    missing = [path for path in projections if path not in leaves]
    if missing:
        raise ValueError(
            f"The {what} have no leaf {_geometry.path_name(missing[0])!r}, for which the RgoState "
            f"has a projection. They have {_names(leaves)}. Pass a tree like the parameters that "
            "the optimizer was initialised with."
        )


def pair(
    path: Path, leaf: Any, projections: dict[Path, jax.Array], what: str
) -> tuple[jax.Array, jax.Array]:
    """A leaf's projection and the leaf as its ``[d, m]`` matrix, checked against each other."""
    name = _geometry.path_name(path)
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


def check_shapes(gradients: Any, params: Any) -> None:
    """Refuses gradients of other shapes than the parameters have."""
    shapes = {path: jnp.shape(leaf) for path, leaf in _geometry.leaves_by_path(params).items()}
    for path, leaf in _geometry.leaves_by_path(gradients).items():
        if shapes.get(path, jnp.shape(leaf)) != jnp.shape(leaf):
            raise ValueError(
                f"The gradients leaf {_geometry.path_name(path)!r} has shape {jnp.shape(leaf)}, "
                f"but the parameter has shape {shapes[path]}."
            )


def marks_of(paths: Iterable[Path], marks: Any, what: str) -> dict[Path, bool]:
    """What a bool, or a tree of bools like the parameters, says of each leaf."""
    if isinstance(marks, bool | np.bool_):
        return dict.fromkeys(paths, bool(marks))
    by_path, found = _geometry.leaves_by_path(marks), {}
    for path in paths:
        mark = by_path.get(path)
        if not isinstance(mark, bool | np.bool_):
            raise ValueError(
                f"{what} has {mark!r} for {_geometry.path_name(path)!r}; expected a bool, or a "
                f"tree of bools like the parameters. It has {_names(by_path)}."
            )
        found[path] = bool(mark)
    return found


def _names(leaves: dict[Path, Any]) -> str:
    return ", ".join(repr(_geometry.path_name(path)) for path in leaves) or "no leaves"
