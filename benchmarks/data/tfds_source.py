"""tensorflow-datasets without TensorFlow: MNIST and CIFAR-100 are prepared and read.

TFDS's own builders need TensorFlow to unpack the downloads. The subclasses below unpack them with
the standard library and write ``array_record``, which TFDS reads without TensorFlow.
"""

import gzip
import logging
import math
import os
import struct
import tarfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.data.file_errors import explain_errors
from benchmarks.data.limits import check_memory

_CONNECT_SECONDS = 5
_PREPARE_AGAIN = "Delete the folder and run again: the dataset is then prepared anew."
_reading = partial(
    explain_errors, problem="not a readable dataset of tensorflow-datasets", remedy=_PREPARE_AGAIN
)


class Source(NamedTuple):
    """A prepared TFDS dataset: ``read(split)`` decodes it.

    Attributes:
      name: TFDS's name of the dataset.
      version: its version, for cache keys.
      labels: the names of its label features.
      data_dir: where it lies, or None for TFDS's own default.
      path: its own folder there.
    """

    name: str
    version: str
    labels: tuple[str, ...]
    data_dir: str | None
    path: Path

    def read(self, split: str) -> dict[str, np.ndarray]:
        """Decodes "train" or "test".

        Returns:
          "image": uint8 ``[n, height, width, channels]``; each of `labels`: int32 ``[n]``.

        Raises:
          ValueError: it is damaged.
        """
        tfds = _import_tfds()
        with _reading(self.path):
            source = tfds.data_source(
                self.name, split=split, data_dir=self.data_dir, download=False
            )
            (first,) = source.__getitems__([0])
            check_memory(
                f"what it promises, {len(source)} images,", len(source) * first["image"].nbytes
            )
            examples = source.__getitems__(range(len(source)))
            arrays = {"image": np.stack([example["image"] for example in examples])}
            for label in self.labels:
                arrays[label] = np.array([example[label] for example in examples], np.int32)
        return arrays


def open_source(name: str, data_dir: str | None = None) -> Source:
    """Opens a TFDS dataset, preparing it first where it is missing and there is a network.

    Args:
      name: "mnist" or "cifar100".
      data_dir: where TFDS keeps prepared datasets; by default ``TFDS_DATA_DIR`` or TFDS's own.

    Returns:
      The `Source`.

    Raises:
      RuntimeError: tensorflow-datasets is unusable, or the data is missing and cannot be had.
      ValueError: the data is damaged.
    """
    tfds = _import_tfds()
    # TFDS warns of every folder it looks into; what is missing is said below, once.
    logging.getLogger("absl").setLevel(logging.ERROR)
    folder = folder_of(data_dir) / name
    with _reading(folder):
        builder = tfds.builder(name, data_dir=data_dir)
        is_prepared = builder.is_prepared()
    if not is_prepared:
        _prepare(tfds, name, data_dir, Path(builder.data_path))
    with _reading(folder):
        builder = tfds.builder(name, data_dir=data_dir)
        features = builder.info.features
        labels = [key for key in features if isinstance(features[key], tfds.features.ClassLabel)]
        if "label" not in labels:
            raise ValueError(f"it has the labels {labels}")
        return Source(name, str(builder.version), tuple(labels), data_dir, Path(builder.data_path))


def folder_of(data_dir: str | None) -> Path:
    """Where datasets lie: this, or ``TFDS_DATA_DIR``, or TFDS's own default."""
    named = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(os.path.expanduser(named))


def _import_tfds() -> Any:
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise RuntimeError(
            f"tensorflow-datasets cannot be imported ({error}). Install the benchmarks' needs: "
            "pip install -e '.[benchmarks]' in the checkout."
        ) from error
    # With too old a protobuf the import logs a traceback and leaves an empty module behind.
    if not hasattr(tfds, "data_source"):
        raise RuntimeError(
            "tensorflow-datasets was imported but is empty, as happens with a protobuf below "
            "6.31.1. Install: pip install 'protobuf>=6.31.1' 'tensorflow-datasets>=4.9.10'."
        )
    return tfds


def _prepare(tfds: Any, name: str, data_dir: str | None, target: Path) -> None:
    builder = builder_class(tfds, name)(data_dir=data_dir, file_format="array_record")
    # TFDS would retry for minutes before it gives up; one look tells within seconds.
    url = next(iter(_RECIPES[name].urls.values()))
    try:
        request = urllib.request.Request(url, method="HEAD")
        urllib.request.urlopen(request, timeout=_CONNECT_SECONDS).close()
    except (urllib.error.URLError, OSError) as error:
        raise RuntimeError(
            f"{name} is not prepared in {target}, and {url} cannot be reached ({error}). "
            "Either set TFDS_DATA_DIR (or --data-dir) to a folder where it is prepared as "
            "array_record, run once on a machine with a network and copy its TFDS folder here, or "
            "use the embedded digits (permuted-digits, rotated-digits) or your own --data "
            "FILE.npz."
        ) from error
    # A URL whose checksum TFDS does not know is an error, not taken on trust.
    config = tfds.download.DownloadConfig(force_checksums_validation=True)
    with explain_errors(
        target,
        f"{name} cannot be prepared there",
        "Free space on the disk, or choose another --data-dir, and run again.",
    ):
        builder.download_and_prepare(download_config=config)


_Example = tuple[int, dict[str, Any]]


class _Recipe(NamedTuple):
    """How a dataset is prepared without TensorFlow.

    Attributes:
      urls: what to download, by a name for each file; the URLs that TFDS has checksums of.
      splits: from TFDS's builder and the downloaded files to the examples of each split.
    """

    urls: dict[str, str]
    splits: Callable[[Any, dict[str, Path]], dict[str, Iterator[_Example]]]


def builder_class(tfds: Any, dataset: str) -> Any:
    """TFDS's own builder of "mnist" or "cifar100", but for what needs TensorFlow."""
    parent: Any = tfds.builder_cls(dataset)
    recipe = _RECIPES[dataset]

    class Builder(parent, skip_registration=True):  # type: ignore[call-arg]
        name = dataset

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            paths = dl_manager.download(recipe.urls)
            return recipe.splits(self, {key: Path(path) for key, path in paths.items()})

    return Builder


def _mnist_splits(builder: Any, paths: dict[str, Path]) -> dict[str, Iterator[_Example]]:
    del builder
    return {
        split: _mnist_examples(paths[f"{split}_images"], paths[f"{split}_labels"])
        for split in ("train", "test")
    }


def _mnist_examples(images_path: Path, labels_path: Path) -> Iterator[_Example]:
    from PIL import Image

    images, labels = read_idx(images_path), read_idx(labels_path)
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        yield index, {"image": Image.fromarray(image), "label": int(label)}


def _cifar100_splits(builder: Any, paths: dict[str, Path]) -> dict[str, Iterator[_Example]]:
    path = paths["archive"]
    coarse_names, fine_names, train, test = read_tar(
        path,
        [
            f"cifar-100-binary/{file}"
            for file in ("coarse_label_names.txt", "fine_label_names.txt", "train.bin", "test.bin")
        ],
    )
    builder.info.features["coarse_label"].names = coarse_names.decode().split()
    builder.info.features["label"].names = fine_names.decode().split()
    return {
        "train": _cifar100_examples(path, "train", train),
        "test": _cifar100_examples(path, "test", test),
    }


def _cifar100_examples(path: Path, split: str, content: bytes) -> Iterator[_Example]:
    from PIL import Image

    # A record: the coarse label, the fine label, then a red, a green and a blue image.
    record = 2 + 3 * 32 * 32
    if not content or len(content) % record:
        raise ValueError(
            f"{path}: {split}.bin has {len(content)} bytes; expected a multiple of {record}. "
            "Delete it and run again."
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, record)
    images = records[:, 2:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    for index, ((coarse, fine), image) in enumerate(zip(records[:, :2], images, strict=True)):
        yield (
            index,
            {
                "id": f"{split}_{index:05d}",
                "image": Image.fromarray(np.ascontiguousarray(image)),
                "label": int(fine),
                "coarse_label": int(coarse),
            },
        )


_MNIST = "https://storage.googleapis.com/cvdf-datasets/mnist/"
_RECIPES = {
    "mnist": _Recipe(
        {
            "train_images": f"{_MNIST}train-images-idx3-ubyte.gz",
            "train_labels": f"{_MNIST}train-labels-idx1-ubyte.gz",
            "test_images": f"{_MNIST}t10k-images-idx3-ubyte.gz",
            "test_labels": f"{_MNIST}t10k-labels-idx1-ubyte.gz",
        },
        _mnist_splits,
    ),
    "cifar100": _Recipe(
        {"archive": "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz"},
        _cifar100_splits,
    ),
}


def read_tar(path: Path, members: Sequence[str]) -> list[bytes]:
    """Reads files of a ``.tar.gz`` into memory; nothing is written, whatever their names are.

    Raises:
      ValueError: the file is not such an archive, or a member is missing or no plain file.
    """
    contents = []
    problem = f"not a readable .tar.gz with {', '.join(members)}"
    with (
        explain_errors(path, problem, "Delete it and run again."),
        tarfile.open(path, "r:gz") as archive,
    ):
        for member in members:
            opened = archive.extractfile(member)
            if opened is None:
                raise ValueError(f"{member} is not a file")
            check_memory(member, archive.getmember(member).size)
            contents.append(opened.read())
    return contents


def read_idx(path: Path) -> np.ndarray:
    """Reads one of MNIST's ``.gz`` files: a big-endian header, then bytes.

    Raises:
      ValueError: the file is not in that format.
    """
    problem = "not a readable .gz of an idx file"
    with explain_errors(path, problem, "Delete it and run again."), gzip.open(path) as file:
        start = file.read(4)
        if len(start) < 4 or start[:3] != b"\x00\x00\x08":
            raise ValueError(f"it begins with {start!r}, not with the header of an array of bytes")
        shape = struct.unpack(f">{start[3]}I", file.read(4 * start[3]))
        promised = math.prod(shape)
        check_memory(f"{shape}, as its header promises,", promised)
        content = file.read(promised)
        if len(content) < promised or file.read(1):
            raise ValueError(
                f"its header promises {shape}, but {len(content)} bytes or more follow"
            )
        return np.frombuffer(content, np.uint8).reshape(shape)
