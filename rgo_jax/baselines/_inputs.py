"""What the kernels of a model are multiplied by."""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rgo_jax.baselines._method import Apply


def name_of(path: tuple[Any, ...]) -> str:
    """A parameter's name; Flax's boxes around single arrays leave no trace in it."""
    is_boxed = path[-1:] == (jax.tree_util.GetAttrKey("value"),)
    return jax.tree_util.keystr(path[:-1] if is_boxed else path, simple=True, separator="/")


def kernel_inputs(
    apply_fn: Apply, params: Any, x: jax.Array, task_id: jax.Array
) -> dict[str, jax.Array]:
    """What each kernel is multiplied by when the model is given some examples.

    Returns:
      By the kernels' names, in the order in which layers are called, ``[b, positions, d]``.
    """
    calls: list[tuple[nn.Module, jax.Array]] = []

    def record(
        call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext
    ) -> Any:
        layer = context.module
        if context.method_name == "__call__" and isinstance(layer, nn.Dense | nn.Conv):
            calls.append((layer, *args))
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        apply_fn(params, x, task_id)
    found = {}
    for layer, inputs in calls:
        seen = _patches(layer, inputs) if isinstance(layer, nn.Conv) else inputs
        found["/".join((*layer.path, "kernel"))] = seen.reshape(len(x), -1, seen.shape[-1])
    return found


def _patches(layer: nn.Conv, x: jax.Array) -> jax.Array:
    """What a convolution's kernel ``[*window, cin, m]`` meets: ``[b, *spatial, d]``."""
    cin = x.shape[-1]
    window = layer.kernel_size
    window = (window,) if isinstance(window, int) else tuple(window)
    kernel = jnp.eye(cin * math.prod(window)).reshape(*window, cin, -1)
    # A convolution with the identity as its kernel; apart from the model it is called in.
    identity = nn.Conv(
        kernel.shape[-1],
        layer.kernel_size,
        layer.strides,
        layer.padding,
        kernel_dilation=layer.kernel_dilation,
        use_bias=False,
        precision=jax.lax.Precision.HIGHEST,
        parent=None,
    )
    return jnp.asarray(identity.apply({"params": {"kernel": kernel}}, x))
