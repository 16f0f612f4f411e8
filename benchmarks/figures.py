"""Figures from results, as PNG and SVG."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from benchmarks import paper
from benchmarks.files import replacing
from benchmarks.methods import METHODS
from benchmarks.results import Result, find, spread

# Of the map tab20: the strong colours, then the pale ones.
_COLOURS = (*range(0, 20, 2), *range(1, 20, 2))
_STYLES = ("-", "--", ":", "-.")


def accuracy(title: str, results: Sequence[Result], path: Path) -> None:
    """Average accuracy over the tasks so far, a line for each result.

    Args:
      title: of the figure.
      results: of one benchmark.
      path: where to write, without suffix: a PNG and an SVG.
    """
    labels = [", ".join(filter(None, [METHODS[r.method].label, r.variant])) for r in results]
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
    _save(fig, path)


def figure_1(results: Sequence[Result], path: Path) -> None:
    """The paper's Figure 1: a panel for each benchmark of Table 1, a line for each method.

    Args:
      results: those of the preset "paper" are drawn.
      path: as for `accuracy`.
    """
    fig = Figure(figsize=(11, 7), dpi=150, layout="constrained")
    lines: dict[str, Any] = {}
    for axes, (setting, methods) in zip(
        fig.subplots(2, 2).flat, paper.TABLE_1.items(), strict=True
    ):
        _axes(axes, f"{setting.benchmark}, {setting.network}")
        of_panel = {
            method: result
            for method in methods
            if (result := find(results, paper.own(setting, method), method, "paper")) is not None
        }
        for method, result in of_panel.items():
            label = METHODS[method].label
            lines[label] = _curve(axes, result, "-", label)
        if not of_panel:
            axes.set(xlim=(0, 20), ylim=(0, 100))
            axes.text(10, 50, "not yet run", ha="center", va="center", color="gray")
    fig.legend(lines.values(), lines.keys(), loc="outside right upper", frameon=False)
    _save(fig, path)


def _axes(axes: Any, title: str) -> Any:
    axes.set(title=title, xlabel="tasks learned", ylabel="average accuracy over them (%)")
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


def _save(fig: Figure, path: Path) -> None:
    # Without a date or random ids the same results give the same files.
    with mpl.rc_context({"svg.hashsalt": "rgo_jax"}):
        for suffix, metadata in ((".svg", {"Date": None}), (".png", {"Software": None})):
            with replacing(path.with_suffix(suffix)) as temporary:
                fig.savefig(temporary, metadata=metadata)
