"""How a layer recognises a parameter whose gradient comes out of the backward pass projected.

A parameter behind `_fused.project` has a projected gradient whatever it is used for: a layer, a
penalty, a second layer that shares it. A layer that can project more cheaply recognises it
(`find`), uses the original in its place and projects that share of the gradient itself. What is
not recognised takes the general way, so the gradient is right either way.
"""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import NamedTuple

import jax

from rgo_jax._state import Projection


class Leaf(NamedTuple):
    """A parameter under a projection, inside `scope`.

    Attributes:
      alias: what `_fused.project` made of it, which the loss sees.
      parameter: itself.
      projection: its.
    """

    alias: jax.Array
    parameter: jax.Array
    projection: Projection


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
