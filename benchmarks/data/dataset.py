"""A labelled image set in memory, and the parts of it that an experiment uses."""

from typing import NamedTuple

import numpy as np

from benchmarks.data.files import digest


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

    def scrambled(self) -> "Dataset":
        """The same set with the bytes of images in another order, that of some published loaders.

        CIFAR's files hold an image's red plane, then its green and its blue one. Read as if each
        pixel's three colours stood together, three neighbours of one colour make a pixel. For
        comparison with numbers of such images only.

        Raises:
          ValueError: the images are grey.
        """
        if self.x_train.ndim != 4:
            raise ValueError(
                f"--scrambled is for colour images, but those of {self.name} have shape "
                f"{self.x_train.shape[1:]}; expected [height, width, 3]. Leave it out."
            )

        def scramble(images: np.ndarray) -> np.ndarray:
            return images.transpose(0, 3, 1, 2).reshape(images.shape)

        return self._replace(x_train=scramble(self.x_train), x_test=scramble(self.x_test))

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
