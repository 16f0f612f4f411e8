"""An experiment as pure functions of one seed, which `benchmarks.run.programs` compiles."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.data import Dataset, tasks
from benchmarks.methods import MethodSpec, Problem
from benchmarks.networks.layers import TASK_HEADS
from benchmarks.presets import Config
from benchmarks.run import inference
from benchmarks.run.problem import make_problem
from rgo_jax.baselines import Method, Task

# How many examples are classified at once, and how many images.
_EVALUATION_BATCH = 1000
_EVALUATION_BATCH_OF_IMAGES = 100


class _Keys(NamedTuple):
    """The independent sources of randomness of one seed."""

    init: jax.Array
    tasks: jax.Array
    batches: jax.Array
    fel: jax.Array


class Functions(NamedTuple):
    """What happens to one seed.

    Attributes:
      init: ``(seed, data) -> state``.
      start: ``(seed, data, state, task_id) -> (state, epochs)``, the latter int32
        ``[epochs, num_batches, batch_size]`` of example indices.
      steps: ``(num_pieces, seed, data, state, epochs, task_id, piece) -> (state, mean loss)``.
      end: ``(seed, data, state, epochs, task_id) -> state``.
      accuracy: ``(split, seed, data, state, k) -> accuracy on task k``, NaN where logits are not
        finite.
      decisions: ``(seed, data, state, k, num_seen) -> inference.Decisions`` on task k's test
        examples without its id, where ``num_seen`` tasks have been trained; None where none is
        inferred.
      capacity: ``(seed, data, state) -> share``, as `MethodSpec.capacity`; None where that is.
    """

    init: Callable[..., Any]
    start: Callable[..., Any]
    steps: Callable[..., Any]
    end: Callable[..., Any]
    accuracy: Callable[..., Any]
    decisions: Callable[..., Any] | None
    capacity: Callable[..., Any] | None


def sequence_of(config: Config, dataset: Dataset) -> tasks.Sequence:
    """The tasks of an experiment."""
    return tasks.SEQUENCES[config.sequence](dataset, config.num_tasks, config.interpolation)


def infers_tasks(config: Config, spec: MethodSpec) -> bool:
    """Whether tasks are to be inferred, and one network's outputs depend on a task's id."""
    depends = config.has_fel(spec.fel) or config.head in TASK_HEADS
    return config.infer_task and depends and not spec.single_task


def data_of(config: Config, dataset: Dataset) -> Dataset:
    """What of a dataset an experiment uses: with ``validation`` no test data.

    Raises:
      ValueError: nothing would be left to train on, or grey images are to be scrambled.
    """
    dataset = dataset.first(config.training_images)
    if config.scrambled:
        dataset = dataset.scrambled()
    if not config.validation:
        return dataset
    if len(dataset.x_train) < 2:
        raise ValueError(
            f"--validation holds out a part of the training images, but {dataset.name} has one. "
            "Raise --training-images, or leave --validation out."
        )
    return dataset.validation()


def functions(config: Config, spec: MethodSpec, dataset: Dataset) -> Functions:
    """A method on a network, taken through a sequence of tasks."""
    sequence = sequence_of(config, dataset)
    is_image = len(sequence.input_shape) > 1
    evaluation_batch = _EVALUATION_BATCH_OF_IMAGES if is_image else _EVALUATION_BATCH

    def keys_of(seed: jax.Array) -> _Keys:
        return _Keys(*jax.random.split(jax.random.key(seed), len(_Keys._fields)))

    def problem_of(keys: _Keys) -> Problem:
        return make_problem(config, spec, sequence, dataset.name, keys.fel)

    def method_of(keys: _Keys) -> Method:
        return spec.build(problem_of(keys))

    def loader(keys: _Keys, data: Any, split: str, task_id: jax.Array) -> Callable[..., Any]:
        encode = sequence.encode(keys.tasks, task_id)
        images, labels = data[f"x_{split}"], data[f"y_{split}"]
        return lambda examples: encode(images[examples], labels[examples])

    def draw(keys: _Keys, task_id: jax.Array) -> jax.Array:
        return tasks.draw_batches(
            jax.random.fold_in(keys.batches, task_id),
            sequence.pool("train", keys.tasks, task_id),
            config.examples_per_task,
            config.epochs,
            config.batch_size,
        )

    def task_of(keys: _Keys, data: Any, epochs: jax.Array, task_id: jax.Array) -> Task:
        return Task(task_id, loader(keys, data, "train", task_id), epochs[0], config.epochs)

    def init(seed: jax.Array, data: Any) -> Any:
        del data
        keys = keys_of(seed)
        return method_of(keys).init(keys.init)

    def start(seed: jax.Array, data: Any, state: Any, task_id: jax.Array) -> Any:
        keys = keys_of(seed)
        epochs = draw(keys, task_id)
        task = task_of(keys, data, epochs, task_id)
        key = jax.random.fold_in(keys.init, task_id)
        return method_of(keys).start_task(state, task, key), epochs

    def steps(
        num_pieces: int,
        seed: jax.Array,
        data: Any,
        state: Any,
        epochs: jax.Array,
        task_id: jax.Array,
        piece: jax.Array,
    ) -> Any:
        keys = keys_of(seed)
        method, task = method_of(keys), task_of(keys, data, epochs, task_id)
        state, losses = jax.lax.scan(
            lambda state, examples: method.step(state, task.load(examples), task),
            state,
            epochs.reshape(num_pieces, -1, config.batch_size)[piece],
        )
        return state, jnp.mean(losses)

    def end(seed: jax.Array, data: Any, state: Any, epochs: jax.Array, task_id: jax.Array) -> Any:
        keys = keys_of(seed)
        return method_of(keys).end_task(state, task_of(keys, data, epochs, task_id))

    def accuracy(split: str, seed: jax.Array, data: Any, state: Any, k: jax.Array) -> jax.Array:
        keys = keys_of(seed)
        # Of the training data, what the task was trained on.
        pool = sequence.pool("test", keys.tasks, k)
        if split == "train":
            pool = tasks.Pool(draw(keys, k)[0].ravel())
        method, load = method_of(keys), loader(keys, data, split, k)
        valid = jnp.ones(pool.indices.shape, bool) if pool.valid is None else pool.valid

        def count(batch: tasks.Pool) -> jax.Array:
            x, y = load(batch.indices)
            logits = method.apply(state, x, k)
            right = jnp.argmax(logits, axis=-1) == y
            # The first class has the largest of logits that are NaN: no accuracy.
            finite = jnp.all(jnp.isfinite(jnp.max(logits, axis=-1)), where=batch.valid)
            return jnp.where(finite, jnp.sum(right & batch.valid), jnp.nan)

        batches = tasks.Pool(*(_in_batches(x, evaluation_batch) for x in (pool.indices, valid)))
        return jnp.sum(jax.lax.map(count, batches)) / jnp.sum(valid)

    def decisions(
        seed: jax.Array, data: Any, state: Any, k: jax.Array, num_seen: jax.Array
    ) -> inference.Decisions:
        keys = keys_of(seed)
        pool = sequence.pool("test", keys.tasks, k)
        count = min(inference.EXAMPLES, len(pool.indices))
        # In an order of their own: pools of classes have them class by class.
        key = jax.random.fold_in(keys.tasks, k)
        examples = tasks.draw_batches(key, pool, count, epochs=1, batch_size=count).ravel()
        method, load = method_of(keys), loader(keys, data, "test", k)
        x, y = jax.lax.map(load, _in_batches(examples, evaluation_batch))

        def outputs(task_id: jax.Array) -> jax.Array:
            logits = jax.lax.map(lambda batch: method.apply(state, batch, task_id), x)
            return logits.reshape(-1, logits.shape[-1])[:count]

        logits = jax.lax.map(outputs, jnp.arange(config.num_tasks))
        labels = y.ravel()[:count]
        return inference.decide(logits, labels, k, num_seen, sequence.own_classes)

    of_state = spec.capacity

    def capacity(seed: jax.Array, data: Any, state: Any) -> jax.Array:
        del data
        assert of_state is not None
        return of_state(problem_of(keys_of(seed)), state)

    return Functions(
        init=init,
        start=start,
        steps=steps,
        end=end,
        accuracy=accuracy,
        decisions=decisions if infers_tasks(config, spec) else None,
        capacity=capacity if of_state else None,
    )


def _in_batches(x: jax.Array, size: int) -> jax.Array:
    """``[n]`` as ``[batches, size]``, or fewer in a batch, filled up with zeros."""
    size = min(size, len(x))
    return jnp.pad(x, (0, -len(x) % size)).reshape(-1, size)


def memory_bytes(config: Config, spec: MethodSpec, dataset: Dataset) -> int:
    """How many bytes a method keeps from one task for the next, for one seed; computes nothing."""
    sequence = sequence_of(config, dataset)

    def kept(key: jax.Array) -> Any:
        method = spec.build(make_problem(config, spec, sequence, dataset.name, key))
        return method.memory(method.init(key))

    leaves = jax.tree.leaves(jax.eval_shape(kept, jax.random.key(0)))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
