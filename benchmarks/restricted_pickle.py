"""Pickles of NumPy arrays, read without running what is in them."""

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np


def read(path: Path) -> Any:
    """Reads a pickle of dicts, lists, strings, numbers and NumPy arrays of integers.

    Loading a pickle in the usual way runs whatever code its writer put in. Here no name in the
    file is looked up: the few that integer arrays need are answered by the stand-ins below, and any
    other is an error. Pickles written by Python 2 are read too.

    Args:
      path: the file.

    Returns:
      The object, with stand-ins in place of arrays: `plain` makes arrays of them.

    Raises:
      ValueError: the file is no pickle, or needs more than that.
    """
    try:
        with path.open("rb") as file:
            # NumPy's bytes, in pickles of Python 2, are strings of the encoding latin1.
            return _Unpickler(file, encoding="latin1").load()
    # A malformed pickle can make the unpickler raise nearly anything.
    except Exception as error:
        raise ValueError(
            f"{path}: not a readable pickle of NumPy arrays ({error or type(error).__name__}). For "
            "safety nothing else is unpickled: get the file anew, or use folders of images."
        ) from error


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        # NumPy 2 renamed numpy.core.
        known = _STAND_INS.get((module.replace("numpy.core", "numpy._core"), name))
        if known is None:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}")
        return known


class _Dtype:
    """Stands in for ``numpy.dtype``, of integers only."""

    def __init__(self, code: str, *options: Any) -> None:
        del options
        if not re.fullmatch("[iu][1248]", code):
            raise pickle.UnpicklingError(f"it has an array of {code!r}, not of integers")
        self.numpy = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        self.numpy = self.numpy.newbyteorder(state[1])


class _Array:
    """Stands in for ``numpy.ndarray``: made empty, as NumPy's pickles do, then given its values."""

    values = np.empty(0, np.uint8)

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, is_fortran, raw = state
        self.values = _from_buffer(_encode(raw), dtype, shape, "F" if is_fortran else "C")


def _reconstruct(*arguments: Any) -> _Array:
    del arguments
    return _Array()


def _from_buffer(
    raw: bytes, dtype: _Dtype, shape: tuple, order: Any, axes: tuple | None = None
) -> np.ndarray:
    values = np.frombuffer(raw, dtype.numpy)
    if axes is not None:
        return values.reshape(shape).transpose(axes)
    return values.reshape(shape, order=order)


def _scalar(dtype: _Dtype, raw: str | bytes) -> int:
    return int(np.frombuffer(_encode(raw), dtype.numpy)[0])


def _encode(raw: str | bytes, *encoding: str) -> bytes:
    del encoding
    return raw.encode("latin1") if isinstance(raw, str) else raw


_STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
    # How Python 3 writes bytes in the older protocols.
    ("_codecs", "encode"): _encode,
}


def plain(value: Any) -> Any:
    """The array that a stand-in holds; any other value as it is."""
    return value.values if isinstance(value, _Array) else value
