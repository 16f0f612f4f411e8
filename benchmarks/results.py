"""Results on disk: one JSON for each method of a benchmark, with all it takes to repeat it."""

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
from benchmarks import paper, presets
from benchmarks.files import replacing
from benchmarks.layers import HEADS
from benchmarks.methods import METHODS
from benchmarks.train import Run

# As many as the paper has. Fewer or more go into a file's name, so as not to replace these.
DEFAULT_SEEDS = 5

_FORMAT = 1
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


class Result(NamedTuple):
    """One file of results.

    Attributes:
      benchmark: such as "permuted-mnist".
      method: a key of `benchmarks.methods.METHODS`.
      preset: a key of `benchmarks.presets.PRESETS`.
      changes: fields of the configuration that differ from the preset's.
      config: the whole configuration, the fields of a `benchmarks.presets.Config`.
      seeds: one for each entry of ``r``.
      r: ``[num_seeds, num_tasks, num_tasks]``, see `benchmarks.train.Run`.
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
    config: dict[str, Any]
    seeds: list[int]
    r: np.ndarray
    losses: np.ndarray
    seconds: dict[str, Any]
    provenance: dict[str, Any]
    train: np.ndarray | None = None
    memory_bytes: int | None = None
    data: str | None = None

    @property
    def acc(self) -> np.ndarray:
        """ACC of each seed, in percent."""
        return 100 * np.asarray(rgo_jax.average_accuracy(self.r))

    @property
    def bwt(self) -> np.ndarray:
        """BWT of each seed, in percent."""
        return 100 * np.asarray(rgo_jax.backward_transfer(self.r))

    @property
    def accuracy_curve(self) -> np.ndarray:
        """``[num_seeds, num_tasks]``: mean accuracy in percent over the tasks so far."""
        return 100 * np.nanmean(self.r, axis=2)

    @property
    def train_acc(self) -> np.ndarray | None:
        """ACC of each seed on training examples, in percent."""
        return None if self.train is None else 100 * self.train.mean(axis=1)

    @property
    def setting(self) -> paper.Setting:
        """Where it belongs in the paper's tables, if `is_literal`."""
        return paper.Setting(self.benchmark, self.config["network"], self.config["epochs"])

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
    config: dict[str, Any],
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
    return {
        "command": f"XLA_FLAGS={shlex.quote(flags)} {command}" if flags else command,
        "commit": _commit(),
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in _PACKAGES},
        "device": _device(),
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
    content: dict[str, Any] = {"format": _FORMAT} | result._asdict()
    content["r"] = [
        [[None if np.isnan(x) else round(float(x), 6) for x in row] for row in matrix]
        for matrix in result.r
    ]
    content["losses"] = np.round(result.losses, 6).tolist()
    if result.train is not None:
        content["train"] = np.round(result.train, 6).tolist()
    # A line for each field, so that a change reads well in a diff.
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in content.items())
    path = folder / result.benchmark / result.file_name
    with replacing(path) as temporary:
        temporary.write_text(f"{{\n{lines}\n}}\n")
    return path


def load(path: Path) -> Result:
    """Reads a file that `save` wrote.

    Raises:
      ValueError: the file is something else.
    """
    try:
        content = json.loads(path.read_text())
        if content.pop("format") != _FORMAT:
            raise ValueError("another format")
        content["r"] = np.array(content["r"], float)
        content["losses"] = np.array(content["losses"], float)
        content["config"] = presets.DEFAULTS | content["config"]
        presets.Config(**content["config"])  # raises where a field lacks or is unknown
        for what, name, known in (
            ("method", content["method"], METHODS),
            ("preset", content["preset"], presets.PRESETS),
            ("head", content["config"]["head"], HEADS),
        ):
            if name not in known:
                raise ValueError(f"unknown {what} {name!r}")
        METHODS[content["method"]].options(**content["config"]["options"])
        if content.get("train") is not None:
            content["train"] = np.array(content["train"], float)
        return Result(**content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: not a results file of format {_FORMAT} ({error}). Move it away, or write it "
            "anew with python -m benchmarks."
        ) from error


def load_all(folder: Path) -> list[Result]:
    """All results below a folder, in the order of their paths."""
    # Not what a kill has left behind of `replacing`, whose names begin with a dot.
    return [load(path) for path in sorted(folder.glob("*/[!.]*.json"))]


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


def merged(results: Sequence[Result]) -> list[Result]:
    """The same with one result in place of those that differ in nothing but their seeds.

    So an experiment may be run in parts, a few seeds on each machine. Results that share a seed
    are not put together.
    """
    groups: list[list[Result]] = []
    # The largest first: a single seed that is tried beside a whole result does not get in its way.
    for result in sorted(results, key=lambda result: (-len(result.seeds), result.seeds)):
        for group in groups:
            # Each of them: one whose data are unknown goes with any, but those may not go together.
            if all(_may_join(other, result) for other in group):
                group.append(result)
                break
        else:
            groups.append([result])
    return [group[0] if len(group) == 1 else _joined(group) for group in groups]


def may_be_of(result: Result, data: str | None) -> bool:
    """Whether a result is of the data with this fingerprint, as far as is known."""
    return None in (result.data, data) or result.data == data


def _may_join(one: Result, other: Result) -> bool:
    names = ("benchmark", "method", "preset", "changes", "config")
    same = all(getattr(one, name) == getattr(other, name) for name in names)
    return same and may_be_of(one, other.data) and set(one.seeds).isdisjoint(other.seeds)


def _joined(parts: Sequence[Result]) -> Result:
    parts = sorted(parts, key=lambda part: part.seeds)
    trains = [part.train for part in parts if part.train is not None]
    devices = dict.fromkeys(part.provenance["device"] for part in parts)
    return parts[-1]._replace(
        seeds=[seed for part in parts for seed in part.seeds],
        r=np.concatenate([part.r for part in parts]),
        losses=np.concatenate([part.losses for part in parts]),
        train=np.concatenate(trains) if len(trains) == len(parts) else None,
        seconds={
            "compile": sum(part.seconds["compile"] for part in parts),
            "tasks": np.sum([part.seconds["tasks"] for part in parts], axis=0).tolist(),
            "total": sum(part.seconds["total"] for part in parts),
        },
        provenance=parts[-1].provenance | {"device": "; ".join(devices)},
    )


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
