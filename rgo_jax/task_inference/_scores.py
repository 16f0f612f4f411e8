"""How sure a network is of its outputs."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def _energy(logits: jax.Array) -> jax.Array:
    return jax.nn.logsumexp(logits, axis=-1)


def uniform_loss(logits: jax.Array) -> jax.Array:
    """How far predictions are from uniform: a loss that teaches a network to be unsure.

    Add its mean over a batch under an `unused_task`, times a weight, to the loss of a step.

    Args:
      logits: ``[..., classes]``, floating point.

    Returns:
      ``[...]``, in nats: the Kullback-Leibler divergence of the softmax of ``logits`` from the
      uniform distribution; 0 where all logits are equal.

    Example:
      >>> import jax.numpy as jnp
      >>> from rgo_jax import task_inference
      >>> print(task_inference.uniform_loss(jnp.array([[1.0, 1.0], [0.0, 5.0]])) > 1)
      [False  True]

    References:
      Outlier exposure, Hendrycks et al., ICLR 2019. https://arxiv.org/abs/1812.04606
    """
    classes = logits.shape[-1]
    return _energy(logits) - jnp.mean(logits, axis=-1) - jnp.log(classes)


def _entropy(logits: jax.Array) -> jax.Array:
    log_probabilities = jax.nn.log_softmax(logits)
    return jnp.sum(jnp.exp(log_probabilities) * log_probabilities, axis=-1)


# All are higher, the surer.
SCORES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "uniform": uniform_loss,
    "energy": _energy,
    "entropy": _entropy,
    "probability": lambda logits: jnp.max(jax.nn.log_softmax(logits), axis=-1),
    "norm": lambda logits: jnp.linalg.norm(logits, axis=-1),
}


def scores(logits: jax.Array, score: str = "uniform") -> jax.Array:
    """How sure outputs are; higher is surer.

    Args:
      logits: ``[..., classes]``, floating point.
      score: "uniform", the divergence from uniform predictions (`uniform_loss`); "energy", the
        logarithm of the sum of the logits' exponentials, which knows their level too; "entropy",
        that of the predictions, negative; "probability", the logarithm of the largest; "norm", the
        logits' Euclidean length.

    Returns:
      ``[...]``, in nats but for "norm".

    Raises:
      ValueError: ``score`` is none of these.

    Example:
      >>> import jax.numpy as jnp
      >>> from rgo_jax import task_inference
      >>> logits = jnp.array([[0.0, 0.0], [0.0, 5.0]])
      >>> print(task_inference.scores(logits, "entropy") > -0.1)
      [False  True]

    References:
      Energy: Liu et al., NeurIPS 2020. https://arxiv.org/abs/2010.03759
    """
    if score not in SCORES:
        raise ValueError(f"score is {score!r}; expected one of {', '.join(SCORES)}.")
    return SCORES[score](logits)
