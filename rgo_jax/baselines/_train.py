"""A method taken through a list of tasks."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rgo_jax.baselines import _checkpoint
from rgo_jax.baselines._method import Method, Task

_ARRAYS = ("x", "y", "x_test", "y_test")


def accuracy(outputs: jax.Array, y: jax.Array) -> jax.Array:
    """Whether the largest of each example's outputs is the label's.

    Args:
      outputs: ``[..., num_classes]``.
      y: integers ``[...]``.

    Returns:
      float32 ``[...]``: 1 or 0; NaN where outputs are not finite, as after training has diverged.

    Example:
      >>> import jax.numpy as jnp
      >>> from rgo_jax import baselines
      >>> print(baselines.accuracy(jnp.eye(3), jnp.array([0, 1, 1])))
      [1. 1. 0.]
    """
    right = (jnp.argmax(outputs, axis=-1) == y).astype(jnp.float32)
    return jnp.where(jnp.isfinite(jnp.max(outputs, axis=-1)), right, jnp.nan)


def train_sequence(
    method: Method,
    params: Any,
    tasks: Sequence[tuple[Any, Any, Any, Any]],
    *,
    batch_size: int,
    epochs: int = 1,
    key: jax.Array | None = None,
    metric: Callable[[jax.Array, jax.Array], jax.Array] = accuracy,
    test_batch_size: int = 1000,
    on_task: Callable[[int, np.ndarray], None] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
) -> tuple[np.ndarray, Any]:
    """Trains a model on one task after the other, and measures it on all so far after each.

    A task is trained in one compiled program, which holds its data on the device. Tasks of equal
    shapes share it. Examples are shuffled in each epoch; those that do not fill a batch are left
    out of it.

    Args:
      method: of `rgo_jax.baselines`, or your own.
      params: the parameters to begin with.
      tasks: a list of arrays ``(x [n, ...], y [n, ...], x_test [m, ...], y_test [m, ...])``, of
        NumPy or JAX; the numbers of examples may differ.
      batch_size: examples in a step.
      epochs: passes over each task's data.
      key: of all that is random; by default ``jax.random.key(0)``.
      metric: ``(outputs, y) -> [b]``: of single examples; further axes are averaged. The default
        is `accuracy`; a loss works too.
      test_batch_size: how many examples are tested at once, at most.
      on_task: is called after each task with its number, from 0, and its row of R.
      checkpoint: a file, written after each task, from which a call with the same arguments goes on
        after a kill, to the same numbers. It may go on with more tasks. Delete it when it is not
        needed any more.

    Returns:
      R, float64 ``[num_tasks, num_tasks]``, with the metric on task ``k`` after task ``t`` at
      ``[t, k]`` and NaN for tasks to come, as `rgo_jax.average_accuracy` and the other measures
      take it; and the method's state, whose ``params`` are the trained parameters.

    Raises:
      ValueError: for tasks that are no arrays of equal lengths, or smaller than a batch; for a
        checkpoint that cannot be read or is of another run.

    Example:
      >>> import jax, jax.numpy as jnp, optax, rgo_jax
      >>> from rgo_jax import baselines
      >>> x = jax.random.normal(jax.random.key(0), (2, 90, 4))
      >>> labels = jnp.argmax(x[..., :3], axis=-1)
      >>> tasks = [(x[k, :60], labels[k, :60], x[k, 60:], labels[k, 60:]) for k in range(2)]
      >>> method = baselines.ewc(lambda params, x, task_id: x @ params, optax.sgd(0.1))
      >>> r, state = baselines.train_sequence(method, jnp.zeros((4, 3)), tasks, batch_size=10)
      >>> r.shape, state.params.shape
      ((2, 2), (4, 3))
      >>> acc = rgo_jax.average_accuracy(r)
    """
    key = jax.random.key(0) if key is None else key
    shapes = _check(tasks, batch_size, epochs)

    def load(task_id: int, names: Sequence[str]) -> list[jax.Array]:
        return [jnp.asarray(tasks[task_id][_ARRAYS.index(name)]) for name in names]

    def task_of(x: jax.Array, y: jax.Array, task_id: jax.Array, batches: jax.Array) -> Task:
        return Task(task_id, lambda indices: (x[indices], y[indices]), batches[0], epochs)

    @jax.jit
    def draw(key: jax.Array, x: jax.Array) -> jax.Array:
        num_batches = len(x) // batch_size
        orders = jax.vmap(lambda key: jax.random.permutation(key, len(x)))(
            jax.random.split(key, epochs)
        )
        return orders[:, : num_batches * batch_size].reshape(epochs, num_batches, batch_size)

    @jax.jit
    def train(
        state: Any, x: jax.Array, y: jax.Array, task_id: jax.Array, batches: jax.Array
    ) -> Any:
        task = task_of(x, y, task_id, batches)

        def step(state: Any, indices: jax.Array) -> tuple[Any, None]:
            return method.step(state, task.load(indices), task)[0], None

        state, _ = jax.lax.scan(step, state, batches.reshape(-1, batch_size))
        return method.end_task(state, task)

    @jax.jit
    def measure(state: Any, x: jax.Array, y: jax.Array, task_id: jax.Array) -> jax.Array:
        size = min(test_batch_size, len(x))
        # Filled up with the first ones again, which are not counted.
        indices = jnp.arange(-(-len(x) // size) * size) % len(x)

        def of_batch(indices: jax.Array) -> jax.Array:
            values = metric(method.apply(state, x[indices], task_id), y[indices])
            return jnp.mean(values.reshape(size, -1), axis=1)

        return jnp.mean(jax.lax.map(of_batch, indices.reshape(-1, size)).reshape(-1)[: len(x)])

    init_key, task_key = jax.random.split(key)
    state = jax.jit(method.init)(params, jnp.asarray(tasks[0][0][:1]), init_key)
    r = np.full((len(tasks), len(tasks)), np.nan)
    done = 0
    settings = {"batch_size": batch_size, "epochs": epochs, "key": _numbers(key)}
    path = None if checkpoint is None else Path(checkpoint)
    if path is not None and path.exists():
        rows, state = _checkpoint.load(path, settings | {"tasks": shapes}, state)
        done = len(rows)
        r[:done, :done] = rows
    for task_id in range(done, len(tasks)):
        x, y = load(task_id, ("x", "y"))
        batch_key, own_key = jax.random.split(jax.random.fold_in(task_key, task_id))
        number = jnp.int32(task_id)
        batches = draw(batch_key, x)
        # Not compiled, so that the method can look at the labels.
        state = method.start_task(state, task_of(x, y, number, batches), own_key)
        state = train(state, x, y, number, batches)
        for k in range(task_id + 1):
            r[task_id, k] = measure(state, *load(k, ("x_test", "y_test")), jnp.int32(k))
        if path is not None:
            done = task_id + 1
            about = settings | {"tasks": shapes[:done]}
            _checkpoint.save(path, about, r[:done, :done], state)
        if on_task is not None:
            on_task(task_id, r[task_id].copy())
    return r, state


def _numbers(key: jax.Array) -> list[int]:
    """A key, old or new, as JSON has it."""
    is_new = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    return [int(number) for number in np.ravel(jax.random.key_data(key) if is_new else key)]


def _check(tasks: Sequence[Any], batch_size: int, epochs: int) -> list[Any]:
    """The shapes and dtypes of all arrays, once they are found to fit."""
    for name, value in (("batch_size", batch_size), ("epochs", epochs)):
        if value < 1:
            raise ValueError(f"{name} is {value}; expected 1 or more.")
    if not len(tasks):
        raise ValueError("tasks is empty; expected a list of (x, y, x_test, y_test).")
    found = []
    for k, task in enumerate(tasks):
        if len(task) != len(_ARRAYS) or not all(getattr(array, "ndim", 0) for array in task):
            raise ValueError(
                f"Task {k} is {[type(array).__name__ for array in task]}; expected four arrays "
                "with examples on their first axes: (x, y, x_test, y_test)."
            )
        shapes = {name: array.shape for name, array in zip(_ARRAYS, task, strict=True)}
        for split in ("", "_test"):
            if shapes["x" + split][0] != shapes["y" + split][0] or not shapes["x" + split][0]:
                raise ValueError(
                    f"Task {k} has x{split} of shape {shapes['x' + split]} and y{split} of shape "
                    f"{shapes['y' + split]}; expected as many labels as examples, at least one."
                )
        if shapes["x"][0] < batch_size:
            raise ValueError(
                f"Task {k} has {shapes['x'][0]} examples, but batch_size is {batch_size}. Lower "
                "batch_size."
            )
        found.append([[list(array.shape), str(array.dtype)] for array in task])
    return found
