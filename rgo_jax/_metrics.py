"""The measures of continual learning, from a matrix of accuracies."""

import jax
import jax.numpy as jnp


def average_accuracy(r: jax.typing.ArrayLike) -> jax.Array:
    """ACC: the mean accuracy over all tasks after the last one.

    Args:
      r: ``[..., num_tasks, num_tasks]``: ``r[..., t, k]`` is the accuracy on task ``k`` after
        training on tasks ``0`` to ``t``. Only the lower triangle is read; the rest may be NaN.

    Returns:
      ``[...]`` in the unit of ``r``.

    Raises:
      ValueError: ``r`` is not square.

    Example:
      >>> import rgo_jax
      >>> float(rgo_jax.average_accuracy([[1.0, 0.0], [0.5, 1.0]]))
      0.75

    References:
      Section 6.1. https://arxiv.org/abs/2201.12522
    """
    return jnp.mean(_square(r)[..., -1, :], axis=-1)


def backward_transfer(r: jax.typing.ArrayLike) -> jax.Array:
    """BWT: the mean change of a task's accuracy since it was learned; negative is forgetting.

    Args:
      r: ``[..., num_tasks, num_tasks]``: ``r[..., t, k]`` is the accuracy on task ``k`` after
        training on tasks ``0`` to ``t``. Only the lower triangle is read; the rest may be NaN.

    Returns:
      ``[...]`` in the unit of ``r``; 0 for a single task.

    Raises:
      ValueError: ``r`` is not square.

    Example:
      >>> import rgo_jax
      >>> float(rgo_jax.backward_transfer([[1.0, 0.0], [0.5, 1.0]]))
      -0.5

    References:
      Section 6.1. https://arxiv.org/abs/2201.12522
    """
    r = _square(r)
    change = r[..., -1, :] - jnp.diagonal(r, axis1=-2, axis2=-1)
    return jnp.sum(change, axis=-1) / max(r.shape[-1] - 1, 1)


def _square(r: jax.typing.ArrayLike) -> jax.Array:
    try:
        r = jnp.asarray(r)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"R has no shape ({error}); expected [..., num_tasks, num_tasks]."
        ) from error
    if jnp.iscomplexobj(r):
        raise ValueError(f"R has dtype {r.dtype}; expected real numbers.")
    if not jnp.issubdtype(r.dtype, jnp.floating) or r.dtype.itemsize < 4:
        # Differences of unsigned numbers would wrap, and means of narrow ones round.
        r = r.astype(float)
    if r.ndim < 2 or r.shape[-1] != r.shape[-2] or not r.shape[-1]:
        raise ValueError(f"R has shape {r.shape}; expected [..., num_tasks, num_tasks].")
    return r
