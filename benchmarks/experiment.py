"""An experiment as pure functions of one seed, from which `benchmarks.programs` makes programs."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import rgo_jax.linen
from benchmarks import tasks
from benchmarks.data import Dataset
from benchmarks.layers import SHARED_HEADS
from benchmarks.limits import MAX_COUNT, check_memory
from benchmarks.methods import Method, MethodSpec, Problem
from benchmarks.methods.base import NO_STATISTICS, Statistics
from benchmarks.networks import ARCHITECTURES, check_input
from benchmarks.presets import Config

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
    """

    init: Callable[..., Any]
    start: Callable[..., Any]
    steps: Callable[..., Any]
    end: Callable[..., Any]
    accuracy: Callable[..., Any]


def sequence_of(config: Config, dataset: Dataset) -> tasks.Sequence:
    """The tasks of an experiment."""
    return tasks.SEQUENCES[config.sequence](dataset, config.num_tasks, config.interpolation)


def data_of(config: Config, dataset: Dataset) -> Dataset:
    """What of a dataset an experiment uses: with ``validation`` no test data.

    Raises:
      ValueError: nothing would be left to train on.
    """
    dataset = dataset.first(config.training_images)
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

    def keys_of(seed: jax.Array) -> _Keys:
        return _Keys(*jax.random.split(jax.random.key(seed), len(_Keys._fields)))

    def method_of(keys: _Keys) -> Method:
        return spec.build(make_problem(config, spec, sequence, dataset.name, keys.fel))

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

    def task_of(keys: _Keys, data: Any, epochs: jax.Array, task_id: jax.Array) -> tasks.Task:
        return tasks.Task(task_id, loader(keys, data, "train", task_id), epochs[0])

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
            logits = method.logits(state, x, k)
            right = jnp.argmax(logits, axis=-1) == y
            # The first class has the largest of logits that are NaN: no accuracy.
            finite = jnp.all(jnp.isfinite(jnp.max(logits, axis=-1)), where=batch.valid)
            return jnp.where(finite, jnp.sum(right & batch.valid), jnp.nan)

        is_image = len(sequence.input_shape) > 1
        size = _EVALUATION_BATCH_OF_IMAGES if is_image else _EVALUATION_BATCH
        batches = tasks.Pool(*(_in_batches(x, size) for x in (pool.indices, valid)))
        return jnp.sum(jax.lax.map(count, batches)) / jnp.sum(valid)

    return Functions(init, start, steps, end, accuracy)


def _in_batches(x: jax.Array, size: int) -> jax.Array:
    """``[n]`` as ``[batches, size]``, or fewer in a batch, filled up with zeros."""
    size = min(size, len(x))
    return jnp.pad(x, (0, -len(x) % size)).reshape(-1, size)


def make_problem(
    config: Config, spec: MethodSpec, sequence: tasks.Sequence, dataset: str, fel_key: jax.Array
) -> Problem:
    """What a method is given for one seed: the network and the settings."""
    batch_norm = ARCHITECTURES[config.network].batch_norm
    network: Any = ARCHITECTURES[config.network].build(
        num_classes=sequence.num_classes,
        num_tasks=config.num_tasks,
        head="shared" if spec.single_task else config.head,
        fel=spec.fel if config.fel is None else config.fel,
        fel_on_convs=config.fel_on_convs,
        fel_on_input=config.fel_on_input,
        fel_per_layer=config.fel_per_layer,
        fel_on_first_task=config.fel_on_first_task,
        initial_values=config.initial_values,
        biases=config.biases,
        conv_biases=config.conv_biases,
        # An integer of its own: FEL derives its keys as the benchmark does, and must not
        # draw the permutations that make the tasks.
        seed=jax.random.randint(fel_key, (), 0, 2**31 - 1),
    )

    def logits(
        params: Any,
        x: jax.Array,
        task_id: jax.Array,
        subspace: jax.Array | None = None,
        statistics: Any = None,
    ) -> jax.Array:
        variables = {"params": freeze(params, task_id), "encodings": encodings}
        if subspace is not None:
            variables["subspace"] = {"basis": subspace}
        if not batch_norm:
            return jnp.asarray(network.apply(variables, x, task_id))
        if statistics is not None:
            return jnp.asarray(network.apply(variables | {"batch_stats": statistics}, x, task_id))
        return jnp.asarray(network.apply(variables, x, task_id, mutable="batch_stats")[0])

    def update_statistics(statistics: Any, params: Any, x: jax.Array, task_id: jax.Array) -> Any:
        variables = {"params": freeze(params, task_id), "encodings": encodings}
        variables["batch_stats"] = statistics
        _, updated = network.apply(variables, x, task_id, mutable="batch_stats")
        return updated["batch_stats"]

    def freeze(params: Any, task_id: jax.Array) -> Any:
        def of_leaf(path: Any, leaf: jax.Array) -> jax.Array:
            names = [key.key for key in path]
            is_frozen = (network.head == "frozen" and names[0] == "head") or (
                network.biases == "frozen" and names[-1] == "bias"
            )
            return jnp.where(task_id == 0, leaf, jax.lax.stop_gradient(leaf)) if is_frozen else leaf

        return jax.tree.map_with_path(of_leaf, params)

    blank = jnp.zeros((1, *sequence.input_shape))

    def init(key: jax.Array) -> Any:
        return network.init(key, blank, jnp.int32(0))["params"]

    encodings: dict[str, Any] = {}
    # XLA's CPU backend draws a task's permutations before a scan over its steps by itself, and need
    # not draw those of other tasks; others would draw them in each step.
    if jax.default_backend() != "cpu":
        encodings = rgo_jax.linen.encodings(
            network, jax.eval_shape(init, fel_key), config.num_tasks, blank, jnp.int32(0)
        )
    return Problem(
        init=init,
        logits=logits,
        protected=lambda params: {
            name: name != "head" or network.head in SHARED_HEADS for name in params
        },
        freeze=freeze,
        losses=partial(cross_entropies, smoothing=config.label_smoothing),
        learning_rate=config.learning_rate_schedule(),
        options=spec.make_options(config.options),
        dataset=dataset,
        input_shape=sequence.input_shape,
        num_classes=sequence.num_classes,
        num_tasks=config.num_tasks,
        steps_per_task=config.steps_per_task,
        statistics=Statistics(
            lambda: network.init(fel_key, blank, jnp.int32(0))["batch_stats"], update_statistics
        )
        if batch_norm
        else NO_STATISTICS,
    )


def cross_entropies(logits: jax.Array, labels: jax.Array, *, smoothing: float = 0) -> jax.Array:
    """Cross-entropies ``[b]`` of ``logits [b, classes]`` with integer labels, perhaps smoothed."""
    if not smoothing:
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), smoothing)
    return optax.softmax_cross_entropy(logits, targets)


def memory_bytes(config: Config, spec: MethodSpec, dataset: Dataset) -> int:
    """How many bytes a method keeps from one task for the next, for one seed; computes nothing."""
    sequence = sequence_of(config, dataset)

    def kept(key: jax.Array) -> Any:
        method = spec.build(make_problem(config, spec, sequence, dataset.name, key))
        return method.memory(method.init(key))

    leaves = jax.tree.leaves(jax.eval_shape(kept, jax.random.key(0)))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def fitted(config: Config, dataset: Dataset) -> Config:
    """The same with no more examples in a task than the largest has."""
    sequence = sequence_of(config, dataset)
    examples = min(config.examples_per_task, sequence.largest)
    return dataclasses.replace(config, examples_per_task=examples)


def notes(config: Config, dataset: Dataset) -> list[str]:
    """What a task does with its examples that a user might not expect, in sentences."""
    sequence = sequence_of(config, dataset)
    if sequence.smallest >= config.examples_per_task:
        return []
    return [
        f"{dataset.name}: by its classes a task has {sequence.smallest} to {sequence.largest} "
        f"training images. An epoch takes {config.examples_per_task} of every task: one that has "
        "fewer goes through its own again. --examples-per-task sets another number."
    ]


def check(config: Config, spec: MethodSpec, dataset: Dataset, num_seeds: int = 1) -> None:
    """Finds out whether the settings suit the data and one another, before a run begins.

    `benchmarks.dry_run.check` finds out the rest.

    Raises:
      ValueError: they do not, or what is drawn and measured would not fit into memory.
    """
    if ARCHITECTURES[config.network].batch_norm and not spec.batch_norm:
        raise ValueError(
            f"Network {config.network!r} has batch normalisation, whose averages {spec.label} does "
            "not keep. Choose --network resnet-18."
        )
    sequence = sequence_of(config, dataset)
    check_input(config.network, sequence.input_shape)
    if config.examples_per_task > sequence.largest:
        raise ValueError(
            f"--examples-per-task is {config.examples_per_task}, but {dataset.name!r} has "
            f"{sequence.largest} training images for a task. Set --examples-per-task to "
            f"{sequence.largest} or less."
        )
    if config.batch_size > config.examples_per_task:
        raise ValueError(
            f"--batch-size is {config.batch_size}, but a task has {config.examples_per_task} "
            f"examples. Set --batch-size to {config.examples_per_task} or less."
        )
    steps = config.num_tasks * config.steps_per_task
    if steps > MAX_COUNT:
        raise ValueError(
            f"--num-tasks {config.num_tasks} and --epochs {config.epochs} make {steps} steps of "
            f"{config.batch_size} examples; expected {MAX_COUNT} at most, which a 32-bit counter "
            "holds. Lower one of them."
        )
    check_memory(
        f"what {num_seeds} seeds draw in --epochs {config.epochs} and measure on --num-tasks "
        f"{config.num_tasks}",
        num_seeds * bytes_per_seed(config),
        "Lower --seeds, --epochs or --num-tasks.",
    )


def bytes_per_seed(config: Config) -> int:
    """How many bytes the indices of a task's examples take, and the accuracies on all tasks."""
    indices = 4 * config.steps_per_task * config.batch_size
    return indices + 8 * config.num_tasks * (config.num_tasks + 2)
