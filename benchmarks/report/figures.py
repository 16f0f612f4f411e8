"""Figures from results, as PNG and SVG."""

import io
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from benchmarks.methods import METHODS
from benchmarks.report import markup, paper
from benchmarks.run.results import Result, spread

# Of the map tab20: the strong colours, then the pale ones.
_COLOURS = (*range(0, 20, 2), *range(1, 20, 2))
_STYLES = ("-", "--", ":", "-.")


def accuracy(title: str, results: Sequence[Result], path: Path) -> dict[Path, bytes]:
    """Average accuracy over the tasks so far, a line for each result; it ends where one diverges.

    Args:
      title: of the figure.
      results: of one benchmark.
      path: of the figure's files, without suffix.

    Returns:
      What is to be written: a PNG and an SVG.
    """
    labels = [
        ", ".join(filter(None, [METHODS[r.method].label, r.variant, _divergence(r)]))
        for r in results
    ]
    # In lines of the length of most, so that they leave the axes their room.
    labels = [textwrap.fill(label, 24) for label in labels]
    lines = sum(1 + label.count("\n") for label in labels)
    fig = Figure(figsize=(7.5, max(4.2, 0.6 + 0.2 * lines)), dpi=150, layout="constrained")
    axes = _axes(fig.add_subplot(), title)
    # A colour for each method, a line style for each of its variants; with more variants than
    # styles, more colours.
    variants = list(dict.fromkeys(result.variant for result in results))
    for result, label in zip(results, labels, strict=True):
        round_, style = divmod(variants.index(result.variant), len(_STYLES))
        _curve(axes, result, _STYLES[style], label, round_)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, handlelength=3.5)
    return _render(fig, path)


def figure_1(results: Sequence[Result], path: Path) -> dict[Path, bytes]:
    """The paper's Figure 1: a panel for each benchmark of Table 1, a line for each method.

    Args:
      results: those of the preset "paper" are drawn; what has none has no panel.
      path: as for `accuracy`.

    Returns:
      As `accuracy`; nothing without a panel.
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
        return {}
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    fig = Figure(figsize=(1 + 5 * columns, 3.5 * rows), dpi=150, layout="constrained")
    lines: dict[str, Any] = {}
    for place, (setting, drawn) in enumerate(panels.items(), start=1):
        title = f"{setting.benchmark}, {setting.network}"
        axes = _axes(fig.add_subplot(rows, columns, place), title)
        for result in drawn:
            label = METHODS[result.method].label
            lines[label] = _curve(axes, result, "-", label)
    fig.legend(lines.values(), lines.keys(), loc="outside right upper", frameon=False)
    return _render(fig, path)


def _divergence(result: Result) -> str:
    return markup.mean_and_spread(result.acc) if result.diverged.any() else ""


def _axes(axes: Any, title: str) -> Any:
    # A dollar sign in the name of a file is no mathematics.
    axes.set_title(title, parse_math=False)
    axes.set(xlabel="tasks learned", ylabel="average accuracy over them (%)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    return axes


def _curve(axes: Any, result: Result, style: str, label: str, round_: int = 0) -> Any:
    number = list(METHODS).index(result.method) + round_ * len(METHODS)
    color = mpl.colormaps["tab20"](_COLOURS[number % len(_COLOURS)])
    curves = result.accuracy_curve
    tasks = np.arange(1, curves.shape[1] + 1)
    mean, deviation = curves.mean(axis=0), spread(curves)
    (line,) = axes.plot(tasks, mean, color=color, linestyle=style, label=label)
    axes.fill_between(
        tasks, mean - deviation, mean + deviation, color=color, alpha=0.2, linewidth=0
    )
    return line


def _render(fig: Figure, path: Path) -> dict[Path, bytes]:
    files = {}
    # Without a date or random ids the same results give the same files.
    with mpl.rc_context({"svg.hashsalt": "rgo_jax"}):
        for kind, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
            buffer = io.BytesIO()
            fig.savefig(buffer, format=kind, metadata=metadata)
            files[path.with_name(f"{path.name}.{kind}")] = buffer.getvalue()
    return files
