"""What all methods share: their settings, the optimizer, the loss."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks.language.model import LanguageModel
from rgo_jax.baselines import Apply


@dataclasses.dataclass(frozen=True)
class Settings:
    """What was chosen on other kinds of text than those that are reported.

    Attributes:
      learning_rate: of Adam at the start of each task; it falls to 0 by a cosine.
      steps: of a task.
      alpha: RGO's, relative.
      ewc_strength: of its penalty, for the loss of a byte.
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


def logits_of(net: LanguageModel) -> Apply:
    """The model as methods take it, of which no task has a part of its own."""

    def apply_fn(params: Any, tokens: jax.Array, task_id: jax.Array) -> jax.Array:
        del task_id
        return jnp.asarray(net.apply({"params": params}, tokens))

    return apply_fn


def mean_loss(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Cross-entropy in nats a byte."""
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, targets))
