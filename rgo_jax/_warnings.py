"""Warnings about what RGO does not protect."""

import re
import warnings
from collections.abc import Iterable

import jax
import numpy as np

from rgo_jax import _state, _tree

# By name only: their parameters look like those of any other normalisation.
_BATCH_NORM = re.compile(r"batch_?norm|batch_?stats|^bn(\d|_|$)", re.IGNORECASE)
_LAYER_NORM = re.compile(r"(layer|group|instance)_?norm|^ln(\d|_|$)", re.IGNORECASE)

# Columns of random signs leave 1 / m of their energy in the mean; rounding alone leaves less than
# this, in bfloat16 too.
_VANISHING = 1e-6

_REMEDY = "Fold tasks in with columns='signs', which protects whatever cancels."


class BatchNormWarning(UserWarning):
    """A model under RGO has batch normalisation, through which tasks leak into one another."""


class UnprotectedWarning(UserWarning):
    """Parameters whose gradients cancel in the mean over columns, so that nothing protects them."""


def warn_of_batch_norm(paths: Iterable[_tree.Path]) -> None:
    """Warns if a parameter's path has a name that batch normalisation usually has."""
    found = _named(_BATCH_NORM, paths)
    if found:
        warn_of_running_statistics(f"{found!r} looks like batch normalisation", 4)


def warn_of_running_statistics(finding: str, stacklevel: int = 3) -> None:
    """Warns, with what was found at the beginning, of the caller's caller."""
    warnings.warn(
        f"{finding}. Its running mean and variance are no parameters: RGO does not protect them, "
        "every task moves them, and so the outputs for earlier tasks change. Use no normalisation, "
        "or LayerNorm or GroupNorm and columns='signs', or keep the statistics of each task and "
        "put them back.",
        BatchNormWarning,
        stacklevel=stacklevel,
    )


def warn_of_layer_norm(paths: Iterable[_tree.Path]) -> None:
    """Warns if a parameter's path has a name that a normalisation over features usually has."""
    found = _named(_LAYER_NORM, paths)
    if found:
        warnings.warn(
            f"{found!r} looks like a normalisation over features. Through it the columns of a "
            "gradient sum to zero, so columns='mean' leaves the kernel before it unprotected. "
            f"{_REMEDY}",
            UnprotectedWarning,
            stacklevel=4,
        )


def warn_of_vanishing(state: _state.RgoState) -> None:
    """Warns if gradients cancelled in what was folded in; says nothing of traced numbers."""
    vanishing = [
        _tree.path_name(path)
        for path, energy in _tree.leaves_by_path(state.energy).items()
        if not isinstance(energy, jax.core.Tracer) and is_vanishing(energy)
    ]
    if vanishing:
        warnings.warn(
            f"Nearly all of the gradients of {', '.join(map(repr, vanishing))} cancelled in the "
            f"mean over columns: they are not protected. {_REMEDY}",
            UnprotectedWarning,
            stacklevel=3,
        )


def is_vanishing(energy: jax.Array) -> bool:
    """Whether an `rgo_jax.RgoState.energy` of one leaf, or of any of many models, says so."""
    folded, whole = np.moveaxis(np.asarray(energy), -1, 0)
    return bool(np.any(folded < _VANISHING * whole))


def _named(names: re.Pattern[str], paths: Iterable[_tree.Path]) -> str | None:
    """The shortest path, or beginning of one, whose last key has one of the names."""
    for path in paths:
        for length, key in enumerate(path, start=1):
            if names.search(_tree.path_name((key,))):
                return _tree.path_name(path[:length])
    return None
