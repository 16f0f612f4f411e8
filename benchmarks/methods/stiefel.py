"""Gradient descent on the Stiefel manifold: kernels whose columns stay orthonormal."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

_matmul = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


class StiefelState(NamedTuple):
    """State of `stiefel_sgd`.

    Attributes:
      num_steps: int32 scalar.
    """

    num_steps: jax.Array


def stiefel_sgd(learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """SGD that turns kernels by Cayley transforms, which leave ``W' W`` as it is.

    A leaf is seen as ``W [d, m]``, every axis but the last as d. Where d < m it is ``W W'`` that
    stays as it is. Only nearly so: the transform is approximated, and a turn by an angle shortens
    columns by its fourth power over eight. Small steps stay on the manifold, large ones leave it.

    Li, Li and Todorovic 2020, https://arxiv.org/abs/2002.01113, Algorithm 1, without momentum.

    Args:
      learning_rate: a scalar or a schedule, limited as in `cayley_step`.

    Returns:
      A `optax.GradientTransformation`; its update needs the parameters.
    """

    def init_fn(params: optax.Params) -> StiefelState:
        del params
        return StiefelState(jnp.zeros([], jnp.int32))

    def update_fn(
        updates: optax.Updates, state: StiefelState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, StiefelState]:
        rate = learning_rate(state.num_steps) if callable(learning_rate) else learning_rate

        def update_leaf(gradient: jax.Array, kernel: jax.Array) -> jax.Array:
            matrix = kernel.reshape(-1, kernel.shape[-1])
            turned = cayley_step(matrix, gradient.reshape(matrix.shape), rate)
            return turned.reshape(kernel.shape) - kernel

        updates = jax.tree.map(update_leaf, updates, params)
        return updates, StiefelState(state.num_steps + 1)

    return optax.GradientTransformation(init_fn, update_fn)


def cayley_step(
    kernel: jax.Array, gradient: jax.Array, learning_rate: jax.typing.ArrayLike
) -> jax.Array:
    """One step along the manifold, the transform approximated by two fixed-point iterations.

    Of the Euclidean gradient's part along the manifold, ``A W`` with A skew, the Cayley transform
    is the solution of ``Y = W - rate / 2 A (W + Y)``.

    Args:
      kernel: ``W [d, m]``.
      gradient: of the loss in it, ``[d, m]``.
      learning_rate: scalar, positive; at most ``1 / |A|`` of it is used, at which the iteration
        still contracts.

    Returns:
      The next ``W [d, m]``.
    """
    # A = B - B' with B = G W' - W W' G W' / 2 (the Euclidean inner product).
    within = _matmul(kernel.T, gradient)
    factor = gradient - 0.5 * _matmul(kernel, within)
    half = _matmul(factor, kernel.T)
    skew = half - half.T
    norm = jnp.max(jnp.sum(jnp.abs(skew), axis=1))
    rate = jnp.minimum(learning_rate, 1 / (norm + 1e-8))
    turned = kernel - rate * _matmul(skew, kernel)
    for _ in range(2):
        turned = kernel - rate * _matmul(skew, 0.5 * (kernel + turned))
    return turned
