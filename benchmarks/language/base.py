"""What a method is, and what all methods share: a model, an optimizer, a loss."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from benchmarks.language import model
from benchmarks.language.model import LanguageModel


@dataclasses.dataclass(frozen=True)
class Settings:
    """What was chosen on other kinds of text than those that are reported.

    Attributes:
      learning_rate: of Adam at the start of each task; it falls to 0 by a cosine.
      steps: of a task.
      alpha: RGO's, relative.
      ewc_strength: of its penalty.
      gpm_threshold: the share of the inputs' energy that is protected.
      rank: of adapters.
      olora_strength: of its penalty.
    """

    learning_rate: float = 1e-3
    steps: int = 400
    alpha: float = 0.03
    ewc_strength: float = 10_000.0
    gpm_threshold: float = 0.9
    rank: int = 8
    olora_strength: float = 10.0


class State(NamedTuple):
    """Of any method.

    Attributes:
      base: parameters that are not trained; () if all are.
      trained: parameters, or adapters to those of ``base``.
      opt_state: of the optimizer.
      memory: what the method keeps beside them.
      task: int32 scalar, the number of the text at hand; 0 is the one of pre-training.
    """

    base: Any
    trained: Any
    opt_state: Any
    memory: Any
    task: jax.Array


class Method(NamedTuple):
    """Pure functions.

    Attributes:
      init: ``(params, key) -> state``, from pre-trained parameters.
      start_task: ``(state) -> state``, before a task's first step.
      step: ``(state, tokens) -> (state, loss)``, with a batch ``[b, length + 1]``.
      end_task: ``(state, batches) -> state``, with some of the task's batches ``[n, b, length +
        1]``; before the first task with the text of pre-training.
      params: ``(state) -> params`` to be used.
    """

    init: Callable[[Any, jax.Array], State]
    start_task: Callable[[State], State]
    step: Callable[[State, jax.Array], tuple[State, jax.Array]]
    end_task: Callable[[State, jax.Array], State]
    params: Callable[[State], Any]


def chain(
    settings: Settings,
    projection: optax.GradientTransformation | None = None,
    *,
    before_adam: bool = False,
) -> optax.GradientTransformation:
    """Adam, with a projection of its updates or, before it, of the gradients."""
    schedule = optax.cosine_decay_schedule(settings.learning_rate, settings.steps)
    parts = [optax.scale_by_adam()]
    if projection is not None:
        parts.insert(0 if before_adam else 1, projection)
    return optax.chain(*parts, optax.scale_by_learning_rate(schedule))


def mean_loss(net: LanguageModel, params: Any, tokens: jax.Array) -> jax.Array:
    """Cross-entropy in nats a byte."""
    logits = net.apply({"params": params}, tokens[:, :-1])
    losses = optax.softmax_cross_entropy_with_integer_labels(jnp.asarray(logits), tokens[:, 1:])
    return jnp.mean(losses)


def gradient_method(
    net: LanguageModel,
    settings: Settings,
    tx: optax.GradientTransformation,
    adapters: bool = False,
    change: Callable[[Any, State], Any] = lambda grads, state: grads,
) -> Method:
    """Steps with an optimizer; ``change`` has the gradients before it."""

    def init(params: Any, key: jax.Array) -> State:
        base, trained = (), params
        if adapters:
            base, trained = params, model.init_adapters(params, settings.rank, key)
        return State(base, trained, tx.init(trained), (), jnp.int32(0))

    def params_of(state: State) -> Any:
        return model.add_adapters(state.base, state.trained) if adapters else state.trained

    def start_task(state: State) -> State:
        return state._replace(opt_state=tx.init(state.trained), task=state.task + 1)

    def step(state: State, tokens: jax.Array) -> tuple[State, jax.Array]:
        def loss_fn(trained: Any) -> jax.Array:
            return mean_loss(net, params_of(state._replace(trained=trained)), tokens)

        loss, grads = jax.value_and_grad(loss_fn)(state.trained)
        updates, opt_state = tx.update(change(grads, state), state.opt_state, state.trained)
        trained = optax.apply_updates(state.trained, updates)
        return state._replace(trained=trained, opt_state=opt_state), loss

    return Method(init, start_task, step, lambda state, batches: state, params_of)
