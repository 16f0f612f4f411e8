"""Gradient projection memory and its successor, scaled gradient projection.

Both keep orthonormal bases of what a layer's inputs have been and change its kernel across them
only: ``g - M diag(importance) M' g``. GPM's importances are all 1, SGP's between 0 and 1.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rgo_jax.baselines._method import Apply, Losses, Method, Task, cross_entropies
from rgo_jax.baselines._projecting import inputs_of, projecting_method
from rgo_jax.lapack import one_by_one_on_cpu

# Stands in for a zero that would be divided by: layers can be dead.
_TINY = float(np.finfo(np.float32).tiny)

# The share of energy below which a singular value is nothing but float32's rounding.
_ROUNDING = 1e-10

_matmul = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
_triangle = one_by_one_on_cpu(partial(jnp.linalg.qr, mode="r"))
_svd = one_by_one_on_cpu(partial(jnp.linalg.svd, full_matrices=False))


class GpmState(NamedTuple):
    """State of `scale_by_gpm`: two trees like the parameters.

    Attributes:
      bases: ``M [d, d]``: orthonormal columns, then columns of zeros.
      importance: ``[d]``: of each column, 0 to 1; 0 for the columns of zeros.
    """

    bases: Any
    importance: Any


class _Thresholds(NamedTuple):
    first: float
    others: float
    growth: float


def gpm(
    apply_fn: Apply,
    tx: optax.GradientTransformation,
    *,
    first_threshold: float = 0.95,
    threshold: float = 0.99,
    growth: float = 0.0,
    samples: int = 300,
    mask: Any = True,
    fused: bool = False,
    losses: Losses = cross_entropies,
) -> Method:
    """GPM: gradients at right angles to what the layers of earlier tasks received.

    The smallest bases that reach the threshold are kept. A bias is a kernel whose input is always
    1, so the first task is the last to train it: what the authors do with every parameter that is
    not a kernel.

    Args:
      apply_fn: as for `finetune`. The numbers of its kernels' inputs are read from it.
      tx: the optimizer, whose updates are projected.
      first_threshold: the share of the inputs' energy that the first layer's bases hold.
      threshold: the same of the other layers.
      growth: what is added to both with each task.
      samples: how many examples stand for a task.
      mask: which parameters are protected, as for `optax.masked`: a tree of bools of which one
        holds for everything below, or a function from the parameters to it. Others, such as a head
        that one task trains, are trained freely.
      fused: whether gradients are projected in the place of updates: cheaper with the layers of
        `rgo_jax.linen` and `rgo_jax.nnx`, and no different for SGD, but undone by optimizers that
        scale single entries, as Adam does.
      losses: as for `finetune`.

    Returns:
      The `Method`.

    Example:
      >>> import flax.linen as nn, optax
      >>> from rgo_jax import baselines
      >>> model = nn.Dense(3)
      >>> def apply_fn(params, x, task_id):
      ...     return model.apply({"params": params}, x)
      >>> method = baselines.gpm(apply_fn, optax.sgd(0.1))

    References:
      Saha et al. 2021. https://arxiv.org/abs/2103.09762
    """
    thresholds = _Thresholds(first_threshold, threshold, growth)
    return _gpm(apply_fn, tx, thresholds, samples, None, mask, fused, losses)


def sgp(
    apply_fn: Apply,
    tx: optax.GradientTransformation,
    *,
    scale: float = 10.0,
    first_threshold: float = 0.95,
    threshold: float = 0.99,
    growth: float = 0.0,
    samples: int = 300,
    mask: Any = True,
    fused: bool = False,
    losses: Losses = cross_entropies,
) -> Method:
    """SGP: GPM that lets a little of the gradient through where it mattered little.

    Args:
      apply_fn: as for `gpm`.
      tx: as for `gpm`.
      scale: alpha, with which importances come near 1 sooner.
      first_threshold: as for `gpm`.
      threshold: as for `gpm`.
      growth: as for `gpm`.
      samples: as for `gpm`.
      mask: as for `gpm`.
      fused: as for `gpm`.
      losses: as for `finetune`.

    Returns:
      The `Method`.

    Example:
      >>> import flax.linen as nn, optax
      >>> from rgo_jax import baselines
      >>> model = nn.Dense(3)
      >>> def apply_fn(params, x, task_id):
      ...     return model.apply({"params": params}, x)
      >>> method = baselines.sgp(apply_fn, optax.sgd(0.1))

    References:
      Saha and Roy 2023. https://arxiv.org/abs/2302.01386
    """
    thresholds = _Thresholds(first_threshold, threshold, growth)
    return _gpm(apply_fn, tx, thresholds, samples, scale, mask, fused, losses)


def _gpm(
    apply_fn: Apply,
    tx: optax.GradientTransformation,
    thresholds: _Thresholds,
    samples: int,
    scale: float | None,
    mask: Any,
    fused: bool,
    losses: Losses,
) -> Method:
    def fold(memory: GpmState, params: Any, task: Task) -> GpmState:
        x, _ = task.load(task.batches.reshape(-1)[:samples])
        inputs = inputs_of(apply_fn, mask, params, x, task.id)
        grown = thresholds.growth * task.id
        of_layers = dict.fromkeys(inputs, thresholds.others + grown)
        of_layers[next(iter(inputs))] = thresholds.first + grown
        return gpm_update(memory, inputs, of_layers, scale)

    def matrices(memory: GpmState) -> Any:
        return jax.tree.map(_projection, memory.bases, memory.importance)

    return projecting_method(apply_fn, tx, losses, mask, empty, fold, matrices, fused)


def scale_by_gpm() -> optax.GradientTransformation:
    """Takes out of each gradient what lies in the bases of earlier tasks' inputs.

    A leaf is seen as ``[d, m]``, with every axis but the last as fan-in, and a vector as
    ``[1, m]``: a bias, whose input is always 1. Put it where `rgo_jax.scale_by_rgo` would be.

    Returns:
      A `optax.GradientTransformation` whose state is a `GpmState`; `gpm_update` folds tasks in.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from rgo_jax import baselines
      >>> w, x = jnp.ones((3, 2)), jnp.eye(3)[:2]
      >>> tx = optax.chain(baselines.scale_by_gpm(), optax.sgd(0.1))
      >>> gpm_state, sgd_state = tx.init(w)
      >>> gpm_state = baselines.gpm_update(gpm_state, x, thresholds=0.99)
      >>> updates, _ = tx.update(jnp.ones((3, 2)), (gpm_state, sgd_state), w)
      >>> bool(jnp.abs(x @ updates).max() < 1e-6)
      True

    References:
      Saha et al. 2021. https://arxiv.org/abs/2103.09762
    """

    def init_fn(params: optax.Params) -> GpmState:
        return empty(jax.tree.map(lambda p: math.prod(p.shape[:-1]), params))

    def update_fn(
        updates: optax.Updates, state: GpmState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, GpmState]:
        del params

        def project(grad: jax.Array, bases: jax.Array, importance: jax.Array) -> jax.Array:
            matrix = grad.reshape(len(bases), -1)
            within = importance[:, None] * _matmul(bases.T, matrix)
            return (matrix - _matmul(bases, within)).reshape(grad.shape)

        return jax.tree.map(project, updates, state.bases, state.importance), state

    return optax.GradientTransformation(init_fn, update_fn)


def empty(dims: Any) -> GpmState:
    """A state without bases, from each layer's d."""
    return GpmState(jax.tree.map(lambda d: jnp.zeros((d, d)), dims), jax.tree.map(jnp.zeros, dims))


def gpm_update(
    state: GpmState, inputs: Any, thresholds: Any, scale: float | None = None
) -> GpmState:
    """Folds a finished task into the bases.

    Args:
      state: the bases so far.
      inputs: a tree like them of arrays ``[..., d]``: what each layer received.
      thresholds: the share of the inputs' energy to hold: a scalar, or a tree of scalars that each
        holds for all below its place.
      scale: SGP's alpha; None for GPM.

    Returns:
      The state with the fewest new columns that reach the thresholds.

    Example: see `scale_by_gpm`.

    References:
      Saha et al. 2021, https://arxiv.org/abs/2103.09762; with ``scale`` Saha and Roy 2023,
      https://arxiv.org/abs/2302.01386.
    """

    def extend(threshold: jax.typing.ArrayLike, *trees: Any) -> Any:
        return jax.tree.map(partial(_extend, threshold=threshold, scale=scale), *trees)

    extended = jax.tree.map(extend, thresholds, state.bases, state.importance, inputs)
    return GpmState(*jax.tree.transpose(jax.tree.structure(inputs), None, extended))


def _extend(
    bases: jax.Array,
    importance: jax.Array,
    inputs: jax.Array,
    *,
    threshold: jax.typing.ArrayLike,
    scale: float | None,
) -> tuple[jax.Array, jax.Array]:
    """One layer's bases and importances with one more task's inputs in them."""
    d = len(bases)
    rows = inputs.reshape(-1, d)
    if len(rows) > d:
        # The same singular values and vectors, in fewer rows.
        rows = _triangle(rows)
    within = _matmul(rows, bases)
    rest = rows - _matmul(within, bases.T)
    _, lengths, vectors = _svd(rest)
    # Rounding leaves a little of the old bases in the shorter vectors.
    vectors -= _matmul(_matmul(vectors, bases), bases.T)

    total = jnp.maximum(jnp.sum(rows**2), _TINY)
    energy = lengths**2 / total
    held = 1 - jnp.sum(rest**2) / total
    # A vector is kept if what is held without it, by bases and longer vectors, does not suffice;
    # those below rounding lie anywhere.
    needed = held + jnp.cumsum(energy) - energy < threshold
    kept = jnp.sum(needed & (energy > _ROUNDING))

    column = jnp.arange(d)
    used = jnp.sum(jnp.any(bases != 0, axis=0))
    fresh = (used <= column) & (column < used + kept)
    source = jnp.clip(column - used, 0, len(lengths) - 1)
    bases = jnp.where(fresh, vectors.T[:, source], bases)
    used_or_fresh = column < used + kept
    if scale is None:
        return bases, used_or_fresh.astype(importance.dtype)
    # How much of this task's energy lies along each column, against the column with most.
    along = jnp.where(fresh, lengths[source], jnp.linalg.norm(within, axis=0))
    longest = jnp.maximum(jnp.max(along), _TINY)
    now = (scale + 1) * along / (scale * along + longest)
    return bases, jnp.where(used_or_fresh, jnp.clip(importance + now, 0, 1), 0)


def _projection(bases: jax.Array, importance: jax.Array) -> jax.Array:
    """``I - M diag(importance) M'``."""
    return jnp.eye(len(bases)) - _matmul(bases * importance[None], bases.T)
