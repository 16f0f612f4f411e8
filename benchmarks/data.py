"""Datasets as arrays: scikit-learn's digits, TFDS's, miniImageNet, or an ``.npz`` file of your own.

Images are decoded once and cached as arrays; everything after this module works on arrays.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks import mini_imagenet, npz, tfds_source
from benchmarks.files import digest, replacing

NAMES = ("digits", "mnist", "cifar100", "mini-imagenet")
_REQUIRED = ("x_train", "y_train", "x_test", "y_test")
_OPTIONAL = ("superclasses",)


class Dataset(NamedTuple):
    """A labelled image set in memory.

    Attributes:
      name: what results call it.
      x_train: grey ``[n, height, width]`` or colour ``[n, height, width, 3]``, uint8 (0 to 255) or
        float32 (used as it is). In mixed order: no class is only at the end.
      y_train: int32 ``[n]``, 0 to num_classes - 1.
      x_test: like ``x_train``.
      y_test: like ``y_train``.
      superclasses: int32 ``[num_classes]``, which superclass each class is in, from 0; or None.
      labels: int64 ``[num_classes]``, what the file calls each class; None if by its number.
    """

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    superclasses: np.ndarray | None = None
    labels: np.ndarray | None = None

    @property
    def num_classes(self) -> int:
        """The number of classes, from the largest label."""
        return int(max(self.y_train.max(), self.y_test.max())) + 1

    def class_name(self, number: int) -> str:
        """A class as the user knows it, for messages."""
        label = "" if self.labels is None else f" (label {self.labels[number]})"
        return f"class {number}{label}"

    def notes(self) -> list[str]:
        """What was done with the file that a user might not expect, in sentences."""
        if self.labels is None:
            return []
        labels = [str(label) for label in self.labels]
        shown = ", ".join(labels if len(labels) <= 10 else [*labels[:3], "...", labels[-1]])
        return [
            f"{self.name}: the labels are {shown}; the {len(labels)} classes are numbered from 0 "
            "in that order."
        ]

    def fingerprint(self) -> str:
        """Twelve hex digits that change with any of the arrays."""
        return digest(array for array in self[1:] if array is not None)[:12]

    def first(self, count: int | None) -> "Dataset":
        """The same set with so many of its training images, the first; None for all."""
        return self._replace(x_train=self.x_train[:count], y_train=self.y_train[:count])

    def validation(self) -> "Dataset":
        """The same set with the last sixth of the training data in place of the test data.

        For choosing hyper-parameters: the test data is not looked at.
        """
        keep = len(self.x_train) * 5 // 6
        return self._replace(
            x_train=self.x_train[:keep],
            y_train=self.y_train[:keep],
            x_test=self.x_train[keep:],
            y_test=self.y_train[keep:],
        )


def load(source: str, *, data_dir: str | None = None) -> Dataset:
    """Loads a dataset by name or from an ``.npz`` file.

    Args:
      source: one of `NAMES`, or the path of an ``.npz`` file with the arrays x_train, y_train,
        x_test and y_test, and superclasses if you like. Labels that leave numbers out are
        numbered anew.
      data_dir: where TFDS keeps prepared datasets, and where miniImageNet lies in a folder
        mini-imagenet; by default ``TFDS_DATA_DIR`` or TFDS's own.

    Returns:
      The `Dataset`.

    Raises:
      ValueError: an unknown name or a malformed file.
      FileNotFoundError: no such file or folder.
      RuntimeError: the data is not prepared here and cannot be downloaded.
    """
    if source.endswith(".npz"):
        return _load_npz(Path(source))
    if source == "digits":
        return _load_digits()
    if source == "mini-imagenet":
        return _load_mini_imagenet(data_dir)
    if source in NAMES:
        return _load_tfds(source, data_dir)
    raise ValueError(
        f"Unknown dataset {source!r}; expected one of {', '.join(NAMES)}, or the path of an .npz "
        "file."
    )


def _load_digits() -> Dataset:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    labels = digits.target.astype(np.int32)
    # The writers of the last 500 digits are not among those of the first: an honest test set.
    return Dataset("digits", images[:-500], labels[:-500], images[-500:], labels[-500:])


def _load_tfds(name: str, data_dir: str | None) -> Dataset:
    source = tfds_source.open_source(name, data_dir)

    def decode() -> dict[str, np.ndarray]:
        train, test = source.read("train"), source.read("test")
        # The committed results on MNIST were made in the order in which TFDS writes it.
        if name != "mnist":
            train, test = _ordered_by_content(train), _ordered_by_content(test)
        arrays = _checked(
            source.path,
            {
                "x_train": train["image"],
                "y_train": train["label"],
                "x_test": test["image"],
                "y_test": test["label"],
            },
        )
        if "coarse_label" in train:
            superclasses = _superclasses(
                name,
                np.concatenate([train["label"], test["label"]]),
                np.concatenate([train["coarse_label"], test["coarse_label"]]),
            )
            arrays["superclasses"] = _check_superclasses(
                source.path, superclasses, len(superclasses)
            )
        return arrays

    return _cached(name, f"{name}-{source.version}", decode)


def _ordered_by_content(read: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same examples in a mixed order that does not depend on who prepared them, and how."""
    keys = [
        (hashlib.sha256(image.tobytes()).digest(), label)
        for image, label in zip(read["image"], read["label"].tolist(), strict=True)
    ]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    return {key: array[order] for key, array in read.items()}


def _superclasses(name: str, fine: np.ndarray, coarse: np.ndarray) -> np.ndarray:
    pairs = np.unique(np.stack([fine, coarse], axis=1), axis=0)
    if not np.array_equal(pairs[:, 0], np.arange(fine.max() + 1)):
        counts = np.bincount(pairs[:, 0])
        wrong = int(np.flatnonzero(counts != 1)[0])
        found = pairs[pairs[:, 0] == wrong, 1].tolist()
        raise ValueError(
            f"{name}: the examples of class {wrong} have the coarse labels {found}; expected one "
            "coarse label for each class. Delete the prepared dataset and run again."
        )
    return pairs[:, 1].astype(np.int32)


def _load_mini_imagenet(data_dir: str | None) -> Dataset:
    source = mini_imagenet.open_source(data_dir)
    return _cached("mini-imagenet", f"mini-imagenet-{source.fingerprint()}", source.read)


def _cached(name: str, key: str, decode: Callable[[], dict[str, np.ndarray]]) -> Dataset:
    cache = cache_dir() / f"{key}.npz"
    # Absent; or cut short by an earlier kill, and decoded anew.
    with contextlib.suppress(ValueError, FileNotFoundError):
        return Dataset(name, **_checked(cache, npz.read(cache, _REQUIRED, _OPTIONAL)))
    arrays = decode()
    try:
        with replacing(cache) as temporary:
            np.savez(temporary, **arrays)  # type: ignore[arg-type]
    except OSError as error:
        raise ValueError(
            f"{cache}: cannot be written ({error}). Set RGO_JAX_CACHE to a folder that can be, "
            f"with {sum(array.nbytes for array in arrays.values()) / 2**20:.0f} MiB to spare."
        ) from error
    return Dataset(name, **arrays)


def cache_dir() -> Path:
    """Where decoded arrays are kept: ``RGO_JAX_CACHE``, or rgo_jax under the user's cache."""
    named = os.environ.get("RGO_JAX_CACHE")
    if named:
        return Path(named)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rgo_jax"
    except RuntimeError as error:
        raise ValueError(
            f"The user's cache is not known ({error}). Set RGO_JAX_CACHE to a folder for decoded "
            "arrays."
        ) from error


def _load_npz(path: Path) -> Dataset:
    # With its suffix, so that it cannot be taken for one of `NAMES`.
    return Dataset(path.name, **_checked(path, npz.read(path, _REQUIRED, _OPTIONAL), renumber=True))


def _checked(
    path: Path, arrays: dict[str, np.ndarray], *, renumber: bool = False
) -> dict[str, np.ndarray]:
    """The fields of a `Dataset` from arrays of any kind.

    Args:
      path: where they are from.
      arrays: by name, x_train, y_train, x_test, y_test and perhaps superclasses.
      renumber: whether labels may leave numbers out; classes are then numbered in their order.

    Raises:
      ValueError: they are not what they should be.
    """
    fields = {name: _check_images(path, name, arrays[name]) for name in ("x_train", "x_test")}
    x_train, x_test = fields.values()
    if x_train.shape[1:] != x_test.shape[1:]:
        raise ValueError(
            f"{path}: x_train has images of shape {x_train.shape[1:]} and x_test of "
            f"{x_test.shape[1:]}; expected the same."
        )
    if x_train.dtype != x_test.dtype:
        raise ValueError(
            f"{path}: x_train has dtype {x_train.dtype} and x_test {x_test.dtype}; expected the "
            "same."
        )
    y_train = _check_labels(path, "y_train", arrays["y_train"], len(x_train))
    y_test = _check_labels(path, "y_test", arrays["y_test"], len(x_test))
    labels = np.union1d(y_train, y_test)
    is_numbered = labels[-1] == len(labels) - 1
    if renumber and not is_numbered:
        y_train, y_test = np.searchsorted(labels, y_train), np.searchsorted(labels, y_test)
        fields["labels"] = labels
    num_classes, num_images = int(max(y_train.max(), y_test.max())) + 1, len(x_train) + len(x_test)
    if num_classes > num_images:
        raise ValueError(
            f"{path}: has the label {num_classes - 1}, but {num_images} images; expected labels "
            "that number the classes from 0."
        )
    fields |= {"y_train": y_train.astype(np.int32), "y_test": y_test.astype(np.int32)}
    if "superclasses" in arrays:
        fields["superclasses"] = _check_superclasses(path, arrays["superclasses"], num_classes)
    return fields


def _without_single_channel(images: np.ndarray) -> np.ndarray:
    return images[..., 0] if images.ndim == 4 and images.shape[-1] == 1 else images


def _check_images(path: Path, name: str, images: np.ndarray) -> np.ndarray:
    images = _without_single_channel(images)
    is_colour = images.ndim == 4 and images.shape[-1] == 3
    if not (images.ndim == 3 or is_colour) or not images.size:
        raise ValueError(
            f"{path}: {name} has shape {images.shape}; expected grey images [n, height, width] or "
            "[n, height, width, 1], or colour images [n, height, width, 3], with n at least 1."
        )
    if images.dtype == np.uint8:
        return images
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(
            f"{path}: {name} has dtype {images.dtype}; expected uint8 (0 to 255) or floating point "
            "(0 to 1)."
        )
    low, high = images.min(), images.max()  # NaN if any is
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(f"{path}: {name} has values that are not finite; expected 0 to 1.")
    if max(-low, high) > 10:
        raise ValueError(
            f"{path}: {name} has floating-point values from {low} to {high}; expected 0 to 1. "
            "Divide by 255, or store uint8."
        )
    return images.astype(np.float32)


def _check_labels(path: Path, name: str, labels: np.ndarray, count: int) -> np.ndarray:
    if labels.shape != (count,):
        raise ValueError(
            f"{path}: {name} has shape {labels.shape}; expected ({count},), one label an image."
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{path}: {name} has dtype {labels.dtype}; expected integers.")
    if labels.min() < 0:
        raise ValueError(
            f"{path}: {name} has the label {labels.min()}; expected 0 or more. Leave out images "
            "without a label, or number the classes from 0: "
            "numpy.unique(labels, return_inverse=True) does."
        )
    if labels.max() > np.iinfo(np.int64).max:
        raise ValueError(
            f"{path}: {name} has the label {labels.max()}; expected labels below 2 ** 63. "
            "numpy.unique(labels, return_inverse=True) numbers the classes from 0."
        )
    return labels.astype(np.int64)


def _check_superclasses(path: Path, superclasses: np.ndarray, num_classes: int) -> np.ndarray:
    if superclasses.shape != (num_classes,):
        raise ValueError(
            f"{path}: superclasses has shape {superclasses.shape}; expected ({num_classes},), one "
            "for each class, in the order of their labels."
        )
    if not np.issubdtype(superclasses.dtype, np.integer):
        raise ValueError(f"{path}: superclasses has dtype {superclasses.dtype}; expected integers.")
    found = np.unique(superclasses)
    if not np.array_equal(found, np.arange(len(found))):
        raise ValueError(
            f"{path}: superclasses has the values {', '.join(map(str, found))}; expected all of 0 "
            "to num_superclasses - 1."
        )
    return superclasses.astype(np.int32)
