"""Results on disk: one JSON for each method of a benchmark, with all it takes to repeat it."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import rgo_jax
from benchmarks.data.files import atomic_write
from benchmarks.presets.configuration import Config
from benchmarks.run import json_input, result_schema
from benchmarks.run.measurements import Measurements, flatten

# As many as the paper has. Fewer or more go into a file's name, so as not to replace these.
DEFAULT_SEEDS = 5


class Result(NamedTuple):
    """One file of results.

    Attributes:
      method: a key of `benchmarks.methods.METHODS`.
      config: the whole configuration, with the dataset's name in place of a path.
      changes: fields of the configuration that differ from the preset's.
      seeds: one for each entry of the measurements.
      measured: what was measured.
      memory_bytes: what the method keeps from one task for the next, for one seed.
      data: the dataset's fingerprint.
      provenance: as `benchmarks.run.provenance.provenance` has it; and "before_resuming", a list of
        the same, if it was begun by others.
    """

    method: str
    config: Config
    changes: dict[str, Any]
    seeds: list[int]
    measured: Measurements
    memory_bytes: int
    data: str
    provenance: dict[str, Any]

    @property
    def benchmark(self) -> str:
        """Such as "permuted-mnist"."""
        return self.config.benchmark

    @property
    def preset(self) -> str:
        """A key of `benchmarks.presets.PRESETS`."""
        return self.config.preset

    @property
    def diverged(self) -> np.ndarray:
        """Whether each seed did: a loss or an accuracy of its own is no finite number."""
        return ~self._sound[:, -1]

    @property
    def acc(self) -> np.ndarray:
        """ACC of each seed, in percent; NaN of one that diverged, as all of these numbers."""
        return self._unless_diverged(rgo_jax.average_accuracy(self.measured.r))

    @property
    def bwt(self) -> np.ndarray:
        """BWT of each seed, in percent."""
        return self._unless_diverged(rgo_jax.backward_transfer(self.measured.r))

    @property
    def learning_accuracy(self) -> np.ndarray:
        """Accuracy just after learning of each seed, in percent."""
        return self._unless_diverged(rgo_jax.learning_accuracy(self.measured.r))

    @property
    def forgetting(self) -> np.ndarray:
        """Of each seed, in percent."""
        return self._unless_diverged(rgo_jax.forgetting(self.measured.r))

    @property
    def fwt(self) -> np.ndarray:
        """FWT of each seed, in percent; NaN unless it was measured."""
        initial = self.measured.initial
        fwt = self._unless_diverged(rgo_jax.forward_transfer(self.measured.r, initial))
        return np.where(np.isnan(initial).any(axis=1), np.nan, fwt)

    @property
    def r(self) -> np.ndarray:
        """R of each seed, from 0 to 1; NaN from the task on in which it diverged."""
        return np.where(self._sound[:, :, None], self.measured.r, np.nan)

    @property
    def train_acc(self) -> np.ndarray:
        """ACC of each seed on training examples, in percent."""
        return self._unless_diverged(self.measured.train.mean(axis=1))

    @property
    def _sound(self) -> np.ndarray:
        """``[num_seeds, num_tasks]``: whether a seed had not diverged after that task."""
        learned = np.isfinite(np.tril(self.measured.r)).all(axis=2)
        finite = np.isfinite(self.measured.losses) & learned
        return np.logical_and.accumulate(finite, axis=1)

    def _unless_diverged(self, shares: jax.typing.ArrayLike) -> np.ndarray:
        return np.where(self.diverged, np.nan, 100 * np.asarray(shares))

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


def save(result: Result, folder: Path) -> Path:
    """Writes ``folder/benchmark/method….json`` atomically: a kill leaves the old file whole."""
    content: dict[str, Any] = {"format": result_schema.FORMAT} | result._asdict()
    content["config"] = dataclasses.asdict(result.config)
    del content["measured"]
    for name, value in flatten(result.measured).items():
        if result.config.infer_task or not name.startswith("inference."):
            content[name] = _rounded_lists(value)
    # A line for each field, so that a change reads well in a diff.
    lines = ",\n".join(
        f"{json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in content.items()
    )
    path = folder / result.benchmark / result.file_name
    with atomic_write(path) as temporary:
        temporary.write_text(f"{{\n{lines}\n}}\n")
    return path


def _rounded_lists(values: Any) -> Any:
    """Arrays as lists, with null for what is no finite number."""
    if np.ndim(values):
        return [_rounded_lists(each) for each in values]
    return round(float(values), 6) if np.isfinite(values) else None


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
            # Not what a kill has left behind of `atomic_write`, whose names begin with a dot.
            if path.suffix == ".json" and not path.name.startswith(".")
        ]
    except OSError as error:
        raise ValueError(
            f"{folder}: cannot be looked through for results ({error}). Make it readable, or name "
            "another folder."
        ) from error
    return [load(path) for path in paths]
