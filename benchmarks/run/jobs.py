"""A run of one method: what it is called, how it goes on after a kill, where its result goes."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks import data, presets
from benchmarks.data.files import exclusive_lock
from benchmarks.methods import METHODS
from benchmarks.run import experiment, provenance, results, train
from benchmarks.run.checkpoints import Checkpoints


class Job(NamedTuple):
    """A benchmark to be run with a method.

    Attributes:
      method: a key of `METHODS`.
      config: the experiment.
      dataset: its data.
      changes: fields of the configuration that differ from the preset's.
      seeds: which.
      out: the folder for results.
      origin: of what is measured now, as `benchmarks.run.provenance` has it.
      checkpoint_every: so many tasks.
    """

    method: str
    config: presets.Config
    dataset: data.Dataset
    changes: dict[str, Any]
    seeds: range
    out: Path
    origin: dict[str, Any]
    checkpoint_every: int = 1

    @property
    def benchmark(self) -> str:
        """The name under which results are kept."""
        return self.description.benchmark

    @property
    def description(self) -> presets.Config:
        """The configuration as results have it."""
        return dataclasses.replace(self.config, dataset=self.dataset.name)

    @property
    def path(self) -> Path:
        """The file of the result."""
        name = results.file_name(self.method, self.config.preset, self.changes, self.seeds)
        return self.out / self.benchmark / name

    @property
    def checkpoint_path(self) -> Path:
        """The file of the checkpoint."""
        return self.path.with_suffix(".checkpoint")

    def checkpoints(self) -> Checkpoints:
        """Those of this run, whether there are any or not."""
        experiment = dataclasses.asdict(self.description) | {
            "method": self.method,
            "seeds": list(self.seeds),
            "data": self.dataset.fingerprint(),
        }
        return Checkpoints(self.checkpoint_path, experiment, self.origin)

    def finished(self, console: Console) -> results.Result | None:
        """The result of an earlier run of the same experiment, unless a later one is unfinished."""
        if not self.path.exists():
            return None
        found = results.load(self.path)
        wanted = self.description
        unmeasured = any(
            wanted.flat[name] and not found.config.flat[name] for name in presets.MEASURED
        )
        if unmeasured or not found.config.same_training(wanted):
            return None
        checkpoints = self.checkpoints()
        if checkpoints.exists():
            try:
                checkpoints.check_readable()
            except ValueError as error:
                console.print(f"{error} {self.path} is whole, and taken.", highlight=False)
            else:
                return None
        return found

    def check(self, resume: bool) -> None:
        """Finds out whether nothing that is there would be lost or mistaken.

        Raises:
          ValueError: there is a result of other data, or an interrupted run and this is not to
            ``resume`` it.
        """
        if self.path.exists() and results.load(self.path).data != self.dataset.fingerprint():
            raise ValueError(
                f"{self.path} is the result of other data than {self.config.dataset}, of the same "
                "name. Choose another --out, or rename the data."
            )
        if self.checkpoint_path.exists() and not resume:
            raise ValueError(
                f"{self.checkpoint_path}: an interrupted run of {self.method}. Go on with it by "
                "--resume, or delete it to begin anew."
            )

    def run(self, resume: bool, console: Console) -> results.Result:
        """Runs it, from its checkpoint on if it is to resume and has one, and saves the result."""
        checkpoints = self.checkpoints()
        title = [self.benchmark, self.method, *(f"{k}={v}" for k, v in self.changes.items())]
        console.print(" ".join(title), highlight=False)
        with progress_bar(console) as bar:
            spec = METHODS[self.method]
            measured = train.run(
                self.config,
                spec,
                self.dataset,
                self.seeds,
                Display(bar, self, checkpoints),
                checkpoints.restore if resume and checkpoints.exists() else None,
            )
        result = results.Result(
            method=self.method,
            config=self.description,
            changes=self.changes,
            seeds=list(self.seeds),
            measured=measured,
            memory_bytes=experiment.memory_bytes(self.config, spec, self.dataset),
            data=self.dataset.fingerprint(),
            provenance=provenance.merge_origins(checkpoints.origins),
        )
        results.save(result, self.out)
        checkpoints.discard()
        return result


@contextlib.contextmanager
def lock_jobs(jobs: Sequence[Job], resume: bool) -> Iterator[None]:
    """Keeps other processes from these runs, after finding out that all of them can be saved.

    Args:
      jobs: the runs of a command.
      resume: whether interrupted ones are to go on.

    Raises:
      ValueError: a run's folder cannot be written to, another process is at it, or `Job.check`.
    """
    with contextlib.ExitStack() as stack:
        for job in jobs:
            try:
                job.out.mkdir(parents=True, exist_ok=True)
                # Its longest name: one that is too long is found out here.
                lock = job.path.with_name(f".{job.checkpoint_path.name}.lock")
                stack.enter_context(exclusive_lock(lock))
            except OSError as error:
                raise ValueError(
                    f"--out is {job.out}: {error}. Choose a folder that can be written to."
                ) from error
            job.check(resume)
        yield


def progress_bar(console: Console, get_time: Callable[[], float] | None = None) -> Progress:
    """A bar that fits into 80 columns, with the time that is left."""
    return Progress(
        BarColumn(bar_width=20),
        TextColumn("{task.description}"),
        TimeRemainingColumn(),
        console=console,
        # In seconds. By default what is older than half a minute does not count, and with several
        # seeds on a CPU no two of our updates are as near.
        speed_estimate_period=3600,
        get_time=get_time,
    )


class Display(train.Observer):
    """Shows how far a run is, and writes checkpoints, but none after the last task.

    Args:
      bar: where to; what is not a terminal gets a line for each task.
      job: the run.
      checkpoints: its.
    """

    def __init__(self, bar: Progress, job: Job, checkpoints: Checkpoints) -> None:
        self._bar, self._checkpoints, self._every = bar, checkpoints, job.checkpoint_every
        self._num_tasks, self._num_steps = job.config.num_tasks, job.config.steps_per_task
        self._id = bar.add_task("compiling", total=self._num_tasks)
        self._accuracy = ""

    def on_piece(self, task_id: int, fraction: float) -> None:
        """Moves the bar."""
        step = f"step {round(fraction * self._num_steps)}/{self._num_steps}"
        self._show(task_id + fraction, f"task {task_id + 1}/{self._num_tasks}, {step}")

    def on_task(self, progress: train.Progress) -> None:
        """Shows the accuracy so far, and writes a checkpoint if it is time."""
        done = progress.tasks_done
        accuracy = 100 * progress.measured.r[:, done - 1, :done].mean()
        self._accuracy = f", ACC {accuracy:.2f}" if np.isfinite(accuracy) else ", diverged"
        status = self._show(done, f"task {done}/{self._num_tasks}")
        if not self._bar.console.is_terminal:
            self._bar.console.print(status, highlight=False)
        if done < self._num_tasks and done % self._every == 0:
            self._checkpoints.save(progress)

    def _show(self, completed: float, status: str) -> str:
        status += self._accuracy
        self._bar.update(self._id, completed=completed, description=status)
        return status
