"""One projection ``P``: plain linear algebra, nothing about trees or axes.

``P`` has one of three forms, told apart by its rank: ``[d, d]``; block-diagonal ``[k, b, b]`` with
``d = k * b``, where each block is a projection by itself; and diagonal ``[d]``.

Everything here runs at ``Precision.HIGHEST``: a protected direction carries 1e-2 to 1e-4 of the
weight of a free one, so the rounding of TF32 or bfloat16 products (1e-3 and 4e-3) would hide it.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular

from rgo_jax.lapack import one_by_one_on_cpu

_HIGHEST = jax.lax.Precision.HIGHEST


def identity(shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """The projection before the first task, of a parameter of this dtype: nothing is protected."""
    dtype = dtype_for(dtype)
    if len(shape) == 1:
        return jnp.ones(shape, dtype)
    return jnp.broadcast_to(jnp.eye(shape[-1], dtype=dtype), shape)


def dtype_for(parameter_dtype: jnp.dtype) -> jnp.dtype:
    """At least float32: the RLS recursion loses symmetry and definiteness in 16 bits."""
    # Not jnp.promote_types, which strict dtype promotion refuses for other widths.
    dtype = jnp.dtype(parameter_dtype)
    return dtype if dtype.itemsize >= 4 else jnp.dtype(jnp.float32)


def mebibytes(shape: tuple[int, ...], parameter_dtype: jnp.dtype) -> float:
    """What a projection of this shape takes."""
    return math.prod(shape) * dtype_for(parameter_dtype).itemsize / 2**20


def project(projection: jax.Array, gradient: jax.Array) -> jax.Array:
    """``P g`` for a gradient ``g [d, m]``, in the projection's dtype."""
    gradient = gradient.astype(projection.dtype)
    if projection.ndim == 1:
        return projection[:, None] * gradient
    blocks = gradient.reshape(*projection.shape[:-1], -1)
    return jnp.matmul(projection, blocks, precision=_HIGHEST).reshape(gradient.shape)


def project_rows(projection: jax.Array, rows: jax.Array) -> jax.Array:
    """``X P`` for ``X [rows, d]``: `project` of the columns of ``X'``, as rows.

    P being symmetric, it is the same product, but XLA's CPU backend reads P twice as fast for it.
    """
    rows = rows.astype(projection.dtype)
    if projection.ndim == 1:
        return projection[None] * rows
    if projection.ndim == 2:
        return jnp.matmul(rows, projection, precision=_HIGHEST)
    blocks = jnp.moveaxis(rows.reshape(-1, *projection.shape[:-1]), -2, 0)
    product = jnp.matmul(blocks, projection, precision=_HIGHEST)
    return jnp.moveaxis(product, 0, -2).reshape(rows.shape)


def normalize(projection: jax.Array, projected: jax.Array) -> jax.Array:
    """The trace rule of Algorithm 1, line 5: ``(d / tr P) P g`` from ``P g [d, m]``.

    A block-diagonal P has a trace for each block.
    """
    if projection.ndim == 1:
        return projected.astype(projection.dtype) * (len(projection) / jnp.sum(projection))
    # Not jnp.trace, which reads all of P.
    trace = jnp.sum(jnp.diagonal(projection, axis1=-2, axis2=-1), axis=-1)
    scale = projection.shape[-1] / trace
    blocks = projected.astype(projection.dtype).reshape(*projection.shape[:-1], -1)
    return (scale[..., None, None] * blocks).reshape(projected.shape)


def rank_one_update(
    projection: jax.Array, vector: jax.Array, alpha: jax.typing.ArrayLike
) -> jax.Array:
    """Folds one vector in: ``P - (P v)(P v)' / (alpha + v' P v)``, Algorithm 1, lines 10-11.

    Args:
      projection: any of the three forms.
      vector: ``[d]``.
      alpha: scalar, positive.

    Returns:
      The new projection, exactly symmetric if the old one is.
    """
    alpha = jnp.asarray(alpha, projection.dtype)
    if projection.ndim == 1:
        return block_update(projection, vector[None], alpha, block_size=1)
    if projection.ndim == 3:
        blocks = vector.reshape(projection.shape[:2])
        return jax.vmap(rank_one_update, in_axes=(0, 0, None))(projection, blocks, alpha)
    u = jnp.matmul(projection, vector, precision=_HIGHEST)
    gain = jnp.vdot(vector, u, precision=_HIGHEST)
    # See `block_update` on rounding. A gain of no more than 0 is nothing but rounding: the
    # direction is protected as well as it can be.
    rounding = 4 * projection.shape[0] ** 0.5 * _eps(vector) * jnp.sum(vector**2)
    # By the root: of a long vector the weight itself could be too small for a float32.
    root = jnp.sqrt(jnp.maximum(alpha, rounding) + gain)
    w = jnp.where(gain > 0, u / root, 0)
    return projection - jnp.outer(w, w)


def _eps(x: jax.Array) -> float:
    return float(np.finfo(x.dtype).eps)


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
      projection: any of the three forms.
      vectors: ``[n, d]``.
      alpha: scalar, positive.
      block_size: how many vectors are folded in at once. Bounds the extra memory to
        ``block_size * (d + block_size)`` numbers.

    Returns:
      The new projection, symmetric.
    """
    alpha = jnp.asarray(alpha, projection.dtype)
    if projection.ndim == 1:
        return projection / (1 + projection * jnp.sum(vectors**2, axis=0) / alpha)
    if projection.ndim == 3:
        blocks = jnp.moveaxis(vectors.reshape(-1, *projection.shape[:2]), 1, 0)
        return jax.vmap(lambda p, v: block_update(p, v, alpha, block_size=block_size))(
            projection, blocks
        )
    count, d = vectors.shape
    block_size = min(block_size, count)
    num_blocks = -(-count // block_size)
    # A zero vector changes nothing, so the last block can be filled up with them.
    padded = jnp.pad(vectors, ((0, num_blocks * block_size - count), (0, 0)))

    def fold(p: jax.Array, v: jax.Array) -> tuple[jax.Array, None]:
        vp = jnp.matmul(v, p, precision=_HIGHEST)
        gram = jnp.matmul(vp, v.T, precision=_HIGHEST)
        # V P V' is known no better than this. With an alpha below it, what is left of P along V
        # would be noise of either sign, P no longer definite, and soon NaN. The factor is
        # measured; with alpha = 0.01 and blocks of 128 it matters for vectors more than 6 long.
        rounding = 16 * block_size * _eps(v) * jnp.sum(v**2, axis=1)
        ridge = jnp.diag(jnp.maximum(alpha, rounding))
        w = _whitened(ridge + (gram + gram.T) / 2, vp)
        return p - jnp.matmul(w.T, w, precision=_HIGHEST), None

    folded, _ = jax.lax.scan(fold, projection, padded.reshape(num_blocks, block_size, d))
    # Products round differently above and below the diagonal. Once a task is enough, and on a
    # CPU a transposition takes as long as a product.
    return (folded + folded.T) / 2


@one_by_one_on_cpu
def _whitened(gram: jax.Array, rows: jax.Array) -> jax.Array:
    """``L^-1 rows``, where ``L L' = gram``."""
    return solve_triangular(jnp.linalg.cholesky(gram), rows, lower=True)


def eigenvalues(projection: jax.Array) -> jax.Array:
    """All ``d`` eigenvalues, ascending."""
    if projection.ndim == 1:
        return jnp.sort(projection)
    if projection.ndim == 3:
        return jnp.sort(jax.vmap(_eigenvalues)(projection).ravel())
    return _eigenvalues(projection)


_eigenvalues = one_by_one_on_cpu(jnp.linalg.eigvalsh)
