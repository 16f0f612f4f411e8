"""Encodings that no task uses, under which a network learns to be unsure."""

import jax


def unused_task(key: jax.Array, num_tasks: int, count: int = 1000) -> jax.Array:
    """Draws a task id that no task has: under its encoding (FEL) a network learns to be unsure.

    Other tasks' encodings are random permutations, and so is this one: what a network learns about
    it holds for theirs, those of later tasks too. No data are kept.

    Args:
      key: from `jax.random.key`; another in each step.
      num_tasks: how long the sequence is at most.
      count: from how many ids it is drawn. Layers with a table of permutations (``num_tasks=`` of
        ``FeatureEncoding``) need ``num_tasks + count`` of them.

    Returns:
      int32 scalar from ``num_tasks`` to ``num_tasks + count - 1``.

    Example:
      >>> import jax
      >>> from rgo_jax import task_inference
      >>> int(task_inference.unused_task(jax.random.key(0), 20, count=1))
      20
    """
    return jax.random.randint(key, (), num_tasks, num_tasks + count)
