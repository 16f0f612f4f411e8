"""``consolidate``: all batches of a finished task, folded into every projection."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rgo_jax import _alpha, _columns, _folding, _projection, _state, _tree, _warnings
from rgo_jax._columns import Columns, Curvature

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
    update each. With ``columns="each"`` those of one batch are folded in at a time; but where no
    gradient's rank is above the number of examples in a batch, as is so in dense layers, as many
    vectors tell the same as all columns, and are folded in instead. The result is the same as far
    as float32 can tell: for a vector ``v`` in a block of b vectors an ``alpha``
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

    def found_in(states: list[_state.RgoState], batches: Any, rank: int | None = None) -> list[Any]:
        """The curvatures of many batches, as if of one."""

        def of_batch(index: jax.Array, batch: Any) -> tuple[jax.Array, list[Any]]:
            grads = grad_fn(batch)
            return index + 1, [
                _folding.curvatures(state, grads, columns, key, state.num_updates + index, rank)
                for state in states
            ]

        return [*map(_folding.joined, jax.lax.scan(of_batch, jnp.int32(0), batches)[1])]

    def fold_all(states: list[_state.RgoState], found: list[Any], count: int) -> list[Any]:
        together = zip(states, found, alphas, strict=True)
        return [_folding.fold(*one, count, fold) for one in together]

    def fold_batch(states: list[_state.RgoState], batch: Any) -> tuple[list[Any], None]:
        alone = jax.tree.map(lambda x: x[None], batch)
        return fold_all(states, found_in(states, alone), 1), None

    def fold_group(states: list[_state.RgoState], group: Any) -> tuple[list[Any], None]:
        """By ``rank`` vectors of each batch, if those are all that there is to its gradients."""
        found = found_in(states, group, rank)
        leaves = jax.tree.leaves(found, is_leaf=lambda node: isinstance(node, Curvature))
        return jax.lax.cond(
            jnp.all(jnp.stack([leaf.is_whole for leaf in leaves])),
            lambda: fold_all(states, found, group_size),
            lambda: jax.lax.scan(fold_batch, states, group)[0],
        ), None

    rank = _count_examples(batches)
    if columns != "each":
        states = fold_all(states, found_in(states, batches), num_batches)
    elif rank is None:
        states, _ = jax.lax.scan(fold_batch, states, batches)
    else:
        most = max(1, block_size // rank)
        group_size = max(n for n in range(1, most + 1) if num_batches % n == 0)
        groups = jax.tree.map(lambda x: x.reshape(-1, group_size, *x.shape[1:]), batches)
        states, _ = jax.lax.scan(fold_group, states, groups)
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


def _count_examples(batches: Any) -> int | None:
    """How many examples a batch has, if its arrays have such an axis.

    The gradient of a dense layer has no higher rank.
    """
    counts = [leaf.shape[1] for leaf in _tree.leaves_by_path(batches).values() if leaf.ndim > 1]
    return max(counts) if counts and min(counts) else None
