"""Consolidation: optimizer state in, optimizer state out, with finished tasks folded in."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rgo_jax import _fused, _geometry, _projection, _state


def rls_update(
    opt_state: optax.OptState, grads: optax.Updates, *, alpha: jax.typing.ArrayLike = 1.0
) -> optax.OptState:
    """Folds the Hessian-weighted gradient of one batch into every projection.

    For each leaf with gradient ``r [d, m]`` and projection ``P [d, d]``: ``v`` is the sum of the
    columns of ``r``, and ``P`` becomes ``P - (P v)(P v)' / (alpha + v' P v)``, a recursive least
    squares update. Jitted: the first call compiles, later ones of the same shapes do not.

    Call it after a task, at the final parameters, for batches of the task's data. For many
    batches `rgo_jax.consolidate` gives the same result faster.

    Args:
      opt_state: the state of any optax transform that contains `rgo_jax.scale_by_rgo`, at any
        depth of ``chain``, ``masked``, ``partition``, ``inject_hyperparams`` and the like.
      grads: a tree like the parameters, the gradient of `rgo_jax.curvature_output` on one batch.
        Leaves that the transform does not cover are ignored.
      alpha: scalar, positive; the strength of the prior. Smaller protects more.

    Returns:
      The optimizer state with new projections; everything else in it is as it was.

    Raises:
      ValueError: no `rgo_jax.RgoState` in ``opt_state``; ``grads`` does not match it;
        ``alpha`` is not positive.

    Example:
      >>> import jax.numpy as jnp, rgo_jax
      >>> tx = rgo_jax.rgo(0.1)
      >>> state = tx.init({"kernel": jnp.zeros((2, 2))})
      >>> state = rgo_jax.rls_update(state, {"kernel": jnp.array([[0.5, 0.5], [0.0, 0.0]])})
      >>> print(state[0].projection["kernel"])  # 1 - 1 * 1 / (1 + 1 * 1)
      [[0.5 0. ]
       [0.  1. ]]

    References:
      Algorithm 1, lines 9-11; the sum over columns is section 4.3.
      https://arxiv.org/abs/2201.12522
    """
    _check_alpha(alpha)
    return _rls_update(opt_state, grads, alpha)


@jax.jit
def _rls_update(
    opt_state: optax.OptState, grads: optax.Updates, alpha: jax.typing.ArrayLike
) -> optax.OptState:
    def update(state: _state.RgoState) -> _state.RgoState:
        vectors = _curvature_vectors(state, grads)
        return _state.RgoState(
            num_updates=optax.safe_increment(state.num_updates),
            projection=jax.tree.map(
                lambda p, v: _projection.rank_one_update(p, v, alpha), state.projection, vectors
            ),
        )

    return _state.map_states(update, opt_state)


def consolidate(
    opt_state: optax.OptState,
    grad_fn: Callable[[Any], optax.Updates],
    batches: Any,
    *,
    alpha: jax.typing.ArrayLike = 1.0,
    block_size: int = 128,
) -> optax.OptState:
    """Folds a finished task into every projection: `rgo_jax.rls_update` over many batches.

    The vectors ``v`` do not depend on ``P``, so they are collected first, in one scan over the
    batches, and folded in with matrix products (`block_size` at a time) instead of one rank-one
    update each. The result is the same as far as float32 can tell: an ``alpha`` below ``16 eps``
    (2e-6) times the sum of ``|v|^2`` over a block acts as if it were that. With blocks of 128 and
    ``alpha = 1`` that concerns vectors more than 60 long; where it does, a smaller ``block_size``
    lowers the bound in proportion.

    Pure, and not jitted by itself, because ``grad_fn`` closes over the parameters: call it inside
    your own `jax.jit`, where it compiles once for all tasks.

    Args:
      opt_state: as for `rgo_jax.rls_update`.
      grad_fn: from one batch to a tree like the parameters, the gradient of
        `rgo_jax.curvature_output` on that batch at the final parameters.
      batches: a tree of arrays ``[num_batches, ...]``; ``grad_fn`` gets one slice at a time. May
        hold indices rather than examples.
      alpha: scalar, positive; as for `rgo_jax.rls_update`.
      block_size: how many vectors one Cholesky factorisation folds in.

    Returns:
      The optimizer state with new projections; everything else in it is as it was.

    Raises:
      ValueError: as `rgo_jax.rls_update`; also for ``batches`` without a common leading axis or
        with no batch in it, for a ``block_size`` below 1, and for a ``grad_fn`` in which layers of
        `rgo_jax.linen` are handed their projections.

    Example:
      >>> import jax, jax.numpy as jnp, rgo_jax
      >>> w = jnp.zeros((4, 3))
      >>> tx = rgo_jax.rgo(0.1)
      >>> state = tx.init(w)
      >>> x = jax.random.normal(jax.random.key(0), (5, 10, 4))  # 5 batches of 10
      >>> y = jnp.zeros((5, 10), jnp.int32)
      >>> @jax.jit
      ... def end_of_task(state, w, x, y):
      ...     def grad_fn(batch):
      ...         return jax.grad(lambda w: rgo_jax.curvature_output(batch[0] @ w, batch[1]))(w)
      ...     return rgo_jax.consolidate(state, grad_fn, (x, y))
      >>> state = end_of_task(state, w, x, y)
      >>> int(state[0].num_updates)
      5

    References:
      Algorithm 1, lines 8-12; the block form is the Woodbury identity.
      https://arxiv.org/abs/2201.12522
    """
    _check_alpha(alpha)
    if block_size < 1:
        raise ValueError(f"block_size is {block_size}; expected 1 or more.")
    num_batches = _count_batches(batches)

    states: list[_state.RgoState] = []
    _state.map_states(states.append, opt_state)

    def collect(carry: None, batch: Any) -> tuple[None, list[Any]]:
        grads = grad_fn(batch)
        return carry, [_curvature_vectors(state, grads) for state in states]

    with _fused.curvature_pass():
        _, vectors = jax.lax.scan(collect, None, batches)
    folded = iter(vectors)

    def update(state: _state.RgoState) -> _state.RgoState:
        return _state.RgoState(
            num_updates=state.num_updates + num_batches,
            projection=jax.tree.map(
                lambda p, v: _projection.block_update(p, v, alpha, block_size=block_size),
                state.projection,
                next(folded),
            ),
        )

    return _state.map_states(update, opt_state)


def _curvature_vectors(state: _state.RgoState, grads: optax.Updates) -> Any:
    """A tree like ``state.projection`` of vectors ``v [d]``: sums over the m columns.

    The sum, not the mean: it is what comes near the paper's numbers.
    """
    leaves = _geometry.leaves_by_path(grads)
    projections = _geometry.leaves_by_path(state.projection)
    _state.check_paths(projections, leaves, "grads")

    def vector(path: _geometry.Path, projection: jax.Array) -> jax.Array:
        _, matrix = _state.pair(path, leaves[path], projections, "grads")
        return jnp.sum(matrix, axis=1, dtype=projection.dtype)

    return _geometry.map_with_path(vector, state.projection)


def _check_alpha(alpha: jax.typing.ArrayLike) -> None:
    if jnp.shape(alpha):
        raise ValueError(
            f"alpha has shape {jnp.shape(alpha)}; expected a scalar. For one of each model's own, "
            "jax.vmap over models."
        )
    # A traced alpha has no value to look at; the caller who traces it has seen the number.
    if not isinstance(alpha, jax.core.Tracer) and not np.all(np.asarray(alpha) > 0):
        raise ValueError(
            f"alpha is {alpha}; expected a positive number. The paper uses 1; smaller protects "
            "earlier tasks more."
        )


def _count_batches(batches: Any) -> int:
    shapes = {
        _geometry.path_name(path): jnp.shape(leaf)
        for path, leaf in _geometry.leaves_by_path(batches).items()
    }
    counts = {shape[0] if shape else 0 for shape in shapes.values()}
    if len(counts) != 1 or not min(counts):
        raise ValueError(
            f"batches has leaves of shapes {shapes or 'none at all'}; expected arrays "
            "[num_batches, ...] with the same num_batches, at least 1."
        )
    return counts.pop()
