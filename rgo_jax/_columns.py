"""How the columns of a gradient become the vectors that are folded into a projection.

A leaf's Hessian-weighted gradient ``r [d, m]`` has a column for each feature extractor. Section 4.3
of the RGO paper folds their average in, as one vector. That loses what cancels in it.
"""

from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from rgo_jax._lapack import in_turn_on_cpu

Columns = Literal["mean", "signs", "each"]

# How many random combinations tell whether a basis spans a gradient's rows.
_CHECKS = 4


class Curvature(NamedTuple):
    """What one gradient has to say of one leaf.

    Attributes:
      vectors: ``[k, d]``, all finite.
      energy: ``[2]``: the sum of ``|v|^2``, and the mean of ``|column|^2`` or an estimate of it.
      num_skipped: int32 scalar, how many vectors were not finite and are zeros now.
      is_whole: bool scalar, false where the gradient has a higher rank than there are vectors.
    """

    vectors: jax.Array
    energy: jax.Array
    num_skipped: jax.Array
    is_whole: jax.Array


def check(columns: Any) -> None:
    """Refuses what is no name of `Columns`.

    Raises:
      ValueError: it is none.
    """
    if columns not in get_args(Columns):
        known = ", ".join(repr(name) for name in get_args(Columns))
        raise ValueError(f"columns is {columns!r}; expected one of {known}.")


def default_key() -> jax.Array:
    """``jax.random.key(0)``, whatever generator jax is set to."""
    return jax.random.wrap_key_data(jnp.zeros(2, jnp.uint32), impl="threefry2x32")


def draw_signs(key: jax.Array, index: jax.Array, leaf: int, m: int) -> jax.Array:
    """1 and -1 at random, int32 ``[m]``: for a batch, and a leaf by its number.

    They are part of what P becomes, so they don't depend on how jax is set to spread numbers, nor
    on its default dtype.
    """
    with jax.threefry_partitionable(True):
        key = jax.random.fold_in(jax.random.fold_in(key, index), leaf)
        return jnp.where(jax.random.bernoulli(key, jnp.float32(0.5), (m,)), 1, -1)


def curvature(matrix: jax.Array, columns: Columns, signs: jax.Array) -> Curvature:
    """The vectors of a gradient ``[d, m]``, one or, of "each", m of them.

    All are to the same scale: where the columns are equal, ``sum v v'`` is the same for all three;
    of "each" it is the mean of the columns' outer products, and of "signs" its expectation is.

    Args:
      matrix: ``[d, m]``, in the projection's dtype.
      columns: how.
      signs: ``[m]``, 1 and -1 at random. With them the mean ``|column|^2`` is estimated too, where
        not all columns are vectors.
    """
    m = matrix.shape[1]
    mixed = signs / m**0.5
    if columns == "each":
        vectors, probe = matrix.T / m**0.5, None
    elif columns == "signs":
        vectors, probe = _product(matrix, mixed[:, None]).T, None
    else:
        # One product, which reads the matrix once.
        both = _product(matrix, jnp.stack([jnp.full_like(mixed, 1 / m), mixed], axis=1))
        vectors = both[:, 0][None]
        # What the mean leaves out of each column, in the same random combination.
        probe = both[:, 1] - both[:, 0] * jnp.sum(mixed)
    lengths = jnp.sum(vectors**2, axis=1)
    is_finite = jnp.isfinite(lengths)
    folded = jnp.sum(jnp.where(is_finite, lengths, 0))
    whole = folded if probe is None else folded + jnp.sum(probe**2)
    energy = jnp.stack([folded, whole])
    return Curvature(
        vectors=jnp.where(is_finite[:, None], vectors, 0),
        energy=jnp.where(jnp.all(is_finite) & jnp.all(jnp.isfinite(energy)), energy, 0),
        num_skipped=jnp.sum(~is_finite, dtype=jnp.int32),
        is_whole=jnp.bool_(True),
    )


def of_rank(matrix: jax.Array, rank: int) -> Curvature:
    """`curvature` of "each" in ``min(rank, m)`` vectors, with the same sum of outer products.

    They are the rows' coordinates in an orthonormal basis of the span of as many random
    combinations of the rows, which is all rows' if that has no more dimensions (Halko, Martinsson
    and Tropp, SIAM Review 2011). Further combinations tell whether it is.

    Args:
      matrix: ``[d, m]``, in the projection's dtype.
      rank: how many vectors.

    Returns:
      The `Curvature`, to be used if ``is_whole``: to rounding, and with nothing to skip.
    """
    d, m = matrix.shape
    energy = jnp.sum(matrix**2)
    is_whole = jnp.isfinite(energy)
    if rank < m:
        rng = np.random.default_rng(0)
        probes = rng.normal(size=(rank + _CHECKS, d))
        # Turned, so that the vectors are about equally long: how exactly
        # `_projection.block_update` folds them in depends on the longest.
        turn = np.linalg.qr(rng.normal(size=(rank, rank)))[0]
        combinations = _product(jnp.asarray(probes, matrix.dtype), matrix)
        basis = _orthonormal(combinations[:rank].T)
        basis = _product(basis, jnp.asarray(turn, matrix.dtype))
        check = combinations[rank:]
        lost = check - _product(_product(check, basis), basis.T)
        # Far below the rounding of `_projection.block_update`.
        rounding = float(np.finfo(matrix.dtype).eps) * jnp.sum(check**2)
        is_whole &= jnp.sum(lost**2) <= rounding
        matrix = _product(matrix, basis)
    return Curvature(
        vectors=matrix.T / m**0.5,
        energy=jnp.stack([energy, energy]) / m,
        num_skipped=jnp.int32(0),
        is_whole=is_whole,
    )


@in_turn_on_cpu
def _orthonormal(matrix: jax.Array) -> jax.Array:
    """``Q`` of ``matrix = Q R``."""
    return jnp.linalg.qr(matrix)[0]


def _product(matrix: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.matmul(matrix, right, precision=jax.lax.Precision.HIGHEST)
