"""Which axes of a parameter are fan-in: the one file that knows about axes.

RGO sees every parameter leaf as a matrix ``W [d, m]``: ``d`` is the fan-in (all axes but the
last) and ``m`` the number of feature extractors (the last axis). This is the layout of Flax's
Dense ``[in, out]`` and Conv ``[kh, kw, cin, cout]`` kernels, in Linen and in NNX. A vector (a
bias) is one column, ``[n, 1]``. Source: appendix B.2 of the RGO paper.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """The shape ``(d, m)`` under which RGO sees a leaf of this shape (rank 1 or more)."""
    if len(shape) == 1:
        return shape[0], 1
    return math.prod(shape[:-1]), shape[-1]


def to_matrix(leaf: jax.Array) -> jax.Array:
    """A leaf as its ``[d, m]`` matrix; ``matrix.reshape(leaf.shape)`` is the way back."""
    return leaf.reshape(matrix_shape(leaf.shape))


def path_name(path: tuple[Any, ...]) -> str:
    """A pytree path as people write it: ``Dense_0/kernel``."""
    return jax.tree_util.keystr(path, simple=True, separator="/") or "(the whole tree)"


def check_leaf(path: tuple[Any, ...], leaf: Any) -> None:
    """Refuses leaves for which a projection has no meaning.

    Raises:
      ValueError: the leaf has no axes.
      TypeError: the leaf is not real floating point.
    """
    remedy = "Exclude it: optax.masked(rgo_jax.scale_by_rgo(), mask)."
    if jnp.ndim(leaf) == 0:
        raise ValueError(
            f"Parameter {path_name(path)!r} has shape (): RGO projects the fan-in axes of a "
            f"parameter and a scalar has none. {remedy}"
        )
    dtype = jnp.result_type(leaf)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"Parameter {path_name(path)!r} has dtype {dtype}: RGO projects real floating-point "
            f"parameters only. {remedy}"
        )
