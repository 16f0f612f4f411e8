"""The two bounds: plain SGD through all tasks, and single-task learning."""

import dataclasses
from typing import Any, NamedTuple

import jax

from benchmarks.methods.base import Problem, check_momentum, on_problem, option, sgd_optimizer
from rgo_jax.baselines import Method, Task, finetune

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


class SgdState(NamedTuple):
    """The state of both methods.

    Attributes:
      params: of the network.
      opt_state: the optimizer's.
      statistics: of batch normalisation, if the network has it.
    """

    params: Any
    opt_state: Any
    statistics: Any


def sgd(problem: Problem) -> Method:
    """Plain SGD through all tasks: the lower bound."""
    method = on_problem(
        problem, finetune(problem.logits, sgd_optimizer(problem), losses=problem.losses)
    )

    def init(key: jax.Array) -> SgdState:
        trained = method.init(key)
        return SgdState(trained.params, trained.opt_state, problem.statistics.init())

    def step(
        state: SgdState, batch: tuple[jax.Array, jax.Array], task: Task
    ) -> tuple[SgdState, jax.Array]:
        after, loss = method.step(state, batch, task)
        # The same forward pass as the loss's, which XLA sees.
        statistics = problem.statistics.update(state.statistics, state.params, batch[0], task.id)
        return SgdState(after.params, after.opt_state, statistics), loss

    def apply(state: SgdState, x: jax.Array, task_id: jax.Array) -> jax.Array:
        return problem.logits(state.params, x, task_id, statistics=state.statistics)

    return method._replace(init=init, step=step, apply=apply)


def stl(problem: Problem) -> Method:
    """Single-task learning: every task by itself, from fresh parameters."""
    method = sgd(problem)

    def start_task(state: SgdState, task: Task, key: jax.Array) -> SgdState:
        state = method.start_task(state, task, key)
        return state._replace(params=problem.init(key), statistics=problem.statistics.init())

    def memory(state: SgdState) -> list[object]:
        # The models of the other tasks. Their accuracy stands, so training does not carry them.
        return [(state.params, state.statistics)] * (problem.num_tasks - 1)

    return method._replace(start_task=start_task, memory=memory)
