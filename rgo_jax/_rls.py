"""``rls_update``: one batch of a finished task, folded into every projection."""

from functools import partial
from typing import Any

import jax
import optax

from rgo_jax import _alpha, _columns, _folding, _projection, _state
from rgo_jax._columns import Columns


def rls_update(
    opt_state: optax.OptState,
    grads: optax.Updates,
    *,
    alpha: Any = 0.01,
    relative_alpha: bool = False,
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
    is a mean over columns that mostly cancel, wide layers are protected less than narrow ones. With
    ``relative_alpha`` none of this matters.

    Args:
      opt_state: the state of any optax transform that contains `rgo_jax.scale_by_rgo`, at any
        depth of ``chain``, ``masked``, ``partition``, ``inject_hyperparams`` and the like.
      grads: a tree like the parameters, the gradient of `rgo_jax.curvature_output` on one batch.
        Leaves that the transform does not cover are ignored.
      alpha: the strength of the prior, positive; smaller protects more. A scalar, or a tree of
        scalars like the parameters; one at a branch holds for all leaves below. May be traced.
      relative_alpha: whether alpha counts in units of each leaf's mean ``|v|^2`` over all batches
        that have been folded in, those of this call included. One value then serves losses, batch
        sizes and layers of any scale. 0.3 is a good one to begin with.
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
        _folding.warn_of_layer_norm(state, columns)
    key = _columns.default_key() if key is None else key
    return _rls_update(opt_state, grads, alpha, key, columns, relative_alpha)


@partial(jax.jit, static_argnames=("columns", "relative_alpha"))
def _rls_update(
    opt_state: optax.OptState,
    grads: optax.Updates,
    alpha: Any,
    key: jax.Array,
    columns: Columns,
    relative_alpha: bool,
) -> optax.OptState:
    def fold(projection: jax.Array, vectors: jax.Array, alpha: Any) -> jax.Array:
        if len(vectors) == 1:
            return _projection.rank_one_update(projection, vectors[0], alpha)
        return _projection.block_update(projection, vectors, alpha, block_size=_folding.BLOCK_SIZE)

    def update(state: _state.RgoState) -> _state.RgoState:
        found = _folding.curvatures(state, grads, columns, key, state.num_updates)
        alphas = _alpha.by_path(alpha, state)
        return _folding.fold(state, found, alphas, 1, fold, relative_alpha)

    states = _state.find_states(opt_state)
    return _state.replace_states(opt_state, [update(state) for state in states])
