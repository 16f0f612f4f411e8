"""tensorflow-datasets without TensorFlow: prepared folders are read, MNIST can be prepared.

TFDS's own MNIST builder needs TensorFlow to unpack the downloads. The subclass below unpacks them
with the standard library and writes ``array_record``, which TFDS reads without TensorFlow.
"""

import gzip
import logging
import struct
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

_CONNECT_SECONDS = 5


class Source(NamedTuple):
    """A prepared TFDS dataset: ``read(split)`` decodes it.

    Attributes:
      name: TFDS's name of the dataset.
      version: its version, for cache keys.
      data_dir: where it lies, or None for TFDS's own default.
    """

    name: str
    version: str
    data_dir: str | None

    def read(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Images uint8 ``[n, height, width]`` and labels int32 ``[n]`` of "train" or "test"."""
        source = _import_tfds().data_source(
            self.name, split=split, data_dir=self.data_dir, download=False
        )
        examples = source.__getitems__(range(len(source)))
        images = np.stack([example["image"] for example in examples])
        labels = np.array([example["label"] for example in examples], np.int32)
        return images[..., 0], labels


def open_source(name: str, data_dir: str | None = None) -> Source:
    """Opens a TFDS dataset, preparing it first where it is missing and there is a network.

    Args:
      name: "mnist".
      data_dir: where TFDS keeps prepared datasets; by default ``TFDS_DATA_DIR`` or TFDS's own.

    Returns:
      The `Source`.

    Raises:
      RuntimeError: tensorflow-datasets is unusable, or the data is missing and cannot be had.
    """
    tfds = _import_tfds()
    # TFDS warns of every folder it looks into; what is missing is said below, once.
    logging.getLogger("absl").setLevel(logging.ERROR)
    builder = tfds.builder(name, data_dir=data_dir)
    if not builder.is_prepared():
        _prepare(tfds, name, data_dir, Path(builder.data_path))
        builder = tfds.builder(name, data_dir=data_dir)
    return Source(name, str(builder.version), data_dir)


def _import_tfds() -> Any:
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise RuntimeError(
            f"tensorflow-datasets cannot be imported ({error}). Install the benchmarks' needs: "
            "pip install 'rgo_jax[benchmarks]'."
        ) from error
    # With too old a protobuf the import logs a traceback and leaves an empty module behind.
    if not hasattr(tfds, "data_source"):
        raise RuntimeError(
            "tensorflow-datasets was imported but is empty, as happens with a protobuf below "
            "6.31.1. Install: pip install 'protobuf>=6.31.1' 'tensorflow-datasets>=4.9.10'."
        )
    return tfds


def _prepare(tfds: Any, name: str, data_dir: str | None, target: Path) -> None:
    builder = mnist_builder(tfds)(data_dir=data_dir, file_format="array_record")
    # TFDS would retry for minutes before it gives up; one look tells within seconds.
    try:
        request = urllib.request.Request(builder.URL + _FILES["test_labels"], method="HEAD")
        urllib.request.urlopen(request, timeout=_CONNECT_SECONDS).close()
    except (urllib.error.URLError, OSError) as error:
        raise RuntimeError(
            f"{name} is not prepared in {target}, and {builder.URL} cannot be reached ({error}). "
            "Either set TFDS_DATA_DIR (or --data-dir) to a folder where it is prepared as "
            "array_record, run once on a machine with a network and copy its TFDS folder here, or "
            "use the embedded digits (permuted-digits, rotated-digits) or your own --data "
            "FILE.npz."
        ) from error
    builder.download_and_prepare()


_FILES = {
    "train_images": "train-images-idx3-ubyte.gz",
    "train_labels": "train-labels-idx1-ubyte.gz",
    "test_images": "t10k-images-idx3-ubyte.gz",
    "test_labels": "t10k-labels-idx1-ubyte.gz",
}


def mnist_builder(tfds: Any) -> Any:
    """TFDS's own MNIST builder, with the two methods replaced that need TensorFlow."""
    parent: Any = tfds.builder_cls("mnist")

    class Mnist(parent, skip_registration=True):  # type: ignore[call-arg]
        name = "mnist"

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            # Checksums are enforced by TFDS's own list, which goes by URL.
            paths = dl_manager.download({key: self.URL + file for key, file in _FILES.items()})
            return {
                split: self._generate_examples(paths[f"{split}_images"], paths[f"{split}_labels"])
                for split in ("train", "test")
            }

        def _generate_examples(
            self, images_path: Any, labels_path: Any
        ) -> Iterator[tuple[int, dict[str, Any]]]:
            from PIL import Image

            images, labels = read_idx(Path(images_path)), read_idx(Path(labels_path))
            for index, (image, label) in enumerate(zip(images, labels, strict=True)):
                yield index, {"image": Image.fromarray(image), "label": int(label)}

    return Mnist


def read_idx(path: Path) -> np.ndarray:
    """Reads one of MNIST's ``.gz`` files: a big-endian header, then bytes.

    Raises:
      ValueError: the file is not in that format.
    """
    try:
        content = gzip.decompress(path.read_bytes())
    except (gzip.BadGzipFile, EOFError) as error:
        raise ValueError(f"{path}: not a gzip file ({error}); delete it and run again.") from error
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise ValueError(
            f"{path}: begins with {content[:4]!r}; expected the header of an idx file of bytes. "
            "Delete it and run again."
        )
    rank = content[3]
    shape = struct.unpack_from(f">{rank}I", content, 4)
    data = np.frombuffer(content, np.uint8, offset=4 + 4 * rank)
    if data.size != np.prod(shape):
        raise ValueError(
            f"{path}: has {data.size} values; its header promises {shape}. Delete it and run again."
        )
    return data.reshape(shape)
