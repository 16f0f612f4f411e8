"""Initial values of networks."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from rgo_jax.lapack import one_by_one_on_cpu


class InitialValues(NamedTuple):
    """Flax initializers.

    Attributes:
      dense: of kernels of fully connected layers.
      conv: of kernels of convolutions.
      bias: of biases.
      residual: of kernels of convolutions in residual networks.
      branch_end: of the last one of each residual branch.
    """

    dense: Any
    conv: Any
    bias: Any
    residual: Any
    branch_end: Any


def orthogonal(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    """Flax's initializer of that name, for many seeds at once on a CPU too: a QR for each layer."""
    draw = partial(nn.initializers.orthogonal(), shape=tuple(shape), dtype=dtype)
    return one_by_one_on_cpu(draw)(key)


def uniform(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    """Uniform to both sides of 0, up to one over the root of the window's length times inputs.

    Not its area: a convolution's kernel ``[k, k, cin, m]`` has ``1 / sqrt(k cin)``, as in the
    authors' program, and a dense kernel ``[d, m]`` ``1 / sqrt(d)``.
    """
    window, inputs = (shape[0] if len(shape) > 2 else 1), shape[-2]
    limit = 1 / math.sqrt(window * inputs)
    return jax.random.uniform(key, tuple(shape), dtype, -limit, limit)


def with_bias_row(kernel_init: Any, bias_init: Any) -> Any:
    """An initializer for a kernel ``[d + 1, m]`` whose last row is a bias."""

    def init(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        rows, columns = shape
        kernel = kernel_init(key, (rows - 1, columns), dtype)
        return jnp.concatenate([kernel, bias_init(key, (1, columns), dtype)])

    return init


_zeros = nn.initializers.zeros
_he = nn.initializers.he_normal()

# "orthogonal" is that of the harness of Chaudhry et al., where residual branches start at zero in
# place of its batch normalisation; "uniform" that of the authors' program.
INITIAL_VALUES = {
    "orthogonal": InitialValues(orthogonal, orthogonal, nn.initializers.constant(0.1), _he, _zeros),
    "uniform": InitialValues(uniform, uniform, _zeros, uniform, uniform),
}
