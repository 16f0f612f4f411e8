"""Tables in markdown, and how a number is written in them."""

from collections.abc import Iterable, Sequence

import numpy as np

from benchmarks.results import spread


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    cells = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(row) + " |" for row in cells]


def mean_and_spread(values: np.ndarray) -> str:
    """Such as ``90.43 ± 0.34``, or ``90.43`` of one seed."""
    deviation = f" ± {spread(values):.2f}" if len(values) > 1 else ""
    return f"{values.mean():.2f}{deviation}"


def difference(ours: np.ndarray, theirs: float | None) -> str:
    """Such as ``+0.34``: our mean minus their number; ``-`` if there is none."""
    return "-" if theirs is None else f"{ours.mean() - theirs:+.2f}"
