"""Which axes of a parameter are fan-in: the one file that knows about axes.

RGO sees every parameter as a matrix ``W [d, m]``: ``d`` is the fan-in and ``m`` the number of
feature extractors. In Flax, Linen and NNX alike, the last axis of a kernel is its outputs:
Dense ``[in, out]``, Conv ``[kh, kw, cin, cout]``. So all axes but the last are fan-in, unless a
`ProjectionSpec` says otherwise. A vector is one column, ``[n, 1]``, and so is whatever is called
``bias`` or ``scale``. Source: appendix B.2 of the RGO paper.
"""

import dataclasses
import math
import operator
import re
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from rgo_jax import _tree

# Parameters of these names are one column, whatever their axes.
VECTORS = ("bias", "scale")

# Layers of Equinox whose weights are [out, in, ...]. Known by name: Equinox need not be installed.
_EQUINOX_LAYERS = re.compile(r"Linear|Conv(Transpose)?([123]d)?|GRUCell|LSTMCell")


@dataclasses.dataclass(frozen=True)
class ProjectionSpec:
    """How `rgo_jax.scale_by_rgo` projects one parameter, where the default does not fit.

    Attributes:
      axes: the fan-in axes, an integer or several; negative ones count from the end. None: all but
        the last, or all of a vector and of what is called ``bias`` or ``scale``. Query, key and
        value kernels of attention, ``[features, heads, head_dim]``, need 0; kernels stored as
        ``[out, in]`` need -1; those of `flax.linen.ConvTranspose` with ``transpose_kernel`` need
        ``(0, 1, -1)``. Their order is that of the rows of P, which matters to ``blocks``.
      blocks: divides the fan-in into this many equal runs, each with a P and a trace rule of its
        own, as if it were a layer of its own: ``d * d / blocks`` numbers. Layers stacked along the
        first axis, as `flax.linen.scan` stacks them, take as many blocks as there are layers;
        along another axis, also ``axes`` that begin with it.
      diagonal: keeps only the diagonal of P, ``d`` numbers under one trace rule: for embeddings,
        whose fan-in is the vocabulary.

    Raises:
      ValueError: no axes or one twice, blocks below 1, or both blocks and diagonal.
      TypeError: a number that is not an integer.

    Example:
      >>> import jax.numpy as jnp, rgo_jax
      >>> params = {"embed": jnp.zeros((50_000, 8)), "query": jnp.zeros((8, 2, 4))}
      >>> tx = rgo_jax.scale_by_rgo(
      ...     specs={
      ...         "embed": rgo_jax.ProjectionSpec(diagonal=True),
      ...         "query": rgo_jax.ProjectionSpec(axes=0),
      ...     }
      ... )
      >>> {name: p.shape for name, p in tx.init(params).projection.items()}
      {'embed': (50000,), 'query': (8, 8)}
    """

    axes: int | tuple[int, ...] | None = None
    blocks: int = 1
    diagonal: bool = False

    def __post_init__(self) -> None:
        if self.axes is not None:
            given = self.axes if isinstance(self.axes, tuple | list) else (self.axes,)
            axes = tuple(_integer("axes", axis) for axis in given)
            if not axes or len(set(axes)) < len(axes):
                raise ValueError(f"axes is {self.axes!r}; expected one or more different axes.")
            object.__setattr__(self, "axes", axes)
        if _integer("blocks", self.blocks) < 1:
            raise ValueError(f"blocks is {self.blocks}; expected 1 or more.")
        if self.diagonal and self.blocks > 1:
            raise ValueError(f"blocks is {self.blocks} and diagonal is True; expected one of them.")


def _integer(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} is {value!r}; expected an integer.")
    return operator.index(value)


@dataclasses.dataclass(frozen=True)
class Geometry:
    """A parameter's shape and which of its axes are fan-in, in the order of the rows of P."""

    shape: tuple[int, ...]
    axes: tuple[int, ...]

    @property
    def dim(self) -> int:
        """The fan-in ``d``."""
        return math.prod(self.shape[axis] for axis in self.axes)

    def to_matrix(self, leaf: jax.Array) -> jax.Array:
        """A leaf of this shape as its ``[d, m]`` matrix."""
        return leaf.transpose(self._order).reshape(self.dim, -1)

    def from_matrix(self, matrix: jax.Array) -> jax.Array:
        """The way back."""
        leaf = matrix.reshape([self.shape[axis] for axis in self._order])
        return leaf.transpose(tuple(int(axis) for axis in np.argsort(self._order)))

    @property
    def _order(self) -> tuple[int, ...]:
        rest = (axis for axis in range(len(self.shape)) if axis not in self.axes)
        return (*self.axes, *rest)

    def to_tree(self) -> dict[str, None]:
        """As a pytree without leaves: ``{"8x4:0": None}`` is of shape ``[8, 4]``, fan-in axis 0.

        Unlike a static node it goes through `flax.serialization`, Orbax and NNX.
        """
        return {f"{'x'.join(map(str, self.shape))}:{','.join(map(str, self.axes))}": None}

    @classmethod
    def from_key(cls, key: str) -> Self:
        """From the key of `to_tree`."""
        shape, axes = key.split(":")
        return cls(tuple(map(int, shape.split("x"))), tuple(map(int, axes.split(","))))


class Layout(NamedTuple):
    """What a parameter's P will be.

    Attributes:
      geometry: the parameter's.
      shape: P's: ``[d, d]``, ``[blocks, b, b]`` or ``[d]``.
    """

    geometry: Geometry
    shape: tuple[int, ...]


def layouts(specs: Any, params: Any) -> dict[_tree.Path, Layout]:
    """What the P of each leaf of ``params`` will be.

    Args:
      specs: as for `by_path`.
      params: arrays, or anything with a shape and a dtype.

    Raises:
      ValueError: a spec that is none, that does not fit, or for which there is no parameter; a
        leaf without axes or numbers, or one whose layout is not known.
      TypeError: a leaf is not real floating point.
    """
    found: dict[_tree.Path, Any] = by_path(specs, params)
    nodes, _ = jax.tree_util.tree_flatten_with_path(params, is_leaf=_is_equinox_layer)
    equinox_layers = {path for path, node in nodes if _is_equinox_layer(node)}
    result = {}
    for path, leaf in _tree.leaves_by_path(params).items():
        _check(path, leaf)
        spec, shape = found.get(path, ProjectionSpec()), jnp.shape(leaf)
        if spec.axes is not None:
            axes = _resolved(path, shape, spec.axes)
        else:
            axes = default_axes(path, shape, path[:-1] in equinox_layers)
        geometry = Geometry(shape, axes)
        result[path] = Layout(geometry, _projection_shape(path, geometry, spec))
    return result


def by_path(specs: Any, params: Any) -> dict[_tree.Path, ProjectionSpec]:
    """The specs of those leaves of ``params`` that have one.

    Args:
      specs: a tree of `ProjectionSpec` that names the parameters that need one, where a spec holds
        for all leaves below its place; or a function of a leaf's path, such as
        ``"Dense_0/kernel"``, and the leaf that returns its spec or None.
      params: arrays, or anything with a shape and a dtype.

    Raises:
      ValueError: a spec that is none, or for which there is no parameter.
    """
    if callable(specs) and jax.tree_util.all_leaves([specs]):  # a module is no function here
        specs = {
            _tree.path_name(path): specs(_tree.path_name(path), leaf)
            for path, leaf in _tree.leaves_by_path(params).items()
        }
    for path, spec in _tree.leaves_by_path(specs, ProjectionSpec).items():
        if not isinstance(spec, ProjectionSpec):
            raise ValueError(
                f"specs has {spec!r} at {_tree.path_name(path)!r}; expected a "
                "rgo_jax.ProjectionSpec. Leave out the parameters for which the default is right."
            )
    return _tree.broadcast_prefix(specs, params, ProjectionSpec, "specs")


def _check(path: _tree.Path, leaf: Any) -> None:
    name, shape, dtype = _tree.path_name(path), jnp.shape(leaf), jnp.result_type(leaf)
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
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"Parameter {name!r} has dtype {dtype}: RGO projects real floating-point parameters "
            f"only. {remedy}"
        )


def _resolved(path: _tree.Path, shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    """Axes counted from the front."""
    resolved = tuple(axis + len(shape) if axis < 0 else axis for axis in axes)
    if not all(0 <= axis < len(shape) for axis in resolved) or len(set(resolved)) < len(axes):
        raise ValueError(
            f"Parameter {_tree.path_name(path)!r} has shape {shape}, but its ProjectionSpec says "
            f"axes={axes}; expected different axes from {-len(shape)} to {len(shape) - 1}."
        )
    return resolved


def default_axes(
    path: _tree.Path, shape: tuple[int, ...], is_equinox: bool = False
) -> tuple[int, ...]:
    """The fan-in axes of a parameter for which there is no `ProjectionSpec`.

    Raises:
      ValueError: it is called ``weight``, and may be stored either way.
    """
    every = tuple(range(len(shape)))
    name = _tree.path_name(path[-1:])
    if len(shape) == 1 or name in VECTORS:
        return every
    if is_equinox and name.startswith("weight"):
        return every[1:]
    if name.split(".")[-1] == "weight":
        raise ValueError(
            f"Parameter {_tree.path_name(path)!r} has shape {shape}. As a weight it may be stored "
            "[out, in] or [in, out]: say which axes are fan-in, with "
            "specs=rgo_jax.ProjectionSpec(axes=...), or have rgo_jax.infer_specs find out."
        )
    return every[:-1]


def _is_equinox_layer(node: Any) -> bool:
    kind = type(node)
    is_equinox = kind.__module__.startswith("equinox.nn.")
    return is_equinox and _EQUINOX_LAYERS.fullmatch(kind.__name__) is not None


def _projection_shape(
    path: _tree.Path, geometry: Geometry, spec: ProjectionSpec
) -> tuple[int, ...]:
    d, blocks = geometry.dim, spec.blocks
    if d % blocks:
        raise ValueError(
            f"Parameter {_tree.path_name(path)!r} has fan-in {d}, but its ProjectionSpec says "
            f"blocks={blocks}; expected a divisor."
        )
    if spec.diagonal:
        return (d,)
    return (d, d) if blocks == 1 else (blocks, d // blocks, d // blocks)
