"""Kernels as a shared part behind a gate plus a part of each task's own, as `apd` has them.

``theta_t = sigma * sigmoid(v_t) + tau_t``, with one number of ``v_t`` for each output.
"""

from typing import Any

import jax
import jax.numpy as jnp

# Some of a network's parameters, each by its path.
Leaves = dict[str, jax.Array]


def gate(v: jax.Array, ndim: int) -> jax.Array:
    """``sigmoid(v)`` of ``v [..., m]``, ready to be multiplied with a kernel of ``ndim`` axes.

    Leading axes of ``v`` stay in front: ``[..., 1, ..., 1, m]``.
    """
    return jax.nn.sigmoid(v).reshape(*v.shape[:-1], *(1,) * (ndim - 1), v.shape[-1])


def shrink(x: jax.Array, by: jax.typing.ArrayLike) -> jax.Array:
    """The soft threshold: what a proximal step of ``by * |x|`` leaves."""
    return jnp.sign(x) * jnp.maximum(jnp.abs(x) - by, 0)


def cut(x: jax.Array, at: float) -> jax.Array:
    """The hard threshold: 0 where ``|x| <= at``."""
    return jnp.where(jnp.abs(x) > at, x, 0)


def best_tau(residual: jax.Array, l1: float, l2: float) -> jax.Array:
    """The own part that an old task has at the minimum of its penalty.

    ``argmin l1 |tau| + l2 / 2 (tau - residual)^2``, element by element.

    Args:
      residual: ``theta* - sigma * sigmoid(v)``: what the shared part leaves to be said.
      l1: weight of the sparsity.
      l2: weight of staying where the task was.
    """
    return shrink(residual, l1 / l2)


def retain(
    sigma: jax.Array, mask: jax.Array, target: jax.Array, rate: jax.Array, l1: float, l2: float
) -> jax.Array:
    """A proximal step of one old task's penalty, after `best_tau` has been put in for its ``tau``.

    That leaves of the penalty the Huber function of ``u = sigma * mask - target``: ``l2 / 2 u^2``
    near 0 and of slope ``l1`` further out.

    Args:
      sigma: the shared kernel ``[..., m]``.
      mask: the task's `gate`, ``[1, ..., 1, m]``.
      target: what ``sigma * mask + tau`` is to stay, ``[..., m]``.
      rate: of the step.
      l1: as in `best_tau`.
      l2: as in `best_tau`.

    Returns:
      ``argmin_s (s - sigma)^2 / 2 + rate * huber(s * mask - target)``.
    """
    slope = l2 * (sigma * mask - target) / (1 + rate * l2 * mask**2)
    return sigma - rate * mask * jnp.clip(slope, -l1, l1)


def common(cluster: jax.Array, shared: jax.Array) -> jax.Array:
    """What each task has in common with its cluster, ``[tasks, *kernel]``."""
    is_in = (cluster >= 0).reshape(-1, *(1,) * (shared.ndim - 1))
    return jnp.where(is_in, shared[cluster], 0)


def kernels_of(params: Any) -> Leaves:
    """What is decomposed: all but heads and vectors."""
    return {name: leaf for name, leaf in _body(params).items() if leaf.ndim > 1}


def biases_of(params: Any) -> Leaves:
    """The vectors outside of heads."""
    return {name: leaf for name, leaf in _body(params).items() if leaf.ndim < 2}


def _body(params: Any) -> Leaves:
    body = {name: layer for name, layer in params.items() if name != "head"}
    return {
        jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(body)
    }


def replaced(params: Any, leaves: Leaves) -> Any:
    """The parameters with these in the place of those of the same paths."""
    return jax.tree.map_with_path(
        lambda path, leaf: leaves.get(jax.tree_util.keystr(path), leaf), params
    )
