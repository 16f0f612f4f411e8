"""The Feature Encoding Layer for Flax Linen."""

from typing import Any

import flax.linen as nn
import jax
import numpy as np

from rgo_jax import _fel
from rgo_jax.linen import _recording

_ENCODINGS = "encodings"


class FeatureEncoding(nn.Module):
    """Feature Encoding Layer: permutes the features for the task at hand.

    Put one on the input and after each layer, each with its own ``layer`` number. It has no
    parameters. See `rgo_jax.fel_encode`; `rgo_jax.nnx.FeatureEncoding` is the same for NNX.

    Attributes:
      layer: integer, different for each layer of a network.
      seed: integer, the same for a whole network; may be traced.
      axis: the axis of the features: the last one, channels for a convolution.
      identity_first: whether task 0 is left as it is.

    Example:
      >>> import jax, jax.numpy as jnp, flax.linen as nn, rgo_jax.linen
      >>> class Net(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x, task_id):
      ...         x = rgo_jax.linen.FeatureEncoding(layer=0)(x, task_id)
      ...         x = nn.relu(nn.Dense(8)(x))
      ...         x = rgo_jax.linen.FeatureEncoding(layer=1)(x, task_id)
      ...         return nn.Dense(2)(x)
      >>> variables = Net().init(jax.random.key(0), jnp.zeros((1, 4)), 0)
      >>> Net().apply(variables, jnp.zeros((3, 4)), 5).shape
      (3, 2)

    References:
      Section 4.4. https://arxiv.org/abs/2201.12522
    """

    layer: int = 0
    seed: jax.typing.ArrayLike = 0
    axis: int = -1
    identity_first: bool = False

    def __call__(self, x: jax.Array, task_id: jax.typing.ArrayLike) -> jax.Array:
        """Permutes ``x`` along the feature axis for ``task_id``, an integer that may be traced.

        Raises:
          ValueError: with the collection of `encodings`: it is for another number of features or
            for fewer tasks; ``task_id`` is no scalar.
        """
        # Without a scope the layer is called by itself, outside a model.
        if self.scope is not None:
            _recording.write(self.path, (self, x.shape[self.axis]))
            if self.has_variable(_ENCODINGS, "permutations"):
                return _fel.look_up(
                    x,
                    self.get_variable(_ENCODINGS, "permutations"),
                    task_id,
                    axis=self.axis,
                    name=_recording.path_name(self),
                )
        return _fel.fel_encode(
            x,
            task_id,
            seed=self.seed,
            layer=self.layer,
            axis=self.axis,
            identity_first=self.identity_first,
        )


def encodings(
    module: nn.Module, params: Any, num_tasks: int, *args: Any, **kwargs: Any
) -> dict[str, Any]:
    """The variable collection ``"encodings"``: the permutations of all tasks, for scans on a GPU.

    A `FeatureEncoding` draws its permutation when it is called, which takes a sort. Inside a
    `jax.lax.scan` over the steps of a task XLA does so once on a CPU, but in each step on a GPU.
    Applied with this collection, computed before the scan, the layers look their permutations up
    instead; the model's outputs are the same.

    Flax's lifted transforms hand on only the collections they are told of: inside
    `flax.linen.scan` layers draw their permutations unless it has
    ``variable_broadcast="encodings"``, inside `flax.linen.vmap` unless it has
    ``variable_axes={..., "encodings": None}``. A layer whose seed or number is computed inside the
    model, or which is called with different numbers of features, is left out and draws its
    permutations as before.

    Args:
      module: the model.
      params: the model's ``params``; their shapes will do.
      num_tasks: how many tasks there are at most. With the collection a ``task_id`` is from 0 to
        ``num_tasks - 1``, which is not checked where it is traced.
      *args: arguments of one call of the model. Of long sequences a short piece will do.
      **kwargs: as ``args``.

    Returns:
      Nested dicts with int32 ``[num_tasks, n]`` for each `FeatureEncoding` of n features.

    Raises:
      ValueError: ``num_tasks`` below 1.

    Example:
      >>> import jax, jax.numpy as jnp, rgo_jax.linen
      >>> model, x = rgo_jax.linen.FeatureEncoding(), jnp.arange(5)
      >>> encodings = rgo_jax.linen.encodings(model, {}, 4, x, 0)
      >>> encodings["permutations"].shape
      (4, 5)
      >>> print(model.apply({"encodings": encodings}, x, 3), model.apply({}, x, 3))
      [3 1 2 0 4] [3 1 2 0 4]
    """
    collection: dict[str, Any] = {}
    for path, calls in _recording.recorded(module, params, args, kwargs).items():
        layer, n = calls[0]
        if not all(
            n == other_n and _same(layer.seed, other.seed) and _same(layer.layer, other.layer)
            for other, other_n in calls
        ):
            continue
        try:
            table = _fel.table(
                num_tasks,
                n,
                seed=layer.seed,
                layer=layer.layer,
                identity_first=layer.identity_first,
            )
        except jax.errors.UnexpectedTracerError:
            continue  # computed inside the model, which is no longer being traced
        node = collection
        for name in path:
            node = node.setdefault(name, {})
        node["permutations"] = table
    return collection


def _same(one: jax.typing.ArrayLike, other: jax.typing.ArrayLike) -> bool:
    traced = isinstance(one, jax.core.Tracer) or isinstance(other, jax.core.Tracer)
    return one is other or (not traced and bool(np.array_equal(one, other)))
