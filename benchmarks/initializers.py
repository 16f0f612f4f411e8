"""Initial values of kernels."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rgo_jax._lapack import in_turn_on_cpu


def orthogonal(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    """Flax's initializer of that name, for many seeds at once on a CPU too: a QR for each layer."""
    draw = partial(nn.initializers.orthogonal(), shape=tuple(shape), dtype=dtype)
    return in_turn_on_cpu(draw)(key)
