"""Where files from outside are read: whatever goes wrong there becomes one kind of error."""

import contextlib
import os
import textwrap
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def explain_errors(path: Path | str, problem: str, remedy: str) -> Iterator[None]:
    """Turns any exception of the block into an error that names the file.

    What the readers of damaged files raise cannot be listed: beside what they document they raise
    ``zlib.error``, ``struct.error``, ``MemoryError``, ``RecursionError`` and more.

    Args:
      path: the file or folder that is read.
      problem: what it then is.
      remedy: a sentence.

    Raises:
      ValueError: the block has raised any `Exception`.
    """
    try:
        yield
    except Exception as error:
        raise ValueError(f"{path}: {problem} ({summary(error)}). {remedy}") from error


def summary(error: Exception) -> str:
    """What an exception says, in one line."""
    return textwrap.shorten(str(error), 300) or type(error).__name__


def check_file(path: Path, expected: str) -> None:
    """Refuses what is no file before it is opened: to open a pipe waits for its other end.

    Raises:
      FileNotFoundError: it is a folder, a pipe or a device, or nothing at all.
    """
    if not os.path.isfile(path):
        found = "not a file" if os.path.exists(path) else "no such file"
        raise FileNotFoundError(f"{path}: {found}; expected {expected}.")
