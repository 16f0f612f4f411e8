"""Fused layers for Flax Linen, which project their own gradients in `rgo_jax.value_and_grad`."""

from typing import Any

import flax.linen as nn

from rgo_jax import _intercept, _products


class Dense(nn.Dense):
    """`flax.linen.Dense` that projects its gradient in its backward pass where that is cheaper.

    The same attributes, parameters, initial values and outputs; it differs only inside
    `rgo_jax.value_and_grad`.

    Example:
      >>> import jax, jax.numpy as jnp, rgo_jax.linen
      >>> model = rgo_jax.linen.Dense(3)
      >>> variables = model.init(jax.random.key(0), jnp.ones((2, 4)))
      >>> model.apply(variables, jnp.ones((2, 4))).shape
      (2, 3)

    References:
      Appendix B.2. https://arxiv.org/abs/2201.12522
    """

    promote_dtype: Any = _intercept.promote_dtype
    dot_general: Any = _products.dot_general


class Conv(nn.Conv):
    """`flax.linen.Conv` that projects its gradient in its backward pass; see `Dense`.

    The same attributes, parameters, initial values and outputs. It also trains at full speed inside
    `jax.lax.scan` on CPUs, where XLA's own convolutions do not.

    Example:
      >>> import jax, jax.numpy as jnp, rgo_jax.linen
      >>> model = rgo_jax.linen.Conv(8, (3, 3))
      >>> x = jnp.ones((2, 6, 6, 3))
      >>> params = model.init(jax.random.key(0), x)["params"]
      >>> params["kernel"].shape, model.apply({"params": params}, x).shape
      ((3, 3, 3, 8), (2, 6, 6, 8))

    References:
      Appendix B.2. https://arxiv.org/abs/2201.12522
    """

    promote_dtype: Any = _intercept.promote_dtype
    conv_general_dilated: Any = _products.conv_general_dilated
