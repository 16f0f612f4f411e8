"""Progress as runs would have left it."""

import jax.numpy as jnp
import numpy as np

from benchmarks.run import inference
from benchmarks.run.measurements import Measurements
from benchmarks.run.train import Progress

ORIGIN = {"commit": "a" * 40, "versions": {"jax": "1"}, "device": "d", "command": "c", "date": ""}


def progress(tasks_done, value, size=3):
    return Progress(
        tasks_done=tasks_done,
        measured=Measurements(
            r=np.full((1, 2, 2), value),
            initial=np.full((1, 2), value / 2),
            train=np.full((1, 2), np.nan),
            capacity=np.full(1, value),
            losses=np.array([[1 / 3, value]]),
            task_seconds=np.zeros(2),
            compile_seconds=1.5,
            inference=inference.not_measured(1, 2),
        ),
        state={"w": jnp.full((1, size), value), "count": jnp.full(1, tasks_done)},
    )
