"""The measures of continual learning, from a matrix R of accuracies.

Axes in front, such as seeds, are kept.
"""

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
    return _mean((r[..., -1, :] - _diagonal(r))[..., :-1])


def forward_transfer(r: jax.typing.ArrayLike, initial: jax.typing.ArrayLike) -> jax.Array:
    """FWT: how much better than before all training a task is known just before it is learned.

    Args:
      r: ``[..., num_tasks, num_tasks]``: ``r[..., t, k]`` is the accuracy on task ``k`` after
        training on tasks ``0`` to ``t``. Only the entries just above the diagonal are read.
      initial: ``[..., num_tasks]`` in the unit of ``r``: the accuracy on each task before training.
        The first is not read.

    Returns:
      ``[...]`` in the unit of ``r``; 0 for a single task.

    Raises:
      ValueError: ``r`` is not square, or ``initial`` has another number of tasks.

    Example:
      >>> import rgo_jax
      >>> float(rgo_jax.forward_transfer([[1.0, 0.25], [0.5, 1.0]], initial=[0.125, 0.125]))
      0.125

    References:
      Lopez-Paz and Ranzato, Gradient episodic memory, 2017, section 2.
      https://arxiv.org/abs/1706.08840
    """
    r = _square(r)
    before = jnp.diagonal(r, offset=1, axis1=-2, axis2=-1)
    return _mean(before - _by_task(initial, r, "initial")[..., 1:])


def forgetting(r: jax.typing.ArrayLike) -> jax.Array:
    """How far each task is below the best accuracy it has had, on average over all but the last.

    At least ``-backward_transfer(r)``: a task that first became better and then worse has also
    forgotten what it had gained.

    Args:
      r: ``[..., num_tasks, num_tasks]``: ``r[..., t, k]`` is the accuracy on task ``k`` after
        training on tasks ``0`` to ``t``. Only the lower triangle is read; the rest may be NaN.

    Returns:
      ``[...]`` in the unit of ``r``; 0 for a single task.

    Raises:
      ValueError: ``r`` is not square.

    Example:
      >>> import rgo_jax
      >>> r = [[0.75, 0.0, 0.0], [1.0, 1.0, 0.0], [0.5, 1.0, 1.0]]
      >>> float(rgo_jax.forgetting(r)), float(rgo_jax.backward_transfer(r))
      (0.25, -0.125)

    References:
      Chaudhry et al., Riemannian walk for incremental learning, 2018, section 3.
      https://arxiv.org/abs/1801.10112
    """
    r = _square(r)
    num_tasks = r.shape[-1]
    if num_tasks == 1:
        return jnp.zeros(r.shape[:-2], r.dtype)
    learned = jnp.tril(jnp.ones((num_tasks, num_tasks), bool))[:-1, :-1]
    best = jnp.max(r[..., :-1, :-1], axis=-2, where=learned, initial=-jnp.inf)
    return _mean(best - r[..., -1, :-1])


def intransigence(r: jax.typing.ArrayLike, single_task: jax.typing.ArrayLike) -> jax.Array:
    """How much worse tasks are learned in a sequence than each by a model of its own.

    Args:
      r: ``[..., num_tasks, num_tasks]``: ``r[..., t, k]`` is the accuracy on task ``k`` after
        training on tasks ``0`` to ``t``. Only the diagonal is read.
      single_task: ``[..., num_tasks]`` in the unit of ``r``: the accuracy of single-task learning
        (STL) on each task.

    Returns:
      ``[...]`` in the unit of ``r``; negative where the sequence helps.

    Raises:
      ValueError: ``r`` is not square, or ``single_task`` has another number of tasks.

    Example:
      >>> import rgo_jax
      >>> float(rgo_jax.intransigence([[0.75, 0.0], [0.5, 0.5]], single_task=[0.75, 1.0]))
      0.25

    References:
      Chaudhry et al., Riemannian walk for incremental learning, 2018, section 3; there it is
      of one task, and the reference is a model trained on all tasks so far. https://arxiv.org/abs/1801.10112
    """
    r = _square(r)
    return _mean(_by_task(single_task, r, "single_task") - _diagonal(r))


def learning_accuracy(r: jax.typing.ArrayLike) -> jax.Array:
    """LA: the mean accuracy on each task just after it was learned.

    Args:
      r: ``[..., num_tasks, num_tasks]``: ``r[..., t, k]`` is the accuracy on task ``k`` after
        training on tasks ``0`` to ``t``. Only the diagonal is read.

    Returns:
      ``[...]`` in the unit of ``r``.

    Raises:
      ValueError: ``r`` is not square.

    Example:
      >>> import rgo_jax
      >>> float(rgo_jax.learning_accuracy([[1.0, 0.0], [0.25, 0.5]]))
      0.75

    References:
      Riemer et al., Learning to learn without forgetting, 2019, section 4.
      https://arxiv.org/abs/1810.11910
    """
    return _mean(_diagonal(_square(r)))


def _mean(by_task: jax.Array) -> jax.Array:
    return jnp.sum(by_task, axis=-1) / max(by_task.shape[-1], 1)


def _diagonal(r: jax.Array) -> jax.Array:
    return jnp.diagonal(r, axis1=-2, axis2=-1)


def _square(r: jax.typing.ArrayLike) -> jax.Array:
    expected = "[..., num_tasks, num_tasks]"
    r = _real(r, "R", expected)
    if r.ndim < 2 or r.shape[-1] != r.shape[-2] or not r.shape[-1]:
        raise ValueError(f"R has shape {r.shape}; expected {expected}.")
    return r


def _by_task(values: jax.typing.ArrayLike, r: jax.Array, name: str) -> jax.Array:
    """The accuracies beside R, with or without R's axes in front."""
    shape = (r.shape[-1],)
    values = _real(values, name, f"{shape} or {(*r.shape[:-2], *shape)}")
    if values.shape not in (shape, (*r.shape[:-2], *shape)):
        raise ValueError(
            f"{name} has shape {values.shape} and R {r.shape}; expected an accuracy for each task, "
            f"{shape}, or also for each of R's axes in front, {(*r.shape[:-2], *shape)}. Of a "
            "whole matrix pass the diagonal."
        )
    # Broadcast by hand, for those who make implicit promotion of ranks an error.
    return values.reshape((1,) * (r.ndim - 1 - values.ndim) + values.shape)


def _real(values: jax.typing.ArrayLike, name: str, expected: str) -> jax.Array:
    try:
        values = jnp.asarray(values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} has no shape ({error}); expected {expected}.") from error
    if jnp.iscomplexobj(values):
        raise ValueError(f"{name} has dtype {values.dtype}; expected real numbers.")
    if not jnp.issubdtype(values.dtype, jnp.floating) or values.dtype.itemsize < 4:
        # Differences of unsigned numbers would wrap, and means of narrow ones round.
        values = values.astype(float)
    return values
