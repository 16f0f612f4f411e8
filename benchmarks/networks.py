"""Networks of the paper's appendix C.3."""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks.initializers import INITIAL_VALUES
from benchmarks.layers import Head, dense, max_pool
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

    Attributes:
      num_classes: of a task.
      num_tasks: the length of the task sequence.
      head: a key of `benchmarks.layers.HEADS`.
      fel: whether features are permuted for each task.
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
            )
            return encoding(x, task_id)

        return encode

    def classify(
        self, features: jax.Array, encode: Callable[[jax.Array], jax.Array], task_id: jax.Array
    ) -> jax.Array:
        """Logits of the last features ``[b, features]``, which are not negative.

        Under the method LOS, that hands over a ``basis`` of the task's subspace, of what of them
        lies in it.
        """
        if self.has_variable("subspace", "basis"):
            basis: jax.Array = self.get_variable("subspace", "basis")
            matmul = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
            features = nn.relu(matmul(matmul(features, basis), basis.T))
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
    def __call__(self, x: jax.Array, task_id: jax.Array) -> jax.Array:
        """Logits ``[b, num_classes]`` of ``x``, features ``[b, n]`` or images ``[b, h, w, c]``.

        Raises:
          ValueError: no images where there are convolutions, or too small for their pools.
        """
        if self.convs:
            _check_images(x, smallest_image(self.convs))
        encode = self.encoder(task_id)
        init = INITIAL_VALUES[self.initial_values]

        for window, features, pool in self.convs:
            conv = Conv(
                features,
                (window,) * 2,
                use_bias=self.conv_biases,
                kernel_init=init.conv,
                bias_init=init.bias,
            )
            x = nn.relu(conv(encode(x)))
            x = x if pool is None else max_pool(x, *pool)
        x = x.reshape(len(x), -1)
        for width in self.hidden:
            x = nn.relu(dense(encode(x), width, self.initial_values, self.biases))
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
    def __call__(self, x: jax.Array, task_id: jax.Array) -> jax.Array:
        """Logits ``[b, num_classes]`` of ``x [b, height, width, channels]``.

        Raises:
          ValueError: no images.
        """
        _check_images(x, 1)
        encode = self.encoder(task_id)
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


def _check_images(x: jax.Array, smallest: int) -> None:
    if x.ndim != 4 or min(x.shape[1:3]) < smallest:
        raise ValueError(
            f"x has shape {x.shape}; expected images [b, height, width, channels] of {smallest} x "
            f"{smallest} pixels or more. Enlarge them, or take a network with fewer pools, or mlp."
        )


class Architecture(NamedTuple):
    """What distinguishes one network of appendix C.3 from another.

    Attributes:
      build: the module, given all its other attributes by name.
      input_shape: of one example, in the paper's experiments; others will do.
    """

    build: partial[Any]
    input_shape: tuple[int, ...]

    @property
    def batch_norm(self) -> bool:
        """Whether there is batch normalisation."""
        return bool(self.build.keywords.get("batch_norm"))

    @property
    def convs(self) -> bool:
        """Whether there are convolutions."""
        return self.build.keywords.get("convs") != ()

    @property
    def smallest(self) -> int:
        """The height and width that images have at least; 0 if examples need not be images."""
        return smallest_image(self.build.keywords.get("convs", ())) if self.convs else 0


# Window and stride.
_POOL = (2, 2)


def _vgg(*stages: tuple[int, int]) -> tuple[ConvLayer, ...]:
    """3 x 3 convolutions in stages of (how many, features), a pool after each stage."""
    return tuple(
        ConvLayer(3, features, _POOL if i == count - 1 else None)
        for count, features in stages
        for i in range(count)
    )


def _feed_forward(
    input_shape: tuple[int, ...], convs: tuple[ConvLayer, ...], *hidden: int
) -> Architecture:
    return Architecture(partial(FeedForward, convs=convs, hidden=hidden), input_shape)


_CIFAR = (32, 32, 3)
_IMAGENET = (84, 84, 3)


def _lenet(pool: tuple[int, int] | None) -> Architecture:
    convs = (ConvLayer(5, 20, pool), ConvLayer(5, 50, pool))
    return _feed_forward(_CIFAR, convs, 800, 500)


_ALEXNET_7 = (
    ConvLayer(5, 64, _POOL),
    ConvLayer(4, 128, _POOL),
    ConvLayer(3, 128, _POOL),
    ConvLayer(3, 128, _POOL),
)

ARCHITECTURES = {
    "mlp": _feed_forward((784,), (), 256, 256),
    "mlp-100": _feed_forward((64,), (), 100, 100),
    # The authors' program has other pools than the paper's text, and none under STL and SGD.
    "lenet-5": _lenet((3, 2)),
    "lenet-5-text": _lenet(_POOL),
    "lenet-5-no-pool": _lenet(None),
    "alexnet-6": _feed_forward(
        _CIFAR,
        (ConvLayer(4, 64, _POOL), ConvLayer(3, 128, _POOL), ConvLayer(2, 256, _POOL)),
        2048,
        2048,
    ),
    "alexnet-7": _feed_forward(_IMAGENET, _ALEXNET_7, 2048, 2048),
    # Of the authors' STL.
    "alexnet-7-narrow": _feed_forward(_IMAGENET, _ALEXNET_7, 1024, 256),
    "vgg-11": _feed_forward(_CIFAR, _vgg((1, 64), (1, 128), (2, 256), (2, 512), (2, 512))),
    "vgg-13": _feed_forward(_CIFAR, _vgg((2, 64), (2, 128), (2, 256), (2, 512), (2, 512))),
    "resnet-18": Architecture(partial(ResNet18, width=64), _CIFAR),
    # Of the authors' STL and SGD.
    "resnet-18-batch-norm": Architecture(partial(ResNet18, width=64, batch_norm=True), _CIFAR),
}


def check_input(name: str, input_shape: tuple[int, ...]) -> None:
    """Finds out whether a network takes examples of this shape.

    Raises:
      ValueError: it needs images, or larger ones.
    """
    smallest = ARCHITECTURES[name].smallest
    if not smallest:
        return
    if len(input_shape) != 3:
        raise ValueError(
            f"Network {name!r} takes images [height, width, channels], but examples of these tasks "
            f"have shape {input_shape}. Choose --network mlp, or tasks made of classes."
        )
    if min(input_shape[:2]) < smallest:
        height, width, _ = input_shape
        fitting = [k for k, v in ARCHITECTURES.items() if v.smallest <= min(height, width)]
        raise ValueError(
            f"Network {name!r} takes images of {smallest} x {smallest} pixels or more, but these "
            f"have {height} x {width}. Choose --network {', '.join(fitting)}, or enlarge them."
        )
