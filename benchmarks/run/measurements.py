"""What a run measures, as one value from the training loop to the tables."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from benchmarks.run import inference
from benchmarks.run.inference import Inference


class Measurements(NamedTuple):
    """What has been measured of a run so far.

    Attributes:
      r: float64 ``[num_seeds, num_tasks, num_tasks]``: accuracy (0 to 1) on task k after task t;
        NaN for t to come, where a seed diverged, and, unless forward transfer is measured, where
        k > t.
      initial: float64 ``[num_seeds, num_tasks]``: accuracy on each task before the first; NaN
        unless forward transfer is measured.
      train: float64 ``[num_seeds, num_tasks]``: accuracy on each task's training examples after
        the last task; NaN until then.
      capacity: float64 ``[num_seeds]``: the numbers that the method has in use after the last task
        over those of the network, as `MethodSpec.capacity` has it; NaN until then and where it has
        none.
      losses: float64 ``[num_seeds, num_tasks]``: mean training loss over each task.
      task_seconds: float64 ``[num_tasks]``: wall time to train, consolidate and evaluate, all seeds
        together.
      compile_seconds: wall time to compile the programs that serve every task.
      inference: without task ids; NaN unless it is measured.
    """

    r: np.ndarray
    initial: np.ndarray
    train: np.ndarray
    capacity: np.ndarray
    losses: np.ndarray
    task_seconds: np.ndarray
    compile_seconds: float
    inference: Inference

    @property
    def seconds(self) -> float:
        """Wall time of all together."""
        return self.compile_seconds + float(self.task_seconds.sum())


def no_measurements(num_seeds: int, num_tasks: int) -> Measurements:
    """Those of a run before its first task."""
    return Measurements(
        r=np.full((num_seeds, num_tasks, num_tasks), np.nan),
        initial=np.full((num_seeds, num_tasks), np.nan),
        train=np.full((num_seeds, num_tasks), np.nan),
        capacity=np.full(num_seeds, np.nan),
        losses=np.zeros((num_seeds, num_tasks)),
        task_seconds=np.zeros(num_tasks),
        compile_seconds=0.0,
        inference=inference.not_measured(num_seeds, num_tasks),
    )


def flatten(measured: Measurements) -> dict[str, Any]:
    """The numbers by name, such as "r" and "inference.known"."""
    flat = measured._asdict()
    parts = flat.pop("inference")._asdict()
    return flat | {f"inference.{name}": value for name, value in parts.items()}


def unflatten(flat: Mapping[str, Any]) -> Measurements:
    """The inverse of `flatten`."""
    fields = {name: flat[name] for name in Measurements._fields if name != "inference"}
    fields["compile_seconds"] = float(fields["compile_seconds"])
    parts = {name: flat[f"inference.{name}"] for name in Inference._fields}
    return Measurements(**fields, inference=Inference(**parts))
