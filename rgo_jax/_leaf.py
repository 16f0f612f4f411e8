"""Parameters whose gradients come out of the backward pass projected.

A parameter that `project` has passed on has a projected gradient whatever it is used for: a layer,
a penalty, a second layer that shares it. A layer that can project more cheaply recognises the
parameter (`find`), uses the original in its place and projects that share of the gradient itself.
What is not recognised takes the general way, so the gradient is right either way.
"""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import NamedTuple

import jax

from rgo_jax import _geometry, _projection


class Leaf(NamedTuple):
    """A parameter under a projection, inside `recognised`.

    Attributes:
      passed_on: what `project` made of it, which the loss sees.
      parameter: itself.
      projection: its P.
    """

    passed_on: jax.Array
    parameter: jax.Array
    projection: jax.Array


_leaves: contextvars.ContextVar[dict[int, Leaf]] = contextvars.ContextVar("leaves")


@contextlib.contextmanager
def recognised(leaves: list[Leaf]) -> Iterator[None]:
    """Inside it `find` finds these leaves, and those that it found before."""
    by_id = {id(leaf.passed_on): leaf for leaf in leaves}
    token = _leaves.set(_leaves.get({}) | by_id)
    try:
        yield
    finally:
        _leaves.reset(token)


def find(array: jax.Array) -> Leaf | None:
    """The leaf that was passed on as this very array.

    What a transform such as `jax.checkpoint` or `jax.lax.scan` makes of it inside is another one.
    """
    return _leaves.get({}).get(id(array))


@jax.custom_vjp
def _project(parameter: jax.Array, projection: jax.Array) -> jax.Array:
    del projection
    return parameter


def _project_fwd(parameter: jax.Array, projection: jax.Array) -> tuple[jax.Array, jax.Array]:
    return parameter, projection


def _project_bwd(projection: jax.Array, g: jax.Array) -> tuple[jax.Array, None]:
    matrix = _geometry.to_matrix(g, _projection.dim(projection))
    projected = _projection.project(projection, matrix)
    return projected.reshape(g.shape).astype(g.dtype), None


_project.defvjp(_project_fwd, _project_bwd)


def project(parameter: jax.Array, projection: jax.Array) -> jax.Array:
    """The identity, whose gradient in ``parameter`` is projected: ``P g``.

    Args:
      parameter: of any shape whose leading axes have P's d as their product.
      projection: of one of the forms of `rgo_jax._projection`. It gets no gradient.
    """
    return _project(parameter, projection)
