"""The Feature Encoding Layer for Flax Linen."""

from typing import Any

import flax.linen as nn
import jax

from rgo_jax import _fel

_COLLECTION, _NAME = "encodings", "permutations"


class FeatureEncoding(nn.Module):
    """Feature Encoding Layer: permutes the features for the current task.

    Put one after each hidden layer, each with its own ``layer`` number. It has no parameters. In a
    pre-trained network it ruins what was learned before any step, unless ``identity_first``. See
    `rgo_jax.fel_encode`; `rgo_jax.nnx.FeatureEncoding` is the same for NNX.

    By default the layer draws its permutation in each call. With ``num_tasks`` it keeps a table of
    the permutations of all tasks in the collection ``"encodings"``, which ``init`` creates, and
    looks its permutation up: faster in a `jax.lax.scan` over training steps on an accelerator,
    where XLA would draw it in each step. Where ``apply`` is not given the collection, the layer
    draws its permutation as by default; the outputs are the same.

    Flax's lifted transforms pass on only the collections that they are told of: tell
    `flax.linen.scan` ``variable_broadcast="encodings"`` and `flax.linen.vmap`
    ``variable_axes={..., "encodings": None}``; or ``"encodings": 0`` if each layer of the stack has
    its own number.

    Attributes:
      layer: integer, different for each layer of a network; may be traced.
      seed: integer, the same for a whole network; may be traced.
      axis: the axis of the features: the last one, channels for a convolution.
      identity_first: whether task 0 is left as it is: for pre-trained networks, whose task 0 is
        what they were trained on.
      num_tasks: how many tasks the table is for; None for no table. A ``task_id`` must be below it,
        which is not checked where it is traced.

    Example:
      >>> import jax, jax.numpy as jnp, flax.linen as nn, rgo_jax.linen
      >>> class Net(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x, task_id):
      ...         x = nn.relu(nn.Dense(8)(x))
      ...         x = rgo_jax.linen.FeatureEncoding(layer=1, num_tasks=10)(x, task_id)
      ...         return nn.Dense(2)(x)
      >>> variables = Net().init(jax.random.key(0), jnp.zeros((1, 4)), 0)
      >>> variables["encodings"]["FeatureEncoding_0"]["permutations"].shape
      (10, 8)
      >>> Net().apply(variables, jnp.zeros((3, 4)), 5).shape
      (3, 2)

    References:
      Section 4.4. https://arxiv.org/abs/2201.12522
    """

    layer: jax.typing.ArrayLike = 0
    seed: jax.typing.ArrayLike = 0
    axis: int = -1
    identity_first: bool = False
    num_tasks: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array, task_id: jax.typing.ArrayLike) -> jax.Array:
        """Permutes ``x`` along the feature axis for ``task_id``, an integer that may be traced.

        Raises:
          ValueError: ``task_id`` is no scalar or out of range; the table has another shape than
            ``[num_tasks, features]``.
        """
        options: dict[str, Any] = {
            "seed": self.seed,
            "layer": self.layer,
            "identity_first": self.identity_first,
        }
        # An apply without the collection can't create it.
        has_table = self.has_variable(_COLLECTION, _NAME) or self.is_mutable_collection(_COLLECTION)
        if self.num_tasks is None or not has_table:
            return _fel.fel_encode(x, task_id, axis=self.axis, **options)
        n = _fel.num_features(x, self.axis)
        table = self.variable(_COLLECTION, _NAME, _fel.table, self.num_tasks, n, **options)
        return _fel.look_up(
            x,
            table.value,
            task_id,
            num_tasks=self.num_tasks,
            axis=self.axis,
            name="/".join(self.path) or "FeatureEncoding",
        )
