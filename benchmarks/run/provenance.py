"""Where numbers come from: command, commit, versions and device."""

import datetime
import importlib.metadata
import os
import platform
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


def provenance(command: str) -> dict[str, Any]:
    """Where numbers measured now come from."""
    flags = os.environ.get("XLA_FLAGS")
    command = f"XLA_FLAGS={shlex.quote(flags)} {command}" if flags else command
    return {
        "command": _printable(command),
        "commit": _commit(),
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in _PACKAGES},
        "device": _printable(_device()),
        "date": datetime.date.today().isoformat(),
    }


def merge_origins(origins: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The provenance of a run that was resumed: the last one's, and all before that differ."""

    def decisive(origin: dict[str, Any]) -> tuple[Any, ...]:
        return origin["commit"], origin["versions"], origin["device"]

    *earlier, last = origins
    different = [origin for origin in earlier if decisive(origin) != decisive(last)]
    return last | ({"before_resuming": different} if different else {})


def _printable(text: str) -> str:
    """The same on one line: control characters, and bytes that are no text, as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _commit() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
            check=True,
            # To ask is not to write: no lock that another command of git would wait for.
            env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"},
        ).stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ":!results")
    except (OSError, subprocess.CalledProcessError):
        return "unknown (not a git checkout)"
    return commit + (" with local changes" if changed else "")


def _device() -> str:
    device = jax.devices()[0]
    if device.platform != "cpu":
        return f"{len(jax.devices())} x {device.device_kind}"
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    cores = num_cores()
    return f"CPU, {cores} core{'s' if cores > 1 else ''}, {model}"


def num_cores() -> int:
    """Those this process may run on: under `taskset` or in a container not all there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
