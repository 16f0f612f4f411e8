"""miniImageNet from files of your own: a folder of images for each class.

A program cannot download it: one has to agree to ImageNet's terms. The usual files split the
classes 64/16/20, for few-shot learning; here every class gives images to training and to testing.
"""

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.data.file_errors import check_file, explain_errors
from benchmarks.data.tfds_source import folder_of

_SPLITS = ("train", "val", "test")
# Part of a cache's name: raise it when `Source.read` puts the same files in another order.
_ORDER = b"1"
_LAYOUT = (
    "Expected there one folder of images for each class, directly or below train, val and test."
)
_PICKLES = (
    " Pickles are not read: to load one runs what its writer put in. docs/benchmarks.md tells how "
    "to make folders of them."
)


class Form(NamedTuple):
    """What a complete set has.

    Attributes:
      num_classes: the number of classes.
      train: the number of images of a class for training, its first.
      test: the number of images of a class for testing, its last.
      size: the height and the width of an image.
    """

    num_classes: int
    train: int
    test: int
    size: int

    @property
    def per_class(self) -> int:
        """The number of images in each class."""
        return self.train + self.test


FULL = Form(num_classes=100, train=500, test=100, size=84)


class Source(NamedTuple):
    """A complete set of files, not yet read.

    Attributes:
      classes: each class's image files, in order.
      form: what the set has.
    """

    classes: dict[str, list[Path]]
    form: Form

    def fingerprint(self) -> str:
        """Twelve hex digits that change when an image file is renamed, written or replaced."""
        digest = hashlib.sha256(_ORDER)
        for file in (file for files in self.classes.values() for file in files):
            status = file.stat()
            digest.update(f"{file}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
        return digest.hexdigest()[:12]

    def read(self) -> dict[str, np.ndarray]:
        """Reads and checks all images.

        Returns:
          "x_train": uint8 ``[num_classes * train, size, size, 3]`` and "y_train": int32
          ``[num_classes * train]``; "x_test" and "y_test" alike. Labels number the sorted names of
          the classes. The first image of each class comes first, then the second of each, and
          so on: any piece of the set has all classes in equal parts.

        Raises:
          ValueError: a file is not what it should be.
        """
        num_classes, train, test, size = self.form
        x_train = np.empty((train, num_classes, size, size, 3), np.uint8)
        x_test = np.empty((test, num_classes, size, size, 3), np.uint8)
        for label, files in enumerate(self.classes.values()):
            images = np.stack([_read_image(file, self.form) for file in files])
            x_train[:, label], x_test[:, label] = images[:train], images[train:]
        labels = np.arange(num_classes, dtype=np.int32)
        return {
            "x_train": x_train.reshape(-1, size, size, 3),
            "y_train": np.tile(labels, train),
            "x_test": x_test.reshape(-1, size, size, 3),
            "y_test": np.tile(labels, test),
        }


def open_source(data_dir: str | None = None, form: Form = FULL) -> Source:
    """Finds miniImageNet and checks that it is whole; images are looked at in `Source.read`.

    Args:
      data_dir: the folder that has a folder mini-imagenet; by default ``TFDS_DATA_DIR`` or
        ``~/tensorflow_datasets``.
      form: what to expect.

    Returns:
      The `Source`.

    Raises:
      FileNotFoundError: there is no such folder.
      ValueError: something is missing from it, or it has too much.
    """
    directory = folder_of(data_dir) / "mini-imagenet"
    if not os.path.isdir(directory):
        raise FileNotFoundError(
            f"{directory}: no such folder. {_LAYOUT} miniImageNet cannot be downloaded from here: "
            "get it, and put or link its folder there; TFDS_DATA_DIR (or --data-dir) names the "
            "folder above."
        )
    return Source(_find_folders(directory, form), form)


def _find_folders(directory: Path, form: Form) -> dict[str, list[Path]]:
    parents = [directory / split for split in _SPLITS if os.path.isdir(directory / split)]
    folders: dict[str, Path] = {}
    for folder in (folder for parent in parents or [directory] for folder in _visible(parent)):
        if not os.path.isdir(folder):
            continue
        if folder.name in folders:
            raise ValueError(
                f"{directory}: has the class {folder.name} in {folders[folder.name].parent.name} "
                f"and in {folder.parent.name}; expected each class in one of them. Put its "
                f"{form.per_class} images into one folder."
            )
        folders[folder.name] = folder
    below = f" below {', '.join(parent.name for parent in parents)}" if parents else ""
    missing = [split for split in _SPLITS if directory / split not in parents]
    if parents and missing:
        below += f" (there is no {' and no '.join(missing)})"
    if len(folders) != form.num_classes:
        has_pickles = any(path.suffix == ".pkl" for path in _visible(directory))
        raise ValueError(
            f"{directory}: found {len(folders)} class folders{below}, not {form.num_classes}. "
            f"{_LAYOUT}{_PICKLES if has_pickles else ''}"
        )
    classes = {name: _visible(folders[name]) for name in sorted(folders)}
    for name, files in classes.items():
        if len(files) != form.per_class:
            raise ValueError(
                f"{folders[name]}: has {len(files)} files; expected {form.per_class} images, of "
                f"which the first {form.train} are for training."
            )
        for file in files:
            check_file(file, "an image")
    return classes


def _visible(folder: Path) -> list[Path]:
    with explain_errors(folder, "not a readable folder", "Allow yourself to read it."):
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _read_image(path: Path, form: Form) -> np.ndarray:
    from PIL import Image

    problem = f"not a readable JPEG or PNG of {form.size} x {form.size} pixels"
    remedy = "Get it anew; or scale all images first, by one method: results depend on it."
    # Other formats are not tried: Pillow hands some of them to other programs.
    with explain_errors(path, problem, remedy), Image.open(path, formats=("JPEG", "PNG")) as image:
        width, height = image.size
        if (width, height) != (form.size, form.size):
            raise ValueError(f"it is {width} pixels wide and {height} high")
        return np.asarray(image.convert("RGB"))
