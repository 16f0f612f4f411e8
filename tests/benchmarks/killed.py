"""A program for `test_kills`: kills a run at its file operations, and lets it go on.

The run is a `Job` with checkpoints, result and lock as they are, but what it learns is arithmetic.
A process that has computed with JAX has threads and cannot be forked; this one only imports what
is needed and computes with numpy, and each run is a fork of it. So a kill costs milliseconds, not
an import and a compilation.

Arguments: a folder, and after how many points each kill lies. Prints what was found, as JSON.
"""

import builtins
import io
import json
import os
import shutil
import sys
import traceback
from pathlib import Path

import numpy as np
from rich.console import Console

from benchmarks import data, presets
from benchmarks.methods import METHODS
from benchmarks.run import checkpoints, experiment, jobs, results, train
from benchmarks.run.measurements import no_measurements

KILLED = 137
ORIGIN = {"commit": "c", "versions": {}, "device": "d", "command": "c", "date": "d"}
OPERATIONS = ("open", "replace", "rename", "unlink", "remove", "mkdir", "rmdir", "write")


class Killer:
    """Ends the process before its n-th file operation, as a kill would: nothing is cleaned up."""

    def __init__(self, n):
        self.left = n

    def install(self):
        for name in OPERATIONS:
            setattr(os, name, self.counted(getattr(os, name)))
        # What a process has written outlives it without; it matters when the power is cut.
        os.fsync = self.counted(lambda descriptor: None)
        original = io.open

        def open_(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, **more):
            if not set(mode) & set("wax+"):
                return original(file, mode, buffering, encoding, errors, newline, **more)
            self.step()
            raw = Torn(self, file, mode.replace("b", "").replace("t", ""), **more)
            binary = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            return binary if "b" in mode else io.TextIOWrapper(binary, encoding, errors, newline)

        builtins.open = io.open = open_

    def counted(self, function):
        def call(*args, **kwargs):
            self.step()
            return function(*args, **kwargs)

        return call

    def step(self):
        self.left -= 1
        if self.left == 0:
            os._exit(KILLED)


class Torn(io.FileIO):
    """A file whose writes can be killed half-way."""

    def __init__(self, killer, file, mode, **more):
        super().__init__(file, mode, **more)
        self.killer = killer

    def write(self, content):
        content = memoryview(content).cast("B")
        half = len(content) // 2
        self.killer.step()
        done = super().write(content[:half])
        self.killer.step()
        return done + super().write(content[half:])


def learn(config, spec, dataset, seeds, observer, resume):
    """In place of `train.run`: what a task leaves behind depends on all that went before."""
    num_seeds, num_tasks = len(seeds), config.num_tasks
    progress = train.Progress(
        tasks_done=0,
        measured=no_measurements(num_seeds, num_tasks),
        state={"w": np.arange(num_seeds * 500.0).reshape(num_seeds, -1)},
    )
    if resume is not None:
        progress = resume(progress)
    while progress.tasks_done < num_tasks:
        task = progress.tasks_done
        w = np.sin(progress.state["w"] * 3 + task)
        accuracy = np.abs(w.mean(axis=1))
        measured = progress.measured
        measured.r[:, task, : task + 1] = accuracy[:, None]
        measured.train[:, task] = measured.losses[:, task] = accuracy / 3
        progress = progress._replace(tasks_done=task + 1, state={"w": w})
        observer.on_task(progress)
    return progress.measured


def job_in(out):
    arrays = {f"y_{s}": np.arange(20) % 2 for s in ("train", "test")}
    arrays |= {f"x_{s}": np.zeros((20, 4), np.float32) for s in ("train", "test")}
    config = presets.config("permuted-digits", method=METHODS["sgd"], num_tasks=3)
    changes = {"num_tasks": 3}
    return jobs.Job("sgd", config, data.Dataset("digits", **arrays), changes, range(2), out, ORIGIN)


def command(out, resume):
    """What the command line does with a run."""
    job, console = job_in(out), Console(file=io.StringIO())
    with jobs.lock_jobs([job], resume):
        if not resume or job.finished(console) is None:
            job.run(resume, console)


def forked(function):
    """Runs it in a process of its own; the exit status."""
    process = os.fork()
    if process == 0:
        try:
            function()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def run(out, resume, n=0):
    """Runs the command, killed before its n-th file operation; whether it was."""

    def command_that_may_be_killed():
        Killer(n).install()
        command(out, resume)

    status = forked(command_that_may_be_killed)
    if status not in (0, KILLED):
        raise RuntimeError(f"{out}: exit status {status}, killed at {n}")
    return status == KILLED


def whole(out):
    """What a run has written, if it has finished, and that nothing else is there."""
    job = job_in(out)
    found = results.load(job.path)
    left = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    r, _, losses, *_ = found.measured
    return {"r": r.tobytes().hex(), "losses": losses.tobytes().hex(), "files": left}


def check_halfway(out):
    """After a kill: each file that bears a name is whole."""
    job = job_in(out)
    if job.path.exists():
        results.load(job.path)
    if job.checkpoint_path.exists():
        checkpoints.Checkpoints(job.checkpoint_path, {}, ORIGIN).check_readable()


def main(folder, stride):
    train.run, experiment.memory_bytes = learn, lambda *args: 0
    checkpoints._place = lambda saved, fresh: saved  # No devices.
    run(folder / "whole", resume=False)
    expected = whole(folder / "whole")
    kills = {"first": 0, "again": 0}
    # The first run of its kind, and one whose result is to replace that of an earlier one.
    for again in (False, True):
        n = 1
        while True:
            out = folder / f"{again}-{n}"
            if again:
                shutil.copytree(folder / "whole", out)
            if not run(out, resume=False, n=n):
                break
            kills["again" if again else "first"] += 1
            check_halfway(out)
            # What goes on may be killed too.
            run(out, resume=True, n=1 + n * 7 % 40)
            check_halfway(out)
            run(out, resume=True)
            if (found := whole(out)) != expected:
                raise RuntimeError(f"{out}: killed at {n}, it is {found}; expected {expected}")
            n += stride
    return kills | expected


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]))))
