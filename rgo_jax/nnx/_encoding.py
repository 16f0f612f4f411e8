"""The Feature Encoding Layer for Flax NNX."""

from typing import Any

import jax
from flax import nnx

from rgo_jax import _fel


class Encoding(nnx.Variable):
    """The table of permutations that a `FeatureEncoding` keeps."""


class FeatureEncoding(nnx.Module):
    """Feature Encoding Layer: permutes the features for the current task.

    Put one after each hidden layer, each with its own ``layer`` number. It has no parameters. In a
    pre-trained network it ruins what was learned before any step, unless ``identity_first``. See
    `rgo_jax.fel_encode`; `rgo_jax.linen.FeatureEncoding` is the same for Linen.

    By default the layer draws its permutation in each call. With ``num_tasks`` it keeps a table of
    the permutations of all tasks in an `Encoding`, which is part of the model's state but no
    `flax.nnx.Param`, and looks its permutation up: faster in a scan over training steps on an
    accelerator, where XLA would draw it in each step. The outputs are the same.

    Args:
      layer: integer, different for each layer of a network.
      seed: integer, the same for a whole network.
      axis: the axis of the features: the last one, channels for a convolution.
      identity_first: whether task 0 is left as it is: for pre-trained networks, whose task 0 is
        what they were trained on.
      num_tasks: how many tasks the table is for; None for no table. A ``task_id`` must be below it,
        which is not checked where it is traced.
      num_features: of the input; only with ``num_tasks``.

    Raises:
      ValueError: one of ``num_features`` and ``num_tasks`` without the other, or below 1; in a call
        as `rgo_jax.linen.FeatureEncoding`.

    Example:
      >>> import jax.numpy as jnp, rgo_jax.nnx
      >>> encode = rgo_jax.nnx.FeatureEncoding(layer=1)
      >>> print(encode(jnp.arange(5), task_id=3))
      [0 4 3 2 1]
      >>> encode = rgo_jax.nnx.FeatureEncoding(layer=1, num_tasks=10, num_features=5)
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
        identity_first: bool = False,
        num_tasks: int | None = None,
        num_features: int | None = None,
    ) -> None:
        if (num_tasks is None) != (num_features is None):
            raise ValueError(
                f"num_features is {num_features} and num_tasks {num_tasks}; expected both or none."
            )
        self.layer = layer
        self.seed = seed
        self.axis = axis
        self.identity_first = identity_first
        self.num_tasks = num_tasks
        self.permutations = (
            None
            if num_tasks is None or num_features is None
            else Encoding(_fel.table(num_tasks, num_features, **self._options()))
        )

    def _options(self) -> dict[str, Any]:
        return {"seed": self.seed, "layer": self.layer, "identity_first": self.identity_first}

    def __call__(self, x: jax.Array, task_id: jax.typing.ArrayLike) -> jax.Array:
        """Permutes ``x`` along the feature axis for ``task_id``, an integer that may be traced."""
        if self.num_tasks is None or self.permutations is None:
            return _fel.fel_encode(x, task_id, axis=self.axis, **self._options())
        return _fel.look_up(
            x,
            self.permutations[...],
            task_id,
            num_tasks=self.num_tasks,
            axis=self.axis,
            name=f"FeatureEncoding(layer={self.layer})",
        )
