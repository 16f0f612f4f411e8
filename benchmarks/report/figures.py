"""Figures of results."""

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.methods import METHODS
from benchmarks.report import markup, paper
from benchmarks.run.results import Result
from rgo_jax import plots

# Of the map tab20: the strong colours, then the pale ones.
_COLOURS = (*range(0, 20, 2), *range(1, 20, 2))
_STYLES = ("-", "--", ":", "-.")


def accuracy(title: str, results: Sequence[Result]) -> Figure:
    """Average accuracy over the tasks so far, a line for each result; it ends where one diverges.

    Args:
      title: of the figure.
      results: of one benchmark.
    """
    labels = [
        ", ".join(filter(None, [METHODS[r.method].label, r.variant, _divergence(r)]))
        for r in results
    ]
    # In lines of the length of most, so that they leave the axes their room.
    labels = [textwrap.fill(label, 24) for label in _distinct(labels, results)]
    lines = sum(1 + label.count("\n") for label in labels)
    fig = Figure(figsize=(7.5, max(4.2, 0.6 + 0.2 * lines)), dpi=150, layout="constrained")
    axes = fig.add_subplot()
    _draw(axes, title, dict(zip(labels, results, strict=True)))
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, handlelength=3.5)
    return fig


def figure_1(results: Sequence[Result]) -> Figure | None:
    """The paper's Figure 1: a panel for each benchmark of Table 1, a line for each method.

    Args:
      results: those of the preset "paper" are drawn; what has none has no panel.

    Returns:
      The figure; None without a panel.
    """
    panels = {}
    for setting, methods in paper.TABLE_1.items():
        found = [
            paper.find(results, paper.own(setting, method), method, "paper") for method in methods
        ]
        drawn = [result for result in found if result is not None]
        if drawn:
            panels[setting] = drawn
    if not panels:
        return None
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    fig = Figure(figsize=(1 + 5 * columns, 3.5 * rows), dpi=150, layout="constrained")
    lines: dict[str, Any] = {}
    for place, (setting, drawn) in enumerate(panels.items(), start=1):
        title = f"{setting.benchmark}, {setting.network}"
        axes = fig.add_subplot(rows, columns, place)
        _draw(axes, title, {METHODS[result.method].label: result for result in drawn})
        handles, labels = axes.get_legend_handles_labels()
        lines |= zip(labels, handles, strict=True)
    fig.legend(lines.values(), lines.keys(), loc="outside right upper", frameon=False)
    return fig


def render(figure: Figure, path: Path) -> dict[Path, bytes]:
    """A figure as files: a PNG and an SVG, the same bytes for the same figure.

    Args:
      figure: what is drawn.
      path: of the files, without suffix.
    """
    files = {}
    # Without a date or random ids.
    with mpl.rc_context({"svg.hashsalt": "rgo_jax"}):
        for kind, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, metadata=metadata)
            files[path.with_name(f"{path.name}.{kind}")] = buffer.getvalue()
    return files


def _divergence(result: Result) -> str:
    return markup.mean_and_spread(result.acc) if result.diverged.any() else ""


def _distinct(labels: Sequence[str], results: Sequence[Result]) -> list[str]:
    """With the seeds, where results differ in nothing else."""
    return [
        label
        if labels.count(label) == 1
        else f"{label}, seeds {result.seeds[0]}-{result.seeds[-1]}"
        for label, result in zip(labels, results, strict=True)
    ]


def _draw(axes: Axes, title: str, results: Mapping[str, Result]) -> None:
    """A line for each label: a colour for each method, a line style for each of its variants."""
    # A dollar sign in the name of a file is no mathematics.
    axes.set_title(title, parse_math=False)
    variants = list(dict.fromkeys(result.variant for result in results.values()))
    styles = {}
    for label, result in results.items():
        # With more variants than styles, more colours.
        round_, style = divmod(variants.index(result.variant), len(_STYLES))
        number = list(METHODS).index(result.method) + round_ * len(METHODS)
        color = mpl.colormaps["tab20"](_COLOURS[number % len(_COLOURS)])
        styles[label] = {"color": color, "linestyle": _STYLES[style]}
    r = {label: result.r for label, result in results.items()}
    plots.average_accuracy_curves(r, styles=styles, axes=axes)
