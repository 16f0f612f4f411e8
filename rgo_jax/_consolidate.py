"""``consolidate``: all batches of a finished task, folded into every projection."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rgo_jax import _alpha, _columns, _folding, _projection, _state, _tree, _warnings
from rgo_jax._columns import Columns

_STACK = (
    "expected arrays [num_batches, ...]. Stack what a loader yields: jax.tree.map(lambda *x: "
    "jnp.stack(x), *batches); or call rls_update for each batch."
)


def consolidate(
    opt_state: optax.OptState,
    grad_fn: Callable[[Any], optax.Updates],
    batches: Any,
    *,
    alpha: Any = 0.01,
    columns: Columns = "mean",
    key: jax.Array | None = None,
    block_size: int = _folding.BLOCK_SIZE,
) -> optax.OptState:
    """Folds a finished task into every projection: `rgo_jax.rls_update` over many batches.

    The vectors ``v`` do not depend on ``P``, so they are collected first, in one scan over the
    batches, and folded in with matrix products (``block_size`` at a time) instead of one rank-one
    update each. With ``columns="each"`` those of one batch are folded in at a time. The result is
    the same as far as float32 can tell: for a vector ``v`` in a block of b vectors an ``alpha``
    below ``16 b eps |v|^2`` acts as if it were that. With blocks of 128 and ``alpha = 0.01`` that
    concerns vectors more than 6 long; where it does, a smaller ``block_size`` lowers the bound in
    proportion.

    Pure, and not jitted by itself, because ``grad_fn`` closes over the parameters: call it inside
    your own `jax.jit`, where it compiles once for all tasks.

    Args:
      opt_state: as for `rgo_jax.rls_update`.
      grad_fn: from one batch to a tree like the parameters, the gradient of
        `rgo_jax.curvature_output` on that batch at the final parameters.
      batches: a tree of arrays ``[num_batches, ...]``; ``grad_fn`` gets one slice at a time. May
        hold indices rather than examples.
      alpha: as for `rgo_jax.rls_update`.
      columns: as for `rgo_jax.rls_update`.
      key: as for `rgo_jax.rls_update`.
      block_size: how many vectors one Cholesky factorisation folds in.

    Returns:
      As `rgo_jax.rls_update`.

    Raises:
      ValueError: as `rgo_jax.rls_update`; also for ``batches`` without a common leading axis or
        with no batch in it, and for a ``block_size`` below 1.

    Warns:
      UnprotectedWarning: as `rgo_jax.rls_update`; and, called outside `jax.jit`, if nearly all of a
        parameter's gradient cancelled in the mean over its columns.

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
    _columns.check(columns)
    if not isinstance(block_size, int | np.integer) or block_size < 1:
        raise ValueError(f"block_size is {block_size!r}; expected an integer, 1 or more.")
    num_batches = _count_batches(batches)
    key = _columns.default_key() if key is None else key
    states = _state.find_states(opt_state)
    alphas = [_alpha.by_path(alpha, state) for state in states]
    for state in states:
        _folding.warn_of_layer_norm(state, columns)

    def fold(projection: jax.Array, vectors: jax.Array, alpha: Any) -> jax.Array:
        return _projection.block_update(projection, vectors, alpha, block_size=block_size)

    def collect(index: jax.Array, batch: Any) -> tuple[jax.Array, list[Any]]:
        grads = grad_fn(batch)
        return index + 1, [
            _folding.curvatures(state, grads, columns, key, state.num_updates + index)
            for state in states
        ]

    def fold_batch(states: list[_state.RgoState], batch: Any) -> tuple[list[Any], None]:
        grads = grad_fn(batch)
        found = [
            _folding.curvatures(state, grads, columns, key, state.num_updates) for state in states
        ]
        folded = [_folding.fold(*one, 1, fold) for one in zip(states, found, alphas, strict=True)]
        return folded, None

    if columns == "each":
        states, _ = jax.lax.scan(fold_batch, states, batches)
    else:
        _, stacked = jax.lax.scan(collect, jnp.int32(0), batches)
        states = [
            _folding.fold(state, _folding.joined(found), own, num_batches, fold)
            for state, found, own in zip(states, stacked, alphas, strict=True)
        ]
    for state in states:
        _warnings.warn_of_vanishing(state)
    return _state.replace_states(opt_state, states)


def _count_batches(batches: Any) -> int:
    if isinstance(batches, list) and not all(hasattr(batch, "shape") for batch in batches):
        raise ValueError(f"batches is a list of trees, one for each batch; {_STACK}")
    shapes = {}
    for path, leaf in _tree.leaves_by_path(batches).items():
        name = _tree.path_name(path)
        # Keys of JAX have a dtype of their own, without a kind.
        if not hasattr(leaf, "shape") or getattr(leaf.dtype, "kind", None) == "O":
            raise ValueError(
                f"batches has a {type(leaf).__name__} at {name!r}, which is no array of numbers; "
                f"{_STACK}"
            )
        shapes[name] = leaf.shape
    counts = {shape[0] if shape else 0 for shape in shapes.values()}
    if len(counts) != 1 or not min(counts):
        raise ValueError(
            f"batches has leaves of shapes {shapes or 'none at all'}; expected arrays "
            "[num_batches, ...] with the same num_batches, at least 1. Fill a shorter last batch "
            "up, with weights=0 in curvature_output, or fold it in with rls_update."
        )
    return counts.pop()
