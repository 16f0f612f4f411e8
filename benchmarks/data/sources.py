"""Datasets as arrays: scikit-learn's digits, TFDS's, miniImageNet, or an ``.npz`` file of your own.

Images are decoded once and cached as arrays; everything after this module works on arrays.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.data import mini_imagenet, npz, tfds_source
from benchmarks.data.checks import check_superclasses, to_fields
from benchmarks.data.dataset import Dataset
from benchmarks.data.files import atomic_write

NAMES = ("digits", "mnist", "cifar100", "mini-imagenet")
_REQUIRED = ("x_train", "y_train", "x_test", "y_test")
_OPTIONAL = ("superclasses",)


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
        arrays = to_fields(
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
            arrays["superclasses"] = check_superclasses(
                source.path, superclasses, len(superclasses)
            )
        return arrays

    return _load_cached(name, f"{name}-{source.version}", decode)


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
    return _load_cached("mini-imagenet", f"mini-imagenet-{source.fingerprint()}", source.read)


def _load_cached(name: str, key: str, decode: Callable[[], dict[str, np.ndarray]]) -> Dataset:
    cache = cache_dir() / f"{key}.npz"
    # Absent; or cut short by an earlier kill, and decoded anew.
    with contextlib.suppress(ValueError, FileNotFoundError):
        return Dataset(name, **to_fields(cache, npz.read(cache, _REQUIRED, _OPTIONAL)))
    arrays = decode()
    try:
        with atomic_write(cache) as temporary:
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
    return Dataset(
        path.name, **to_fields(path, npz.read(path, _REQUIRED, _OPTIONAL), renumber=True)
    )
