"""Networks of the paper's appendix C.3, and the policies for the last layer."""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks.initializers import orthogonal
from rgo_jax.linen import Conv, Dense, FeatureEncoding

HEADS = {
    "shared": "one head for all tasks, trained in every task",
    "frozen": "one head for all tasks, trained in the first task only",
    "per_task": "a head for each task",
}

_bias_init = nn.initializers.constant(0.1)
_he_init = nn.initializers.he_normal()


class Head(nn.Module):
    """The last layer, under one of the policies of `HEADS`.

    Attributes:
      num_classes: outputs of each head.
      num_tasks: heads there are under the policy "per_task".
      policy: a key of `HEADS`.
    """

    num_classes: int
    num_tasks: int
    policy: str

    @nn.compact
    def __call__(self, x: jax.Array, task_id: jax.Array) -> jax.Array:
        """Logits ``[b, num_classes]`` of features ``x [b, features]``."""
        if self.policy not in HEADS:
            raise ValueError(f"head is {self.policy!r}; expected one of {', '.join(HEADS)}.")
        if self.policy == "shared":
            return Dense(self.num_classes, kernel_init=orthogonal, bias_init=_bias_init)(x)
        # Trained in one task only, such a head has nothing to protect and no projection.
        heads = self.num_tasks if self.policy == "per_task" else 1
        shape = (x.shape[-1], self.num_classes)

        def init_kernels(key: jax.Array) -> jax.Array:
            return jax.vmap(lambda key: orthogonal(key, shape))(jax.random.split(key, heads))

        kernels = self.param("kernels", init_kernels)
        biases = self.param("biases", _bias_init, (heads, self.num_classes))
        if self.policy == "frozen":
            kernel, bias = (
                jnp.where(task_id == 0, p[0], jax.lax.stop_gradient(p[0]))
                for p in (kernels, biases)
            )
        else:
            kernel, bias = kernels[task_id], biases[task_id]
        return x @ kernel + bias[None]


class ConvLayer(NamedTuple):
    """One convolution, with stride 1 and padding that keeps the size.

    Attributes:
      window: height and width of the kernel.
      features: output channels.
      pool: whether a 2 x 2 max-pool follows.
    """

    window: int
    features: int
    pool: bool


class Network(nn.Module):
    """What all networks here have: a head, and FEL before each layer.

    Attributes:
      num_classes: outputs of each head.
      num_tasks: the length of the task sequence.
      head: a key of `HEADS`.
      fel: whether features are permuted for each task.
      seed: integer of the permutations; may be traced.
      fel_on_convs: whether those that convolutions receive are permuted too.
    """

    num_classes: int
    num_tasks: int
    head: str
    fel: bool
    seed: jax.typing.ArrayLike = 0
    fel_on_convs: bool = True

    def encoder(self, task_id: jax.Array) -> Callable[[jax.Array], jax.Array]:
        """A function that encodes features, with the next layer's permutation at each call."""
        layers = itertools.count()

        def encode(x: jax.Array) -> jax.Array:
            layer = next(layers)
            if not self.fel or (x.ndim == 4 and not self.fel_on_convs):
                return x
            return FeatureEncoding(layer, self.seed)(x, task_id)

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
        head = Head(self.num_classes, self.num_tasks, self.head, name="head")
        return head(encode(features), task_id)


class FeedForward(Network, kw_only=True):
    """Convolutions, then fully connected layers, then the head; FEL before each of them.

    Orthogonal kernels and biases of 0.1, as in the protocol "los".

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

        for window, features, pool in self.convs:
            conv = Conv(features, (window,) * 2, kernel_init=orthogonal, bias_init=_bias_init)
            x = nn.relu(conv(encode(x)))
            x = max_pool(x) if pool else x
        x = x.reshape(len(x), -1)
        for width in self.hidden:
            x = nn.relu(Dense(width, kernel_init=orthogonal, bias_init=_bias_init)(encode(x)))
        return self.classify(x, encode, task_id)


class ResNet18(Network, kw_only=True):
    """ResNet-18 for small images, without normalisation.

    A 7 x 7 first convolution with stride 1 and no pooling after it, as in the harness of the
    paper's Table 1. Each residual branch starts at zero, so that the network starts shallow: that
    is what stands in for normalisation.

    Attributes:
      width: channels of the first stage; 64 in the paper.
    """

    width: int

    @nn.compact
    def __call__(self, x: jax.Array, task_id: jax.Array) -> jax.Array:
        """Logits ``[b, num_classes]`` of ``x [b, height, width, channels]``.

        Raises:
          ValueError: no images.
        """
        _check_images(x, 1)
        encode = self.encoder(task_id)

        def conv(features: int, window: int, strides: int, init: Any) -> Conv:
            return Conv(features, (window,) * 2, strides, kernel_init=init)

        zero = nn.initializers.zeros
        x = encode(nn.relu(conv(self.width, 7, 1, _he_init)(encode(x))))
        for stage in range(4):
            features = self.width * 2**stage
            for block in range(2):
                strides = 2 if stage and not block else 1
                branch = encode(nn.relu(conv(features, 3, strides, _he_init)(x)))
                branch = conv(features, 3, 1, zero)(branch)
                if strides > 1:
                    x = conv(features, 1, strides, _he_init)(x)
                # One encoding of the sum permutes both of its branches alike.
                x = encode(nn.relu(x + branch))
        x = jnp.mean(x, axis=(1, 2))
        return self.classify(x, encode, task_id)


def smallest_image(convs: Sequence[ConvLayer]) -> int:
    """The height and width of which these convolutions leave one pixel."""
    return int(2 ** sum(conv.pool for conv in convs))


def _check_images(x: jax.Array, smallest: int) -> None:
    if x.ndim != 4 or min(x.shape[1:3]) < smallest:
        raise ValueError(
            f"x has shape {x.shape}; expected images [b, height, width, channels] of {smallest} x "
            f"{smallest} pixels or more. Enlarge them, or take a network with fewer pools, or mlp."
        )


def max_pool(x: jax.Array) -> jax.Array:
    """2 x 2 max-pool of ``[b, height, width, channels]``, dropping an odd last row or column.

    Its backward pass is faster on a CPU than that of `flax.linen.max_pool`, which is a scatter.
    """
    batch, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return jnp.max(x.reshape(batch, height // 2, 2, width // 2, 2, channels), axis=(2, 4))


class Architecture(NamedTuple):
    """What distinguishes one network of appendix C.3 from another.

    Attributes:
      build: the module, given all its other attributes by name.
      input_shape: of one example, in the paper's experiments; others will do.
    """

    build: partial[Any]
    input_shape: tuple[int, ...]

    @property
    def smallest(self) -> int:
        """The height and width that images have at least; 0 if examples need not be images."""
        convs = self.build.keywords.get("convs")
        if convs is None:
            return 1
        return smallest_image(convs) if convs else 0


def _vgg(*stages: tuple[int, int]) -> tuple[ConvLayer, ...]:
    """3 x 3 convolutions in stages of (how many, features), a pool after each stage."""
    return tuple(
        ConvLayer(3, features, pool=i == count - 1)
        for count, features in stages
        for i in range(count)
    )


def _feed_forward(
    input_shape: tuple[int, ...], convs: tuple[ConvLayer, ...], *hidden: int
) -> Architecture:
    return Architecture(partial(FeedForward, convs=convs, hidden=hidden), input_shape)


_CIFAR = (32, 32, 3)
_IMAGENET = (84, 84, 3)
_LENET = (ConvLayer(5, 20, True), ConvLayer(5, 50, True))
_ALEXNET_6 = (ConvLayer(4, 64, True), ConvLayer(3, 128, True), ConvLayer(2, 256, True))
_ALEXNET_7 = (
    ConvLayer(5, 64, True),
    ConvLayer(4, 128, True),
    ConvLayer(3, 128, True),
    ConvLayer(3, 128, True),
)

ARCHITECTURES = {
    "mlp": _feed_forward((784,), (), 256, 256),
    "mlp-100": _feed_forward((64,), (), 100, 100),
    "lenet-5": _feed_forward(_CIFAR, _LENET, 800, 500),
    "alexnet-6": _feed_forward(_CIFAR, _ALEXNET_6, 2048, 2048),
    "alexnet-7": _feed_forward(_IMAGENET, _ALEXNET_7, 2048, 2048),
    "vgg-11": _feed_forward(_CIFAR, _vgg((1, 64), (1, 128), (2, 256), (2, 512), (2, 512))),
    "vgg-13": _feed_forward(_CIFAR, _vgg((2, 64), (2, 128), (2, 256), (2, 512), (2, 512))),
    "resnet-18": Architecture(partial(ResNet18, width=64), _CIFAR),
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
