"""The networks: feature encoding layers, feed-forward and residual bodies, a head."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks.networks.initializers import INITIAL_VALUES
from benchmarks.networks.layers import Head, dense, relu_and_pool
from rgo_jax.linen import Conv, FeatureEncoding


class ConvLayer(NamedTuple):
    """One convolution, with stride 1 and padding that keeps the size.

    Attributes:
      window: height and width of the kernel.
      features: output channels.
      pool: window and stride of the max-pool that follows; None for none.
    """

    window: int
    features: int
    pool: tuple[int, int] | None = None


class Network(nn.Module):
    """What all networks here have: a head, and FEL before each layer.

    They are called with examples, the id of the task whose head is used, and perhaps another id
    whose encoding is.

    Attributes:
      num_classes: of a task.
      num_tasks: the length of the task sequence.
      head: a key of `benchmarks.networks.layers.HEADS`.
      fel: whether features are permuted for each task.
      fel_table: how many tasks' permutations are kept in a table, ``"encodings"``; None for no
        table.
      seed: integer of the permutations; may be traced.
      fel_on_convs: whether those that convolutions receive are permuted too.
      fel_on_input: whether the examples themselves are.
      fel_per_layer: whether each layer has permutations of its own; or those of equal width share
        theirs.
      fel_on_first_task: whether the first task is permuted.
      initial_values: a key of `INITIAL_VALUES`.
      biases: a key of `BIASES`.
      conv_biases: whether convolutions have biases.
    """

    num_classes: int
    num_tasks: int
    head: str
    fel: bool
    fel_table: int | None = None
    seed: jax.typing.ArrayLike = 0
    fel_on_convs: bool = True
    fel_on_input: bool = False
    fel_per_layer: bool = False
    fel_on_first_task: bool = False
    initial_values: str = "uniform"
    biases: str = "own"
    conv_biases: bool = False

    def encoder(self, task_id: jax.Array) -> Callable[[jax.Array], jax.Array]:
        """A function that encodes features, with the next layer's permutation at each call."""
        layers = itertools.count()

        def encode(x: jax.Array) -> jax.Array:
            layer = next(layers)
            is_left_out = (x.ndim == 4 and not self.fel_on_convs) or (
                layer == 0 and not self.fel_on_input
            )
            if not self.fel or is_left_out:
                return x
            encoding = FeatureEncoding(
                # The permutations of layers of different widths differ in any case.
                layer if self.fel_per_layer else 0,
                self.seed,
                identity_first=not self.fel_on_first_task,
                num_tasks=self.fel_table,
            )
            return encoding(x, task_id)

        return encode

    def classify(
        self, features: jax.Array, encode: Callable[[jax.Array], jax.Array], task_id: jax.Array
    ) -> jax.Array:
        """Logits of the last features ``[b, features]``, which are not negative."""
        head = Head(
            self.num_classes,
            self.num_tasks,
            self.head,
            self.initial_values,
            self.biases,
            name="head",
        )
        return head(encode(features), task_id)


class FeedForward(Network, kw_only=True):
    """Convolutions, then fully connected layers, then the head; FEL before each of them.

    Attributes:
      convs: the convolutions; empty for a multi-layer perceptron.
      hidden: widths of the fully connected hidden layers.
    """

    convs: Sequence[ConvLayer]
    hidden: Sequence[int]

    @nn.compact
    def __call__(
        self, x: jax.Array, task_id: jax.Array, encoding_id: jax.Array | None = None
    ) -> jax.Array:
        """Logits ``[b, num_classes]`` of ``x``, features ``[b, n]`` or images ``[b, h, w, c]``.

        Raises:
          ValueError: no images where there are convolutions, or too small for their pools.
        """
        if self.convs:
            check_images(x, smallest_image(self.convs))
        encode = self.encoder(task_id if encoding_id is None else encoding_id)
        init = INITIAL_VALUES[self.initial_values]

        for window, features, pool in self.convs:
            conv = Conv(
                features,
                (window,) * 2,
                use_bias=self.conv_biases,
                kernel_init=init.conv,
                bias_init=init.bias,
            )
            x = relu_and_pool(conv(encode(x)), pool)
        x = x.reshape(len(x), -1)
        for width in self.hidden:
            x = relu_and_pool(dense(encode(x), width, self.initial_values, self.biases), None)
        return self.classify(x, encode, task_id)


class ResNet18(Network, kw_only=True):
    """ResNet-18 for small images.

    A 7 x 7 first convolution with stride 1 and no pooling after it, as in the harness of the
    paper's Table 1. FEL after the first convolution, in each residual branch after both of its
    convolutions, after each stage and after the last pooling.

    Attributes:
      width: channels of the first stage; 64 in the paper.
      batch_norm: whether batch normalisation follows each convolution. It uses the averages of the
        collection ``batch_stats``, or, where that is mutable, the batch's own and updates them.
    """

    width: int
    batch_norm: bool = False

    @nn.compact
    def __call__(
        self, x: jax.Array, task_id: jax.Array, encoding_id: jax.Array | None = None
    ) -> jax.Array:
        """Logits ``[b, num_classes]`` of ``x [b, height, width, channels]``.

        Raises:
          ValueError: no images.
        """
        check_images(x, 1)
        encode = self.encoder(task_id if encoding_id is None else encoding_id)
        init = INITIAL_VALUES[self.initial_values]

        def conv(
            x: jax.Array, features: int, window: int, strides: int, kernel_init: Any
        ) -> jax.Array:
            x = Conv(
                features,
                (window,) * 2,
                strides,
                use_bias=self.conv_biases,
                kernel_init=kernel_init,
            )(x)
            if not self.batch_norm:
                return x
            averages = not self.is_mutable_collection("batch_stats")
            return jnp.asarray(nn.BatchNorm(use_running_average=averages)(x))

        x = encode(nn.relu(conv(encode(x), self.width, 7, 1, init.residual)))
        for stage in range(4):
            features = self.width * 2**stage
            for block in range(2):
                strides = 2 if stage and not block else 1
                branch = encode(nn.relu(conv(x, features, 3, strides, init.residual)))
                branch = encode(conv(branch, features, 3, 1, init.branch_end))
                if strides > 1:
                    x = conv(x, features, 1, strides, init.residual)
                x = nn.relu(x + branch)
            x = encode(x)
        x = jnp.mean(x, axis=(1, 2))
        return self.classify(x, encode, task_id)


def smallest_image(convs: Sequence[ConvLayer]) -> int:
    """The height and width of which these convolutions leave one pixel."""
    size = 1
    for window, strides in (conv.pool for conv in reversed(convs) if conv.pool is not None):
        size = (size - 1) * strides + window
    return size


def check_images(x: jax.Array, smallest: int) -> None:
    """Refuses what a network of images cannot take.

    Raises:
      ValueError: no images, or smaller ones.
    """
    if x.ndim != 4 or min(x.shape[1:3]) < smallest:
        raise ValueError(
            f"x has shape {x.shape}; expected images [b, height, width, channels] of {smallest} x "
            f"{smallest} pixels or more. Enlarge them, or take a network with fewer pools, or mlp."
        )
