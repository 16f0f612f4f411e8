"""What the projections hold and what they cost."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rgo_jax import _geometry, _projection, _state, _tree, _warnings


class ProjectionStats(NamedTuple):
    """What one projection holds.

    Attributes:
      dim: d, the fan-in of the parameter.
      trace: tr P; d before the first task, less with each one.
      eigenvalues: ``[d]``, ascending: the weight of each direction, from the most protected one to
        the freest. 1 is untouched.
      effective_rank: ``exp`` of the entropy of the normalised eigenvalues (Roy and Vetterli,
        EUSIPCO 2007): how many directions are left to learn in, from 1 to d.
      coverage: the share of the columns' energy that has been folded in: the sum of ``|v|^2`` over
        an estimate of that of the mean ``|column|^2``. 1 for a bias, and with ``columns="signs"``
        or ``"each"``; with the mean of m columns about 1 where they agree, ``1 / m`` where they
        have nothing in common, and next to 0 where they cancel: then the parameter is not
        protected. NaN before the first task, and where all gradients were zero.
      num_skipped: how many vectors were left out because they were not finite.
      mib: memory of P in MiB.
    """

    dim: int
    trace: jax.Array
    eigenvalues: jax.Array
    effective_rank: jax.Array
    coverage: jax.Array
    num_skipped: jax.Array
    mib: float


def projection_stats(opt_state: optax.OptState) -> dict[str, ProjectionStats]:
    """How much of each layer's room the tasks so far have taken.

    Costs one eigendecomposition a layer (about a second at d = 1000 on a CPU).

    Args:
      opt_state: the state of any optax transform that contains `rgo_jax.scale_by_rgo`.

    Returns:
      A `ProjectionStats` under each parameter's path, such as ``"Dense_0/kernel"``.

    Raises:
      ValueError: no `rgo_jax.RgoState` in ``opt_state``, or one that `jax.vmap` has stacked.

    Warns:
      UnprotectedWarning: the coverage of a parameter is next to 0.

    Example:
      >>> import jax.numpy as jnp, rgo_jax
      >>> tx = rgo_jax.rgo(0.1)
      >>> state = tx.init({"kernel": jnp.zeros((2, 3))})
      >>> state = rgo_jax.rls_update(state, {"kernel": jnp.array([[0.2, 0.1, 0], [0, 0, 0]])})
      >>> stats = rgo_jax.projection_stats(state)["kernel"]
      >>> stats.dim, round(float(stats.trace), 3), round(float(stats.effective_rank), 3)
      (2, 1.5, 1.89)
    """
    stats: dict[str, ProjectionStats] = {}
    for state in _state.find_states(opt_state):
        energies = _tree.leaves_by_path(state.energy)
        skipped = _tree.leaves_by_path(state.num_skipped)
        for path, projection in _state.projections([state]).items():
            _check_is_one(path, projection)
            stats[_tree.path_name(path)] = _stats(projection, energies[path], skipped[path])
        _warnings.warn_of_vanishing(state)
    return stats


def _check_is_one(path: _tree.Path, projection: _state.Projection) -> None:
    dim, shape = projection.geometry.dim, projection.p.shape
    blocks = len(shape) == 3 and shape[0] * shape[1] == dim and shape[1] == shape[2]
    if shape not in ((dim,), (dim, dim)) and not blocks:
        raise ValueError(
            f"The projection of {_tree.path_name(path)!r} has shape {shape}; expected {dim, dim}, "
            "its blocks or its diagonal. Of states that jax.vmap has stacked pass one at a time: "
            "jax.tree.map(lambda leaf: leaf[0], opt_state)."
        )


def _stats(
    projection: _state.Projection, energy: jax.Array, num_skipped: jax.Array
) -> ProjectionStats:
    eigenvalues = _projection.eigenvalues(projection.p)
    # Rounding can push the smallest ones of a strongly protected layer just below zero.
    share = jnp.maximum(eigenvalues, 0)
    share /= jnp.sum(share)
    entropy = jnp.sum(jax.scipy.special.entr(share))
    return ProjectionStats(
        dim=projection.geometry.dim,
        trace=jnp.sum(eigenvalues),
        eigenvalues=eigenvalues,
        effective_rank=jnp.exp(entropy),
        coverage=energy[0] / energy[1],
        num_skipped=num_skipped,
        mib=_projection.mebibytes(projection.p.shape, projection.p.dtype),
    )


def projection_memory(params: Any, *, specs: Any = None) -> dict[str, float]:
    """The memory that `rgo_jax.scale_by_rgo` will take for these parameters, in MiB.

    Allocates nothing, so it can be asked before training starts.

    Args:
      params: a tree of parameters, or of anything with a shape and a dtype: the result of
        `jax.eval_shape` on an initialiser does.
      specs: as for `rgo_jax.scale_by_rgo`.

    Returns:
      MiB of P under each parameter's path. The sum of the values is the whole state's.

    Raises:
      ValueError: a leaf without axes, or ``specs`` that do not fit.
      TypeError: a leaf that is not real floating point.

    Example:
      >>> import jax, jax.numpy as jnp, flax.linen as nn, rgo_jax
      >>> model = nn.Dense(10)
      >>> shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1024)))
      >>> rgo_jax.projection_memory(shapes["params"])["kernel"]
      4.0
    """
    layouts = _geometry.layouts(specs, params)
    return {
        _tree.path_name(path): _projection.mebibytes(layouts[path].shape, jnp.result_type(leaf))
        for path, leaf in _tree.leaves_by_path(params).items()
    }
