"""Fisher information, and the penalty that elastic weight consolidation makes of it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rgo_jax.baselines._method import Apply, Losses, Task


class Penalty(NamedTuple):
    """``sum importance * (params - anchor)^2``, both trees like the parameters."""

    anchor: Any
    importance: Any


class RunningFisher(NamedTuple):
    """A running average of squared gradients.

    Attributes:
      average: a tree like the parameters.
      squares: the same: their sum since the average's last update.
      steps: int32 scalar: since the task began.
    """

    average: Any
    squares: Any
    steps: jax.Array


def update_fisher(fisher: RunningFisher, grads: Any, decay: float, every: int) -> RunningFisher:
    """A running average after one more step with these gradients."""
    steps = fisher.steps + 1
    # The harness updates the average before it adds the squares of the same step.
    update = steps % every == 0

    def average(old: jax.Array, squares: jax.Array) -> jax.Array:
        return jnp.where(update, (1 - decay) * old + decay / every * squares, old)

    def squares(old: jax.Array, grad: jax.Array) -> jax.Array:
        return jnp.where(update, 0, old) + grad**2

    return RunningFisher(
        jax.tree.map(average, fisher.average, fisher.squares),
        jax.tree.map(squares, fisher.squares, grads),
        steps,
    )


def normalize_fisher(fisher: Any) -> Any:
    """Scaled to [0, 1] by the smallest and the largest entry of the whole tree."""
    low = jax.tree.reduce(jnp.minimum, jax.tree.map(jnp.min, fisher))
    high = jax.tree.reduce(jnp.maximum, jax.tree.map(jnp.max, fisher))
    # Where all are equal there is nothing to tell apart, and nothing is protected.
    span = jnp.where(high > low, high - low, 1)
    return jax.tree.map(lambda leaf: (leaf - low) / span, fisher)


def fisher_information(
    apply_fn: Apply,
    params: Any,
    task: Task,
    batches: jax.Array,
    key: jax.Array,
    loss_of: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
) -> Any:
    """The mean over single examples of the squared gradient of a loss.

    Args:
      apply_fn: the model.
      params: where.
      task: whose examples.
      batches: int32 ``[n, b]``: which of them.
      key: for sampling labels.
      loss_of: ``(outputs [1, ...], y [1, ...], key) -> scalar``.

    Returns:
      A tree like the parameters: with `sampled_loss` the diagonal of the Fisher information of the
      model's predictions.
    """

    def squared_gradient(x: jax.Array, y: jax.Array, key: jax.Array) -> Any:
        def loss(params: Any) -> jax.Array:
            return loss_of(apply_fn(params, x[None], task.id), y[None], key)

        return jax.tree.map(jnp.square, jax.grad(loss)(params))

    def add(total: Any, batch: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
        indices, key = batch
        x, y = task.load(indices)
        squares = jax.vmap(squared_gradient)(x, y, jax.random.split(key, len(x)))
        return jax.tree.map(lambda t, s: t + jnp.sum(s, axis=0), total, squares), None

    zeros = jax.tree.map(jnp.zeros_like, params)
    total, _ = jax.lax.scan(add, zeros, (batches, jax.random.split(key, len(batches))))
    return jax.tree.map(lambda t: t / batches.size, total)


def sampled_loss(logits: jax.Array, y: jax.Array, key: jax.Array) -> jax.Array:
    """Of labels that the model itself predicts."""
    del y
    labels = jax.random.categorical(key, logits)
    likelihoods = jax.nn.log_softmax(logits)
    return -jnp.sum(jnp.take_along_axis(likelihoods, labels[..., None], axis=-1))


def summed_loss(outputs: jax.Array, y: jax.Array, key: jax.Array, *, losses: Losses) -> jax.Array:
    """Of the given labels."""
    del key
    return jnp.sum(losses(outputs, y))


def add_task(penalty: Penalty, params: Any, fisher: Any) -> Penalty:
    """The old penalty plus ``sum fisher * (theta - params)^2``, as one, but for a constant.

    A sum of parabolas is a parabola around the mean of their minima, weighted by their strengths.
    """
    importance = jax.tree.map(jnp.add, penalty.importance, fisher)

    def anchor(old: jax.Array, new: jax.Array, share: jax.Array, total: jax.Array) -> jax.Array:
        return old + (new - old) * jnp.where(total > 0, share / jnp.where(total > 0, total, 1), 1)

    return Penalty(jax.tree.map(anchor, penalty.anchor, params, fisher, importance), importance)


def penalty_grads(penalty: Penalty, params: Any, strength: float) -> Any:
    """The gradient of ``strength * sum importance * (params - anchor)^2``."""
    return jax.tree.map(
        lambda p, anchor, importance: 2 * strength * importance * (p - anchor),
        params,
        penalty.anchor,
        penalty.importance,
    )
