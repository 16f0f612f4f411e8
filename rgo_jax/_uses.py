"""What an operation of a traced program does with a parameter."""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from rgo_jax import _views
from rgo_jax._views import Dim, View


class Use(NamedTuple):
    """A place where a parameter meets the data.

    Attributes:
      kind: a kernel is contracted with its inputs; a lookup takes entries of a table; a vector
        meets the data element-wise; of an unknown use nothing can be told.
      view: the parameter as it is used.
      blocks: axes whose entries are parameters of their own: of stacked layers, experts, models.
      fan_in: the fan-in axes of each of those.
      contracted: of a kernel: the pieces of its contracted dimensions.
      batch: of a kernel: the pieces of its batch dimensions.
    """

    kind: Literal["kernel", "lookup", "vector", "unknown"]
    view: View
    blocks: tuple[int, ...] = ()
    fan_in: tuple[int, ...] = ()
    contracted: Dim = ()
    batch: Dim = ()


def interpret(eqn: JaxprEqn, position: int, view: View, meets_data: bool) -> View | Use:
    """What an operation makes of a view, or what it uses it for.

    Args:
      eqn: the operation, of one output; calls and loops are the caller's.
      position: of the view among the operands.
      view: the parameter's.
      meets_data: whether another operand depends on the data.
    """
    name, result = eqn.primitive.name, None
    if name in _views.MOVES and position == 0:
        result = _views.MOVES[name](view, eqn)
    elif name == "gather" and position == 0:
        return _lookup(eqn, view)
    elif name in ("dot_general", "conv_general_dilated"):
        if meets_data:
            return _contraction(eqn, position, view)
        if name == "dot_general":
            result = _product(eqn, position, view)
    elif name == "concatenate" or _is_elementwise(eqn):
        if meets_data:
            return _vector(view)
        result = view.resized(_shape(eqn.outvars[0]))
        if result is not None and name != "concatenate" and not _is_scaling(eqn, position):
            result = result._replace(exact=False)
    return Use("unknown", view) if result is None else result


def _kernel_dims(eqn: JaxprEqn, position: int) -> tuple[Sequence[int], Sequence[int]]:
    """The contracted and the batch dimensions of the operand at a position."""
    numbers = eqn.params["dimension_numbers"]
    if eqn.primitive.name == "dot_general":
        contracted, batch = numbers
        return contracted[position], batch[position]
    return numbers.rhs_spec[1:], ()


def _product(eqn: JaxprEqn, position: int, view: View) -> View:
    """What of a parameter is left in its product with another one, such as of low-rank factors."""
    contracted, batch = _kernel_dims(eqn, position)
    own = [dim for dim in range(len(view.dims)) if dim not in (*contracted, *batch)]
    shape = _shape(eqn.outvars[0])
    others = range(len(batch) + len(own), len(shape))
    if position == 1:
        others = range(len(batch), len(shape) - len(own))
    theirs: list[Dim] = [_views.broadcast(shape[dim]) for dim in others]
    ours = [view.dims[dim] for dim in own]
    shared = [view.dims[dim] for dim in batch]
    dims = (*shared, *theirs, *ours) if position else (*shared, *ours, *theirs)
    # Of several products one after the other, the first one tells what it was multiplied by.
    met = view.met or tuple(axes_of(view.pieces(contracted)))
    return view._replace(dims=dims, met=met, exact=False)


def _contraction(eqn: JaxprEqn, position: int, view: View) -> Use:
    if eqn.primitive.name == "conv_general_dilated" and (
        position != 1 or eqn.params["batch_group_count"] != 1
    ):
        return Use("unknown", view)
    ins, batches = _kernel_dims(eqn, position)
    # Where a kernel is broadcast the batch is of examples.
    batches = [dim for dim in batches if axes_of(view.dims[dim])]
    contracted, batch = view.pieces(ins), view.pieces(batches)
    outs = [dim for dim in range(len(view.dims)) if dim not in (*ins, *batches)]
    fan_in, blocks, outputs = axes_of(contracted), axes_of(batch), axes_of(view.pieces(outs))
    if contracted and not fan_in:
        if not view.met:  # a scale, broadcast to a kernel: one number a column
            return _vector(view)
        # Another factor of the kernel is contracted with data, and this one with that one.
        fan_in, contracted = list(view.met), ()
    elif view.met:
        outputs = sorted({*outputs, *view.met})
    everywhere = [*fan_in, *blocks, *outputs, *view.stacked]
    rest = set(range(len(view.shape))) - set(everywhere)  # squeezed out
    if (
        len(set(everywhere)) < len(everywhere)
        or any(view.shape[axis] > 1 for axis in rest)
        or any(piece.axis is None for piece in (*contracted, *batch))
        or not all(view.is_whole(tuple(p for p in batch if p.axis == axis)) for axis in blocks)
    ):
        return Use("unknown", view)
    fan_in = sorted({*fan_in, *rest})
    if not fan_in:  # an outer product, or one of elements
        return _vector(view)
    # An entry without outputs of its own is itself an output, but for what a scan has stacked.
    stacked = view.stacked if outputs or blocks else view.stacked[: sum(view.scans)]
    return Use("kernel", view, (*stacked, *blocks), tuple(fan_in), contracted, batch)


def axes_of(pieces: Dim) -> list[int]:
    """The parameter's axes that pieces come from."""
    return sorted({piece.axis for piece in pieces if piece.axis is not None})


def _lookup(eqn: JaxprEqn, view: View) -> Use:
    """Entries of a table, wherever the indices come from."""
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    shape = _shape(eqn.invars[0])
    one = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    one |= {dim for dim, size in enumerate(sizes) if size == 1 < shape[dim]}
    is_whole = all(dim in one or sizes[dim] == shape[dim] for dim in range(len(shape)))
    axes = axes_of(view.pieces(sorted(one)))
    if not is_whole or not axes:
        return Use("unknown", view)
    return Use("lookup", view, (), tuple(sorted({*view.stacked, *axes})))


def _vector(view: View) -> Use:
    rest = tuple(axis for axis in range(len(view.shape)) if axis not in view.stacked)
    if math.prod(view.shape[axis] for axis in rest) == 1:
        # One number a layer. A P of its own would be undone by its trace rule.
        return Use("vector", view, (), tuple(range(len(view.shape))))
    return Use("vector", view, view.stacked, rest)


def _is_elementwise(eqn: JaxprEqn) -> bool:
    """Whether operands of one shape, but for scalars and axes of 1, give a result of that shape."""
    if len(eqn.outvars) > 1 or any(isinstance(v, ClosedJaxpr | Jaxpr) for v in eqn.params.values()):
        return False
    result = _shape(eqn.outvars[0])
    shapes = [shape for shape in map(_shape, eqn.invars) if shape]
    return all(len(shape) == len(result) for shape in shapes) and all(
        set(sizes) <= {1, size} and size in sizes
        for size, *sizes in zip(result, *shapes, strict=True)
    )


def _is_scaling(eqn: JaxprEqn, position: int) -> bool:
    others = [v for n, v in enumerate(eqn.invars) if n != position]
    is_linear = eqn.primitive.name in ("mul", "neg") or (eqn.primitive.name, position) == ("div", 0)
    return is_linear and not any(map(_shape, others))


def _shape(var: Any) -> tuple[int, ...]:
    return tuple(var.aval.shape)
