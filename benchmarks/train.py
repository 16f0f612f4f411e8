"""Training through a task sequence: a few compiled programs serve all tasks and seeds."""

import dataclasses
import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from benchmarks import methods, tasks
from benchmarks.data import Dataset
from benchmarks.methods import Method, MethodSpec, Problem
from benchmarks.models import ARCHITECTURES
from benchmarks.presets import Config

# In so many pieces at most is a task trained, to show how far it is.
_MAX_PIECES = 20
# How many examples are classified at once.
_EVALUATION_BATCH = 100


class Progress(NamedTuple):
    """What a run has measured so far, and what it needs to go on.

    Attributes:
      tasks_done: how many tasks are finished.
      r: float64 ``[num_seeds, num_tasks, num_tasks]``: accuracy (0 to 1) on task k after task t;
        NaN where k > t, and for tasks to come.
      train: float64 ``[num_seeds, num_tasks]``: accuracy on each task's training examples after
        the last task; NaN until then.
      losses: float64 ``[num_seeds, num_tasks]``: mean training loss over each task.
      task_seconds: float64 ``[num_tasks]``: to train, consolidate and evaluate, all seeds together.
      state: the method's, with seeds on the leading axis of each array.
    """

    tasks_done: int
    r: np.ndarray
    train: np.ndarray
    losses: np.ndarray
    task_seconds: np.ndarray
    state: Any


class Run(NamedTuple):
    """What a run measured.

    Attributes:
      r: as in `Progress`.
      train: as in `Progress`.
      losses: as in `Progress`.
      task_seconds: as in `Progress`.
      compile_seconds: to compile, once, the programs that serve every task.
    """

    r: np.ndarray
    train: np.ndarray
    losses: np.ndarray
    task_seconds: np.ndarray
    compile_seconds: float


class Observer:
    """Looks on while a run goes by; its methods do nothing unless overridden."""

    def on_piece(self, task_id: int, fraction: float) -> None:
        """So much of a task's training is done."""

    def on_task(self, progress: Progress) -> None:
        """A task is finished. The arrays of the state are not to be kept: they will be reused."""


def run(
    config: Config,
    spec: MethodSpec,
    dataset: Dataset,
    num_seeds: int,
    observer: Observer | None = None,
    resume: Callable[[Progress], Progress] | None = None,
) -> Run:
    """Trains ``num_seeds`` models through the task sequence and measures R.

    Args:
      config: the experiment.
      spec: the method.
      dataset: its data; with ``config.validation``, `Dataset.validation` of it.
      num_seeds: seeds 0 to num_seeds - 1.
      observer: is told of what happens.
      resume: to go on with an earlier run of the same experiment: from the progress of a fresh one,
        which tells shapes and devices, to that run's latest.

    Returns:
      The `Run`.

    Raises:
      ValueError: as `check`.
    """
    check(config, dataset)
    programs = _compile(config, spec, dataset, num_seeds)
    progress = Progress(
        tasks_done=0,
        r=np.full((num_seeds, config.num_tasks, config.num_tasks), np.nan),
        train=np.full((num_seeds, config.num_tasks), np.nan),
        losses=np.zeros((num_seeds, config.num_tasks)),
        task_seconds=np.zeros(config.num_tasks),
        state=programs.init(),
    )
    if resume is not None:
        progress = resume(progress)
    observer = observer or Observer()
    while progress.tasks_done < config.num_tasks:
        progress = _next_task(progress, programs, spec.single_task, observer)
        observer.on_task(progress)
    _, r, train, losses, task_seconds, _ = progress
    return Run(r, train, losses, task_seconds, programs.compile_seconds)


class _Programs(NamedTuple):
    """The compiled programs, each for any task and for all seeds. They consume the state.

    Attributes:
      init: ``() -> state``.
      start: ``(state, task_id) -> (state, epochs)``.
      steps: ``(state, epochs, task_id, piece) -> (state, mean loss [num_seeds])``.
      end: ``(state, epochs, task_id) -> state``.
      accuracy: for "train" and "test" ``(state, k) -> accuracy on task k [num_seeds]``; the state
        stays.
      num_pieces: of a task's training.
      compile_seconds: of all together.
    """

    init: Callable[[], Any]
    start: Callable[[Any, int], tuple[Any, Any]]
    steps: Callable[[Any, Any, int, int], tuple[Any, np.ndarray]]
    end: Callable[[Any, Any, int], Any]
    accuracy: dict[str, Callable[[Any, int], np.ndarray]]
    num_pieces: int
    compile_seconds: float


def _next_task(
    before: Progress, programs: _Programs, single_task: bool, observer: Observer
) -> Progress:
    started = time.perf_counter()
    task_id, num_tasks = before.tasks_done, before.losses.shape[1]
    r, train, losses = before.r.copy(), before.train.copy(), before.losses.copy()
    state, epochs = programs.start(before.state, task_id)
    for piece in range(programs.num_pieces):
        state, loss = programs.steps(state, epochs, task_id, piece)
        losses[:, task_id] += loss / programs.num_pieces
        observer.on_piece(task_id, (piece + 1) / programs.num_pieces)
    state = programs.end(state, epochs, task_id)
    if single_task:
        # Models of earlier tasks are kept as they were, so their accuracies stand.
        r[:, task_id, :task_id] = r[:, task_id - 1, :task_id]
    for k in [task_id] if single_task else range(task_id + 1):
        r[:, task_id, k] = programs.accuracy["test"](state, k)
        if single_task or task_id == num_tasks - 1:
            train[:, k] = programs.accuracy["train"](state, k)
    task_seconds = before.task_seconds.copy()
    task_seconds[task_id] = time.perf_counter() - started
    return Progress(task_id + 1, r, train, losses, task_seconds, state)


def _compile(config: Config, spec: MethodSpec, dataset: Dataset, num_seeds: int) -> _Programs:
    num_devices = min(num_seeds, jax.local_device_count())
    mesh = jax.make_mesh(
        (num_devices,),
        ("seeds",),
        axis_types=(AxisType.Auto,),
        devices=jax.local_devices()[:num_devices],
    )
    by_seed, everywhere = PartitionSpec("seeds"), PartitionSpec()
    # Seeds beyond those asked for, so that every device has as many, are left out of the results.
    seeds = jnp.arange(math.ceil(num_seeds / num_devices) * num_devices)
    seeds = jax.device_put(seeds, NamedSharding(mesh, by_seed))
    # The examples lie on each device once, whatever the number of tasks and seeds.
    names = ("x_train", "y_train", "x_test", "y_test")
    examples = {name: getattr(dataset, name) for name in names}
    data = jax.device_put(examples, NamedSharding(mesh, everywhere))
    one_seed = _functions(config, spec, dataset)
    compile_seconds = 0.0

    def program(
        function: Callable[..., Any], consumed: Any = (), kept: Any = (), num_ints: int = 0
    ) -> Callable[..., Any]:
        """Compiles ``function(seed, data, *consumed, *kept, *ints)`` for all seeds.

        Returns a function of ``(consumed, kept, *ints)``: tuples of trees with seeds on their
        leading axes, and integers.
        """
        nonlocal compile_seconds

        def on_a_device(seeds: Any, consumed: Any, kept: Any, data: Any, *ints: Any) -> Any:
            return _map_seeds(
                lambda args: function(args[0], data, *args[1], *args[2], *ints),
                (seeds, consumed, kept),
            )

        on_all_devices = jax.shard_map(
            on_a_device,
            mesh=mesh,
            in_specs=(by_seed, by_seed, by_seed, *[everywhere] * (1 + num_ints)),
            out_specs=by_seed,
            check_vma=False,
        )
        started = time.perf_counter()
        compiled = (
            # Donated: the old state's memory is the new state's.
            jax.jit(on_all_devices, donate_argnums=1)
            .lower(seeds, consumed, kept, data, *[np.int32(0)] * num_ints)
            .compile()
        )
        compile_seconds += time.perf_counter() - started
        return lambda consumed, kept, *ints: compiled(
            seeds, consumed, kept, data, *map(np.int32, ints)
        )

    def shapes(tree: Any) -> Any:
        sharding = NamedSharding(mesh, by_seed)
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((len(seeds), *x.shape), x.dtype, sharding=sharding), tree
        )

    def on_host(per_seed: jax.Array) -> np.ndarray:
        return np.asarray(per_seed, np.float64)[:num_seeds]

    state_of_one = jax.eval_shape(one_seed.init, seeds[0], data)
    _, epochs_of_one = jax.eval_shape(one_seed.start, seeds[0], data, state_of_one, 0)
    state, epochs = shapes(state_of_one), shapes(epochs_of_one)
    num_steps = config.steps_per_task
    num_pieces = max(n for n in range(1, _MAX_PIECES + 1) if num_steps % n == 0)
    init = program(one_seed.init)
    start = program(one_seed.start, (state,), num_ints=1)
    steps = program(partial(one_seed.steps, num_pieces), (state,), (epochs,), num_ints=2)
    end = program(one_seed.end, (state,), (epochs,), num_ints=1)
    accuracy = {
        split: program(partial(one_seed.accuracy, split), (), (state,), num_ints=1)
        for split in ("train", "test")
    }

    def run_steps(state: Any, epochs: Any, task_id: int, piece: int) -> tuple[Any, np.ndarray]:
        state, loss = steps((state,), (epochs,), task_id, piece)
        return state, on_host(loss)

    def measure(split: str, state: Any, k: int) -> np.ndarray:
        return on_host(accuracy[split]((), (state,), k))

    return _Programs(
        init=lambda: init((), ()),
        start=lambda state, task_id: start((state,), (), task_id),
        steps=run_steps,
        end=lambda state, epochs, task_id: end((state,), (epochs,), task_id),
        accuracy={split: partial(measure, split) for split in accuracy},
        num_pieces=num_pieces,
        compile_seconds=compile_seconds,
    )


def _map_seeds(function: Callable[[Any], Any], xs: Any) -> Any:
    """Maps a function over the leading axes, on one device.

    XLA's CPU backend runs batched small matrix products slower than the same products one seed
    after the other; an accelerator is filled only by all seeds at once.
    """
    if jax.default_backend() == "cpu":
        return jax.lax.map(function, xs)
    return jax.vmap(function)(xs)


class _Keys(NamedTuple):
    """The independent sources of randomness of one seed."""

    init: jax.Array
    tasks: jax.Array
    batches: jax.Array
    fel: jax.Array


class _Functions(NamedTuple):
    """What `_Programs` has, as pure functions of one seed.

    Attributes:
      init: ``(seed, data) -> state``.
      start: ``(seed, data, state, task_id) -> (state, epochs)``, the latter int32
        ``[epochs, num_batches, batch_size]`` of example indices.
      steps: ``(num_pieces, seed, data, state, epochs, task_id, piece) -> (state, mean loss)``.
      end: ``(seed, data, state, epochs, task_id) -> state``.
      accuracy: ``(split, seed, data, state, k) -> accuracy on task k``.
    """

    init: Callable[..., Any]
    start: Callable[..., Any]
    steps: Callable[..., Any]
    end: Callable[..., Any]
    accuracy: Callable[..., Any]


def _functions(config: Config, spec: MethodSpec, dataset: Dataset) -> _Functions:
    sequence = tasks.SEQUENCES[config.sequence](dataset, config.num_tasks)

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
            right = jnp.argmax(method.logits(state, x, k), axis=-1) == y
            return jnp.sum(right & batch.valid)

        batches = tasks.Pool(*(_in_batches(x) for x in (pool.indices, valid)))
        return jnp.sum(jax.lax.map(count, batches)) / jnp.sum(valid)

    return _Functions(init, start, steps, end, accuracy)


def _in_batches(x: jax.Array) -> jax.Array:
    """``[n]`` as ``[batches, _EVALUATION_BATCH]``, filled up with zeros."""
    size = min(_EVALUATION_BATCH, len(x))
    return jnp.pad(x, (0, -len(x) % size)).reshape(-1, size)


def make_problem(
    config: Config, spec: MethodSpec, sequence: tasks.Sequence, dataset: str, fel_key: jax.Array
) -> Problem:
    """What a method is given for one seed: the network and the settings."""
    network: Any = ARCHITECTURES[config.network].build(
        num_classes=sequence.num_classes,
        num_tasks=config.num_tasks,
        head="shared" if spec.single_task else config.head,
        fel=spec.fel if config.fel is None else config.fel,
        # An integer of its own: FEL derives its keys as the benchmark does, and must not
        # draw the permutations that make the tasks.
        seed=jax.random.randint(fel_key, (), 0, 2**31 - 1),
    )

    def logits(params: Any, x: jax.Array, task_id: jax.Array, projections: Any = None) -> jax.Array:
        variables = {"params": params}
        if projections is not None:
            variables["projections"] = projections
        return jnp.asarray(network.apply(variables, x, task_id))

    def freeze(params: Any, task_id: jax.Array) -> Any:
        if network.head != "frozen":
            return params
        stopped = jax.lax.stop_gradient(params["head"])
        head = jax.tree.map(partial(jnp.where, task_id == 0), params["head"], stopped)
        return params | {"head": head}

    blank = jnp.zeros((1, *sequence.input_shape))
    return Problem(
        init=lambda key: network.init(key, blank, jnp.int32(0))["params"],
        logits=logits,
        protected=lambda params: {
            name: name != "head" or network.head == "shared" for name in params
        },
        freeze=freeze,
        learning_rate=config.learning_rate_schedule(),
        alpha=config.alpha,
        dataset=dataset,
        input_shape=sequence.input_shape,
        num_classes=sequence.num_classes,
        num_tasks=config.num_tasks,
    )


def memory_bytes(config: Config, spec: MethodSpec, dataset: Dataset) -> int:
    """How many bytes the method keeps from one task for the next, for one seed."""
    sequence = tasks.SEQUENCES[config.sequence](dataset, config.num_tasks)
    problem = make_problem(config, spec, sequence, dataset.name, jax.random.key(0))
    return methods.memory_bytes(spec.build(problem))


def fitted(config: Config, dataset: Dataset) -> Config:
    """The same with no more examples in a task than there are."""
    sequence = tasks.SEQUENCES[config.sequence](dataset, config.num_tasks)
    examples = min(config.examples_per_task, sequence.smallest)
    return dataclasses.replace(config, examples_per_task=examples)


def check(config: Config, dataset: Dataset) -> None:
    """Finds out whether a run is possible, before it begins.

    Raises:
      ValueError: the dataset does not suit the configuration.
    """
    sequence = tasks.SEQUENCES[config.sequence](dataset, config.num_tasks)
    if config.examples_per_task > sequence.smallest:
        raise ValueError(
            f"examples_per_task is {config.examples_per_task}, but {dataset.name!r} has "
            f"{sequence.smallest} training images for a task. Set --examples-per-task to "
            f"{sequence.smallest} or less."
        )
    if config.batch_size > config.examples_per_task:
        raise ValueError(
            f"batch_size is {config.batch_size}, but a task has {config.examples_per_task} "
            "examples. Set --batch-size lower."
        )
