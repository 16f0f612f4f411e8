"""The two bounds: plain SGD through all tasks, and single-task learning."""

import dataclasses

import jax

from benchmarks.data.tasks import Task
from benchmarks.methods.base import (
    Method,
    Problem,
    TrainState,
    check_momentum,
    gradient_method,
    option,
    sgd_optimizer,
)

# The networks of the paper's authors where they are not RGO's: from its to theirs. The first is of
# both methods, the second of STL only.
NETWORKS = {"lenet-5": "lenet-5-no-pool", "resnet-18": "resnet-18-batch-norm"}
STL_NETWORKS = NETWORKS | {"alexnet-7": "alexnet-7-narrow"}


@dataclasses.dataclass(frozen=True)
class Sgd:
    """Options of `sgd` and `stl`.

    Raises:
      ValueError: a value outside its range.
    """

    momentum: float = option(0.0, "of SGD; it begins each task at zero")

    def __post_init__(self) -> None:
        """Checks them."""
        check_momentum(self.momentum)


def sgd(problem: Problem) -> Method:
    """Plain SGD through all tasks: the lower bound."""
    return gradient_method(problem, sgd_optimizer(problem))


def stl(problem: Problem) -> Method:
    """Single-task learning: every task by itself, from fresh parameters."""
    method = sgd(problem)

    def start_task(state: TrainState, task: Task, key: jax.Array) -> TrainState:
        # The optimizer's state stays: all it holds is the count that drives the schedule.
        state = method.start_task(state, task, key)
        return state._replace(params=problem.init(key), statistics=problem.statistics.init())

    def memory(state: TrainState) -> list[object]:
        # The models of the other tasks. Their accuracy stands, so training does not carry them.
        return [(state.params, state.statistics)] * (problem.num_tasks - 1)

    return method._replace(start_task=start_task, memory=memory)
