"""How a layer recognises a parameter whose gradient is not wanted as it is.

A parameter behind `_fused.project` has a projected gradient whatever it is used for: a layer, a
penalty, a second layer that shares it; behind `_combined.combine` only combinations of the
gradient's columns come out. A layer that can compute these more cheaply recognises the parameter
(`find`), uses the original in its place and sees to its share of the gradient itself. What is not
recognised takes the general way, so the gradient is right either way.
"""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax


class Leaf(NamedTuple):
    """A parameter inside `scope`.

    Attributes:
      alias: what `_fused.project` or `_combined.combine` made of it, which the loss sees.
      parameter: itself.
      wanted: of its gradient: a `Projection` or a `_combined.Combination`.
    """

    alias: jax.Array
    parameter: jax.Array
    wanted: Any


_leaves: contextvars.ContextVar[dict[int, Leaf]] = contextvars.ContextVar("leaves")


@contextlib.contextmanager
def scope(leaves: list[Leaf]) -> Iterator[None]:
    """Inside it `find` finds these leaves, and those that it found before."""
    by_id = {id(leaf.alias): leaf for leaf in leaves}
    token = _leaves.set(_leaves.get({}) | by_id)
    try:
        yield
    finally:
        _leaves.reset(token)


def find(array: jax.Array) -> Leaf | None:
    """The leaf of which this very array is the alias.

    What a transform such as `jax.checkpoint` or `jax.lax.scan` makes of it inside is another one.
    """
    return _leaves.get({}).get(id(array))
