"""The mark of a gradient that is projected already."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class ProjectedGradient:
    """A gradient that is projected already: what `rgo_jax.value_and_grad` returns for a parameter.

    A pytree with one leaf, so trees of gradients can be summed, scaled and clipped by their norm.
    `rgo_jax.scale_by_rgo` does not project it again and yields a plain array; other transforms
    that pair gradients with a state or with parameters refuse it, as they should: see
    docs/chains.md.

    Attributes:
      gradient: ``P g``, of the parameter's shape and dtype, without the trace rule.

    Example:
      >>> import jax.numpy as jnp, rgo_jax
      >>> tx = rgo_jax.rgo(0.1)
      >>> updates, _ = tx.update(rgo_jax.ProjectedGradient(jnp.ones(3)), tx.init(jnp.ones(3)))
      >>> print(updates)
      [-0.1 -0.1 -0.1]
    """

    gradient: jax.Array


def _unflatten(_: None, children: Iterable[Any]) -> Any:
    (child,) = children
    # What a mask or a label function makes of a tree of gradients is no gradient: optax expects a
    # bool or a string in its place.
    return child if isinstance(child, bool | np.bool_ | str) else ProjectedGradient(child)


jax.tree_util.register_pytree_with_keys(
    ProjectedGradient,
    lambda node: (((jax.tree_util.GetAttrKey("gradient"), node.gradient),), None),
    _unflatten,
    lambda node: ((node.gradient,), None),
)
