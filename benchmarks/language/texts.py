"""Texts of different kinds that come with Python and NumPy: nothing to download.

They differ from version to version, so results name the versions.
"""

import ast
import dis
import io
import json
import pydoc_data.topics
import re
import sysconfig
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

# How much of each kind is read, in bytes, and which share of it is held out.
_TRAIN_BYTES = 300_000
_TEST_BYTES = 30_000

# Where Unicode has its letters and symbols; names of the ideographs beyond are all alike.
_NUM_CHARACTERS = 0x3000


class Text(NamedTuple):
    """Windows of one kind of text.

    Attributes:
      train: uint8 ``[n, length]``: bytes.
      test: uint8 ``[k, length]``: of other documents.
    """

    train: np.ndarray
    test: np.ndarray


def load(kind: str, length: int) -> Text:
    """Windows of a kind of text, in an order of no meaning.

    Args:
      kind: a key of `KINDS`.
      length: of a window, in bytes.

    Raises:
      ValueError: there is less of it than expected.
    """
    documents = [text.encode() for text in KINDS[kind]()]
    rng = np.random.default_rng(0)
    joined = b"".join(documents[i] + b"\n" for i in rng.permutation(len(documents)))
    expected = _TRAIN_BYTES + _TEST_BYTES
    if len(joined) < expected:
        raise ValueError(
            f"There are {len(joined)} bytes of {kind}; expected at least {expected}. They come "
            "with Python's standard library and NumPy: install both whole."
        )

    def windows(part: bytes) -> np.ndarray:
        count = len(part) // length
        cut = np.frombuffer(part, np.uint8)[: count * length].reshape(count, length)
        return cut[rng.permutation(count)]

    return Text(windows(joined[_TEST_BYTES:expected]), windows(joined[:_TEST_BYTES]))


def _english() -> list[str]:
    """The reference of Python's language."""
    return [text for _, text in sorted(pydoc_data.topics.topics.items())]


def _sources() -> Iterator[str]:
    """The modules of the standard library."""
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        yield path.read_text(encoding="utf-8")


def _headers() -> Iterator[str]:
    """NumPy's, in C."""
    for path in sorted(Path(np.get_include()).rglob("*.h")):
        yield path.read_text(encoding="utf-8")


def _records() -> Iterator[str]:
    """Unicode's characters in JSON, sixteen in each document."""
    characters = [chr(code) for code in range(_NUM_CHARACTERS)]
    named = [c for c in characters if unicodedata.name(c, "")]
    for start in range(0, len(named), 16):
        records = [
            {
                "code": ord(c),
                "name": unicodedata.name(c).lower(),
                "category": unicodedata.category(c),
                "bidirectional": unicodedata.bidirectional(c),
                "mirrored": bool(unicodedata.mirrored(c)),
                "decomposition": unicodedata.decomposition(c).split(),
            }
            for c in named[start : start + 16]
        ]
        yield json.dumps(records, indent=1)


def _bytecode() -> Iterator[str]:
    """Listings of what the first modules compile to."""
    for source in _first_sources():
        listing = io.StringIO()
        dis.dis(compile(source, "", "exec", dont_inherit=True), file=listing)
        # Where objects lie in memory differs from run to run.
        yield re.sub(r" at 0x[0-9a-fA-F]+", "", listing.getvalue())


def _syntax_trees() -> Iterator[str]:
    """Of the same modules."""
    for source in _first_sources():
        yield ast.dump(ast.parse(source), indent=1)


def _first_sources() -> list[str]:
    return list(_sources())[:20]


def _stubs() -> Iterator[str]:
    """NumPy's types."""
    root = Path(np.__file__).parent
    for path in sorted(root.rglob("*.pyi")):
        yield path.read_text(encoding="utf-8")


KINDS: dict[str, Callable[[], list[str] | Iterator[str]]] = {
    "english": _english,
    "python": _sources,
    "c": _headers,
    "json": _records,
    "bytecode": _bytecode,
    "syntax-trees": _syntax_trees,
    "stubs": _stubs,
}
