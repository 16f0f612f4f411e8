"""Training through a task sequence: what is done in which order, and what is measured."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from benchmarks.data import Dataset
from benchmarks.methods import MethodSpec
from benchmarks.presets import Config
from benchmarks.run import checks, experiment, inference
from benchmarks.run.measurements import Measurements, no_measurements
from benchmarks.run.programs import Programs, compile_programs


class Progress(NamedTuple):
    """How far a run is, and what it needs to go on.

    Attributes:
      tasks_done: how many tasks are finished.
      measured: so far.
      state: the method's, with seeds on the leading axis of each array.
    """

    tasks_done: int
    measured: Measurements
    state: Any


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
) -> Measurements:
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
      The `Measurements`.

    Raises:
      ValueError: as `checks.check`.
    """
    checks.check(config, spec, dataset, len(seeds))
    one_seed = experiment.functions(config, spec, dataset)
    programs = compile_programs(one_seed, config, dataset, seeds)
    progress = Progress(0, no_measurements(len(seeds), config.num_tasks), programs.init())
    if resume is not None:
        progress = resume(progress)
    # Of a run that goes on, what compiling took before is part of it.
    compile_seconds = progress.measured.compile_seconds + programs.compile_seconds
    progress = progress._replace(
        measured=progress.measured._replace(compile_seconds=compile_seconds)
    )
    observer = observer or Observer()
    # A model for each task alone transfers nothing.
    ahead = config.forward_transfer and not spec.single_task
    if ahead and not progress.tasks_done:
        initial = programs.accuracy["test"](progress.state, range(config.num_tasks))
        progress = progress._replace(measured=progress.measured._replace(initial=initial))
    while progress.tasks_done < config.num_tasks:
        progress = _next_task(progress, programs, spec.single_task, ahead, observer)
        observer.on_task(progress)
    return progress.measured


def _next_task(
    before: Progress, programs: Programs, single_task: bool, ahead: bool, observer: Observer
) -> Progress:
    started = time.perf_counter()
    task_id = before.tasks_done
    names = ("r", "train", "losses", "task_seconds")
    r, train, losses, task_seconds = (getattr(before.measured, name).copy() for name in names)
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
    tested = list(range(len(task_seconds))) if ahead else learned
    r[:, task_id, tested] = programs.accuracy["test"](state, tested)
    if single_task or task_id == len(task_seconds) - 1:
        train[:, learned] = programs.accuracy["train"](state, learned)
    measured = before.measured
    if programs.decisions is not None:
        decisions = partial(programs.decisions, state)
        found = inference.after_task(measured.inference, decisions, task_id, len(task_seconds))
        measured = measured._replace(inference=found)
    if programs.capacity is not None and task_id == len(task_seconds) - 1:
        measured = measured._replace(capacity=programs.capacity(state))
    task_seconds[task_id] = time.perf_counter() - started
    measured = measured._replace(r=r, train=train, losses=losses, task_seconds=task_seconds)
    return Progress(task_id + 1, measured, state)
