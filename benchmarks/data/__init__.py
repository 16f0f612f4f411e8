"""Datasets, and how they become sequences of tasks.

`load` reads a `Dataset` into memory: `sources` knows where each comes from. `tasks` makes task
sequences of it, which index into its arrays and never copy them.
"""

from benchmarks.data.dataset import Dataset
from benchmarks.data.sources import NAMES, cache_dir, load

__all__ = ["NAMES", "Dataset", "cache_dir", "load"]
