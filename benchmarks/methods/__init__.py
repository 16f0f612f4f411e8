"""Continual-learning methods as bundles of pure functions, a file for each family.

To add one, write a function from `Problem` to `Method` and give it a line in `METHODS`; the
training loop, the mapping over seeds, the evaluation and the tables take it from there.
"""

from benchmarks.methods.base import Method as Method
from benchmarks.methods.base import MethodSpec as MethodSpec
from benchmarks.methods.base import Problem as Problem
from benchmarks.methods.base import memory_bytes as memory_bytes
from benchmarks.methods.rgo import rgo
from benchmarks.methods.sgd import sgd, stl

METHODS = {
    "rgo": MethodSpec(rgo, "RGO", fel=True),
    "rgo-2": MethodSpec(rgo, "RGO-2", fel=False),
    "sgd": MethodSpec(sgd, "SGD", fel=False),
    "stl": MethodSpec(stl, "STL", fel=False, single_task=True),
}
