"""Without task ids: how often the task is inferred, and the accuracy with the id that is."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.metrics import roc_auc_score

from rgo_jax import task_inference

SCORES = tuple(task_inference.SCORES)
# So many examples are known to be of one task.
GROUPS = (1, 4, 8, 16, 64)
# Of each task's test examples, at most.
EXAMPLES = 1000


class Decisions(NamedTuple):
    """What is decided of one task's examples.

    Attributes:
      known: accuracy with the right task's id.
      task: ``[scores, groups]``: how often the inferred task is the right one.
      accuracy: ``[scores, groups]``: with the inferred task's id.
      mixed: ``[scores, groups]``: of all tasks' predictions, mixed; of tasks with classes of their
        own the same as ``accuracy``.
      named: ``[tasks]``: how often single examples are said to be of each task, by the first score.
      best: for each size of groups ``[scores, number of groups]``: the highest score.
    """

    known: Any
    task: Any
    accuracy: Any
    mixed: Any
    named: Any
    best: tuple[Any, ...]


def decide(
    logits: jax.Array, labels: jax.Array, task_id: jax.Array, num_seen: jax.Array, own_classes: bool
) -> Decisions:
    """Decides on the task of examples by each of `SCORES`, in groups of each of `GROUPS`.

    Args:
      logits: ``[tasks, b, classes]`` under every task's id.
      labels: ``[b]``.
      task_id: whose they are.
      num_seen: so many of the first tasks have been trained.
      own_classes: whether each task has classes of its own, so that no other task's id is right.
    """
    num_tasks, count, _ = logits.shape
    seen = jnp.arange(num_tasks) < num_seen
    right = jnp.argmax(logits, axis=-1) == labels[None]
    by_score = jnp.stack([task_inference.scores(logits, score) for score in SCORES])

    def in_groups(group_size: int, scores: jax.Array) -> tuple[jax.Array, ...]:
        inferred = task_inference.infer(scores, group_size=group_size, seen=seen)
        of_task = inferred == task_id
        with_inferred = right[inferred, jnp.arange(count)]
        best = jnp.max(task_inference.group_scores(scores, group_size, seen=seen), axis=0)
        if own_classes:
            accuracy = mixed = jnp.mean(with_inferred & of_task)
        else:
            accuracy = jnp.mean(with_inferred)
            predictions = task_inference.mix(logits, scores, group_size=group_size, seen=seen)
            mixed = jnp.mean(jnp.argmax(predictions, axis=-1) == labels)
        return jnp.mean(of_task), accuracy, mixed, best

    of_groups = [jax.vmap(partial(in_groups, size))(by_score) for size in GROUPS]
    task, accuracy, mixed, best = zip(*of_groups, strict=True)
    first = task_inference.infer(by_score[0], seen=seen)
    decisions = Decisions(
        known=jnp.mean(right[task_id]),
        task=jnp.stack(task, axis=1),
        accuracy=jnp.stack(accuracy, axis=1),
        mixed=jnp.stack(mixed, axis=1),
        named=jnp.mean(first[:, None] == jnp.arange(num_tasks)[None], axis=0),
        best=best,
    )
    # Of logits that are NaN one is still the largest: no accuracy.
    finite = jnp.all(jnp.isfinite(logits))
    return jax.tree.map(lambda share: jnp.where(finite, share, jnp.nan), decisions)


class Inference(NamedTuple):
    """What is measured without task ids; all float64, from 0 to 1.

    Attributes:
      known: ``[num_seeds, num_tasks]``: accuracy with the right ids, on the same examples.
      task: ``[num_seeds, scores, groups, num_tasks]``: how often the task is inferred.
      accuracy: ``[num_seeds, scores, groups, num_tasks]``: with the inferred id.
      mixed: the same of all tasks' predictions, mixed.
      confusion: ``[num_seeds, num_tasks, num_tasks]``: how often single examples of a task (rows)
        are said to be of each, by the first of `SCORES`.
      auroc: ``[num_seeds, scores, groups]``: how well the score tells tasks trained so far from the
        last one before its training; NaN of a sequence of one task.
    """

    known: np.ndarray
    task: np.ndarray
    accuracy: np.ndarray
    mixed: np.ndarray
    confusion: np.ndarray
    auroc: np.ndarray


class Shapes(NamedTuple):
    """Those of the fields of `Inference`."""

    known: tuple[int, ...]
    task: tuple[int, ...]
    accuracy: tuple[int, ...]
    mixed: tuple[int, ...]
    confusion: tuple[int, ...]
    auroc: tuple[int, ...]


def shapes(num_seeds: int, num_tasks: int) -> Shapes:
    """The shape of each field of `Inference`."""
    by_choice = (num_seeds, len(SCORES), len(GROUPS))
    return Shapes(
        known=(num_seeds, num_tasks),
        task=(*by_choice, num_tasks),
        accuracy=(*by_choice, num_tasks),
        mixed=(*by_choice, num_tasks),
        confusion=(num_seeds, num_tasks, num_tasks),
        auroc=by_choice,
    )


def not_measured(num_seeds: int, num_tasks: int) -> Inference:
    """Those of a run that is not asked for it, or not yet at its end."""
    return Inference(*(np.full(shape, np.nan) for shape in shapes(num_seeds, num_tasks)))


def after_task(
    before: Inference, decisions: Callable[[int, int], Decisions], task_id: int, num_tasks: int
) -> Inference:
    """With what is measured when a task has been trained: after the last one and the one before.

    Args:
      before: what has been measured.
      decisions: from a task and how many have been trained to its `Decisions`, with seeds in front.
      task_id: of the task.
      num_tasks: of the sequence.
    """
    if task_id == num_tasks - 2:
        return before._replace(auroc=_auroc(decisions, task_id + 1))
    if task_id < num_tasks - 1:
        return before
    of_tasks = [decisions(k, num_tasks) for k in range(num_tasks)]
    return before._replace(
        known=np.stack([each.known for each in of_tasks], axis=1),
        task=np.stack([each.task for each in of_tasks], axis=-1),
        accuracy=np.stack([each.accuracy for each in of_tasks], axis=-1),
        mixed=np.stack([each.mixed for each in of_tasks], axis=-1),
        confusion=np.stack([each.named for each in of_tasks], axis=1),
    )


def _auroc(decisions: Callable[[int, int], Decisions], num_seen: int) -> np.ndarray:
    """Of so many first tasks against the next."""
    seen = [decisions(k, num_seen).best for k in range(num_seen)]
    unseen = decisions(num_seen, num_seen).best
    by_group = []
    for group, of_unseen in enumerate(unseen):
        inside = np.concatenate([best[group] for best in seen], axis=-1)
        both = np.concatenate([inside, of_unseen], axis=-1)
        is_seen = np.arange(both.shape[-1]) < inside.shape[-1]
        # With seeds and scores in front.
        by_group.append(np.apply_along_axis(partial(_area, is_seen), -1, both))
    return np.stack(by_group, axis=-1)


def _area(is_seen: np.ndarray, best: np.ndarray) -> float:
    return float(roc_auc_score(is_seen, best)) if np.isfinite(best).all() else float("nan")
