"""Networks of the paper's appendix C.3, and a transformer, by name."""

from functools import partial
from typing import Any, NamedTuple

from benchmarks.networks.network import ConvLayer, FeedForward, ResNet18, smallest_image
from benchmarks.networks.transformer import VisionTransformer


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
        if not self.convs:
            return 0
        keywords = self.build.keywords
        return int(keywords.get("patch", smallest_image(keywords.get("convs", ()))))


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
    # As the field's later papers have it.
    "resnet-18-narrow": Architecture(partial(ResNet18, width=20), _CIFAR),
    # Of the authors' STL and SGD.
    "resnet-18-batch-norm": Architecture(partial(ResNet18, width=64, batch_norm=True), _CIFAR),
    # Not of the paper.
    "vit": Architecture(partial(VisionTransformer, patch=4, blocks=4, width=128, heads=4), _CIFAR),
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
