"""Linear maps whose derivatives are projected: a parameter's own, and a product's.

The gradient of a kernel is ``g = X' D``, with ``X [rows, d]`` the layer's input and ``D [rows, m]``
the gradient of its output. P is symmetric, so ``P g = (X P)' D``: with a batch of 10 and 2048
inputs and outputs 0.1 instead of 17 GFLOP. It is the cheaper way round where rows < m. A
convolution is the same product with patches of the image as rows. Appendix B.2 of the RGO paper.

The projected gradient is computed in the dtype of P and at Precision.HIGHEST to the end, whatever
the layer computes in: rounding after the projection would fall into protected directions.
"""

import itertools
import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp

from rgo_jax import _projection
from rgo_jax._geometry import Geometry
from rgo_jax._state import Projection


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _project(parameter: jax.Array, p: jax.Array, geometry: Geometry) -> jax.Array:
    del p, geometry
    return parameter


def _project_fwd(
    parameter: jax.Array, p: jax.Array, geometry: Geometry
) -> tuple[jax.Array, jax.Array]:
    del geometry
    return parameter, p


def _project_bwd(geometry: Geometry, p: jax.Array, g: jax.Array) -> tuple[jax.Array, None]:
    projected = _projection.project(p, geometry.to_matrix(g))
    return geometry.from_matrix(projected).astype(g.dtype), None


_project.defvjp(_project_fwd, _project_bwd)


def project(parameter: jax.Array, projection: Projection) -> jax.Array:
    """The identity, whose gradient in ``parameter`` is projected: ``P g``. P gets no gradient."""
    return _project(parameter, projection.p, projection.geometry)


def matmul(
    x: jax.Array, kernel: jax.Array, p: jax.Array, precision: jax.lax.PrecisionLike
) -> jax.Array:
    """``x @ kernel`` in the dtype of ``x``, whose gradient in ``kernel`` is ``P g``."""

    @jax.custom_vjp
    def product(x: jax.Array, kernel: jax.Array, p: jax.Array) -> jax.Array:
        del p
        return jnp.matmul(x, kernel.astype(x.dtype), precision=precision)

    def forward(
        x: jax.Array, kernel: jax.Array, p: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
        return product(x, kernel, p), (x, kernel, p)

    def backward(
        residuals: tuple[jax.Array, jax.Array, jax.Array], g: jax.Array
    ) -> tuple[jax.Array, jax.Array, None]:
        x, kernel, p = residuals
        rows = _projection.project_rows(p, x.reshape(-1, x.shape[-1]))

        def of_projected(kernel: jax.Array) -> jax.Array:
            kernel = kernel.astype(rows.dtype)
            return jnp.matmul(rows, kernel, precision=jax.lax.Precision.HIGHEST)

        # JAX's own transpose knows how to sum over devices that the rows are spread over.
        outputs = g.reshape(-1, g.shape[-1]).astype(rows.dtype)
        (gradient,) = jax.linear_transpose(of_projected, kernel)(outputs)
        # A loss with input gradients in it (a gradient penalty) reaches the kernel through here.
        kernel = project(kernel, Projection(p, Geometry(kernel.shape, (0,))))
        gradient_x = jnp.matmul(g, kernel.astype(x.dtype).T, precision=precision)
        return gradient_x.astype(x.dtype), gradient, None

    product.defvjp(forward, backward)
    return product(x, kernel, p)


def patches(
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
