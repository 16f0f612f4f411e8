"""Results on disk: one JSON for each method of a benchmark, with all it takes to repeat it."""

import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import rgo_jax
from benchmarks import json_input, paper, presets, result_schema
from benchmarks.files import replacing
from benchmarks.train import Run

# As many as the paper has. Fewer or more go into a file's name, so as not to replace these.
DEFAULT_SEEDS = 5

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


class Result(NamedTuple):
    """One file of results.

    Attributes:
      benchmark: such as "permuted-mnist".
      method: a key of `benchmarks.methods.METHODS`.
      preset: a key of `benchmarks.presets.PRESETS`.
      changes: fields of the configuration that differ from the preset's.
      config: the whole configuration, with the dataset's name in place of a path.
      seeds: one for each entry of ``r``.
      r: ``[num_seeds, num_tasks, num_tasks]``, see `benchmarks.train.Run`; NaN also where a seed
        diverged, as in ``losses`` and ``train``.
      losses: ``[num_seeds, num_tasks]``.
      seconds: wall time: "compile", "tasks" (a list), "total".
      provenance: "command", "commit", "versions", "device", "date"; and "before_resuming", a list
        of the same, if it was begun by others.
      train: ``[num_seeds, num_tasks]``, accuracy on the training examples, see
        `benchmarks.train.Run`; None in older files.
      memory_bytes: what the method keeps from one task for the next; None in older files.
      data: the dataset's fingerprint; None in older files.
    """

    benchmark: str
    method: str
    preset: str
    changes: dict[str, Any]
    config: presets.Config
    seeds: list[int]
    r: np.ndarray
    losses: np.ndarray
    seconds: dict[str, Any]
    provenance: dict[str, Any]
    train: np.ndarray | None = None
    memory_bytes: int | None = None
    data: str | None = None

    @property
    def diverged(self) -> np.ndarray:
        """Whether each seed did: a loss or an accuracy of its own is no finite number."""
        return ~self._sound[:, -1]

    @property
    def acc(self) -> np.ndarray:
        """ACC of each seed, in percent; NaN of one that diverged, as all of these numbers."""
        return self._unless_diverged(rgo_jax.average_accuracy(self.r))

    @property
    def bwt(self) -> np.ndarray:
        """BWT of each seed, in percent."""
        return self._unless_diverged(rgo_jax.backward_transfer(self.r))

    @property
    def accuracy_curve(self) -> np.ndarray:
        """``[num_seeds, num_tasks]``: mean accuracy in percent over the tasks so far."""
        means = np.tril(self.r).sum(axis=2) / np.arange(1, self.r.shape[1] + 1)
        return np.where(self._sound, 100 * means, np.nan)

    @property
    def train_acc(self) -> np.ndarray | None:
        """ACC of each seed on training examples, in percent."""
        return None if self.train is None else self._unless_diverged(self.train.mean(axis=1))

    @property
    def _sound(self) -> np.ndarray:
        """``[num_seeds, num_tasks]``: whether a seed had not diverged after that task."""
        finite = np.isfinite(self.losses) & np.isfinite(np.tril(self.r)).all(axis=2)
        return np.logical_and.accumulate(finite, axis=1)

    def _unless_diverged(self, shares: jax.typing.ArrayLike) -> np.ndarray:
        return np.where(self.diverged, np.nan, 100 * np.asarray(shares))

    @property
    def setting(self) -> paper.Setting:
        """Where it belongs in the paper's tables, if `is_literal`."""
        return paper.Setting(self.benchmark, self.config.network, self.config.epochs)

    @property
    def is_literal(self) -> bool:
        """Whether it is a preset as it stands, with any network, for any number of epochs."""
        return set(self.changes) <= {"network", "epochs"}

    @property
    def variant(self) -> str:
        """What differs from the preset "paper"; empty if nothing does."""
        parts = [] if self.preset == "paper" else [self.preset]
        return ", ".join(parts + [f"{name} {value}" for name, value in self.changes.items()])

    @property
    def file_name(self) -> str:
        """The file's name: the method and what differs from the preset "paper"."""
        return file_name(self.method, self.preset, self.changes, self.seeds)


def spread(values: np.ndarray) -> np.ndarray:
    """The standard deviation over seeds, which are the first axis; 0 of one seed."""
    return values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros_like(values[0])


def file_name(method: str, preset: str, changes: dict[str, Any], seeds: Sequence[int]) -> str:
    """The name of the file of a `Result` with these fields."""
    parts = [method]
    if preset != "paper":
        parts.append(f"preset={preset}")
    parts += [f"{name}={value}" for name, value in sorted(changes.items())]
    if seeds[0] != 0:
        parts.append(f"seeds={seeds[0]}-{seeds[-1]}")
    elif len(seeds) != DEFAULT_SEEDS:
        parts.append(f"seeds={len(seeds)}")
    return "_".join(parts).replace("/", "-").replace(" ", "") + ".json"


def collect(
    benchmark: str,
    method: str,
    preset: str,
    changes: dict[str, Any],
    config: presets.Config,
    seeds: Sequence[int],
    run: Run,
    memory_bytes: int,
    data: str,
    origin: dict[str, Any],
) -> Result:
    """Puts a finished run together with where it came from, a `provenance`."""
    tasks = [round(float(seconds), 3) for seconds in run.task_seconds]
    compiled = round(run.compile_seconds, 3)
    return Result(
        benchmark=benchmark,
        method=method,
        preset=preset,
        changes=changes,
        config=config,
        seeds=list(seeds),
        r=run.r,
        losses=run.losses,
        seconds={"compile": compiled, "tasks": tasks, "total": round(compiled + sum(tasks), 3)},
        provenance=origin,
        train=run.train,
        memory_bytes=memory_bytes,
        data=data,
    )


def provenance(command: str) -> dict[str, Any]:
    """Where numbers measured now come from."""
    flags = os.environ.get("XLA_FLAGS")
    command = f"XLA_FLAGS={shlex.quote(flags)} {command}" if flags else command
    return {
        "command": _printable(command),
        "commit": _commit(),
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in _PACKAGES},
        "device": _printable(_device()),
        "date": datetime.date.today().isoformat(),
    }


def combined(origins: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The provenance of a run that was resumed: the last one's, and all before that differ."""

    def decisive(origin: dict[str, Any]) -> tuple[Any, ...]:
        return origin["commit"], origin["versions"], origin["device"]

    *earlier, last = origins
    different = [origin for origin in earlier if decisive(origin) != decisive(last)]
    return last | ({"before_resuming": different} if different else {})


def save(result: Result, folder: Path) -> Path:
    """Writes ``folder/benchmark/method….json`` atomically: a kill leaves the old file whole."""
    content: dict[str, Any] = {"format": result_schema.FORMAT} | result._asdict()
    content["config"] = dataclasses.asdict(result.config)
    for name in ("r", "losses", "train"):
        content[name] = None if content[name] is None else _nullable(content[name])
    # A line for each field, so that a change reads well in a diff.
    lines = ",\n".join(
        f"{json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in content.items()
    )
    path = folder / result.benchmark / result.file_name
    with replacing(path) as temporary:
        temporary.write_text(f"{{\n{lines}\n}}\n")
    return path


def _nullable(array: np.ndarray) -> Any:
    """An array as lists, with null for what is no finite number."""
    if array.ndim:
        return [_nullable(each) for each in array]
    return round(float(array), 6) if np.isfinite(array) else None


def load(path: Path) -> Result:
    """Reads a file that `save` wrote.

    Raises:
      ValueError: it cannot be read, is something else, or lies where another result belongs.
    """
    try:
        result = Result(**result_schema.parse(json_input.read(path)))
        place = Path(path.absolute().parent.name, path.name)
        if place != Path(result.benchmark, result.file_name):
            raise ValueError(f"it is that of {result.benchmark}/{result.file_name}")
        return result
    # Whatever is wrong with a file, its reader wants to know which it is.
    except Exception as error:
        raise ValueError(
            f"{path}: not a results file of format {result_schema.FORMAT} "
            f"({str(error).rstrip('.') or type(error).__name__}). Move it away; python -m "
            "benchmarks measures it anew."
        ) from error


def load_all(folder: Path) -> list[Result]:
    """All results below a folder, in the order of their paths.

    Raises:
      ValueError: as `load`; a folder cannot be looked into.
    """
    try:
        paths = [
            path
            for below in (sorted(folder.iterdir()) if folder.is_dir() else [])
            if below.is_dir()
            for path in sorted(below.iterdir())
            # Not what a kill has left behind of `replacing`, whose names begin with a dot.
            if path.suffix == ".json" and not path.name.startswith(".")
        ]
    except OSError as error:
        raise ValueError(
            f"{folder}: cannot be looked through for results ({error}). Make it readable, or name "
            "another folder."
        ) from error
    return [load(path) for path in paths]


def find(
    results: Sequence[Result], setting: paper.Setting, method: str, preset: str
) -> Result | None:
    """The result with a place in the paper's tables, if there is one: that with the most seeds."""
    found = [
        result
        for result in results
        if (result.setting, result.method, result.preset) == (setting, method, preset)
        and result.is_literal
    ]
    return max(found, key=lambda result: len(result.seeds), default=None)


def may_be_of(result: Result, data: str | None) -> bool:
    """Whether a result is of the data with this fingerprint, as far as is known."""
    return None in (result.data, data) or result.data == data


def _printable(text: str) -> str:
    """The same on one line: control characters, and bytes that are no text, as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _commit() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
            # To ask is not to write: no lock that another command of git would wait for.
            env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"},
        ).stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ":!results")
    except (OSError, subprocess.CalledProcessError):
        return "unknown (not a git checkout)"
    return commit + (" with local changes" if changed else "")


def _device() -> str:
    device = jax.devices()[0]
    if device.platform != "cpu":
        return f"{len(jax.devices())} x {device.device_kind}"
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    cores = num_cores()
    return f"CPU, {cores} core{'s' if cores > 1 else ''}, {model}"


def num_cores() -> int:
    """Those this process may run on: under `taskset` or in a container not all there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
