"""``consolidate``: all batches of a finished task, folded into every projection."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rgo_jax import (
    _alpha,
    _columns,
    _folding,
    _intercept,
    _projection,
    _state,
    _tree,
    _warnings,
)
from rgo_jax._columns import Columns, Curvature

_STACK = (
    "expected arrays [num_batches, ...]. Stack what a loader yields: jax.tree.map(lambda *x: "
    "jnp.stack(x), *batches); or call rls_update for each batch."
)


def consolidate(
    opt_state: optax.OptState,
    curvature_fn: Callable[..., Any],
    batches: Any,
    params: Any = None,
    *,
    alpha: Any = 0.01,
    relative_alpha: bool = False,
    columns: Columns = "mean",
    key: jax.Array | None = None,
    block_size: int = _folding.BLOCK_SIZE,
) -> optax.OptState:
    """Folds a finished task into every projection: `rgo_jax.rls_update` over many batches.

    The vectors ``v`` do not depend on ``P``, so they are collected first, in one scan over the
    batches, and folded in with matrix products (``block_size`` at a time) instead of one rank-one
    update each. Given ``params``, fused layers, those of `rgo_jax.linen` and `rgo_jax.nnx`, compute
    ``v`` from their inputs and the gradients of their outputs, and no gradient of a kernel is
    formed. `flax.linen.Dense` and `flax.linen.Conv` are fused here too.

    The result is the same as far as float32 can tell: for a vector ``v`` in a block of b vectors an
    ``alpha`` below ``16 b eps |v|^2`` acts as if it were that. With blocks of 128 and ``alpha =
    0.01`` that concerns vectors more than 6 long; where it does, a smaller ``block_size`` lowers
    the bound in proportion.

    With ``columns="each"`` the columns of one batch are folded in at a time. Where no gradient has
    a higher rank than a batch has examples, as in networks of dense layers, as many vectors as
    examples tell the same as all columns, and are folded in instead.

    Pure, and not jitted by itself, because ``curvature_fn`` may close over arrays: call it inside
    your own `jax.jit`, where it compiles once for all tasks.

    Args:
      opt_state: as for `rgo_jax.rls_update`.
      curvature_fn: ``(params, batch) -> scalar``, the `rgo_jax.curvature_output` of one batch.
        Without ``params``: ``(batch) -> grads``, its gradient, a tree like the parameters.
      batches: a tree of arrays ``[num_batches, ...]``; ``curvature_fn`` gets one slice at a time.
        May hold indices rather than examples.
      params: the final parameters.
      alpha: as for `rgo_jax.rls_update`.
      relative_alpha: as for `rgo_jax.rls_update`.
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
      ...     def output(w, batch):
      ...         return rgo_jax.curvature_output(batch[0] @ w, batch[1])
      ...     return rgo_jax.consolidate(state, output, (x, y), w)
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

    def of_batch(
        states: list[_state.RgoState], index: jax.Array, batch: Any, rank: int | None
    ) -> list[Any]:
        with _intercept.fused_layers():
            if params is not None and columns != "each":
                return _folding.curvatures_of_output(
                    states, lambda params: curvature_fn(params, batch), params, columns, key, index
                )
            grads = curvature_fn(batch) if params is None else jax.grad(curvature_fn)(params, batch)
        return [
            _folding.curvatures(state, grads, columns, key, state.num_updates + index, rank)
            for state in states
        ]

    def found_in(
        states: list[_state.RgoState], batches: Any, count: int, rank: int | None = None
    ) -> list[Any]:
        """The curvatures of many batches, as if of one."""
        stacked = jax.lax.map(
            lambda numbered: of_batch(states, numbered[0], numbered[1], rank),
            (jnp.arange(count, dtype=jnp.int32), batches),
        )
        return [*map(_folding.concatenate, stacked)]

    def fold_all(states: list[_state.RgoState], found: list[Any], count: int) -> list[Any]:
        together = zip(states, found, alphas, strict=True)
        return [_folding.fold(*one, count, fold, relative_alpha) for one in together]

    def fold_batch(states: list[_state.RgoState], batch: Any) -> tuple[list[Any], None]:
        alone = jax.tree.map(lambda x: x[None], batch)
        return fold_all(states, found_in(states, alone, 1), 1), None

    def fold_group(states: list[_state.RgoState], group: Any) -> tuple[list[Any], None]:
        """By ``rank`` vectors of each batch, if those are all that there is to its gradients."""
        found = found_in(states, group, num_in_group, rank)
        leaves = jax.tree.leaves(found, is_leaf=lambda node: isinstance(node, Curvature))
        return jax.lax.cond(
            jnp.all(jnp.stack([leaf.is_whole for leaf in leaves])),
            lambda: fold_all(states, found, num_in_group),
            lambda: jax.lax.scan(fold_batch, states, group)[0],
        ), None

    rank = _count_examples(batches)
    if columns != "each":
        states = fold_all(states, found_in(states, batches, num_batches), num_batches)
    elif rank is None:
        states, _ = jax.lax.scan(fold_batch, states, batches)
    else:
        most = max(1, block_size // rank)
        num_in_group = max(n for n in range(1, most + 1) if num_batches % n == 0)
        groups = jax.tree.map(lambda x: x.reshape(-1, num_in_group, *x.shape[1:]), batches)
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
