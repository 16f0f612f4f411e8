"""The plain networks as a list of layers, for methods that change a layer's shape or single units.

`benchmarks.networks.network.FeedForward` is the same network as one module. Here each layer is a
function of its own parameters, whose width may be another than the module's.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.networks.architectures import Architecture
from benchmarks.networks.layers import relu_and_pool
from benchmarks.networks.network import ConvLayer, FeedForward
from rgo_jax import linen


class Layer(NamedTuple):
    """A hidden layer: a convolution or a fully connected layer, then ReLU, then perhaps a pool.

    Attributes:
      name: its key in the parameters of `FeedForward`, such as "Conv_0" or "Dense_1".
      features: units or channels.
      window: height and width of a convolution's kernel; None: the layer is fully connected.
      pool: window and stride of the max-pool; None for none.
    """

    name: str
    features: int
    window: int | None
    pool: tuple[int, int] | None


def layers(architecture: Architecture) -> tuple[Layer, ...]:
    """The hidden layers of a `FeedForward` in their order; none of any other network."""
    if architecture.build.func is not FeedForward:
        return ()
    convs: tuple[ConvLayer, ...] = architecture.build.keywords["convs"]
    hidden: tuple[int, ...] = architecture.build.keywords["hidden"]
    return (
        *(
            Layer(f"Conv_{i}", conv.features, conv.window, conv.pool)
            for i, conv in enumerate(convs)
        ),
        *(Layer(f"Dense_{i}", width, None, None) for i, width in enumerate(hidden)),
    )


def pre_activation(
    layer: Layer, kernel: jax.Array, bias: jax.Array | None, x: jax.Array
) -> jax.Array:
    """What a layer makes of its inputs, before ReLU.

    Args:
      layer: which.
      kernel: ``[window, window, channels, m]`` of a convolution, ``[d, m]`` otherwise. Its widths
        are its own: they need not be the layer's.
      bias: ``[m]``, or None for none.
      x: images ``[b, height, width, channels]`` or features ``[b, d]``. A fully connected layer
        takes both, images with their rows one after the other.

    Returns:
      ``[b, height, width, m]`` or ``[b, m]``.
    """
    params = {"kernel": kernel} if bias is None else {"kernel": kernel, "bias": bias}
    features, use_bias = kernel.shape[-1], bias is not None
    # `parent=None`: no part of a module that may be at work around it.
    if layer.window is None:
        dense = linen.Dense(features, use_bias=use_bias, parent=None)
        return jnp.asarray(dense.apply({"params": params}, x.reshape(len(x), -1)))
    conv = linen.Conv(features, (layer.window,) * 2, use_bias=use_bias, parent=None)
    return jnp.asarray(conv.apply({"params": params}, x))


def activate(layer: Layer, z: jax.Array) -> jax.Array:
    """What the next layer receives of ``z``, a `pre_activation`: ReLU, then the pool, if any."""
    return relu_and_pool(z, layer.pool)


def classify(head: Mapping[str, jax.Array], features: jax.Array, task_id: jax.Array) -> jax.Array:
    """Logits ``[b, classes]`` by a task's own head, of those of the policy "per_task".

    Args:
      head: ``kernels [tasks, d, classes]`` and ``biases [tasks, classes]``.
      features: what the last hidden layer gives, as `pre_activation` takes it.
      task_id: int32 scalar.
    """
    flat = features.reshape(len(features), -1)
    return flat @ head["kernels"][task_id] + head["biases"][task_id][None]
