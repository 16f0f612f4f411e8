"""The Feature Encoding Layer for Flax NNX."""

import jax
from flax import nnx

from rgo_jax import _fel


class Encoding(nnx.Variable):
    """The permutations of all tasks that a `FeatureEncoding` looks up."""


class FeatureEncoding(nnx.Module):
    """Feature Encoding Layer: permutes the features for the task at hand.

    Put one on the input and after each layer, each with its own ``layer`` number. It has no
    parameters. See `rgo_jax.fel_encode`; `rgo_jax.linen.FeatureEncoding` is the same for Linen.

    Args:
      layer: integer, different for each layer of a network.
      seed: integer, the same for a whole network.
      axis: the axis of the features: the last one, channels for a convolution.
      num_features: of the input; only with ``num_tasks``.
      num_tasks: how many tasks there are at most, to draw their permutations now and keep them in
        an `Encoding` ``[num_tasks, num_features]``. For scans over steps on a GPU, where each call
        would sort; see `rgo_jax.linen.encodings`. A ``task_id`` is below it then, which is not
        checked where it is traced. An `Encoding` is no `flax.nnx.Param`: it is not trained, but is
        part of the model's state. By default permutations are drawn in each call.
      identity_first: whether task 0 is left as it is.

    Raises:
      ValueError: one of ``num_features`` and ``num_tasks`` without the other, or below 1; in a call
        as `rgo_jax.linen.FeatureEncoding`.

    Example:
      >>> import jax.numpy as jnp, rgo_jax.nnx
      >>> encode = rgo_jax.nnx.FeatureEncoding(layer=1)
      >>> print(encode(jnp.arange(5), task_id=3))
      [0 4 3 2 1]
      >>> encode = rgo_jax.nnx.FeatureEncoding(layer=1, num_features=5, num_tasks=10)
      >>> print(encode(jnp.arange(5), task_id=3))
      [0 4 3 2 1]

    References:
      Section 4.4. https://arxiv.org/abs/2201.12522
    """

    def __init__(
        self,
        layer: int = 0,
        seed: int = 0,
        axis: int = -1,
        num_features: int | None = None,
        num_tasks: int | None = None,
        identity_first: bool = False,
    ) -> None:
        if (num_features is None) != (num_tasks is None):
            raise ValueError(
                f"num_features is {num_features} and num_tasks {num_tasks}; expected both or none."
            )
        self.layer = layer
        self.seed = seed
        self.axis = axis
        self.identity_first = identity_first
        self.permutations = (
            None
            if num_features is None or num_tasks is None
            else Encoding(
                _fel.table(
                    num_tasks, num_features, seed=seed, layer=layer, identity_first=identity_first
                )
            )
        )

    def __call__(self, x: jax.Array, task_id: jax.typing.ArrayLike) -> jax.Array:
        """Permutes ``x`` along the feature axis for ``task_id``, an integer that may be traced."""
        if self.permutations is not None:
            return _fel.look_up(
                x,
                self.permutations[...],
                task_id,
                axis=self.axis,
                name=f"FeatureEncoding(layer={self.layer})",
            )
        return _fel.fel_encode(
            x,
            task_id,
            seed=self.seed,
            layer=self.layer,
            axis=self.axis,
            identity_first=self.identity_first,
        )
