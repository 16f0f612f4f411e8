"""Pytrees by path: their leaves, their names, and trees that say something of other trees."""

from collections.abc import Callable, Collection
from typing import Any

import jax
import optax

from rgo_jax._projected import ProjectedGradient

Path = tuple[Any, ...]

_WHOLE = "(the whole tree)"
_BOX = [(jax.tree_util.GetAttrKey("value"),)]


def leaves_by_path(tree: Any, leaf_type: type | tuple[()] = ()) -> dict[Path, Any]:
    """The leaves of a tree under their paths; masked-out nodes and None have no leaves.

    Flax's boxes (`unboxed`) leave no trace in a path, so that trees match with and without them. A
    `rgo_jax.ProjectedGradient` is a leaf.
    """
    flat, _ = jax.tree_util.tree_flatten_with_path(
        unboxed(tree), is_leaf=lambda node: isinstance(node, leaf_type) or _is_projected(node)
    )
    return dict(flat)


def map_with_path(fn: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """`jax.tree_util.tree_map_with_path` with the paths of `leaves_by_path`."""
    paths = leaves_by_path(tree)
    leaves, treedef = jax.tree.flatten(tree, is_leaf=_is_projected)
    others: Any = [treedef.flatten_up_to(tree) for tree in rest]  # type: ignore[attr-defined]
    return jax.tree.unflatten(treedef, map(fn, paths, leaves, *others))


def unboxed(tree: Any) -> Any:
    """The tree without Flax's boxes around single arrays: NNX's Variables, Linen's Partitioned.

    They carry what holds for the parameter and not for its P, such as a sharding of its axes.
    """

    def is_box(node: Any) -> bool:
        if isinstance(node, tuple):  # A NamedTuple of the user's.
            return False
        # None, which a tree of specs has for other parameters, counts as a leaf here.
        leaves, _ = jax.tree_util.tree_flatten_with_path(
            node, is_leaf=lambda x: x is None or _is_projected(x)
        )
        return [path for path, _ in leaves] == _BOX

    def unbox(node: Any) -> Any:
        # An empty box is of a parameter that a filter has taken out.
        leaves = jax.tree.leaves(node, is_leaf=_is_projected) if is_box(node) else [node]
        return next(iter(leaves), None)

    return jax.tree.map(unbox, tree, is_leaf=is_box)


def _is_projected(node: Any) -> bool:
    return isinstance(node, ProjectedGradient)


def path_name(path: Path) -> str:
    """A pytree path as people write it: ``Dense_0/kernel``."""
    return jax.tree_util.keystr(path, simple=True, separator="/") or _WHOLE


def names(paths: Collection[Path]) -> str:
    """Paths as errors list them."""
    return ", ".join(repr(path_name(path)) for path in paths) or "no leaves"


def broadcast_prefix(
    prefix: Any, tree: Any, leaf_type: type | tuple[()], what: str
) -> dict[Path, Any]:
    """For each leaf of a tree the value that a prefix has for it, at the leaf or at a branch above.

    Args:
      prefix: a tree that need not have all branches of the other; None has no values. Its paths
        need only be called the same: ``{"0": {"kernel": 1}}`` and ``{"0/kernel": 1}`` name the
        kernel of the first of a list.
      tree: the other. `optax.MaskedNode`s in it may have values in the prefix, but get none.
      leaf_type: of the values.
      what: what errors call ``prefix``.

    Returns:
      The values by the paths of the leaves of ``tree``, without leaves that have none.

    Raises:
      ValueError: the prefix has a value at a path that the other tree does not have.
    """
    values = {_steps(path): value for path, value in leaves_by_path(prefix, leaf_type).items()}
    leaves = leaves_by_path(tree, optax.MaskedNode)
    masked = [path for path, leaf in leaves.items() if isinstance(leaf, optax.MaskedNode)]
    found, used = {}, set()
    names_of_leaves = {_steps(path) for path in leaves}
    for path in leaves:
        steps = _steps(path)
        for length in range(len(steps) + 1):
            # A parameter's name may begin with that of another: "kernel/scale" with "kernel".
            is_above = length == len(steps) or steps[:length] not in names_of_leaves
            if is_above and steps[:length] in values:
                used.add(steps[:length])
                found[path] = values[steps[:length]]
    # Parameters that optax.masked leaves out are named nowhere else, but are no mistake.
    left_out = [_steps(path) for path in masked]
    unused = [
        steps
        for steps in values
        if steps not in used and not any(steps[: len(other)] == other for other in left_out)
    ]
    # Trees without any leaf stand for parameters that are not there: see optax.tree.map_params.
    if unused and leaves:
        known = [path for path in leaves if path not in masked]
        raise ValueError(
            f"{what} names {'/'.join(unused[0])!r}, but there is no such parameter. There "
            f"are {names(known)}."
        )
    return {path: value for path, value in found.items() if path not in masked}


def _steps(path: Path) -> tuple[str, ...]:
    """A path by what it is called, whatever its containers are: a list, a dict, a module."""
    name = path_name(path)
    return () if name == _WHOLE else tuple(name.split("/"))
