"""Walks a traced program and finds where its parameters meet the data."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from rgo_jax import _rows, _uses
from rgo_jax._uses import Use
from rgo_jax._views import View

# Operations that do what a program in their parameters says, to their operands as they are.
_CALLS = {
    "call",
    "checkpoint",
    "closed_call",
    "core_call",
    "custom_jvp_call",
    "custom_vjp_call",
    "jit",
    "pjit",
    "remat",
    "remat2",
}


class Found(NamedTuple):
    """A use of a parameter and, if the program is evaluated, the inputs ``[blocks, rows, d]``."""

    use: Use
    inputs: jax.Array | None


class _Tracked(NamedTuple):
    """What is known of a value of the program.

    Attributes:
      views: the parameters that it consists of, alone or combined with one another.
      is_data: whether it depends on the data.
      value: itself, if the program is evaluated.
    """

    views: tuple[View, ...] = ()
    is_data: bool = False
    value: Any = None


def find_uses(
    fn: Callable[..., Any], params: Any, args: Sequence[Any], evaluate: bool
) -> dict[int, list[Found]]:
    """Where ``fn(params, *args)`` uses each of its parameters, in the order of the program.

    Args:
      fn: the program.
      params: a tree of arrays; without ``evaluate`` anything with a shape and a dtype.
      args: the same; the data.
      evaluate: whether to compute the inputs too.

    Returns:
      By the parameter's number among the leaves. Those that are not used are missing.
    """
    if not jax.tree.leaves(args):
        raise ValueError(
            "There is no data: expected fn(params, *args) with the model's inputs among args. What "
            "fn takes from elsewhere is not told from constants."
        )
    program = jax.make_jaxpr(fn)(params, *args)
    leaves = jax.tree.leaves(params)
    inputs = [
        _Tracked((View.of_parameter(n, jnp.shape(leaf)),), False, leaf)
        for n, leaf in enumerate(leaves)
    ]
    inputs += [_Tracked((), True, leaf) for leaf in jax.tree.leaves(args)]
    result: dict[int, list[Found]] = {}
    for found in _walk(program, inputs, evaluate)[1]:
        result.setdefault(found.use.view.leaf, []).append(found)
    return result


def _walk(
    program: ClosedJaxpr | Jaxpr, inputs: Sequence[_Tracked], evaluate: bool
) -> tuple[list[_Tracked], list[Found]]:
    """The outputs of a program and the uses in it."""
    if isinstance(program, ClosedJaxpr):
        jaxpr, consts = program.jaxpr, [_Tracked(value=value) for value in program.consts]
    else:
        jaxpr, consts = program, []
    known = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *inputs), strict=True))

    def read(atom: Any) -> _Tracked:
        return _Tracked(value=atom.val) if isinstance(atom, Literal) else known[atom]

    found: list[Found] = []
    for eqn in jaxpr.eqns:
        operands = [read(atom) for atom in eqn.invars]
        name, has_views = eqn.primitive.name, any(operand.views for operand in operands)
        if name in _CALLS:
            called = next(v for v in eqn.params.values() if isinstance(v, ClosedJaxpr | Jaxpr))
            outputs, more = _walk(called, operands, evaluate)
        elif name == "scan" and has_views:
            outputs, more = _scan(eqn, operands, evaluate)
        elif name == "cond" and has_views:
            outputs, more = _cond(eqn, operands, evaluate)
        else:
            outputs, more = _operation(eqn, operands, evaluate)
        known.update(zip(eqn.outvars, outputs, strict=True))
        found += more
    return [read(atom) for atom in jaxpr.outvars], found


def _operation(
    eqn: JaxprEqn, operands: Sequence[_Tracked], evaluate: bool
) -> tuple[list[_Tracked], list[Found]]:
    views, found = [], []
    is_data = any(operand.is_data for operand in operands)
    for position, operand in enumerate(operands):
        others = [other for n, other in enumerate(operands) if n != position]
        for view in operand.views:
            result = _uses.interpret(eqn, position, view, any(o.is_data for o in others))
            if isinstance(result, View):
                views.append(result)
                continue
            # What is looked up is data, whatever the indices are.
            is_data = is_data or result.kind == "lookup"
            inputs = None
            if evaluate and result.kind == "kernel":
                inputs = _rows.rows(eqn, position, result, others[0].value)
            found.append(Found(result, inputs))
    return [
        _Tracked(tuple(views), is_data, value) for value in _values(eqn, operands, evaluate)
    ], found


def _values(eqn: JaxprEqn, operands: Sequence[_Tracked], evaluate: bool) -> Sequence[Any]:
    if not evaluate:
        return [None] * len(eqn.outvars)
    if eqn.primitive.name == "shard_map":
        raise NotImplementedError(
            "The program has a jax.shard_map, which rgo_jax.layer_inputs cannot evaluate. Pass the "
            "model without it: jax.jit spreads it over devices as its arguments are."
        )
    values = eqn.primitive.bind(*(operand.value for operand in operands), **eqn.params)
    return values if eqn.primitive.multiple_results else [values]


def _cond(
    eqn: JaxprEqn, operands: Sequence[_Tracked], evaluate: bool
) -> tuple[list[_Tracked], list[Found]]:
    """Each branch is looked at; the inputs in it, which may not be there, are not computed."""
    found = [
        use for branch in eqn.params["branches"] for use in _walk(branch, operands[1:], False)[1]
    ]
    is_data = any(operand.is_data for operand in operands)
    return [_Tracked((), is_data, value) for value in _values(eqn, operands, evaluate)], found


def _scan(
    eqn: JaxprEqn, operands: Sequence[_Tracked], evaluate: bool
) -> tuple[list[_Tracked], list[Found]]:
    body, first_x = eqn.params["jaxpr"], eqn.params["num_consts"] + eqn.params["num_carry"]
    num_consts, num_carry = eqn.params["num_consts"], eqn.params["num_carry"]
    lost: list[Found] = []

    def inside(n: int, operand: _Tracked) -> _Tracked:
        """What the body knows of an operand."""
        is_carry = num_consts <= n < first_x
        if is_carry and body.jaxpr.outvars[n - num_consts] is not body.jaxpr.invars[n]:
            lost.extend(Found(Use("unknown", view), None) for view in operand.views)
            return _Tracked((), True)
        views = [(view, view.into_scan(is_stacked=n >= first_x)) for view in operand.views]
        lost.extend(Found(Use("unknown", view), None) for view, entry in views if entry is None)
        return _Tracked(tuple(v for _, v in views if v is not None), operand.is_data)

    entering = [inside(n, operand) for n, operand in enumerate(operands)]
    if evaluate:
        uses: list[Use] = []

        def step(carry: Any, x: Any) -> Any:
            values = [operand.value for operand in operands[:num_consts]] + [*carry, *x]
            known = [t._replace(value=v) for t, v in zip(entering, values, strict=True)]
            outputs, found = _walk(body, known, True)
            uses[:] = [use for use, _ in found]
            results = [output.value for output in outputs]
            return results[:num_carry], (results[num_carry:], [inputs for _, inputs in found])

        carry, (ys, inputs) = jax.lax.scan(
            step,
            [operand.value for operand in operands[num_consts:first_x]],
            [operand.value for operand in operands[first_x:]],
            length=eqn.params["length"],
            reverse=eqn.params["reverse"],
            unroll=eqn.params["unroll"],
        )
        values, found = [*carry, *ys], list(map(Found, uses, inputs))
    else:
        _, found = _walk(body, entering, False)
        values = [None] * len(eqn.outvars)
    return [_Tracked((), True, value) for value in values], [*lost, *map(_out_of_scan, found)]


def _out_of_scan(found: Found) -> Found:
    use, inputs = found
    if inputs is not None:
        length, blocks, rows, d = inputs.shape
        if use.view.scans[-1]:
            inputs = inputs.reshape(length * blocks, rows, d)
        else:
            inputs = inputs.swapaxes(0, 1).reshape(blocks, length * rows, d)
    return Found(use._replace(view=use.view.out_of_scan()), inputs)
