"""A recurrent controller that chooses a count for each layer, trained by REINFORCE.

Williams 1992, with a critic as the baseline.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

_HIDDEN = 100
_DEPTH = 2


class Controller(NamedTuple):
    """What is trained by rewards.

    Attributes:
      policy: of the LSTM whose outputs are logits of counts.
      critic: of the LSTM whose output is what reward is expected, above the mean so far.
      opt_state: the optimizer's, of both.
      mean: the mean of the rewards so far.
      trials: int32 scalar, how many there have been.
    """

    policy: Any
    critic: Any
    opt_state: Any
    mean: jax.Array
    trials: jax.Array


def init(key: jax.Array, num_counts: int, tx: optax.GradientTransformation) -> Controller:
    """A controller that chooses among counts below ``num_counts``, nearly all alike."""
    policy_key, critic_key = jax.random.split(key)
    policy = _init_lstm(policy_key, num_counts, num_counts)
    critic = _init_lstm(critic_key, num_counts, 1)
    return Controller(policy, critic, tx.init((policy, critic)), jnp.float32(0), jnp.int32(0))


def sample(policy: Any, key: jax.Array, num_layers: int) -> jax.Array:
    """Draws a count for each layer, int32 ``[num_layers]``; each depends on those before."""

    def draw(carry: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        cells, before = carry
        cells, logits = _read(policy, cells, before)
        count = jax.random.categorical(key, logits)
        return (cells, jax.nn.one_hot(count, len(logits))), count

    _, counts = jax.lax.scan(draw, _start(policy), jax.random.split(key, num_layers))
    return counts


def log_probabilities(policy: Any, counts: jax.Array) -> jax.Array:
    """Of each of these counts ``[num_layers]``, after those before."""
    logits = _outputs(policy, counts)
    return jnp.take_along_axis(jax.nn.log_softmax(logits), counts[:, None], axis=1)[:, 0]


def learn(
    controller: Controller,
    counts: jax.Array,
    reward: jax.Array,
    tx: optax.GradientTransformation,
) -> Controller:
    """A step of REINFORCE: counts are more likely after more reward than the critic expected.

    Args:
      controller: that chose.
      counts: int32 ``[num_layers]``, what it chose.
      reward: scalar.
      tx: the optimizer.
    """
    trials = controller.trials + 1
    mean = controller.mean + (reward - controller.mean) / trials

    def loss_of(trained: tuple[Any, Any]) -> jax.Array:
        policy, critic = trained
        errors = reward - mean - _outputs(critic, counts)[:, 0]
        advantages = jax.lax.stop_gradient(errors)
        return jnp.sum(errors**2) / 2 - jnp.sum(advantages * log_probabilities(policy, counts))

    grads = jax.grad(loss_of)((controller.policy, controller.critic))
    updates, opt_state = tx.update(grads, controller.opt_state)
    policy, critic = optax.apply_updates((controller.policy, controller.critic), updates)
    return Controller(policy, critic, opt_state, mean, trials)


def _init_lstm(key: jax.Array, inputs: int, outputs: int) -> Any:
    """Layers of an LSTM, with a linear read-out."""
    *keys, read_key = jax.random.split(key, _DEPTH + 1)

    def draw(key: jax.Array, shape: tuple[int, int]) -> jax.Array:
        return jax.random.uniform(key, shape, minval=-0.1, maxval=0.1)

    sizes = (inputs, *(_HIDDEN,) * (_DEPTH - 1))
    return {
        "cells": [
            {"kernel": draw(key, (size + _HIDDEN, 4 * _HIDDEN)), "bias": jnp.zeros(4 * _HIDDEN)}
            for key, size in zip(keys, sizes, strict=True)
        ],
        "read": {"kernel": draw(read_key, (_HIDDEN, outputs)), "bias": jnp.zeros(outputs)},
    }


def _start(lstm: Any) -> Any:
    """The states of all cells, and the input, before the first layer."""
    zeros = jnp.zeros(_HIDDEN)
    inputs = len(lstm["cells"][0]["kernel"]) - _HIDDEN
    return [(zeros, zeros)] * _DEPTH, jnp.zeros(inputs)


def _read(lstm: Any, cells: Any, x: jax.Array) -> tuple[Any, jax.Array]:
    """One step: ``(states, outputs)``."""
    after = []
    for own, (memory, hidden) in zip(lstm["cells"], cells, strict=True):
        gates = jnp.concatenate([x, hidden]) @ own["kernel"] + own["bias"]
        take, keep, show, new = jnp.split(gates, 4)
        memory = jax.nn.sigmoid(keep) * memory + jax.nn.sigmoid(take) * jnp.tanh(new)
        x = jax.nn.sigmoid(show) * jnp.tanh(memory)
        after.append((memory, x))
    return after, x @ lstm["read"]["kernel"] + lstm["read"]["bias"]


def _outputs(lstm: Any, counts: jax.Array) -> jax.Array:
    """Of all steps, each after the counts before: ``[num_layers, outputs]``."""
    cells, first = _start(lstm)
    chosen = jax.nn.one_hot(counts[:-1], len(first))
    inputs = jnp.concatenate([first[None], chosen])
    _, outputs = jax.lax.scan(lambda cells, x: _read(lstm, cells, x), cells, inputs)
    return outputs
