"""Old tasks' subspaces of what a layer receives, and kernels that are scaled within them.

Of `benchmarks.methods.growing.trgp`. A layer has orthonormal columns M ``[d, d]``, columns of zeros
at their end, and a task's subspace is spanned by some of them.
"""

import contextlib
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

_matmul = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


class Region(NamedTuple):
    """A layer's trust regions: ``W + sum_j B_j (Q_j - I) B_j' W`` stands for its kernel W [d, m].

    Attributes:
      bases: B, ``[d, regions, r]``, columns of zeros where there are fewer.
      held: B' W, ``[regions, r, m]``. W is trained across all old subspaces, so it stays.
      scale: Q, ``[regions, r, r]``.
    """

    bases: jax.Array
    held: jax.Array
    scale: jax.Array


class Subspaces(NamedTuple):
    """One layer's subspaces, of all tasks.

    Attributes:
      columns: int32 ``[num_tasks, r]``: those of M that the task's inputs lie along.
      ranks: int32 ``[num_tasks]``: so many of them count; 0 before the task is finished.
    """

    columns: jax.Array
    ranks: jax.Array

    def holds(self) -> jax.Array:
        """Which of `columns` count, bool ``[num_tasks, r]``."""
        return jnp.arange(self.columns.shape[1])[None] < self.ranks[:, None]


def no_subspaces(num_tasks: int, r: int) -> Subspaces:
    """Those of a layer before the first task."""
    return Subspaces(jnp.zeros((num_tasks, r), jnp.int32), jnp.zeros(num_tasks, jnp.int32))


def add_subspace(
    subspaces: Subspaces,
    basis: jax.Array,
    inputs: jax.Array,
    threshold: jax.typing.ArrayLike,
    task_id: jax.Array,
) -> Subspaces:
    """A finished task's: the fewest columns that hold a share of its inputs' energy, or the best r.

    Args:
      subspaces: those so far.
      basis: M ``[d, d]``.
      inputs: ``[rows, d]``: what the layer received.
      threshold: the share.
      task_id: int32 scalar.
    """
    r = subspaces.columns.shape[1]
    energy, columns = jax.lax.top_k(jnp.sum(_matmul(inputs, basis) ** 2, axis=0), r)
    before = jnp.cumsum(energy) - energy
    rank = jnp.sum((before < threshold * jnp.sum(inputs**2)) & (energy > 0))
    return Subspaces(
        subspaces.columns.at[task_id].set(columns),
        subspaces.ranks.at[task_id].set(rank.astype(jnp.int32)),
    )


def trusted_tasks(
    subspaces: Subspaces, basis: jax.Array, gradient: jax.Array, threshold: float, most: int
) -> jax.Array:
    """The finished tasks in whose subspaces the most of a gradient lies.

    Args:
      subspaces: of the layer.
      basis: M ``[d, d]``.
      gradient: ``[d, m]``, of the task that begins.
      threshold: the share of the gradient's length that has to lie there.
      most: how many there can be.

    Returns:
      int32 ``[most]``: the best first; -1 where there are no more.
    """
    by_column = jnp.sum(_matmul(basis.T, gradient) ** 2, axis=1)
    within = jnp.sum(jnp.where(subspaces.holds(), by_column[subspaces.columns], 0), axis=1)
    length = jnp.linalg.norm(gradient)
    share = jnp.sqrt(within) / jnp.where(length > 0, length, 1)
    largest, tasks = jax.lax.top_k(share, most)
    return jnp.where(largest > threshold, tasks, -1)


def region_of(
    subspaces: Subspaces, basis: jax.Array, tasks: jax.Array, kernel: jax.Array, scale: jax.Array
) -> Region:
    """Trust regions in the subspaces of some tasks.

    Args:
      subspaces: of the layer.
      basis: M ``[d, d]``.
      tasks: int32 ``[regions]``; -1 for none.
      kernel: the layer's, seen as ``[d, m]``.
      scale: ``[regions, r, r]``.
    """
    # One of no task has no columns, whatever is looked up for it.
    holds = subspaces.holds()[tasks] & (tasks >= 0)[:, None]
    bases = jnp.where(holds[None], basis[:, subspaces.columns[tasks]], 0)
    held = _matmul(bases.reshape(len(basis), -1).T, kernel.reshape(len(basis), -1))
    return Region(bases, held.reshape(*holds.shape, -1), scale)


def in_regions(regions: Mapping[str, Region]) -> contextlib.AbstractContextManager[None]:
    """Inside it, layers compute with the kernels that their trust regions make of theirs.

    What comes from the regions is added to what a layer gives. No gradient goes through their bases
    and what they hold, so the kernel has the gradient that it has without them.

    Args:
      regions: by the paths of a network's modules with a kernel, such as "Dense_0".
    """

    def scale(
        call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext
    ) -> Any:
        outputs = call(*args, **kwargs)
        region = regions.get("/".join(context.module.path))
        if region is None or context.method_name != "__call__":
            return outputs
        return outputs + _change(context.module, region, args[0], outputs.size)

    return nn.intercept_methods(scale)


def _change(layer: Any, region: Region, x: jax.Array, size: int) -> jax.Array:
    """``x sum_j B_j (Q_j - I) B_j' W``, for whatever products the layer has.

    Args:
      layer: the module.
      region: its.
      x: what it receives.
      size: how many numbers it gives.

    Returns:
      The shape of what the layer gives.
    """
    bases, held = jax.lax.stop_gradient((region.bases, region.held))
    d, regions, r = bases.shape
    width = held.shape[-1]
    change = region.scale - jnp.eye(r)[None]
    # The axes of the kernel that the layer sums over come first, then those of what it gives.
    shape = layer.variables["params"]["kernel"].shape
    summed = next(i for i in range(len(shape)) if math.prod(shape[:i]) == d)

    def product(kernel: jax.Array) -> jax.Array:
        """``x kernel [d, n]`` as ``[..., n]``."""
        features = kernel.shape[1]
        alike = layer.clone(features=features, use_bias=False, parent=None)
        params = {"kernel": kernel.reshape(*shape[:summed], features)}
        return jnp.asarray(alike.apply({"params": params}, x))

    if size // width > width:
        # Many positions, as of a convolution: to change the kernel is cheaper.
        scaled = jnp.einsum("jrs,jsm->jrm", change, held)
        changed = product(bases.reshape(d, -1) @ scaled.reshape(-1, width))
    else:
        within = product(bases.reshape(d, -1))
        by_region = within.reshape(*within.shape[:-1], regions, r)
        moved = jnp.einsum("...jr,jrs->...js", by_region, change)
        changed = moved.reshape(within.shape) @ held.reshape(-1, width)
    return changed.reshape(*changed.shape[:-1], *shape[summed:])
