"""How a program uses its parameters: which of their axes meet its data, read from its jaxpr.

The walk knows primitives and no layers, so it is the same for Linen, NNX and plain functions.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
from jax.extend import core

Kind = Literal["contracted", "looked up", "elementwise"]
Axes = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Use:
    """One use of a parameter.

    Attributes:
      kind: contracted with data; indexed by it; or added to it, multiplied with it and the like.
      axes: that are contracted or indexed, ascending; of elementwise ones all.
      stacked: axes of layers: those that a scan or an index takes apart, or a batched product.
    """

    kind: Kind
    axes: Axes
    stacked: Axes


@dataclasses.dataclass(frozen=True)
class _View:
    """An array that is computed from parameters only, as far as one of them goes.

    Attributes:
      leaf: the number of the parameter.
      dims: for each axis of the array the parameter's axes that it runs over.
      stacked: the parameter's axes that are gone because they number layers.
      contracted: the parameter's axes that other parameters have been contracted with.
    """

    leaf: int
    dims: tuple[Axes, ...]
    stacked: Axes = ()
    contracted: Axes = ()


# What is known of an array: of one that depends on data nothing, else its views.
_Views = tuple[_View, ...]
_Known = _Views | None

# These give an array of the same axes.
_SAME_AXES = {"convert_element_type", "copy", "rev", "stop_gradient", "reduce_precision",
              "optimization_barrier", "sharding_constraint", "slice", "pad"}  # fmt: skip


def find(fn: Callable[..., Any], leaves: Sequence[Any], *args: Any) -> list[list[Use]]:
    """The uses of each leaf in ``fn(leaves, *args)``; arrays or their shapes will do."""
    jaxpr = jax.make_jaxpr(fn)(list(leaves), *args).jaxpr
    uses: list[list[Use]] = [[] for _ in leaves]
    known: list[_Known] = [
        (_View(number, tuple((axis,) for axis in range(len(leaf.shape)))),)
        for number, leaf in enumerate(leaves)
    ]
    known += [None] * (len(jaxpr.invars) - len(known))
    _Walk(uses).run(jaxpr, known)
    return uses


class _Walk:
    """Goes through a program once and takes down uses."""

    def __init__(self, uses: list[list[Use]]) -> None:
        self.uses = uses

    def run(self, jaxpr: Any, known: Sequence[_Known]) -> list[_Known]:
        """Walks a jaxpr; from what is known of its inputs to what is known of its outputs."""
        env: dict[Any, _Known] = dict(zip(jaxpr.invars, known, strict=True))

        def read(atom: Any) -> _Known:
            # Constants are no data.
            return () if isinstance(atom, core.Literal) else env.get(atom, ())

        for eqn in jaxpr.eqns:
            found = self._equation(eqn, [read(atom) for atom in eqn.invars])
            env.update(zip(eqn.outvars, found, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _equation(self, eqn: Any, known: list[_Known]) -> list[_Known]:
        name = eqn.primitive.name
        if name == "scan":
            return self._scan(eqn, known)
        if name == "cond":
            branches = [self.run(b.jaxpr, known[1:]) for b in eqn.params["branches"]]
            return branches[0]
        if name == "while":
            return self._while(eqn, known)
        inner = _inner(eqn)
        if inner is not None and len(inner.invars) == len(known):
            return self.run(inner, known)
        if all(views is not None for views in known):
            product = name == "dot_general"
            return [_combined(eqn, known) if product else _moved(eqn, known)] * len(eqn.outvars)
        for number, views in enumerate(known):
            for view in views or ():
                self._take_down(eqn, number, view)
        return [None] * len(eqn.outvars)

    def _scan(self, eqn: Any, known: list[_Known]) -> list[_Known]:
        body, (consts, carry) = eqn.params["jaxpr"].jaxpr, _scan_counts(eqn)
        whole, sliced = known[: consts + carry], known[consts + carry :]
        # What the carry becomes is not followed: it depends on data nearly always.
        whole = [*whole[:consts], *[None] * carry]
        inside = [None if v is None else tuple(map(_taken_apart, v)) for v in sliced]
        self.run(body, [*whole, *inside])
        return [None] * len(eqn.outvars)

    def _while(self, eqn: Any, known: list[_Known]) -> list[_Known]:
        skipped, consts = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
        carry = len(known) - skipped - consts
        body = known[skipped : skipped + consts]
        self.run(eqn.params["body_jaxpr"].jaxpr, [*body, *[None] * carry])
        return [None] * len(eqn.outvars)

    def _take_down(self, eqn: Any, number: int, view: _View) -> None:
        """A use: the parameter is the operand of this number, others are data."""
        name, every = eqn.primitive.name, _flat(view.dims)
        kind: Kind = "contracted"
        stacked: Axes = view.stacked
        if name == "dot_general":
            contract, batch = eqn.params["dimension_numbers"]
            axes = _flat(view.dims[dim] for dim in contract[number])
            stacked += _flat(view.dims[dim] for dim in batch[number])
            # Only another factor of it is contracted with data: A of W = A B.
            axes = axes or view.contracted
        elif name == "conv_general_dilated" and number == 1:
            _, *fan_in = eqn.params["dimension_numbers"].rhs_spec
            axes = _flat(view.dims[dim] for dim in fan_in) or view.contracted
        elif name == "gather" and number == 0:
            kind = "looked up"
            axes = _flat(view.dims[d] for d in eqn.params["dimension_numbers"].start_index_map)
        elif name in ("dynamic_slice", "dynamic_update_slice"):
            return
        else:
            kind, axes = "elementwise", every
        if axes:
            use = Use(kind, tuple(sorted(axes)), tuple(sorted(stacked)))
            self.uses[view.leaf].append(use)


def _moved(eqn: Any, known: list[_Known]) -> _Views:
    """The views of what is computed from parameters only, but for products of two."""
    name, shape = eqn.primitive.name, eqn.outvars[0].aval.shape
    if name in ("dynamic_slice", "gather"):
        return tuple(map(_indexed(eqn), known[0] or ()))
    found = []
    for atom, views in zip(eqn.invars, known, strict=True):
        for view in views or ():
            dims = _new_dims(eqn, atom.aval.shape, view.dims)
            if dims is not None and len(dims) == len(shape):
                # Of length 1 by now: one of many was picked.
                gone = tuple(axis for axis in _flat(view.dims) if axis not in _flat(dims))
                found.append(dataclasses.replace(view, dims=dims, stacked=view.stacked + gone))
    return tuple(found)


def _new_dims(eqn: Any, shape: Axes, dims: tuple[Axes, ...]) -> tuple[Axes, ...] | None:
    """Where the axes of an operand are afterwards; None if that is not known."""
    name, new_shape, params = eqn.primitive.name, eqn.outvars[0].aval.shape, eqn.params
    if name == "transpose":
        return tuple(dims[axis] for axis in params["permutation"])
    if name == "squeeze":
        gone = {axis % len(shape) for axis in params["dimensions"]}
        return tuple(dim for axis, dim in enumerate(dims) if axis not in gone)
    if name == "broadcast_in_dim":
        placed = dict(zip(params["broadcast_dimensions"], dims, strict=True))
        return tuple(placed.get(axis, ()) for axis in range(len(new_shape)))
    if name == "reshape":
        return _reshaped(shape, dims, new_shape)
    # Elementwise; or, as a sum over axes, of another rank, and no longer followed.
    return dims if name in _SAME_AXES or shape == new_shape else None


def _reshaped(shape: Axes, dims: tuple[Axes, ...], new_shape: Axes) -> tuple[Axes, ...] | None:
    """Of axes that are merged or left alone; None if one is split."""
    rest = [(size, dim) for size, dim in zip(shape, dims, strict=True) if size != 1]
    found: list[Axes] = []
    for size in new_shape:
        taken: Axes = ()
        reached = 1
        while reached < size:
            if not rest:
                return None
            part, dim = rest.pop(0)
            reached, taken = reached * part, taken + dim
        if reached != size:
            return None
        found.append(taken)
    return tuple(found)


def _combined(eqn: Any, known: list[_Known]) -> _Views:
    """The views of a product of parameters: in each, what is left of one of them."""
    contract, batch = eqn.params["dimension_numbers"]
    ranks = [len(atom.aval.shape) for atom in eqn.invars]
    free = [
        [d for d in range(rank) if d not in contract[number] and d not in batch[number]]
        for number, rank in enumerate(ranks)
    ]
    found = []
    for number, views in enumerate(known):
        for view in views or ():
            nothing: tuple[Axes, ...] = ((),) * len(free[1 - number])
            own = tuple(view.dims[dim] for dim in free[number])
            shared = tuple(view.dims[dim] for dim in batch[number])
            met = _flat(view.dims[dim] for dim in contract[number])
            dims = (*shared, *((*own, *nothing) if number == 0 else (*nothing, *own)))
            # Contracted with several parameters one after the other: the first tells.
            contracted = view.contracted or met
            found.append(dataclasses.replace(view, dims=dims, contracted=contracted))
    return tuple(found)


def _indexed(eqn: Any) -> Callable[[_View], _View]:
    """Of one layer picked out of many by a number that is no data."""
    shape, new_shape = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    if eqn.primitive.name == "gather":
        numbers = eqn.params["dimension_numbers"]
        gone = set(numbers.collapsed_slice_dims)
        left = [dim for dim in range(len(shape)) if dim not in gone]
        offsets = dict(zip(numbers.offset_dims, left, strict=False))
    else:
        gone = {dim for dim, size in enumerate(shape) if new_shape[dim] == 1 < size}
        offsets = {dim: dim for dim in range(len(shape)) if dim not in gone}

    def index(view: _View) -> _View:
        dims = tuple(
            view.dims[offsets[dim]] if dim in offsets else () for dim in range(len(new_shape))
        )
        return dataclasses.replace(
            view, dims=dims, stacked=view.stacked + _flat(view.dims[dim] for dim in sorted(gone))
        )

    return index


def _taken_apart(view: _View) -> _View:
    """One step of a scan over the first axis."""
    first, *rest = view.dims
    return dataclasses.replace(view, dims=tuple(rest), stacked=view.stacked + first)


def _scan_counts(eqn: Any) -> tuple[int, int]:
    return eqn.params["num_consts"], eqn.params["num_carry"]


def _inner(eqn: Any) -> Any:
    """The program of a call: of `jax.jit`, `jax.checkpoint`, custom derivatives and the like."""
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        inner = eqn.params.get(name)
        if inner is not None:
            return inner.jaxpr if isinstance(inner, core.ClosedJaxpr) else inner
    return None


def _flat(dims: Any) -> Axes:
    return tuple(axis for dim in dims for axis in dim)
