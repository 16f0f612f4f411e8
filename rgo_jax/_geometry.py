"""Which axes of a parameter are fan-in: the one file that knows about axes.

RGO sees every parameter leaf as a matrix ``W [d, m]``: ``d`` is the fan-in and ``m`` the number of
feature extractors. Fan-in axes lead, as they do in Flax, Linen and NNX alike:
Dense ``[in, out]``, Conv ``[kh, kw, cin, cout]``, attention ``[features, heads, head_dim]``. Unless
a `FanIn` says otherwise they are all axes but the last, and a vector (a bias) is one column,
``[n, 1]``. Source: appendix B.2 of the RGO paper.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

Path = tuple[Any, ...]

_BOX = [(jax.tree_util.GetAttrKey("value"),)]


@dataclasses.dataclass(frozen=True)
class FanIn:
    """How `rgo_jax.scale_by_rgo` sees one parameter, where the default does not fit.

    Attributes:
      num_axes: how many leading axes are fan-in. None: all but the last, and the only one of a
        vector. The query, key and value kernels of attention, ``[features, heads, head_dim]``, need
        1, and their biases, ``[heads, head_dim]``, 2.
      blocks: divides the fan-in into this many equal runs, each with a P and a trace rule of its
        own, as if it were a layer of its own: ``d * d / blocks`` numbers. Layers stacked along a
        leading axis, as `flax.linen.scan` stacks them, take as many blocks as there are layers.
      diagonal: keeps only the diagonal of P, ``d`` numbers under one trace rule: for embeddings,
        whose fan-in is the vocabulary.

    Raises:
      ValueError: a number below 1, or both blocks and diagonal.

    Example:
      >>> import jax.numpy as jnp, rgo_jax
      >>> params = {"embed": jnp.zeros((50_000, 8)), "query": jnp.zeros((8, 2, 4))}
      >>> tx = rgo_jax.scale_by_rgo(
      ...     fan_in={
      ...         "embed": rgo_jax.FanIn(diagonal=True),
      ...         "query": rgo_jax.FanIn(num_axes=1),
      ...     }
      ... )
      >>> {name: p.shape for name, p in tx.init(params).projection.items()}
      {'embed': (50000,), 'query': (8, 8)}
    """

    num_axes: int | None = None
    blocks: int = 1
    diagonal: bool = False

    def __post_init__(self) -> None:
        if self.num_axes is not None and self.num_axes < 1:
            raise ValueError(f"num_axes is {self.num_axes}; expected 1 or more, or None.")
        if self.blocks < 1:
            raise ValueError(f"blocks is {self.blocks}; expected 1 or more.")
        if self.diagonal and self.blocks > 1:
            raise ValueError(f"blocks is {self.blocks} and diagonal is True; expected one of them.")


def projection_shape(path: Path, leaf: Any, spec: FanIn) -> tuple[int, ...]:
    """The shape of a leaf's projection: ``[d, d]``, ``[blocks, b, b]`` or ``[d]``.

    Raises:
      ValueError: the leaf has no axes or no numbers, or the spec does not fit it.
      TypeError: the leaf is not real floating point.
    """
    name, shape = path_name(path), jnp.shape(leaf)
    remedy = "Exclude it: optax.masked(rgo_jax.scale_by_rgo(), mask)."
    if not shape:
        raise ValueError(
            f"Parameter {name!r} has shape (): RGO projects the fan-in axes of a parameter and a "
            f"scalar has none. {remedy}"
        )
    if not math.prod(shape):
        raise ValueError(
            f"Parameter {name!r} has shape {shape}: it holds no numbers to project. {remedy}"
        )
    dtype = jnp.result_type(leaf)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"Parameter {name!r} has dtype {dtype}: RGO projects real floating-point parameters "
            f"only. {remedy}"
        )
    num_axes = spec.num_axes or max(len(shape) - 1, 1)
    if num_axes > len(shape):
        raise ValueError(
            f"Parameter {name!r} has shape {shape}, but its FanIn says num_axes={num_axes}; "
            f"expected at most {len(shape)}."
        )
    d = math.prod(shape[:num_axes])
    if d % spec.blocks:
        raise ValueError(
            f"Parameter {name!r} has fan-in {d}, but its FanIn says blocks={spec.blocks}; expected "
            "a divisor."
        )
    if spec.diagonal:
        return (d,)
    return (d, d) if spec.blocks == 1 else (spec.blocks, d // spec.blocks, d // spec.blocks)


def specs_by_path(fan_in: Any, params: Any) -> dict[Path, FanIn]:
    """The `FanIn` of every leaf of ``params``, from a tree that names those that need one.

    A spec holds for all leaves below its place in the tree.

    Raises:
      ValueError: a spec that is none, or one for which there is no parameter.
    """
    specs = leaves_by_path(fan_in, FanIn)
    for path, spec in specs.items():
        if not isinstance(spec, FanIn):
            raise ValueError(
                f"fan_in has {spec!r} at {path_name(path)!r}; expected a rgo_jax.FanIn. Leave out "
                "the parameters for which the default is right."
            )
    # Parameters that optax.masked leaves out are named nowhere else, but are no mistake.
    unused = set(specs)
    result = {}
    for path, leaf in leaves_by_path(params, optax.MaskedNode).items():
        for length in range(len(path) + 1):
            if path[:length] in specs:
                unused.discard(path[:length])
                result[path] = specs[path[:length]]
        if isinstance(leaf, optax.MaskedNode):
            unused = {other for other in unused if other[: len(path)] != path}
            result.pop(path, None)
        else:
            result.setdefault(path, FanIn())
    if unused:
        names = ", ".join(repr(path_name(path)) for path in result)
        raise ValueError(
            f"fan_in names {path_name(unused.pop())!r}, but there is no such parameter. There are "
            f"{names}."
        )
    return result


def leaves_by_path(tree: Any, leaf_type: type | tuple[()] = ()) -> dict[Path, Any]:
    """The leaves of a tree under their paths; masked-out nodes and None have no leaves.

    Flax's boxes (`unboxed`) leave no trace in a path, so that trees match with and without them.
    """
    flat, _ = jax.tree_util.tree_flatten_with_path(
        unboxed(tree), is_leaf=lambda node: isinstance(node, leaf_type)
    )
    return dict(flat)


def map_with_path(fn: Callable[[Path, Any], Any], tree: Any) -> Any:
    """`jax.tree_util.tree_map_with_path` with the paths of `leaves_by_path`."""
    paths = leaves_by_path(tree)
    leaves, treedef = jax.tree.flatten(tree)
    return jax.tree.unflatten(treedef, map(fn, paths, leaves))


def unboxed(tree: Any) -> Any:
    """The tree without Flax's boxes around single arrays: NNX's Variables, Linen's Partitioned.

    They carry what holds for the parameter and not for its P, such as a sharding of its axes.
    """

    def is_box(node: Any) -> bool:
        if isinstance(node, tuple):  # A NamedTuple of the user's.
            return False
        # None, which a tree of specs has for other parameters, counts as a leaf here.
        leaves, _ = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda x: x is None)
        return [path for path, _ in leaves] == _BOX

    def unbox(node: Any) -> Any:
        return jax.tree.leaves(node)[0] if is_box(node) else node

    return jax.tree.map(unbox, tree, is_leaf=is_box)


def is_fan_in(shape: tuple[int, ...], d: int) -> bool:
    """Whether ``d`` is the product of some leading axes, so that a leaf is a ``[d, m]`` matrix."""
    return any(math.prod(shape[:k]) == d for k in range(1, len(shape) + 1))


def to_matrix(leaf: jax.Array, d: int) -> jax.Array:
    """A leaf as its ``[d, m]`` matrix; ``matrix.reshape(leaf.shape)`` is the way back."""
    return leaf.reshape(d, leaf.size // d)


def path_name(path: Path) -> str:
    """A pytree path as people write it: ``Dense_0/kernel``."""
    return jax.tree_util.keystr(path, simple=True, separator="/") or "(the whole tree)"
