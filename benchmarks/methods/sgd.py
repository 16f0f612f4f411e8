"""The two bounds: plain SGD through all tasks, and a model for each task."""

import jax
import optax

from benchmarks.methods.base import Method, Problem, TrainState, gradient_method
from benchmarks.tasks import Task


def sgd(problem: Problem) -> Method:
    """Plain SGD through all tasks: the lower bound."""
    return gradient_method(problem, optax.sgd(problem.learning_rate))


def stl(problem: Problem) -> Method:
    """Single-task learning: every task by itself, from fresh parameters."""
    method = sgd(problem)

    def start_task(state: TrainState, task: Task, key: jax.Array) -> TrainState:
        del task
        # The optimizer's state stays: all it holds is the count that drives the schedule.
        return state._replace(params=problem.init(key))

    def memory(state: TrainState) -> list[object]:
        # The models of the other tasks. Their accuracy stands, so training does not carry them.
        return [state.params] * (problem.num_tasks - 1)

    return method._replace(start_task=start_task, memory=memory)
