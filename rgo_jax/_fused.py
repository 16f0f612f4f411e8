"""Backward passes that yield projected gradients, for layers that are handed their ``P``.

The gradient of a kernel is ``g = X' D``, with ``X [rows, d]`` the layer's input and ``D [rows, m]``
the gradient of its output, so ``P g = (P X') D``: with a batch of 10 and 2048 x 2048 features 0.1
instead of 17 GFLOP. Appendix B.2 of the RGO paper.

The projection handed over here is the normalised one, ``(d / tr P) P``. It gets no gradient.
"""

import jax
import jax.numpy as jnp

from rgo_jax import _geometry, _projection


@jax.custom_vjp
def project_gradient(parameter: jax.Array, projection: jax.Array) -> jax.Array:
    """The identity, whose gradient in ``parameter`` is projected: ``P g``."""
    del projection
    return parameter


def _project_gradient_fwd(
    parameter: jax.Array, projection: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return parameter, projection


def _project_gradient_bwd(projection: jax.Array, g: jax.Array) -> tuple[jax.Array, None]:
    matrix = _geometry.to_matrix(g, _projection.dim(projection))
    return _projection.multiply(projection, matrix).reshape(g.shape).astype(g.dtype), None


project_gradient.defvjp(_project_gradient_fwd, _project_gradient_bwd)


def dot(
    x: jax.Array,
    kernel: jax.Array,
    projection: jax.Array,
    precision: jax.lax.PrecisionLike = None,
) -> jax.Array:
    """``x @ kernel`` whose gradient in ``kernel`` is projected.

    Args:
      x: ``[..., d]``.
      kernel: ``[d, m]``.
      projection: normalised; ``[d, d]``, or another form of `rgo_jax._projection`.
      precision: of the products that SGD has too; those with the projection are at HIGHEST.

    Returns:
      ``[..., m]``.
    """
    rows = x.size // x.shape[-1]
    if rows >= kernel.shape[1]:
        # X' D is no larger than X: projecting the product is the cheaper way round.
        return jnp.matmul(x, project_gradient(kernel, projection), precision=precision)

    @jax.custom_vjp
    def factored(x: jax.Array, kernel: jax.Array, projection: jax.Array) -> jax.Array:
        del projection
        return jnp.matmul(x, kernel, precision=precision)

    def forward(
        x: jax.Array, kernel: jax.Array, projection: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
        return factored(x, kernel, projection), (x, kernel, projection)

    def backward(
        residuals: tuple[jax.Array, jax.Array, jax.Array], g: jax.Array
    ) -> tuple[jax.Array, jax.Array, None]:
        x, kernel, projection = residuals
        projected = _projection.multiply(projection, x.reshape(rows, -1).T).astype(g.dtype)
        gradient = jnp.matmul(projected, g.reshape(rows, -1), precision=precision)
        return jnp.matmul(g, kernel.T, precision=precision), gradient.astype(kernel.dtype), None

    factored.defvjp(forward, backward)
    return factored(x, kernel, projection)
