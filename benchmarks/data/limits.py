"""How much memory there is, found out before any is taken."""

import contextlib
import os
import sys
from pathlib import Path

# Counts of examples, steps and tasks are int32 in the compiled programs.
MAX_COUNT = 2**31 - 1

_CONTAINER = Path("/sys/fs/cgroup/memory.max")


def memory() -> int:
    """Bytes of memory that this machine has, or that its container allows if that is less."""
    found = [sys.maxsize]
    if hasattr(os, "sysconf"):
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    # There is no such file, or it says "max".
    with contextlib.suppress(OSError, ValueError):
        found.append(int(_CONTAINER.read_text()))
    return min(found)


def check_memory(what: str, needed: int, remedy: str = "", available: int | None = None) -> None:
    """Refuses what needs more memory than there is.

    Args:
      what: that would be held in memory, as the subject of a sentence in the singular.
      needed: its bytes.
      remedy: a sentence, or none where an outer error has it.
      available: bytes that there are; by default `memory`.

    Raises:
      ValueError: there are fewer.
    """
    available = memory() if available is None else available
    if needed > available:
        found = f"{what} takes {size(needed)} of memory; there is {size(available)}"
        raise ValueError(f"{found}. {remedy}" if remedy else found)


def size(count: float) -> str:
    """A number of bytes in words."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.3g} {unit}" if unit != "bytes" else f"{count:.0f} bytes"
        count /= 1024
    return f"{count:.3g} TiB"
