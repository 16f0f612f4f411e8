"""Training through a task sequence: one compiled program a task, all seeds in it."""

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, PartitionSpec

from benchmarks import tasks
from benchmarks.data import Dataset
from benchmarks.methods import MethodSpec, Problem
from benchmarks.models import FeedForward
from benchmarks.presets import Config


class Run(NamedTuple):
    """What a run measured.

    Attributes:
      r: float64 ``[num_seeds, num_tasks, num_tasks]``: accuracy (0 to 1) on task k after task t;
        NaN where k > t.
      losses: float64 ``[num_seeds, num_tasks]``: mean training loss over each task.
      compile_seconds: to compile, once, the program that serves every task.
      task_seconds: ``[num_tasks]``: to train, consolidate and evaluate, all seeds together.
    """

    r: np.ndarray
    losses: np.ndarray
    compile_seconds: float
    task_seconds: list[float]


class _Keys(NamedTuple):
    """The independent sources of randomness of one seed."""

    init: jax.Array
    pixels: jax.Array
    batches: jax.Array
    fel: jax.Array


class _Carry(NamedTuple):
    """What goes from task to task, for one seed."""

    state: Any
    accuracies: jax.Array  # [num_tasks], the latest row of R


def run(
    config: Config,
    spec: MethodSpec,
    dataset: Dataset,
    num_seeds: int,
    on_task: Callable[[int, np.ndarray], None] = lambda task_id, r: None,
) -> Run:
    """Trains ``num_seeds`` models through the task sequence and measures R.

    Args:
      config: the experiment.
      spec: the method.
      dataset: its data; with ``config.validation``, `Dataset.validation` of it.
      num_seeds: seeds 0 to num_seeds - 1.
      on_task: called after each task with its id and R so far (as in `Run`).

    Returns:
      The `Run`.

    Raises:
      ValueError: as `check`.
    """
    check(config, dataset)
    # The examples live on the device once, whatever the number of tasks and seeds.
    arrays = {name: value for name, value in dataset._asdict().items() if name != "name"}
    data = jax.device_put(arrays)
    # Seeds beyond those asked for, so that every device has as many, are left out of the results.
    num_devices = min(num_seeds, jax.local_device_count())
    seeds = jnp.arange(math.ceil(num_seeds / num_devices) * num_devices)
    map_seeds = _mapping(num_devices)
    init, train_task = _functions(config, spec, dataset)

    carry = jax.jit(lambda seeds: map_seeds(init, seeds))(seeds)
    started = time.perf_counter()
    # Donated: the old state's memory is the new state's.
    program = (
        jax.jit(
            lambda carry, data, task_id, seeds: map_seeds(
                lambda args: train_task(*args, data, task_id), (carry, seeds)
            ),
            donate_argnums=0,
        )
        .lower(carry, data, jnp.int32(0), seeds)
        .compile()
    )
    compile_seconds = time.perf_counter() - started

    r = np.full((num_seeds, config.num_tasks, config.num_tasks), np.nan)
    losses = np.zeros((num_seeds, config.num_tasks))
    task_seconds = []
    for task_id in range(config.num_tasks):
        started = time.perf_counter()
        carry, loss = program(carry, data, jnp.int32(task_id), seeds)
        r[:, task_id] = carry.accuracies[:num_seeds]
        losses[:, task_id] = loss[:num_seeds]
        task_seconds.append(time.perf_counter() - started)
        on_task(task_id, r)
    return Run(r, losses, compile_seconds, task_seconds)


def _mapping(num_devices: int) -> Callable[[Callable[[Any], Any], Any], Any]:
    """How one program serves all seeds, given as leading axes of equal length.

    Each device has its share of the seeds. XLA's CPU backend runs batched small matrix products
    slower than the same products one seed after the other; an accelerator is filled only by all
    seeds at once.
    """

    def on_one_device(function: Callable[[Any], Any], xs: Any) -> Any:
        if jax.default_backend() == "cpu":
            return jax.lax.map(function, xs)
        return jax.vmap(function)(xs)

    def on_all_devices(function: Callable[[Any], Any], xs: Any) -> Any:
        mesh = jax.make_mesh(
            (num_devices,),
            ("seeds",),
            axis_types=(AxisType.Auto,),
            devices=jax.local_devices()[:num_devices],
        )
        by_seed = PartitionSpec("seeds")
        return jax.shard_map(
            partial(on_one_device, function),
            mesh=mesh,
            in_specs=by_seed,
            out_specs=by_seed,
            check_vma=False,
        )(xs)

    return on_one_device if num_devices == 1 else on_all_devices


def _functions(
    config: Config, spec: MethodSpec, dataset: Dataset
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The two pure functions of one seed: ``init`` and ``train_task``."""
    height, width = dataset.x_train.shape[1:]
    num_examples = len(dataset.x_train)
    pixel_index = tasks.SEQUENCES[config.sequence](height, width, config.num_tasks)

    def setup(seed: jax.Array) -> tuple[_Keys, Any]:
        keys = _Keys(*jax.random.split(jax.random.key(seed), len(_Keys._fields)))
        network = FeedForward(
            convs=(),
            hidden=config.hidden,
            num_classes=dataset.num_classes,
            num_tasks=config.num_tasks,
            head="shared" if spec.single_task else config.head,
            fel=spec.fel if config.fel is None else config.fel,
            # An integer of its own: FEL derives its keys as the benchmark does, and must not
            # draw the permutations that make the tasks.
            seed=jax.random.randint(keys.fel, (), 0, 2**31 - 1),
        )

        def logits(
            params: Any, x: jax.Array, task_id: jax.Array, projections: Any = None
        ) -> jax.Array:
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

        blank = jnp.zeros((1, height * width))
        problem = Problem(
            init=lambda key: network.init(key, blank, jnp.int32(0))["params"],
            logits=logits,
            protected=lambda params: {
                name: name != "head" or network.head == "shared" for name in params
            },
            freeze=freeze,
            learning_rate=config.learning_rate_schedule(),
            alpha=config.alpha,
            dataset=dataset.name,
            input_shape=(height * width,),
            num_classes=dataset.num_classes,
            num_tasks=config.num_tasks,
        )
        return keys, spec.build(problem)

    def init(seed: jax.Array) -> _Carry:
        keys, method = setup(seed)
        return _Carry(method.init(keys.init), jnp.full(config.num_tasks, jnp.nan))

    def train_task(
        carry: _Carry, seed: jax.Array, data: dict[str, jax.Array], task_id: jax.Array
    ) -> tuple[_Carry, jax.Array]:
        keys, method = setup(seed)
        index = pixel_index(keys.pixels, task_id)
        epochs = tasks.draw_batches(
            jax.random.fold_in(keys.batches, task_id),
            num_examples,
            config.examples_per_task,
            config.epochs,
            config.batch_size,
        )

        def load(examples: jax.Array) -> tuple[jax.Array, jax.Array]:
            return tasks.gather_pixels(data["x_train"][examples], index), data["y_train"][examples]

        task = tasks.Task(task_id, load, epochs[0])
        state = method.start_task(carry.state, task, jax.random.fold_in(keys.init, task_id))
        state, losses = jax.lax.scan(
            lambda state, examples: method.step(state, load(examples), task),
            state,
            epochs.reshape(-1, config.batch_size),
        )
        state = method.end_task(state, task)

        def accuracy(k: jax.Array) -> jax.Array:
            x = tasks.gather_pixels(data["x_test"], pixel_index(keys.pixels, k))
            predicted = jnp.argmax(method.logits(state, x, k), axis=-1)
            return jnp.mean(predicted == data["y_test"], dtype=jnp.float32)

        def row_entry(k: jax.Array) -> jax.Array:
            # A single-task model is kept as it is, so its accuracy stands.
            measured = k == task_id if spec.single_task else k <= task_id
            return jax.lax.cond(measured, accuracy, lambda k: carry.accuracies[k], k)

        row = jax.lax.map(row_entry, jnp.arange(config.num_tasks))
        return _Carry(state, row), jnp.mean(losses)

    return init, train_task


def check(config: Config, dataset: Dataset) -> None:
    """Finds out whether a run is possible, before it begins.

    Raises:
      ValueError: the dataset is too small for the configuration, or the sequence too short.
    """
    height, width = dataset.x_train.shape[1:]
    tasks.SEQUENCES[config.sequence](height, width, config.num_tasks)
    available = len(dataset.x_train)
    if config.examples_per_task > available:
        raise ValueError(
            f"examples_per_task is {config.examples_per_task}, but {dataset.name!r} has "
            f"{available} training images. Set --examples-per-task to {available} or less."
        )
    if config.batch_size > config.examples_per_task:
        raise ValueError(
            f"batch_size is {config.batch_size}, but a task has {config.examples_per_task} "
            "examples. Set --batch-size lower."
        )
