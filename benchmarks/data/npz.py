"""An ``.npz`` file of arrays, checked before anything of the size that it claims is taken."""

import math
import zipfile
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np

from benchmarks.data.file_errors import check_file, explain_errors
from benchmarks.data.limits import check_memory

# What numpy.savez and numpy.savez_compressed write. To open others can take gigabytes.
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def read(
    path: Path, required: Sequence[str], optional: Iterable[str] = ()
) -> dict[str, np.ndarray]:
    """Reads some of a file's arrays.

    Args:
      path: the file.
      required: the names of the arrays that it must have.
      optional: those that are read if it has them.

    Returns:
      The arrays by name, of booleans, integers or floating-point numbers.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is none of plain arrays, lacks one, or holds more than fits into memory.
    """
    check_file(path, "an .npz file of arrays")
    border = partial(
        explain_errors,
        path,
        "not a readable .npz file of plain arrays",
        f"Write it with numpy.savez(path, {', '.join(f'{name}=...' for name in required)}).",
    )
    with border(), zipfile.ZipFile(path) as archive:
        there = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
        missing = [name for name in required if name not in there]
        wanted = [name for name in (*required, *optional) if name in there]
        needed = sum(_num_bytes(archive, name) for name in wanted)
    if missing:
        found = ", ".join(there[:10]) + (", ..." if len(there) > 10 else "")
        raise ValueError(
            f"{path}: has no {', '.join(missing)} (it has {found or 'nothing'}); expected the "
            f"arrays {', '.join(required)}."
        )
    check_memory(f"{path}: what it holds", needed, "Store fewer or smaller images.")
    with border(), zipfile.ZipFile(path) as archive:
        return {name: _array(archive, name) for name in wanted}


def _num_bytes(archive: zipfile.ZipFile, name: str) -> int:
    """How large an array is, as its header and the archive's index say alike."""
    member = archive.getinfo(f"{name}.npy")
    if member.compress_type not in _COMPRESSIONS:
        raise ValueError(f"{name} is compressed in a way that NumPy does not write")
    with archive.open(member) as file:
        shape, dtype = _header(file)
        stored = member.file_size - file.tell()
    if dtype.kind not in "biuf":
        raise ValueError(f"{name} has dtype {dtype}, not numbers")
    promised = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or promised != stored:
        raise ValueError(
            f"the header of {name} promises {dtype} {list(shape)}, {promised} bytes, but {stored} "
            "follow"
        )
    return promised


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"an array is in version {version} of NumPy's format")
    shape, _, dtype = _HEADERS[version](file)
    return shape, dtype


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(f"{name}.npy") as file:
        return np.lib.format.read_array(file, allow_pickle=False)
