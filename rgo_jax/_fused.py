"""Linear maps that project the gradient of a recognised kernel in their backward pass.

The gradient of a kernel is ``g = X' D``, with ``X [rows, d]`` the layer's input and ``D [rows, m]``
the gradient of its output. P is symmetric, so ``P g = (X P)' D``: with a batch of 10 and 2048
inputs and outputs 0.1 instead of 17 GFLOP. It is the cheaper way round where rows < m. A
convolution is the same product with patches of the image as rows. Appendix B.2 of the RGO paper.

A kernel is recognised as `rgo_jax._leaf` has it. The projected gradient is computed in the
dtype of P and at Precision.HIGHEST to the end, whatever the layer computes in: rounding after the
projection would fall into protected directions.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from rgo_jax import _leaf, _projection

# Patches of a convolution beyond this many bytes are not worth their memory; where there is no
# projection to save work for, on these platforms only and up to these many.
_MAX_PATCH_BYTES = 2**28
_MAX_PLAIN_PATCH_BYTES = {"cpu": 2**28, "gpu": 2**25}


def uncast(kernel: jax.Array, cast: jax.Array) -> jax.Array:
    """The kernel itself if it is recognised, for a linear map that casts it; the cast one if not.

    For layers of Flax, which cast their kernel first.
    """
    return cast if _leaf.find(kernel) is None else kernel


def dot_general(
    x: jax.Array,
    kernel: jax.Array,
    dimension_numbers: Any,
    precision: jax.lax.PrecisionLike = None,
    **options: Any,
) -> jax.Array:
    """`jax.lax.dot_general` for layers of Flax, cheap for a recognised kernel.

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
        and _pays(math.prod(x.shape[:-1]), kernel, leaf.projection, x.dtype)
    ):
        return _factored(x, leaf.parameter, leaf.projection, precision)
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
    """`jax.lax.conv_general_dilated` for layers of Flax, cheap for a recognised kernel.

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
            lambda x: _patches(x, window, window_strides, pads, rhs_dilation), x
        ).shape
        leaf = _leaf.find(kernel)
        matrix = kernel.reshape(-1, channels)
        pays = leaf is not None and _pays(math.prod(shape[:-1]), matrix, leaf.projection, x.dtype)
        plain_bytes = _MAX_PLAIN_PATCH_BYTES.get(jax.default_backend(), 0)
        max_bytes = _MAX_PATCH_BYTES if pays else plain_bytes
        if math.prod(shape) * x.dtype.itemsize <= max_bytes:
            patches = _patches(x, window, window_strides, pads, rhs_dilation)
            if leaf is not None and pays:
                matrix = leaf.parameter.reshape(-1, channels)
                return _factored(patches, matrix, leaf.projection, precision)
            return jnp.matmul(patches, matrix.astype(x.dtype), precision=precision)
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


def _pays(rows: int, kernel: jax.Array, projection: jax.Array, dtype: Any) -> bool:
    """Whether projecting the rows of the input is possible and cheaper."""
    return (
        rows < kernel.shape[1]
        # With another d it is of a FanIn of the user's own.
        and _projection.dim(projection) == kernel.shape[0]
        # Of complex inputs the rows are not those of a real kernel's gradient.
        and not jnp.issubdtype(dtype, jnp.complexfloating)
    )


def _factored(
    x: jax.Array, kernel: jax.Array, projection: jax.Array, precision: jax.lax.PrecisionLike
) -> jax.Array:
    """``x @ kernel`` in the dtype of ``x``, whose gradient in ``kernel`` is ``P g``."""

    @jax.custom_vjp
    def product(x: jax.Array, kernel: jax.Array, projection: jax.Array) -> jax.Array:
        del projection
        return jnp.matmul(x, kernel.astype(x.dtype), precision=precision)

    def forward(
        x: jax.Array, kernel: jax.Array, projection: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
        return product(x, kernel, projection), (x, kernel, projection)

    def backward(
        residuals: tuple[jax.Array, jax.Array, jax.Array], g: jax.Array
    ) -> tuple[jax.Array, jax.Array, None]:
        x, kernel, projection = residuals
        rows = _projection.project_rows(projection, x.reshape(-1, x.shape[-1]))

        def of_projected(kernel: jax.Array) -> jax.Array:
            kernel = kernel.astype(rows.dtype)
            return jnp.matmul(rows, kernel, precision=jax.lax.Precision.HIGHEST)

        # JAX's own transpose knows how to sum over devices that the rows are spread over.
        outputs = g.reshape(-1, g.shape[-1]).astype(rows.dtype)
        (gradient,) = jax.linear_transpose(of_projected, kernel)(outputs)
        # A loss with input gradients in it (a gradient penalty) reaches the kernel through here.
        kernel = _leaf.project(kernel, projection)
        gradient_x = jnp.matmul(g, kernel.astype(x.dtype).T, precision=precision)
        return gradient_x.astype(x.dtype), gradient, None

    product.defvjp(forward, backward)
    return product(x, kernel, projection)


def _patches(
    x: jax.Array,
    window: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
) -> jax.Array:
    """``[b, *spatial, prod(window) * cin]``: what each output of a convolution sees.

    By slices, whose backward pass is padding and sums, not scatters.
    """
    # jax.lax.pad takes negative padding, as jax.lax.conv_general_dilated does.
    config = [(0, 0, 0), *((low, high, 0) for low, high in padding), (0, 0, 0)]
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), config)
    sizes = [
        max(0, (length - (size - 1) * step - 1) // stride + 1)
        for length, size, step, stride in zip(x.shape[1:-1], window, dilation, strides, strict=True)
    ]
    if not all(sizes):  # the window is larger than the image
        return jnp.zeros((x.shape[0], *sizes, math.prod(window) * x.shape[-1]), x.dtype)
    pieces = []
    for offset in itertools.product(*map(range, window)):
        start = [o * step for o, step in zip(offset, dilation, strict=True)]
        limit = [
            s + (size - 1) * stride + 1
            for s, size, stride in zip(start, sizes, strides, strict=True)
        ]
        pieces.append(
            jax.lax.slice(x, (0, *start, 0), (x.shape[0], *limit, x.shape[-1]), (1, *strides, 1))
        )
    return jnp.concatenate(pieces, axis=-1)
