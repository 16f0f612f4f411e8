"""Consolidation: optimizer state in, optimizer state out, with finished tasks folded in."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rgo_jax import _alpha, _columns, _projection, _state, _tree, _warnings
from rgo_jax._columns import Columns, Curvature
from rgo_jax._projected import Projected

_STACK = (
    "expected arrays [num_batches, ...]. Stack what a loader yields: jax.tree.map(lambda *x: "
    "jnp.stack(x), *batches); or call rls_update for each batch."
)

# How many vectors are folded in at once.
_BLOCK_SIZE = 128


def rls_update(
    opt_state: optax.OptState,
    grads: optax.Updates,
    *,
    alpha: Any = 0.01,
    columns: Columns = "mean",
    key: jax.Array | None = None,
) -> optax.OptState:
    """Folds the Hessian-weighted gradient of one batch into every projection.

    For each leaf with gradient ``r [d, m]`` and projection ``P [d, d]``: ``v`` is the mean of the
    columns of ``r``, and ``P`` becomes ``P - (P v)(P v)' / (alpha + v' P v)``, a recursive least
    squares update. Jitted: the first call compiles, later ones of the same shapes do not.

    Call it after a task, at the final parameters, for batches of the task's data. For many
    batches `rgo_jax.consolidate` gives the same result faster.

    ``alpha`` is on the scale of ``|v|^2``, and `rgo_jax.curvature_output` sums over the examples of
    a batch. So the loss's scale is in ``v`` by its square root (its Hessian is, in full), the batch
    size in full where examples are alike and by its square root where they are not, and, as ``v``
    is a mean over columns that mostly cancel, wide layers are protected less than narrow ones.

    Args:
      opt_state: the state of any optax transform that contains `rgo_jax.scale_by_rgo`, at any
        depth of ``chain``, ``masked``, ``partition``, ``inject_hyperparams`` and the like.
      grads: a tree like the parameters, the gradient of `rgo_jax.curvature_output` on one batch.
        Leaves that the transform does not cover are ignored.
      alpha: the strength of the prior, positive; smaller protects more. A scalar, or a tree of
        scalars like the parameters; one at a branch holds for all leaves below. May be traced.
      columns: what of the m columns is folded in.

        * ``"mean"``: their mean, as the paper has it. Where they cancel, as those of a kernel
          before a layer normalisation do, nothing is left to protect the kernel by
          (`rgo_jax.UnprotectedWarning`).
        * ``"signs"``: their sum with random signs, over ``sqrt(m)``. The expectation of ``v v'`` is
          the mean of the columns' outer products, whatever cancels.
        * ``"each"``: every column over ``sqrt(m)`` as a vector of its own, which is that mean
          exactly, for m updates in place of one.
      key: of the signs, a `jax.random.key`; ``jax.random.key(0)`` if None. Together with
        `RgoState.num_updates` it decides them, so one key serves all batches and tasks.

    Returns:
      The optimizer state with new projections; everything else in it is as it was. A vector that
      is not finite, or whose square is not, is left out and counted (`RgoState.num_skipped`).

    Raises:
      ValueError: no `rgo_jax.RgoState` in ``opt_state``; ``grads`` or ``alpha`` does not match it;
        ``grads`` are those of `rgo_jax.value_and_grad`; an alpha that is not positive or, in the
        projection's dtype, 0 or infinite; unknown ``columns``.

    Warns:
      UnprotectedWarning: the parameters' names tell of a layer normalisation, and ``columns`` is
        ``"mean"``.

    Example:
      >>> import jax.numpy as jnp, rgo_jax
      >>> tx = rgo_jax.rgo(0.1)
      >>> state = tx.init({"kernel": jnp.zeros((2, 2))})
      >>> grads = {"kernel": jnp.array([[0.75, 0.25], [0.0, 0.0]])}
      >>> state = rgo_jax.rls_update(state, grads, alpha=0.25)
      >>> print(state[0].projection["kernel"])  # 1 - 0.5 * 0.5 / (0.25 + 0.5 * 0.5)
      [[0.5 0. ]
       [0.  1. ]]

    References:
      Algorithm 1, lines 9-11; the mean over columns is section 4.3.
      https://arxiv.org/abs/2201.12522
    """
    _columns.check(columns)
    for state in _state.find_states(opt_state):
        _alpha.by_path(alpha, state)
        _warn_of_layer_norm(state, columns)
    key = _columns.default_key() if key is None else key
    return _rls_update(opt_state, grads, alpha, key, columns=columns)


@partial(jax.jit, static_argnames="columns")
def _rls_update(
    opt_state: optax.OptState, grads: optax.Updates, alpha: Any, key: jax.Array, columns: Columns
) -> optax.OptState:
    def update(state: _state.RgoState) -> _state.RgoState:
        alphas = _alpha.by_path(alpha, state)
        found = _curvatures(state, grads, columns, key, state.num_updates)

        def fold(path: _tree.Path, projection: jax.Array, leaf: Curvature) -> jax.Array:
            if len(leaf.vectors) == 1:
                return _projection.rank_one_update(projection, leaf.vectors[0], alphas[path])
            return _projection.block_update(
                projection, leaf.vectors, alphas[path], block_size=_BLOCK_SIZE
            )

        projection = _tree.map_with_path(fold, state.projection, found)
        return _counted(state, found, 1)._replace(projection=projection)

    states = _state.find_states(opt_state)
    return _state.replace_states(opt_state, [update(state) for state in states])


def consolidate(
    opt_state: optax.OptState,
    grad_fn: Callable[[Any], optax.Updates],
    batches: Any,
    *,
    alpha: Any = 0.01,
    columns: Columns = "mean",
    key: jax.Array | None = None,
    block_size: int = _BLOCK_SIZE,
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
        _warn_of_layer_norm(state, columns)

    def fold(
        state: _state.RgoState, alphas: dict[_tree.Path, Any], found: Any, count: int
    ) -> _state.RgoState:
        def fold_leaf(path: _tree.Path, projection: jax.Array, leaf: Curvature) -> jax.Array:
            return _projection.block_update(
                projection, leaf.vectors, alphas[path], block_size=block_size
            )

        projection = _tree.map_with_path(fold_leaf, state.projection, found)
        return _counted(state, found, count)._replace(projection=projection)

    def collect(index: jax.Array, batch: Any) -> tuple[jax.Array, list[Any]]:
        grads = grad_fn(batch)
        return index + 1, [
            _curvatures(state, grads, columns, key, state.num_updates + index) for state in states
        ]

    def fold_batch(states: list[_state.RgoState], batch: Any) -> tuple[list[Any], None]:
        grads = grad_fn(batch)
        return [
            fold(state, own, _curvatures(state, grads, columns, key, state.num_updates), 1)
            for state, own in zip(states, alphas, strict=True)
        ], None

    if columns == "each":
        states, _ = jax.lax.scan(fold_batch, states, batches)
    else:
        _, stacked = jax.lax.scan(collect, jnp.int32(0), batches)
        states = [
            fold(state, own, _joined(found), num_batches)
            for state, own, found in zip(states, alphas, stacked, strict=True)
        ]
    for state in states:
        _warnings.warn_of_vanishing(state)
    return _state.replace_states(opt_state, states)


def _curvatures(
    state: _state.RgoState,
    grads: optax.Updates,
    columns: Columns,
    key: jax.Array,
    index: jax.Array,
) -> Any:
    """A tree like ``state.projection`` of `Curvature`: what one batch has to say of each leaf."""
    leaves = _tree.leaves_by_path(grads)
    projections = _tree.leaves_by_path(state.projection)
    _state.check_paths(projections, leaves, "grads")
    for path, leaf in leaves.items():
        if isinstance(leaf, Projected):
            raise ValueError(
                f"The grads leaf {_tree.path_name(path)!r} is projected, and P would become wrong. "
                "Take the gradient of curvature_output with jax.grad, not with value_and_grad of "
                "rgo_jax."
            )
    # Where they only serve an estimate, the same for all batches: XLA draws them once.
    index = index if columns == "signs" else jnp.int32(0)
    numbers = {path: number for number, path in enumerate(projections)}

    def leaf_curvature(path: _tree.Path, projection: jax.Array) -> Curvature:
        _, matrix = _state.pair(path, leaves[path], projections, "grads")
        signs = _columns.draw_signs(key, index, numbers[path], matrix.shape[1])
        return _columns.curvature(
            matrix.astype(projection.dtype), columns, signs.astype(projection.dtype)
        )

    return _tree.map_with_path(leaf_curvature, state.projection)


def _joined(stacked: Any) -> Any:
    """Those of all batches, stacked by a scan, as if of one."""

    def join(leaf: Curvature) -> Curvature:
        return Curvature(
            vectors=leaf.vectors.reshape(-1, leaf.vectors.shape[-1]),
            energy=jnp.sum(leaf.energy, axis=0),
            num_skipped=jnp.sum(leaf.num_skipped, dtype=jnp.int32),
        )

    return jax.tree.map(join, stacked, is_leaf=lambda node: isinstance(node, Curvature))


def _counted(state: _state.RgoState, found: Any, count: int) -> _state.RgoState:
    """The state with its counts for so many more batches; the projections are as they were."""

    def add(_: _tree.Path, skipped: jax.Array, leaf: Curvature) -> jax.Array:
        return skipped + leaf.num_skipped

    def add_energy(_: _tree.Path, energy: jax.Array, leaf: Curvature) -> jax.Array:
        return energy + leaf.energy

    return state._replace(
        num_updates=state.num_updates + count,
        num_skipped=_tree.map_with_path(add, state.num_skipped, found),
        energy=_tree.map_with_path(add_energy, state.energy, found),
    )


def _warn_of_layer_norm(state: _state.RgoState, columns: Columns) -> None:
    if columns == "mean":
        _warnings.warn_of_layer_norm(_tree.leaves_by_path(state.projection, optax.MaskedNode))


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
