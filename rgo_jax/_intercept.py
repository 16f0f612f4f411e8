"""Flax Linen's own layers compute as the fused ones while a task is folded in."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax

from rgo_jax import _products


def promote_dtype(
    x: jax.Array, kernel: jax.Array, bias: jax.Array | None, **options: Any
) -> list[Any]:
    """Flax's own, but leaves a kernel that the linear map recognises as it is: the map casts it."""
    x, cast, bias = nn.dtypes.promote_dtype(x, kernel, bias, **options)
    return [x, _products.uncast(kernel, cast), bias]


# The attributes that make a layer a fused one. Layers that have others of their own are left alone.
_FUSED: dict[type[nn.Module], dict[str, Any]] = {
    nn.Dense: {
        "promote_dtype": promote_dtype,
        "dot_general": _products.dot_general,
        "dot_general_cls": None,
    },
    nn.Conv: {
        "promote_dtype": promote_dtype,
        "conv_general_dilated": _products.conv_general_dilated,
        "conv_general_dilated_cls": None,
    },
}


@contextlib.contextmanager
def fused_layers() -> Iterator[None]:
    """Inside it `flax.linen.Dense` and `Conv` are fused; subclasses are what they are."""
    with nn.intercept_methods(_as_fused):
        yield


def _as_fused(method: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
    layer = context.module
    fused = _FUSED.get(type(layer), {})
    own = {name: getattr(layer, name) for name in fused}
    if any(own[name] is not getattr(type(layer), name) for name in fused):
        return method(*args, **kwargs)
    # Flax has no way to set attributes of a module that is running; a copy of it would be
    # intercepted once more, by interceptors of the user's too.
    vars(layer).update(fused)
    try:
        return method(*args, **kwargs)
    finally:
        vars(layer).update(own)
