"""Fused layers for Flax NNX, which project their own gradients in `rgo_jax.nnx.value_and_grad`."""

import functools
from typing import Any

import jax
from flax import nnx
from flax.nnx.nn import dtypes

from rgo_jax import _products


def _promote_dtype(arrays: Any, /, **options: Any) -> tuple[Any, Any, Any]:
    """Flax's own, but leaves a kernel that the linear map recognises as it is: the map casts it."""
    _, kernel, _ = arrays
    x, cast, bias = dtypes.promote_dtype(arrays, **options)
    return x, _products.uncast(kernel, cast), bias


_FUSED_LINEAR = {"dot_general": _products.dot_general, "promote_dtype": _promote_dtype}
_FUSED_CONV = {
    "conv_general_dilated": _products.conv_general_dilated,
    "promote_dtype": _promote_dtype,
}
# Flax's own layers: the attributes to make them fused ones by, and what these are by default.
_FUSED: dict[type[nnx.Module], tuple[dict[str, Any], dict[str, Any]]] = {
    nnx.Linear: (
        _FUSED_LINEAR,
        {"dot_general": jax.lax.dot_general, "promote_dtype": dtypes.promote_dtype},
    ),
    nnx.Conv: (
        _FUSED_CONV,
        {
            "conv_general_dilated": jax.lax.conv_general_dilated,
            "promote_dtype": dtypes.promote_dtype,
        },
    ),
}


def fuse(model: nnx.Module) -> None:
    """Makes a model's `flax.nnx.Linear` and `Conv` fused, in place; subclasses are what they are.

    Layers that have products of their own are left alone.
    """
    for _, layer in nnx.iter_graph(model):
        fused, default = _FUSED.get(type(layer), ({}, {}))
        if all(getattr(layer, name) is default[name] for name in default):
            for name, value in fused.items():
                setattr(layer, name, value)


class Linear(nnx.Linear):
    """`flax.nnx.Linear` that projects its gradient in its backward pass where that is cheaper.

    The same arguments, parameters, initial values and outputs; it differs only inside
    `rgo_jax.nnx.value_and_grad`.

    Example:
      >>> import jax.numpy as jnp, rgo_jax.nnx
      >>> from flax import nnx
      >>> rgo_jax.nnx.Linear(4, 3, rngs=nnx.Rngs(0))(jnp.ones((2, 4))).shape
      (2, 3)

    References:
      Appendix B.2. https://arxiv.org/abs/2201.12522
    """

    @functools.wraps(nnx.Linear.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **_FUSED_LINEAR | kwargs)


class Conv(nnx.Conv):
    """`flax.nnx.Conv` that projects its gradient in its backward pass; see `Linear`.

    The same arguments, parameters, initial values and outputs. It also trains at full speed inside
    `jax.lax.scan` on CPUs, where XLA's own convolutions do not.

    Example:
      >>> import jax.numpy as jnp, rgo_jax.nnx
      >>> from flax import nnx
      >>> model = rgo_jax.nnx.Conv(3, 8, (3, 3), rngs=nnx.Rngs(0))
      >>> model.kernel.shape, model(jnp.ones((2, 6, 6, 3))).shape
      ((3, 3, 3, 8), (2, 6, 6, 8))

    References:
      Appendix B.2. https://arxiv.org/abs/2201.12522
    """

    @functools.wraps(nnx.Conv.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **_FUSED_CONV | kwargs)
