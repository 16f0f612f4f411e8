"""Compiled programs, each for all tasks, all seeds and all devices."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from benchmarks.data import Dataset
from benchmarks.presets import Config
from benchmarks.run.experiment import Functions

# In so many pieces at most is a task trained, to show how far it is.
_MAX_PIECES = 20


class Programs(NamedTuple):
    """The compiled programs, each for any task and for all seeds. They consume the state.

    Attributes:
      init: ``() -> state``.
      start: ``(state, task_id) -> (state, epochs)``.
      steps: ``(state, epochs, task_id, piece) -> (state, mean loss [num_seeds])``.
      end: ``(state, epochs, task_id) -> state``.
      accuracy: for "train" and "test" ``(state, tasks) -> [num_seeds, len(tasks)]``; the state
        stays.
      decisions: ``(state, k, num_seen) -> inference.Decisions`` on the host, with seeds in front;
        the state stays. None where tasks are not inferred.
      capacity: ``(state) -> [num_seeds]``; the state stays. None where the method has none.
      num_pieces: of a task's training.
      compile_seconds: of all together.
    """

    init: Callable[[], Any]
    start: Callable[[Any, int], tuple[Any, Any]]
    steps: Callable[[Any, Any, int, int], tuple[Any, np.ndarray]]
    end: Callable[[Any, Any, int], Any]
    accuracy: dict[str, Callable[[Any, Sequence[int]], np.ndarray]]
    decisions: Callable[[Any, int, int], Any] | None
    capacity: Callable[[Any], np.ndarray] | None
    num_pieces: int
    compile_seconds: float


def compile_programs(
    one_seed: Functions, config: Config, dataset: Dataset, seeds: Sequence[int]
) -> Programs:
    """Compiles what happens to one seed for all of ``seeds``, spread over the devices there are."""
    num_seeds = len(seeds)
    num_devices = min(num_seeds, jax.local_device_count())
    mesh = jax.make_mesh(
        (num_devices,),
        ("seeds",),
        axis_types=(AxisType.Auto,),
        devices=jax.local_devices()[:num_devices],
    )
    by_seed, everywhere = PartitionSpec("seeds"), PartitionSpec()
    # Every device has as many: the last seed may be run more than once, and its doubles are left
    # out of the results.
    padding = -num_seeds % num_devices
    on_devices = jax.device_put(
        jnp.array([*seeds, *[seeds[-1]] * padding]), NamedSharding(mesh, by_seed)
    )
    # The examples lie on each device once, whatever the number of tasks and seeds.
    names = ("x_train", "y_train", "x_test", "y_test")
    examples = {name: getattr(dataset, name) for name in names}
    data = jax.device_put(examples, NamedSharding(mesh, everywhere))
    compiling: list[Future[Any]] = []

    def program(
        function: Callable[..., Any], consumed: Any = (), kept: Any = (), num_ints: int = 0
    ) -> Callable[..., Any]:
        """Compiles ``function(seed, data, *consumed, *kept, *ints)`` for all seeds.

        Returns a function of ``(consumed, kept, *ints)``: tuples of trees with seeds on their
        leading axes, and integers.
        """

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
        # Donated: the old state's memory is the new state's.
        lowered = jax.jit(on_all_devices, donate_argnums=1).lower(
            on_devices, consumed, kept, data, *[np.int32(0)] * num_ints
        )
        compiled = pool.submit(lowered.compile)
        compiling.append(compiled)
        return lambda consumed, kept, *ints: compiled.result()(
            on_devices, consumed, kept, data, *map(np.int32, ints)
        )

    def shapes(tree: Any) -> Any:
        sharding = NamedSharding(mesh, by_seed)
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((len(on_devices), *x.shape), x.dtype, sharding=sharding),
            tree,
        )

    def on_host(per_seed: jax.Array) -> np.ndarray:
        return np.asarray(per_seed, np.float64)[:num_seeds]

    state_of_one = jax.eval_shape(one_seed.init, on_devices[0], data)
    _, epochs_of_one = jax.eval_shape(one_seed.start, on_devices[0], data, state_of_one, 0)
    state, epochs = shapes(state_of_one), shapes(epochs_of_one)
    num_steps = config.steps_per_task
    num_pieces = max(n for n in range(1, _MAX_PIECES + 1) if num_steps % n == 0)
    started = time.perf_counter()
    # XLA compiles without Python's lock: all programs at once.
    with ThreadPoolExecutor() as pool:
        init = program(one_seed.init)
        start = program(one_seed.start, (state,), num_ints=1)
        steps = program(partial(one_seed.steps, num_pieces), (state,), (epochs,), num_ints=2)
        end = program(one_seed.end, (state,), (epochs,), num_ints=1)
        accuracy = {
            split: program(partial(one_seed.accuracy, split), (), (state,), num_ints=1)
            for split in ("train", "test")
        }
        capacity = one_seed.capacity and program(one_seed.capacity, (), (state,))
        decisions = one_seed.decisions and program(one_seed.decisions, (), (state,), num_ints=2)
    for compiled in compiling:
        compiled.result()
    compile_seconds = time.perf_counter() - started

    def run_steps(state: Any, epochs: Any, task_id: int, piece: int) -> tuple[Any, np.ndarray]:
        state, loss = steps((state,), (epochs,), task_id, piece)
        return state, on_host(loss)

    def measure(split: str, state: Any, tasks: Sequence[int]) -> np.ndarray:
        # All are under way before the first is waited for.
        measured = [accuracy[split]((), (state,), k) for k in tasks]
        return np.stack([on_host(per_seed) for per_seed in measured], axis=1)

    return Programs(
        init=lambda: init((), ()),
        start=lambda state, task_id: start((state,), (), task_id),
        steps=run_steps,
        end=lambda state, epochs, task_id: end((state,), (epochs,), task_id),
        decisions=decisions
        and (lambda state, *ints: jax.tree.map(on_host, decisions((), (state,), *ints))),
        accuracy={split: partial(measure, split) for split in accuracy},
        capacity=capacity and (lambda state: on_host(capacity((), (state,)))),
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
