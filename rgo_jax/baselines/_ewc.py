"""Elastic Weight Consolidation, as its paper has it and as the harness of Table 1 has it.

Both pull the parameters back to where earlier tasks left them, each the more strongly the larger
its Fisher information. Kirkpatrick et al. 2017, https://arxiv.org/abs/1612.00796
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rgo_jax.baselines._fisher import (
    Penalty,
    RunningFisher,
    add_task,
    fisher_information,
    normalize_fisher,
    penalty_grads,
    sampled_loss,
    summed_loss,
    update_fisher,
)
from rgo_jax.baselines._method import (
    Apply,
    Batch,
    Losses,
    Method,
    Task,
    cross_entropies,
    fresh_optimizer,
    loss_and_grads,
    nothing_to_end,
)


class EwcState(NamedTuple):
    """The state of both methods.

    Attributes:
      params: the model's parameters.
      opt_state: the optimizer's state.
      penalty: for the tasks so far; nothing before the first.
      fisher: what the next penalty is made from: a `RunningFisher`, or a key to sample labels.
    """

    params: Any
    opt_state: Any
    penalty: Penalty
    fisher: Any


def ewc(
    apply_fn: Apply,
    tx: optax.GradientTransformation,
    *,
    strength: float = 10.0,
    decay: float = 0.9,
    every: int = 10,
    losses: Losses = cross_entropies,
) -> Method:
    """EWC as the harness of the RGO paper's Table 1 computes it.

    The Fisher information is a running average of squared gradients of mini-batches, taken along
    the way from task to task. At the end of each it is scaled to [0, 1] over all parameters and
    replaces the last one, as the end replaces the anchor. The penalty, ``lambda sum F (theta -
    anchor)^2``, has no factor of a half.

    Args:
      apply_fn: as for `finetune`.
      tx: the optimizer, of the loss with the penalty.
      strength: lambda, the weight of the penalty.
      decay: the weight of the newest squares in the running average.
      every: steps between its updates.
      losses: as for `finetune`.

    Returns:
      The `Method`.

    Example:
      >>> import optax
      >>> from rgo_jax import baselines
      >>> method = baselines.ewc(lambda params, x, task_id: x @ params, optax.sgd(0.1))

    References:
      Chaudhry et al. 2018, Riemannian walk. https://arxiv.org/abs/1801.10112
    """

    def init(params: Any, key: jax.Array) -> RunningFisher:
        del key
        zeros = jax.tree.map(jnp.zeros_like, params)
        return RunningFisher(zeros, jax.tree.map(jnp.zeros_like, params), jnp.int32(0))

    def observe(fisher: RunningFisher, grads: Any) -> RunningFisher:
        return update_fisher(fisher, grads, decay, every)

    def end_task(state: EwcState, task: Task) -> EwcState:
        del task
        average, squares, steps = state.fisher
        # Squares that have not made it into the average are dropped, as in the harness.
        fresh = RunningFisher(average, jax.tree.map(jnp.zeros_like, squares), jnp.zeros_like(steps))
        penalty = Penalty(state.params, normalize_fisher(average))
        return state._replace(penalty=penalty, fisher=fresh)

    method = _elastic(apply_fn, tx, losses, strength, init, observe)
    return method._replace(
        end_task=end_task, memory=lambda state: (state.penalty, state.fisher.average)
    )


def ewc_textbook(
    apply_fn: Apply,
    tx: optax.GradientTransformation,
    *,
    strength: float = 10.0,
    batches: int = 100,
    empirical: bool = False,
    losses: Losses = cross_entropies,
) -> Method:
    """EWC by the letter: ``lambda / 2 sum_t F_t (theta - theta_t)^2``.

    Each ``F_t`` is the mean over single examples of the squared gradient of the log-likelihood at
    the end of task t, for labels drawn from the model's own predictions. Of an example with many
    labels, as a text has, it is the log-likelihood of all together.

    Args:
      apply_fn: as for `finetune`; its outputs are logits ``[b, ..., num_classes]``, or anything
        with ``empirical``.
      tx: the optimizer, of the loss with the penalty.
      strength: lambda, the weight of the penalty, which the formula halves.
      batches: of the task's data, over whose examples the Fisher information is averaged.
      empirical: whether the gradients are of ``losses`` with the data's own labels. This is the
        empirical Fisher information, and not the Fisher information.
      losses: as for `finetune`.

    Returns:
      The `Method`.

    Example:
      >>> import optax
      >>> from rgo_jax import baselines
      >>> method = baselines.ewc_textbook(lambda params, x, task_id: x @ params, optax.sgd(0.1))

    References:
      Kirkpatrick et al. 2017. https://arxiv.org/abs/1612.00796
    """

    def start_task(state: EwcState, task: Task, key: jax.Array) -> EwcState:
        return fresh_optimizer(tx)(state, task, key)._replace(fisher=key)

    def end_task(state: EwcState, task: Task) -> EwcState:
        loss_of = partial(summed_loss, losses=losses) if empirical else sampled_loss
        fisher = fisher_information(
            apply_fn, state.params, task, task.batches[:batches], state.fisher, loss_of
        )
        return state._replace(penalty=add_task(state.penalty, state.params, fisher))

    method = _elastic(
        apply_fn, tx, losses, strength / 2, lambda params, key: key, lambda key, grads: key
    )
    return method._replace(start_task=start_task, end_task=end_task)


def _elastic(
    apply_fn: Apply,
    tx: optax.GradientTransformation,
    losses: Losses,
    strength: float,
    init_fisher: Callable[[Any, jax.Array], Any],
    observe: Callable[[Any, Any], Any],
) -> Method:
    """Training with a penalty, showing the gradients without it to ``observe`` at each step."""

    def init(params: Any, x: jax.Array, key: jax.Array) -> EwcState:
        del x
        nothing = Penalty(*(jax.tree.map(jnp.zeros_like, params) for _ in Penalty._fields))
        return EwcState(params, tx.init(params), nothing, init_fisher(params, key))

    def step(state: EwcState, batch: Batch, task: Task) -> tuple[EwcState, jax.Array]:
        loss, grads = loss_and_grads(apply_fn, losses, state.params, batch, task.id)
        pull = penalty_grads(state.penalty, state.params, strength)
        updates, opt_state = tx.update(
            jax.tree.map(jnp.add, grads, pull), state.opt_state, state.params
        )
        params = optax.apply_updates(state.params, updates)
        fisher = observe(state.fisher, grads)
        return state._replace(params=params, opt_state=opt_state, fisher=fisher), loss

    def apply(state: EwcState, x: jax.Array, task_id: jax.Array) -> jax.Array:
        return apply_fn(state.params, x, task_id)

    return Method(
        init, fresh_optimizer(tx), step, nothing_to_end, apply, memory=lambda state: state.penalty
    )
