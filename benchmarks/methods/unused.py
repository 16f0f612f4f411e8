"""Training to be unsure under encodings that no task uses, so that task ids can be inferred."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import rgo_jax
from benchmarks.methods.base import Problem
from rgo_jax import task_inference
from rgo_jax.baselines import Method, Task

# So many encodings are drawn from.
COUNT = 1000


class UnusedState(NamedTuple):
    """The state of a method whose steps draw an unused encoding.

    Attributes:
      params: of the network.
      opt_state: the optimizer's.
      steps: int32, since the first task.
    """

    params: Any
    opt_state: Any
    steps: jax.Array


def unsure_if_unused(
    problem: Problem, optimizer: optax.GradientTransformation, method: Method, weight: float
) -> Method:
    """RGO with the loss ``weight * uniform_loss`` of each batch under an unused encoding.

    There the head is that of a task so far, which learns nothing: features learn not to move it.

    Args:
      problem: of the method.
      optimizer: the method's.
      method: RGO, whose state has the fields ``params`` and ``opt_state``.
      weight: of the loss, beside the mean loss of the batch.
    """

    def init(key: jax.Array) -> UnusedState:
        state = method.init(key)
        return UnusedState(state.params, state.opt_state, jnp.int32(0))

    def step(
        state: UnusedState, batch: tuple[jax.Array, jax.Array], task: Task
    ) -> tuple[UnusedState, jax.Array]:
        x, y = batch
        keys = jax.random.split(jax.random.fold_in(jax.random.key(0), state.steps))
        encoding = task_inference.unused_task(keys[0], problem.num_tasks, COUNT)
        of_head = jax.random.randint(keys[1], (), 0, task.id + 1)

        def loss_fn(params: Any) -> tuple[jax.Array, jax.Array]:
            loss = jnp.mean(problem.losses(problem.logits(params, x, task.id), y))
            body = problem.freeze(params, task.id)
            fixed = body | {"head": jax.lax.stop_gradient(body["head"])}
            unused = problem.logits(fixed, x, of_head, encoding_id=encoding)
            return loss + weight * jnp.mean(task_inference.uniform_loss(unused)), loss

        with_loss = rgo_jax.value_and_grad(loss_fn, state.opt_state, has_aux=True)
        (_, loss), grads = with_loss(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return UnusedState(params, opt_state, state.steps + 1), loss

    return method._replace(init=init, step=step)
