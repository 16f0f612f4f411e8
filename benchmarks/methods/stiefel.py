"""Gradient descent on the Stiefel manifold: kernels whose columns stay orthonormal."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rgo_jax.lapack import one_by_one_on_cpu

_matmul = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
_qr = one_by_one_on_cpu(jnp.linalg.qr)


class StiefelState(NamedTuple):
    """State of `stiefel_sgd`.

    Attributes:
      num_steps: int32 scalar.
    """

    num_steps: jax.Array


def stiefel_sgd(
    learning_rate: optax.ScalarOrSchedule,
) -> optax.GradientTransformationExtraArgs:
    """SGD that turns kernels by Cayley transforms, which leave ``W' W`` as it is.

    A leaf is seen as ``W [d, m]``, every axis but the last as d. Where d < m it is ``W W'`` that
    stays as it is. Only nearly so: the transform is approximated, and a turn by an angle shortens
    columns by its fourth power over eight. Small steps stay on the manifold, large ones leave it.

    Li, Li and Todorovic 2020, https://arxiv.org/abs/2002.01113, Algorithm 1, without momentum.

    Args:
      learning_rate: a scalar or a schedule, limited as in `cayley_step`.

    Returns:
      A `optax.GradientTransformation`; its update needs the parameters. If it is told
      ``num_examples``, an integer, how many the gradient is of, kernels of fully connected layers
      take the fewer operations that a gradient of no higher rank allows.
    """

    def init_fn(params: optax.Params) -> StiefelState:
        del params
        return StiefelState(jnp.zeros([], jnp.int32))

    def update_fn(
        updates: optax.Updates,
        state: StiefelState,
        params: optax.Params | None = None,
        *,
        num_examples: int | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, StiefelState]:
        del extra_args
        rate = learning_rate(state.num_steps) if callable(learning_rate) else learning_rate

        def update_leaf(gradient: jax.Array, kernel: jax.Array) -> jax.Array:
            matrix = kernel.reshape(-1, kernel.shape[-1])
            # A convolution's is a sum over places too.
            max_rank = num_examples if kernel.ndim == 2 else None
            turned = cayley_step(matrix, gradient.reshape(matrix.shape), rate, max_rank)
            return turned.reshape(kernel.shape) - kernel

        updates = jax.tree.map(update_leaf, updates, params)
        return updates, StiefelState(state.num_steps + 1)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def cayley_step(
    kernel: jax.Array,
    gradient: jax.Array,
    learning_rate: jax.typing.ArrayLike,
    max_rank: int | None = None,
) -> jax.Array:
    """One step along the manifold, the transform approximated by two fixed-point iterations.

    Of the Euclidean gradient's part along the manifold, ``A W`` with A skew, the Cayley transform
    is the solution of ``Y = W - rate / 2 A (W + Y)``.

    Args:
      kernel: ``W [d, m]``.
      gradient: of the loss in it, ``[d, m]``.
      learning_rate: scalar, positive; at most ``1 / |A|`` of it is used, at which the iteration
        still contracts.
      max_rank: the rank of the gradient at most, if known. The step is the same, in operations of
        order ``d (d + m) max_rank`` in place of ``d^2 m``.

    Returns:
      The next ``W [d, m]``.
    """
    along: Callable[[jax.Array], jax.Array]  # A times a matrix
    # A = B - B' with B = G W' - W W' G W' / 2 (the Euclidean inner product).
    if max_rank is None or 4 * max_rank >= min(kernel.shape):
        half = _matmul(_without_half(gradient, kernel), kernel.T)
        skew = half - half.T
        along = partial(_matmul, skew)
    else:
        columns, rows = _low_rank_factors(gradient, max_rank)
        left, right = _without_half(columns, kernel), _matmul(kernel, rows.T)  # B = left right'
        # One product in place of two, one of which would have to be transposed.
        skew = _matmul(
            jnp.concatenate([left, -right], axis=1), jnp.concatenate([right, left], axis=1).T
        )
        along = partial(_along_factors, left, right)

    norm = jnp.max(jnp.sum(jnp.abs(skew), axis=1))
    rate = jnp.minimum(learning_rate, 1 / (norm + 1e-8))
    turned = kernel - rate * along(kernel)
    for _ in range(2):
        turned = kernel - rate * along(0.5 * (kernel + turned))
    return turned


def _along_factors(left: jax.Array, right: jax.Array, matrix: jax.Array) -> jax.Array:
    """``(left right' - right left')`` times a matrix."""
    return _matmul(left, _matmul(right.T, matrix)) - _matmul(right, _matmul(left.T, matrix))


def _without_half(matrix: jax.Array, kernel: jax.Array) -> jax.Array:
    """``(I - W W' / 2)`` times a matrix ``[d, n]``."""
    return matrix - 0.5 * _matmul(kernel, _matmul(kernel.T, matrix))


def _low_rank_factors(matrix: jax.Array, rank: int) -> tuple[jax.Array, jax.Array]:
    """``[d, rank]`` and ``[rank, m]``, whose product is a matrix of no higher rank."""
    # So many random combinations of its columns span them all.
    mixing = jax.random.normal(jax.random.key(0), (matrix.shape[1], rank))
    columns, _ = _qr(_matmul(matrix, mixing))
    return columns, _matmul(columns.T, matrix)
