"""Tables in markdown, and how a number is written in them."""

from collections.abc import Iterable, Sequence

import numpy as np

from benchmarks.run.results import spread


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    cells = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in cells]


def code(text: str) -> str:
    """A command as it is, with whatever backticks it has."""
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def mean_and_spread(values: np.ndarray) -> str:
    """Such as ``90.43 ± 0.34``, or ``90.43`` of one seed; how many are NaN, if any are."""
    diverged = int(np.isnan(values).sum())
    if diverged:
        return "diverged" if diverged == len(values) else f"{diverged} of {len(values)} diverged"
    deviation = f" ± {spread(values):.2f}" if len(values) > 1 else ""
    return f"{values.mean():.2f}{deviation}"


def difference(ours: np.ndarray, theirs: float | None) -> str:
    """Such as ``+0.34``: our mean minus their number; ``-`` if there is none."""
    return "-" if theirs is None or np.isnan(ours).any() else f"{ours.mean() - theirs:+.2f}"
