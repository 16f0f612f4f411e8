"""Files that survive a kill, locks that do not, and digests of what a file should hold."""

import contextlib
import datetime
import hashlib
import os
import platform
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

try:
    import fcntl
except ImportError:  # Windows: no locks, and what a kill leaves half-written stays.
    fcntl = None  # type: ignore[assignment]

_TEMPORARY = ".benchmarks-"


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside ``path``, which takes its place when the block has ended well.

    The folder is made if need be. When the block raises, the temporary file is removed; when it is
    killed, by the next call for the same folder. Either way ``path`` is as it was.

    Raises:
      OSError: it cannot be written; names ``path``.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent)
        with _temporary(path) as temporary:
            yield temporary
            _sync(temporary)
            os.replace(temporary, path)
        with contextlib.suppress(OSError):  # Some file systems cannot do it for a folder.
            _sync(path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


@contextlib.contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """Lets one process in at a time. The lock file is there as long as the block lasts.

    The system frees the lock of a process that ends, however it ends. The folder is made if need
    be, and what killed processes have left of temporary files in it is removed.

    Raises:
      ValueError: another process is in; names it.
      OSError: no file can be written there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path.parent)
    descriptor = _open_locked(path)
    if descriptor is None:
        raise ValueError(
            f"{path}: the same run is under way in {_holder(path)}. Wait until it has ended, or "
            "choose another --out."
        )
    try:
        since = datetime.datetime.now().isoformat(" ", "seconds")
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {platform.node()} since {since}".encode())
        os.fsync(descriptor)
        yield
    finally:
        # Before it is freed: afterwards it may be another's.
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(descriptor)


def digest(arrays: Iterable[np.ndarray]) -> str:
    """SHA-256 of the arrays, as hex digits: it changes with any dtype, shape or number."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(f"{array.dtype}{array.shape}".encode())
        found.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return found.hexdigest()


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A new file beside ``path``, locked so that nobody sweeps it; removed in the end."""
    descriptor = None
    while descriptor is None:
        temporary = path.with_name(f"{_TEMPORARY}{secrets.token_hex(8)}{path.suffix}")
        descriptor = _open_locked(temporary, os.O_EXCL)
    with open(descriptor, "rb") as held:
        if fcntl is None:
            held.close()  # Windows does not move a file that is open.
        try:
            yield temporary
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()


def _open_locked(path: Path, flags: int = 0) -> int | None:
    """Makes a file, or opens it, and locks it; None if another process has locked it."""
    while True:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | flags, 0o666)
        try:
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError:  # A file system without locks.
            return descriptor
        # Whoever had it locked may have removed it since it was opened.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        os.close(descriptor)


def _holder(path: Path) -> str:
    with contextlib.suppress(OSError, ValueError):
        return path.read_text() or "another process"
    return "another process"


def _sweep(folder: Path) -> None:
    """Removes temporary files that no process has locked: it was killed."""
    if fcntl is None:
        return
    for leftover in filter(Path.is_file, folder.glob(f"{_TEMPORARY}*")):
        # Where a file system has no locks nobody can tell, and nothing is removed.
        with contextlib.suppress(OSError), open(leftover, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            leftover.unlink()


def _sync(path: Path) -> None:
    """Waits until a file, or what a folder lists, would survive a power cut."""
    if fcntl is None:
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
