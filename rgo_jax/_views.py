"""Where the axes of a parameter are while a traced program moves its numbers about.

An array that holds a parameter's numbers, transposed, reshaped, sliced or cast, is a `View`. Each
of its dimensions is made of `Piece`s of the parameter's axes, the slowest first.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

from jax.extend.core import JaxprEqn

Shape = tuple[int, ...]


class Piece(NamedTuple):
    """A part of a dimension.

    Attributes:
      axis: the parameter's that it comes from; None for what is broadcast.
      size: how long it is. In a slice of the parameter less than in the parameter.
      stride: between its neighbours along ``axis``, which a reshape may have split.
      flipped: whether it runs backwards.
    """

    axis: int | None
    size: int
    stride: int = 1
    flipped: bool = False


Dim = tuple[Piece, ...]


class View(NamedTuple):
    """An array that holds numbers of a parameter.

    Attributes:
      leaf: which parameter, as its place among the leaves.
      shape: the parameter's.
      dims: the pieces of each dimension of the array.
      stacked: axes of the parameter of which the array is one entry, the outermost first.
      met: axes of the parameter that another parameter has been contracted with.
      scans: for each scan around the array whether the scan took that entry.
      exact: whether the numbers are the parameter's, up to a constant factor. Masked or normalised
        ones are not.
    """

    leaf: int
    shape: Shape
    dims: tuple[Dim, ...]
    stacked: tuple[int, ...] = ()
    met: tuple[int, ...] = ()
    scans: tuple[bool, ...] = ()
    exact: bool = True

    @classmethod
    def of_parameter(cls, leaf: int, shape: Shape) -> Self:
        """All of a parameter."""
        return cls(leaf, shape, tuple((Piece(axis, size),) for axis, size in enumerate(shape)))

    def pieces(self, dims: Sequence[int]) -> Dim:
        """Those of some dimensions."""
        return tuple(piece for dim in dims for piece in self.dims[dim])

    def is_whole(self, pieces: Dim) -> bool:
        """Whether pieces are all there is of their axes."""
        axes = {piece.axis for piece in pieces}
        if None in axes:
            return False
        whole = math.prod(self.shape[axis] for axis in axes if axis is not None)
        return math.prod(piece.size for piece in pieces) == whole

    def into_scan(self, is_stacked: bool) -> Self | None:
        """What the body of a scan gets of it: one entry of the first dimension, or all."""
        first = self.dims[0] if is_stacked else ()
        if not any(piece.axis is not None for piece in first):
            dims = self.dims[1:] if is_stacked else self.dims
            return self._replace(dims=dims, scans=(*self.scans, False))
        entry = self._entry(first)
        if entry is None or first[0].flipped:
            return None
        return entry._replace(dims=self.dims[1:], scans=(*self.scans, True))

    def out_of_scan(self) -> Self:
        """Back outside the scan."""
        return self._replace(scans=self.scans[:-1])

    def _entry(self, dim: Dim) -> Self | None:
        """One entry of a dimension; its dimensions are as before."""
        if len(dim) != 1 or dim[0].axis is None or not self.is_whole(dim):
            return None
        return self._replace(stacked=(*self.stacked, dim[0].axis))

    def resized(self, shape: Shape) -> Self | None:
        """As part of an array of another shape, or a part of it of that shape."""
        view, dims = self, []
        for dim, size in zip(self.dims, shape, strict=True):
            old = math.prod(piece.size for piece in dim)
            if old == size:
                dims.append(dim)
            elif old == 1:
                dims.append((Piece(None, size),))
            elif size == 1 and (entry := view._entry(dim)) is not None:
                view = entry
                dims.append(())
            elif len(dim) == 1:
                dims.append((dim[0]._replace(size=size),))
            else:
                return None
        return view._replace(dims=tuple(dims))

    def reshaped(self, shape: Shape) -> Self | None:
        """With dimensions merged or split."""
        queue, dims = [piece for dim in self.dims for piece in dim], []
        for size in shape:
            dim: list[Piece] = []
            while queue and size % queue[0].size == 0 and (size > 1 or not dim):
                dim.append(queue.pop(0))
                size //= dim[-1].size
            if size > 1:
                if not queue or queue[0].size % size:
                    return None
                inner = queue[0].size // size
                outer = queue[0]._replace(size=size, stride=queue[0].stride * inner)
                queue[0] = queue[0]._replace(size=inner)
                dim.append(outer)
            dims.append(tuple(dim))
        if queue:  # of size 1
            if not dims:
                return self._replace(dims=())
            dims[-1] += tuple(queue)
        return self._replace(dims=tuple(dims))


def broadcast(size: int) -> Dim:
    """A dimension of numbers that are all the same."""
    return (Piece(None, size),) if size > 1 else ()


def _transpose(view: View, eqn: JaxprEqn) -> View:
    return view._replace(dims=tuple(view.dims[dim] for dim in eqn.params["permutation"]))


def _reshape(view: View, eqn: JaxprEqn) -> View | None:
    return view.reshaped(eqn.params["new_sizes"]) if eqn.params["dimensions"] is None else None


def _squeeze(view: View, eqn: JaxprEqn) -> View:
    gone = eqn.params["dimensions"]
    return view._replace(dims=tuple(dim for n, dim in enumerate(view.dims) if n not in gone))


def _broadcast(view: View, eqn: JaxprEqn) -> View | None:
    shape, places = _shape_of(eqn), eqn.params["broadcast_dimensions"]
    view_or_none = view.resized(tuple(shape[place] for place in places))
    if view_or_none is None:
        return None
    dims = [broadcast(size) for size in shape]
    for place, dim in zip(places, view_or_none.dims, strict=True):
        dims[place] = dim
    return view._replace(dims=tuple(dims))


def _rev(view: View, eqn: JaxprEqn) -> View:
    dims = list(view.dims)
    for n in eqn.params["dimensions"]:
        dims[n] = tuple(piece._replace(flipped=not piece.flipped) for piece in dims[n])
    return view._replace(dims=tuple(dims))


def _resize(view: View, eqn: JaxprEqn) -> View | None:
    return view.resized(_shape_of(eqn))


def _same(view: View, eqn: JaxprEqn) -> View:
    del eqn
    return view


def _shape_of(eqn: JaxprEqn) -> Shape:
    shape: Any = eqn.outvars[0].aval
    return tuple(shape.shape)


# What makes of a view, the first operand, another one.
MOVES: dict[str, Callable[[View, JaxprEqn], View | None]] = {
    "transpose": _transpose,
    "reshape": _reshape,
    "squeeze": _squeeze,
    "broadcast_in_dim": _broadcast,
    "rev": _rev,
    **dict.fromkeys(("slice", "dynamic_slice", "pad"), _resize),
    **dict.fromkeys(
        (
            "convert_element_type",
            "copy",
            "copy_p",
            "device_put",
            "name",
            "reduce_precision",
            "sharding_constraint",
            "stop_gradient",
        ),
        _same,
    ),
}
