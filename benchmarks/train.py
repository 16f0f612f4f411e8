"""Training through a task sequence: what is done in which order, and what is measured."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks import experiment
from benchmarks.data import Dataset
from benchmarks.methods import MethodSpec
from benchmarks.presets import Config
from benchmarks.programs import Programs, compile_programs


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
    seeds: Sequence[int],
    observer: Observer | None = None,
    resume: Callable[[Progress], Progress] | None = None,
) -> Run:
    """Trains a model for each seed through the task sequence and measures R.

    Args:
      config: the experiment.
      spec: the method.
      dataset: its data; with ``config.validation``, `Dataset.validation` of it.
      seeds: integers, one for each model; each gives the same numbers whatever the others.
      observer: is told of what happens.
      resume: to go on with an earlier run of the same experiment: from the progress of a fresh one,
        which tells shapes and devices, to that run's latest.

    Returns:
      The `Run`.

    Raises:
      ValueError: as `experiment.check`.
    """
    experiment.check(config, spec, dataset, len(seeds))
    one_seed = experiment.functions(config, spec, dataset)
    programs = compile_programs(one_seed, config, dataset, seeds)
    num_seeds = len(seeds)
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


def _next_task(
    before: Progress, programs: Programs, single_task: bool, observer: Observer
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
    learned = [task_id] if single_task else list(range(task_id + 1))
    r[:, task_id, learned] = programs.accuracy["test"](state, learned)
    if single_task or task_id == num_tasks - 1:
        train[:, learned] = programs.accuracy["train"](state, learned)
    task_seconds = before.task_seconds.copy()
    task_seconds[task_id] = time.perf_counter() - started
    return Progress(task_id + 1, r, train, losses, task_seconds, state)
