"""Products for the fused layers of Flax, in place of those of `jax.lax`.

They take `_fused.matmul` or `_combined.matmul` for a kernel that they recognise (`_leaf`), where
that is cheaper.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from rgo_jax import _combined, _fused, _leaf
from rgo_jax._combined import Combination

# Patches of a convolution beyond this many bytes are not worth their memory; where there is no
# projection to save work for, on these platforms only and up to these many.
_MAX_PATCH_BYTES = 2**28
_MAX_PLAIN_PATCH_BYTES = {"cpu": 2**28, "gpu": 2**25}


def uncast(kernel: jax.Array, cast: jax.Array) -> jax.Array:
    """The kernel itself if it is under a projection, else the cast one.

    Layers of Flax cast their kernel first, and the cast one could not be found. Products cast it.
    """
    return cast if _leaf.find(kernel) is None else kernel


def dot_general(
    x: jax.Array,
    kernel: jax.Array,
    dimension_numbers: Any,
    precision: jax.lax.PrecisionLike = None,
    **options: Any,
) -> jax.Array:
    """`jax.lax.dot_general` for layers of Flax, cheap for a kernel under a projection.

    Args:
      x: ``[..., d]``, in the dtype that the product is computed in.
      kernel: ``[d, m]``.
      dimension_numbers: as `jax.lax.dot_general`.
      precision: of the products that SGD has too.
      **options: others of `jax.lax.dot_general`.

    Returns:
      ``[..., m]``.
    """
    leaf = _leaf.find(kernel)
    last_with_first = (((x.ndim - 1,), (0,)), ((), ()))
    if (
        leaf is not None
        and dimension_numbers == last_with_first
        and all(value is None for value in options.values())
        and _pays(math.prod(x.shape[:-1]), leaf, x.dtype)
    ):
        return _matmul(x, leaf.parameter, leaf, precision)
    kernel = kernel.astype(x.dtype)
    y: jax.Array = jax.lax.dot_general(x, kernel, dimension_numbers, precision=precision, **options)
    return y


def conv_general_dilated(
    x: jax.Array,
    kernel: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    precision: jax.lax.PrecisionLike = None,
    **options: Any,
) -> jax.Array:
    """`jax.lax.conv_general_dilated` for layers of Flax, cheap for a kernel under a projection.

    As patches and a matrix product where the projection is cheaper that way; on CPUs, where XLA
    runs the backward pass of a convolution inside a loop on one thread, many times slower than the
    product; and for small batches on GPUs, where under `jax.vmap` over models a convolution becomes
    one of many groups, and the product a batched one.

    Args:
      x: ``[b, *spatial, cin]``, in the dtype that the convolution is computed in.
      kernel: ``[*window, cin / groups, cout]``.
      window_strides: as `jax.lax.conv_general_dilated`; the rest likewise.
      padding: as above.
      lhs_dilation: as above.
      rhs_dilation: as above.
      dimension_numbers: as above; channels last.
      feature_group_count: as above.
      precision: of the products that SGD has too.
      **options: others of `jax.lax.conv_general_dilated`.

    Returns:
      ``[b, *spatial, cout]``.
    """
    window, channels = kernel.shape[:-2], kernel.shape[-1]
    ones = (1,) * len(window)
    lhs_dilation, rhs_dilation = lhs_dilation or ones, rhs_dilation or ones
    given = {name: value for name, value in options.items() if value is not None}
    if feature_group_count == 1 and all(step == 1 for step in lhs_dilation) and not given:
        pads = padding
        if isinstance(pads, str):
            spans = [(size - 1) * step + 1 for size, step in zip(window, rhs_dilation, strict=True)]
            pads = jax.lax.padtype_to_pads(x.shape[1:-1], spans, window_strides, pads)
        shape = jax.eval_shape(
            lambda x: _fused.patches(x, window, window_strides, pads, rhs_dilation), x
        ).shape
        leaf = _leaf.find(kernel)
        pays = leaf is not None and _pays(math.prod(shape[:-1]), leaf, x.dtype)
        plain_bytes = _MAX_PLAIN_PATCH_BYTES.get(jax.default_backend(), 0)
        max_bytes = _MAX_PATCH_BYTES if pays else plain_bytes
        if math.prod(shape) * x.dtype.itemsize <= max_bytes:
            patches = _fused.patches(x, window, window_strides, pads, rhs_dilation)
            if leaf is not None and pays:
                matrix = leaf.parameter.reshape(-1, channels)
                return _matmul(patches, matrix, leaf, precision)
            matrix = kernel.reshape(-1, channels).astype(x.dtype)
            return jnp.matmul(patches, matrix, precision=precision)
    return jax.lax.conv_general_dilated(
        x,
        kernel.astype(x.dtype),
        window_strides,
        padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        precision=precision,
        **given,
    )


def _matmul(
    x: jax.Array, kernel: jax.Array, leaf: _leaf.Leaf, precision: jax.lax.PrecisionLike
) -> jax.Array:
    if isinstance(leaf.wanted, Combination):
        return _combined.matmul(x, kernel, leaf.wanted, precision)
    return _fused.matmul(x, kernel, leaf.wanted.p, precision)


def _pays(rows: int, leaf: _leaf.Leaf, dtype: Any) -> bool:
    """Whether computing with the rows of the input is possible and cheaper."""
    kernel = leaf.parameter
    return (
        (rows < kernel.shape[-1] or isinstance(leaf.wanted, Combination))
        # With other axes, which a ProjectionSpec may name, rows are not what P multiplies.
        and leaf.wanted.geometry.axes == tuple(range(kernel.ndim - 1))
        # Of complex inputs the rows are not those of a real kernel's gradient.
        and not jnp.issubdtype(dtype, jnp.complexfloating)
    )
