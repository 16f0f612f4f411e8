"""One projection matrix ``P [d, d]``: plain linear algebra, nothing about trees or axes.

Everything here runs at ``Precision.HIGHEST``: a protected direction carries 1e-2 to 1e-4 of the
weight of a free one, so the rounding of TF32 or bfloat16 products (1e-3 and 4e-3) would hide it.
"""

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

_HIGHEST = jax.lax.Precision.HIGHEST


def identity(d: int, dtype: jnp.dtype) -> jax.Array:
    """The projection before the first task: nothing is protected.

    The dtype is at least float32, whatever the parameter's: the RLS recursion loses symmetry and
    definiteness in 16 bits.
    """
    return jnp.eye(d, dtype=jnp.promote_types(dtype, jnp.float32))


def project(projection: jax.Array, gradient: jax.Array) -> jax.Array:
    """The modified gradient ``(d / tr P) P g`` of Algorithm 1, line 5.

    Args:
      projection: ``[d, d]``, symmetric positive definite, at any positive scale.
      gradient: ``[d, m]``.

    Returns:
      ``[d, m]`` in the projection's dtype.
    """
    product = jnp.matmul(projection, gradient.astype(projection.dtype), precision=_HIGHEST)
    return _scale(projection) * product


def normalise(projection: jax.Array) -> jax.Array:
    """``(d / tr P) P``: the matrix whose product with the gradient is the modified gradient."""
    return _scale(projection) * projection


def _scale(projection: jax.Array) -> jax.Array:
    return projection.shape[0] / jnp.trace(projection)


def rank_one_update(
    projection: jax.Array, vector: jax.Array, alpha: jax.typing.ArrayLike
) -> jax.Array:
    """Folds one vector in: ``P - (P v)(P v)' / (alpha + v' P v)``, Algorithm 1, lines 10-11.

    Args:
      projection: ``[d, d]``.
      vector: ``[d]``.
      alpha: scalar, positive.

    Returns:
      The new ``[d, d]``, exactly symmetric if ``projection`` is.
    """
    u = jnp.matmul(projection, vector, precision=_HIGHEST)
    return projection - jnp.outer(u, u) / (alpha + jnp.vdot(vector, u, precision=_HIGHEST))


def block_update(
    projection: jax.Array,
    vectors: jax.Array,
    alpha: jax.typing.ArrayLike,
    *,
    block_size: int,
) -> jax.Array:
    """Folds many vectors in with matrix products; equal to the sequence of rank-one updates.

    By the Woodbury identity, for a block ``V [b, d]`` of vectors,
    ``P <- P - P V' (alpha I + V P V')^-1 V P``: one Cholesky factorisation of ``[b, b]`` and
    three matrix products, where ``b`` rank-one updates would stream ``P`` through memory ``b``
    times.

    Args:
      projection: ``[d, d]``.
      vectors: ``[n, d]``.
      alpha: scalar, positive.
      block_size: how many vectors are folded in at once. Bounds the extra memory to
        ``block_size * (d + block_size)`` numbers.

    Returns:
      The new ``[d, d]``, symmetric.
    """
    count, d = vectors.shape
    block_size = min(block_size, count)
    blocks = -(-count // block_size)
    # A zero vector changes nothing, so the last block can be filled up with them.
    padded = jnp.pad(vectors, ((0, blocks * block_size - count), (0, 0)))

    def fold(p: jax.Array, v: jax.Array) -> tuple[jax.Array, None]:
        vp = jnp.matmul(v, p, precision=_HIGHEST)
        gram = jnp.matmul(vp, v.T, precision=_HIGHEST)
        # Symmetric by construction up to rounding; Cholesky reads one triangle only.
        chol = jnp.linalg.cholesky(alpha * jnp.eye(block_size, dtype=p.dtype) + gram)
        w = solve_triangular(chol, vp, lower=True)
        p = p - jnp.matmul(w.T, w, precision=_HIGHEST)
        return (p + p.T) / 2, None

    folded, _ = jax.lax.scan(fold, projection, padded.reshape(blocks, block_size, d))
    return folded
