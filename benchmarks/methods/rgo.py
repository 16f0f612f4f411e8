"""Recursive Gradient Optimization, the library's own method."""

from typing import Any

import jax
import optax

import rgo_jax
import rgo_jax.linen
from benchmarks.methods.base import Method, Problem, TrainState, gradient_method
from benchmarks.tasks import Task


def rgo(problem: Problem) -> Method:
    """Recursive Gradient Optimization, Algorithm 1. https://arxiv.org/abs/2201.12522"""
    optimizer = optax.chain(
        optax.masked(
            rgo_jax.scale_by_rgo(projected=True, normalize=problem.normalize), problem.protected
        ),
        optax.sgd(problem.learning_rate),
    )

    def end_task(state: TrainState, task: Task) -> TrainState:
        def curvature_grads(indices: jax.Array) -> Any:
            x, y = task.load(indices)
            return jax.grad(
                lambda params: rgo_jax.curvature_output(problem.logits(params, x, task.id), y)
            )(state.params)

        opt_state = rgo_jax.consolidate(
            state.opt_state, curvature_grads, task.batches, alpha=problem.alpha
        )
        return state._replace(opt_state=opt_state)

    def memory(state: TrainState) -> Any:
        return rgo_jax.linen.projections(state.opt_state)

    method = gradient_method(problem, optimizer, rgo_jax.linen.projections)
    return method._replace(end_task=end_task, memory=memory)
