"""A warning about batch normalisation, whose running statistics no optimizer can protect."""

import re
import warnings
from collections.abc import Iterable

from rgo_jax import _geometry

# By name only: its parameters look like those of any other normalisation.
_NAMES = re.compile(r"batch_?norm|batch_?stats|^bn(\d|_|$)", re.IGNORECASE)


class BatchNormWarning(UserWarning):
    """A model under RGO has batch normalisation, through which tasks leak into one another."""


def warn_if_named(paths: Iterable[_geometry.Path]) -> None:
    """Warns if a parameter's path has a name that batch normalisation usually has."""
    for path in paths:
        for length, key in enumerate(path, start=1):
            if _NAMES.search(_geometry.path_name((key,))):
                warn(f"{_geometry.path_name(path[:length])!r} looks like batch normalisation", 4)
                return


def warn(finding: str, stacklevel: int = 3) -> None:
    """Warns, with what was found at the beginning, of the caller's caller."""
    warnings.warn(
        f"{finding}. Its running mean and variance are no parameters: RGO does not protect them, "
        "every task moves them, and so the outputs for earlier tasks change. Use LayerNorm, "
        "GroupNorm or no normalisation, or keep the statistics of each task and put them back.",
        BatchNormWarning,
        stacklevel=stacklevel,
    )
