"""A run of one method: what it is called, how it goes on after a kill, where its result goes."""

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks import data, experiment, presets, results, train
from benchmarks.checkpoints import Checkpoints
from benchmarks.methods import METHODS


class Job(NamedTuple):
    """A benchmark to be run with a method.

    Attributes:
      method: a key of `METHODS`.
      config: the experiment.
      dataset: its data.
      changes: fields of the configuration that differ from the preset's.
      seeds: which.
      out: the folder for results.
      origin: of what is measured now, a `benchmarks.results.provenance`.
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
        return f"{self.config.sequence}-{self.dataset.name}"

    @property
    def description(self) -> dict[str, Any]:
        """The configuration as results have it."""
        return dataclasses.asdict(self.config) | {"dataset": self.dataset.name}

    @property
    def path(self) -> Path:
        """The file of the result."""
        name = results.file_name(self.method, self.config.preset, self.changes, self.seeds)
        return self.out / self.benchmark / name

    def checkpoints(self) -> Checkpoints:
        """Those of this run, whether there are any or not."""
        experiment = self.description | {
            "method": self.method,
            "seeds": list(self.seeds),
            "data": self.dataset.fingerprint(),
            "devices": jax.local_device_count(),
        }
        return Checkpoints(self.path.with_suffix(".checkpoint"), experiment, self.origin)

    def finished(self) -> results.Result | None:
        """The result of an earlier run of the same experiment, unless a later one is unfinished."""
        if not self.path.exists() or self.checkpoints().exists():
            return None
        found = results.load(self.path)
        same = found.config == json.loads(json.dumps(self.description))
        return found if same else None

    def check(self) -> None:
        """Finds out whether the result's place is free, or has an earlier one of the same data.

        Raises:
          ValueError: it has one of other data.
        """
        if not self.path.exists():
            return
        if not results.may_be_of(results.load(self.path), self.dataset.fingerprint()):
            raise ValueError(
                f"{self.path} is the result of other data than {self.config.dataset}, of the same "
                "name. Choose another --out, or rename the data."
            )

    def run(self, resume: bool, console: Console) -> results.Result:
        """Runs it, from its checkpoint on if it is to resume and has one, and saves the result."""
        checkpoints = self.checkpoints()
        title = [self.benchmark, self.method, *(f"{k}={v}" for k, v in self.changes.items())]
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(),
            console=console,
        ) as progress:
            spec = METHODS[self.method]
            run = train.run(
                self.config,
                spec,
                self.dataset,
                self.seeds,
                _Display(progress, " ".join(title), self, checkpoints),
                checkpoints.restore if resume and checkpoints.exists() else None,
            )
        kept = experiment.memory_bytes(self.config, spec, self.dataset)
        result = results.collect(
            self.benchmark,
            self.method,
            self.config.preset,
            self.changes,
            self.description,
            self.seeds,
            run,
            kept,
            self.dataset.fingerprint(),
            results.combined(checkpoints.origins),
        )
        results.save(result, self.out)
        checkpoints.discard()
        return result


class _Display(train.Observer):
    """Shows how far a run is, and writes checkpoints, but none after the last task."""

    def __init__(self, progress: Progress, title: str, job: Job, checkpoints: Checkpoints) -> None:
        num_tasks = job.config.num_tasks
        self._progress, self._num_tasks, self._checkpoints = progress, num_tasks, checkpoints
        self._every = job.checkpoint_every
        self._bar = progress.add_task(title, total=num_tasks, status="compiling")
        self._accuracy = ""

    def on_piece(self, task_id: int, fraction: float) -> None:
        self._show(task_id + fraction, f"task {task_id + 1}/{self._num_tasks}")

    def on_task(self, progress: train.Progress) -> None:
        done = progress.tasks_done
        self._accuracy = f" ACC {100 * np.nanmean(progress.r[:, done - 1]):.2f}"
        self._show(done, f"task {done}/{self._num_tasks}")
        if done < self._num_tasks and done % self._every == 0:
            self._checkpoints.save(progress)

    def _show(self, completed: float, status: str) -> None:
        self._progress.update(self._bar, completed=completed, status=status + self._accuracy)
