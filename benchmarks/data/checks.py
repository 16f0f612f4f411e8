"""Arrays from outside become the fields of a dataset, or an error that says what is wrong."""

from pathlib import Path

import numpy as np


def to_fields(
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
        fields["superclasses"] = check_superclasses(path, arrays["superclasses"], num_classes)
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


def check_superclasses(path: Path, superclasses: np.ndarray, num_classes: int) -> np.ndarray:
    """Which superclass each class is in, int32 ``[num_classes]``.

    Raises:
      ValueError: it is not that.
    """
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
