"""From scores under every task's id to the task."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

NONE = -1


class Calibration(NamedTuple):
    """What scores of a task's own examples are like: makes tasks of different difficulty compare.

    Attributes:
      mean: float ``[tasks]``.
      spread: float ``[tasks]``: the standard deviation.
    """

    mean: jax.Array
    spread: jax.Array


def calibrate(own_scores: jax.Array) -> Calibration:
    """The `Calibration` of one task, from examples at the end of its training; stack those of all.

    Args:
      own_scores: ``[b]``: `scores` under the task's own id.

    Returns:
      Of one task: scalars.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from rgo_jax import task_inference
      >>> of_each = [task_inference.calibrate(s) for s in jnp.array([[1.0, 3.0], [5.0, 9.0]])]
      >>> print(jax.tree.map(lambda *x: jnp.stack(x), *of_each))
      Calibration(mean=Array([2., 7.], dtype=float32), spread=Array([1., 2.], dtype=float32))
    """
    return Calibration(jnp.mean(own_scores), jnp.std(own_scores))


def infer(
    scores: jax.Array,
    *,
    group_size: int = 1,
    seen: jax.Array | None = None,
    calibration: Calibration | None = None,
    threshold: jax.typing.ArrayLike | None = None,
) -> jax.Array:
    """The task that each example is of, by the highest score.

    Args:
      scores: float ``[tasks, b]``: `scores` of the examples under each task's id.
      group_size: so many examples, one after the other, are known to be of one task, whose scores
        are then averaged. The last group may be smaller.
      seen: bool ``[tasks]``: which tasks have been trained; None for all.
      calibration: of all tasks: scores count in units of ``spread`` above ``mean``.
      threshold: below it no task is named. In the unit of the scores; with ``calibration`` in
        spreads from the mean, so that -3 leaves out what hardly any of a task's own examples are.

    Returns:
      int32 ``[b]``: task ids; `NONE` (-1) below the threshold.

    Raises:
      ValueError: ``scores`` has another number of axes, or ``group_size`` is below 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from rgo_jax import task_inference
      >>> scores = jnp.array([[3.0, 1.0, 0.0, 0.0], [1.0, 2.0, 4.0, 0.5]])
      >>> print(task_inference.infer(scores), task_inference.infer(scores, group_size=2))
      [0 1 1 1] [0 0 1 1]
      >>> print(task_inference.infer(scores, threshold=1.0))
      [ 0  1  1 -1]
    """
    by_group = group_scores(scores, group_size, seen=seen, calibration=calibration)
    tasks = jnp.argmax(by_group, axis=0)
    if threshold is not None:
        tasks = jnp.where(jnp.max(by_group, axis=0) < threshold, NONE, tasks)
    return jnp.repeat(tasks.astype(jnp.int32), group_size)[: scores.shape[1]]


def mix(
    logits: jax.Array,
    scores: jax.Array,
    *,
    group_size: int = 1,
    seen: jax.Array | None = None,
    calibration: Calibration | None = None,
    sharpness: jax.typing.ArrayLike = 0.5,
) -> jax.Array:
    """Predictions averaged over all tasks that come into question, for tasks that share classes.

    Where tasks are alike, such as neighbouring angles, several serve nearly as well as the right
    one, and together they do better than the one with the highest score.

    Args:
      logits: ``[tasks, b, classes]`` under each task's id; a class is the same in all tasks.
      scores: ``[tasks, b]``, as for `infer`.
      group_size: as for `infer`.
      seen: as for `infer`.
      calibration: as for `infer`.
      sharpness: tasks are weighted by ``softmax(sharpness * sqrt(group_size) * scores)``, the
        scores averaged over the group. Large: the task with the highest alone.

    Returns:
      ``[b, classes]``: logarithms of probabilities.

    Raises:
      ValueError: as `infer`.

    Example:
      >>> import jax.numpy as jnp
      >>> from rgo_jax import task_inference
      >>> logits = jnp.log(jnp.array([[[0.9, 0.1]], [[0.3, 0.7]]]))
      >>> equally_sure = jnp.zeros((2, 1))
      >>> print(jnp.exp(task_inference.mix(logits, equally_sure)) > 0.5)
      [[ True False]]
    """
    by_group = group_scores(scores, group_size, seen=seen, calibration=calibration)
    log_weights = jax.nn.log_softmax(sharpness * group_size**0.5 * by_group, axis=0)
    of_examples = jnp.repeat(log_weights, group_size, axis=1)[:, : scores.shape[1]]
    return jax.nn.logsumexp(of_examples[..., None] + jax.nn.log_softmax(logits), axis=0)


def group_scores(
    scores: jax.Array,
    group_size: int = 1,
    *,
    seen: jax.Array | None = None,
    calibration: Calibration | None = None,
) -> jax.Array:
    """The scores of groups of examples, which `infer` compares.

    Args:
      scores: as for `infer`.
      group_size: as for `infer`.
      seen: as for `infer`.
      calibration: as for `infer`.

    Returns:
      ``[tasks, groups]``; minus infinity of tasks that have not been trained.

    Raises:
      ValueError: as `infer`.

    Example:
      >>> import jax.numpy as jnp
      >>> from rgo_jax import task_inference
      >>> print(task_inference.group_scores(jnp.array([[3.0, 1.0, 5.0]]), 2))
      [[2. 5.]]
    """
    if scores.ndim != 2:
        raise ValueError(
            f"scores has shape {scores.shape}; expected [tasks, b]. Logits become scores by "
            "rgo_jax.task_inference.scores."
        )
    if group_size < 1:
        raise ValueError(f"group_size is {group_size}; expected 1 or more.")
    if calibration is not None:
        mean, spread = (x[:, None] for x in calibration)
        scores = (scores - mean) / jnp.where(spread > 0, spread, 1)
    missing = -scores.shape[1] % group_size
    padded = jnp.pad(scores, ((0, 0), (0, missing)))
    sums = jnp.sum(padded.reshape(len(scores), -1, group_size), axis=-1)
    counts = jnp.full(sums.shape[1:], group_size).at[-1].add(-missing)
    by_group = sums / counts[None]
    return by_group if seen is None else jnp.where(seen[:, None], by_group, -jnp.inf)
