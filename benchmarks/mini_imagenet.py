"""miniImageNet from files of your own: three pickles, or a folder of images for each class.

A program cannot download it: one has to agree to ImageNet's terms. The usual files split the
classes 64/16/20, for few-shot learning; here every class gives images to training and to testing.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import restricted_pickle

_SPLITS = ("train", "val", "test")
_PICKLES = tuple(f"mini-imagenet-cache-{split}.pkl" for split in _SPLITS)
# Part of a cache's name: raise it when `Source.read` puts the same files in another order.
_ORDER = b"1"
_LAYOUTS = (
    f"Expected there the three files {', '.join(_PICKLES)}, or one folder of images for each "
    "class, directly or below train, val and test."
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
      directory: where they lie.
      classes: each class's image files, in order; None where pickles hold the images.
      form: what the set has.
    """

    directory: Path
    classes: dict[str, list[Path]] | None
    form: Form

    @property
    def is_decoded(self) -> bool:
        """Whether the files hold arrays already, so that caching arrays would gain nothing."""
        return self.classes is None

    def fingerprint(self) -> str:
        """Twelve hex digits that change when an image file is renamed, written or replaced."""
        digest = hashlib.sha256(_ORDER)
        for files in (self.classes or {}).values():
            for file in files:
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
        if self.classes is None:
            names, images_of = _open_pickles(self.directory, self.form)
        else:
            names, images_of = _open_folders(self.classes, self.form)
        num_classes, train, test, size = self.form
        x_train = np.empty((train, num_classes, size, size, 3), np.uint8)
        x_test = np.empty((test, num_classes, size, size, 3), np.uint8)
        for label, name in enumerate(names):
            images = images_of(name)
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
    parent = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    directory = Path(parent).expanduser() / "mini-imagenet"
    if not directory.is_dir():
        raise FileNotFoundError(
            f"{directory}: no such folder. {_LAYOUTS} miniImageNet cannot be downloaded from here: "
            "get it, and put or link its folder there; TFDS_DATA_DIR (or --data-dir) names the "
            "folder above."
        )
    absent = [name for name in _PICKLES if not (directory / name).is_file()]
    if not absent:
        return Source(directory, None, form)
    if len(absent) < len(_PICKLES):
        raise ValueError(
            f"{directory}: has no {' and no '.join(absent)}; expected all three pickles, which "
            f"have the {form.num_classes} classes together. Get what is missing, or, if folders of "
            "images beside them are to be read, move the pickles away."
        )
    return Source(directory, _find_folders(directory, form), form)


def _find_folders(directory: Path, form: Form) -> dict[str, list[Path]]:
    parents = [directory / split for split in _SPLITS if (directory / split).is_dir()]
    folders: dict[str, Path] = {}
    for folder in (folder for parent in parents or [directory] for folder in _visible(parent)):
        if not folder.is_dir():
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
        raise ValueError(
            f"{directory}: found {len(folders)} class folders{below}, not {form.num_classes}. "
            f"{_LAYOUTS}"
        )
    classes = {name: _visible(folders[name]) for name in sorted(folders)}
    for name, files in classes.items():
        _check_count(str(folders[name]), "files", len(files), form)
    return classes


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _check_count(where: str, what: str, found: int, form: Form) -> None:
    if found != form.per_class:
        raise ValueError(
            f"{where}: has {found} {what}; expected {form.per_class} images, of which the first "
            f"{form.train} are for training."
        )


_Classes = tuple[list[str], Callable[[str], np.ndarray]]


def _open_folders(classes: dict[str, list[Path]], form: Form) -> _Classes:
    return list(classes), lambda name: np.stack([_read_image(f, form) for f in classes[name]])


def _read_image(path: Path, form: Form) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
    # What Pillow's decoders raise for files that are cut short or not images.
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{path}: not a readable image ({error}); expected a JPEG or PNG of {form.size} x "
            f"{form.size} pixels. Get it anew."
        ) from error
    if pixels.shape[:2] != (form.size, form.size):
        raise ValueError(
            f"{path}: is {pixels.shape[1]} pixels wide and {pixels.shape[0]} high; expected "
            f"{form.size} x {form.size}. Scale the images first, all by one method: results depend "
            "on it."
        )
    return pixels


def _open_pickles(directory: Path, form: Form) -> _Classes:
    classes: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for path in (directory / name for name in _PICKLES):
        for name, images_and_indices in _read_pickle(path, form).items():
            if name in classes:
                raise ValueError(
                    f"{path}: has the class {name}, which another of the three pickles has too; "
                    "expected each class in one of them."
                )
            classes[name] = images_and_indices
    if len(classes) != form.num_classes:
        raise ValueError(
            f"{directory}: the pickles have {len(classes)} classes together; expected "
            f"{form.num_classes}. Get all three anew, from one place."
        )

    def images_of(name: str) -> np.ndarray:
        images, indices = classes[name]
        return images[indices]

    return sorted(classes), images_of


def _read_pickle(path: Path, form: Form) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """One pickle's classes: all its images, and the indices of those in the class."""
    content = restricted_pickle.read(path)
    if not isinstance(content, dict) or not {"image_data", "class_dict"} <= content.keys():
        found = ", ".join(map(str, content)) if isinstance(content, dict) else repr(type(content))
        raise ValueError(f"{path}: holds {found}; expected a dict with image_data and class_dict.")
    images, class_dict = restricted_pickle.plain(content["image_data"]), content["class_dict"]
    shape = (form.size, form.size, 3)
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape[1:] != shape:
        found = (
            f"{images.dtype} {list(images.shape)}" if isinstance(images, np.ndarray) else "no array"
        )
        raise ValueError(
            f"{path}: image_data is {found}; expected uint8 [n, {form.size}, {form.size}, 3]."
        )
    if not isinstance(class_dict, dict) or not all(isinstance(name, str) for name in class_dict):
        found = type(class_dict).__name__
        if isinstance(class_dict, dict):
            found = f"a dict with the key {next(k for k in class_dict if not isinstance(k, str))!r}"
        raise ValueError(
            f"{path}: class_dict is {found}; expected a dict from names of classes to lists of "
            "indices. Get the file anew."
        )
    classes = {}
    uses = np.zeros(len(images), int)
    for name, listed in class_dict.items():
        where = f"{path}: class_dict[{name!r}]"
        indices = _indices(listed)
        if indices is None:
            raise ValueError(
                f"{where} is {type(listed).__name__} {str(listed)[:40]!r}; expected a list of "
                "integers, the indices of the class's images. Get the file anew."
            )
        _check_count(where, "indices", len(indices), form)
        if indices.min() < 0 or indices.max() >= len(images):
            raise ValueError(
                f"{where} has indices from {indices.min()} to {indices.max()}; expected 0 to "
                f"{len(images) - 1}, as image_data has {len(images)} images."
            )
        np.add.at(uses, indices, 1)
        classes[name] = (images, indices)
    if uses.max(initial=0) > 1:
        raise ValueError(
            f"{path}: class_dict lists image {uses.argmax()} {uses.max()} times; expected each "
            "image in one class, once."
        )
    return classes


def _indices(listed: Any) -> np.ndarray | None:
    values = restricted_pickle.plain(listed)
    if isinstance(values, list | tuple) and all(isinstance(index, int) for index in values):
        return np.array(values, np.int64)
    if isinstance(values, np.ndarray) and values.ndim == 1:
        return values.astype(np.int64)
    return None
