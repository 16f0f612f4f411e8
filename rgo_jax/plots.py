"""Pictures of continual learning: accuracies, and how much room the projections have left.

Every function returns a matplotlib `Figure` and changes nothing else: no global style, no current
figure, no file. Needs matplotlib: ``pip install matplotlib``.
"""

import importlib
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import jax
import numpy as np

from rgo_jax._stats import ProjectionStats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def average_accuracy_curves(
    r: Mapping[str, jax.typing.ArrayLike],
    *,
    styles: Mapping[str, Mapping[str, Any]] | None = None,
    axes: "Axes | None" = None,
) -> "Figure":
    """The mean accuracy over the tasks so far, after each task: a line for each method.

    Args:
      r: for each method's label accuracies ``[num_tasks, num_tasks]`` or ``[num_seeds, num_tasks,
        num_tasks]`` as for `rgo_jax.average_accuracy`, from 0 to 1. Of several seeds the mean is
        drawn, with a band of one standard deviation. A line ends where they are NaN.
      styles: for each label keywords of `matplotlib.axes.Axes.plot`, such as ``{"color": "red"}``.
      axes: where to draw; without, a figure of its own, with a legend.

    Returns:
      The figure.

    Raises:
      ImportError: matplotlib is not installed.
      ValueError: no accuracies, of another shape, or above 1.

    Example:
      >>> from rgo_jax import plots
      >>> figure = plots.average_accuracy_curves({"SGD": [[0.9, 0.0], [0.5, 0.9]]})
      >>> figure.axes[0].lines[0].get_ydata().tolist()
      [90.0, 70.0]
    """
    _check_not_empty(r)
    own = axes is None
    axes = _axes() if axes is None else _prepare(axes)
    axes.set(xlabel="tasks learned", ylabel="average accuracy over them (%)")
    for label, accuracies in r.items():
        by_seed = np.tril(_accuracies(accuracies))
        num_tasks = by_seed.shape[-1]
        curves = by_seed.sum(axis=-1) / np.arange(1, num_tasks + 1)
        deviation = curves.std(axis=0, ddof=1) if len(curves) > 1 else np.zeros(num_tasks)
        mean, tasks = curves.mean(axis=0), np.arange(1, num_tasks + 1)
        (line,) = axes.plot(tasks, mean, label=label, **(styles or {}).get(label, {}))
        axes.fill_between(
            tasks,
            mean - deviation,
            mean + deviation,
            color=line.get_color(),
            alpha=0.2,
            linewidth=0,
        )
    if own:
        axes.legend(frameon=False)
    return _figure_of(axes)


def task_accuracy_curves(r: Mapping[str, jax.typing.ArrayLike]) -> "Figure":
    """The accuracy on each task from when it was learned: a panel for each method.

    Args:
      r: as for `average_accuracy_curves`; of several seeds the mean is drawn.

    Returns:
      The figure.

    Raises:
      ImportError: matplotlib is not installed.
      ValueError: no accuracies, of another shape, or above 1.

    Example:
      >>> from rgo_jax import plots
      >>> figure = plots.task_accuracy_curves({"SGD": [[0.9, 0.0], [0.5, 0.9]]})
      >>> [line.get_ydata().tolist() for line in figure.axes[0].lines]
      [[90.0, 50.0], [90.0]]
    """
    _check_not_empty(r)
    figure = _figure(1.5 + 3 * len(r), 3.2)
    panels = figure.subplots(1, len(r), sharey=True, squeeze=False)[0]
    for axes, (label, accuracies) in zip(panels, r.items(), strict=True):
        _prepare(axes).set_title(label, parse_math=False)
        axes.set(xlabel="tasks learned", ylim=(0, 102))
        mean = _accuracies(accuracies).mean(axis=0)
        for task in range(len(mean)):
            tasks = np.arange(task + 1, len(mean) + 1)
            color = _colour(task, len(mean))
            axes.plot(tasks, mean[task:, task], marker=".", color=color, label=f"task {task + 1}")
    panels[0].set_ylabel("accuracy (%)")
    handles, labels = panels[-1].get_legend_handles_labels()
    # Of many, every so many: their colours change little by little.
    every = math.ceil(len(handles) / 10)
    figure.legend(handles[::every], labels[::every], loc="outside right upper", frameon=False)
    return figure


def accuracy_matrix(r: jax.typing.ArrayLike, *, title: str = "") -> "Figure":
    """R as a heat map: a row for each task learned, a column for each task tested.

    Args:
      r: as for `average_accuracy_curves`, of one method; of several seeds the mean is drawn.
        Entries that are NaN stay empty.
      title: of the figure.

    Returns:
      The figure.

    Raises:
      ImportError: matplotlib is not installed.
      ValueError: no accuracies, of another shape, or above 1.

    Example:
      >>> from rgo_jax import plots
      >>> figure = plots.accuracy_matrix([[0.9, float("nan")], [0.5, 0.9]], title="SGD")
      >>> [text.get_text() for text in figure.axes[0].texts]
      ['90', '50', '90']
    """
    mean = _accuracies(r).mean(axis=0)
    num_tasks = len(mean)
    axes = _axes(*2 * [min(1.5 + 0.45 * num_tasks, 8)])
    axes.grid(False)
    image = axes.imshow(mean, vmin=0, vmax=100, extent=(0.5, num_tasks + 0.5, num_tasks + 0.5, 0.5))
    axes.set_title(title, parse_math=False)
    axes.set(xlabel="accuracy on task", ylabel="tasks learned")
    axes.yaxis.set_major_locator(_whole_numbers())
    _figure_of(axes).colorbar(image, ax=axes, label="accuracy (%)", shrink=0.8)
    if num_tasks <= 12:  # more numbers could not be read
        for row, column in np.argwhere(np.isfinite(mean)):
            value = mean[row, column]
            color = "white" if value < 50 else "black"
            place = column + 1, row + 1
            axes.text(*place, f"{value:.0f}", color=color, ha="center", va="center", fontsize=8)
    return _figure_of(axes)


def spectra(stats: Sequence[Mapping[str, ProjectionStats]]) -> "Figure":
    """The eigenvalues of each P after each task: a panel for each parameter.

    1 is a direction in which the parameter is free, near 0 one that earlier tasks depend on.

    Args:
      stats: what `rgo_jax.projection_stats` tells before the first task, after it, after the
        second, and so on. Parameters with a single direction are left out.

    Returns:
      The figure.

    Raises:
      ImportError: matplotlib is not installed.
      ValueError: ``stats`` is no list of stats.

    Example:
      >>> import jax.numpy as jnp, rgo_jax
      >>> from rgo_jax import plots
      >>> state = rgo_jax.rgo(0.1).init({"kernel": jnp.zeros((2, 3))})
      >>> figure = plots.spectra([rgo_jax.projection_stats(state)])
      >>> figure.axes[0].lines[0].get_ydata().tolist()
      [1.0, 1.0]
    """
    paths = _drawn(stats)
    figure = _figure(1.5 + 3 * len(paths), 3.2)
    panels = figure.subplots(1, len(paths), sharey=True, squeeze=False)[0]
    for axes, path in zip(panels, paths, strict=True):
        _prepare(axes).set_title(path, parse_math=False)
        axes.set(xlabel="direction", yscale="log")
        for tasks, after in enumerate(stats):
            eigenvalues = np.asarray(after[path].eigenvalues)
            # Rounding can push the smallest just below zero.
            eigenvalues = np.maximum(eigenvalues, np.finfo(eigenvalues.dtype).eps)
            directions = np.arange(1, len(eigenvalues) + 1)
            color = _colour(tasks, len(stats))
            axes.plot(directions, eigenvalues, color=color, label=f"{tasks}")
    panels[0].set_ylabel("eigenvalue of P")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, title="tasks learned", loc="outside right upper", frameon=False)
    return figure


def remaining_room(stats: Sequence[Mapping[str, ProjectionStats]]) -> "Figure":
    """The share of directions that is left to learn in: a line for each parameter.

    Args:
      stats: as for `spectra`.

    Returns:
      The figure: effective rank over dimension, in percent.

    Raises:
      ImportError: matplotlib is not installed.
      ValueError: ``stats`` is no list of stats.

    Example:
      >>> import jax.numpy as jnp, rgo_jax
      >>> from rgo_jax import plots
      >>> state = rgo_jax.rgo(0.1).init({"kernel": jnp.zeros((2, 3))})
      >>> later = rgo_jax.rls_update(state, {"kernel": jnp.ones((2, 3))})
      >>> figure = plots.remaining_room([rgo_jax.projection_stats(s) for s in (state, later)])
      >>> [round(y) for y in figure.axes[0].lines[0].get_ydata()]
      [100, 52]
    """
    axes = _axes()
    for path in _drawn(stats):
        room = [100 * float(after[path].effective_rank) / after[path].dim for after in stats]
        axes.plot(range(len(room)), room, marker=".", label=path)
    axes.set(xlabel="tasks learned", ylabel="room left (%)", ylim=(0, 104))
    axes.legend(frameon=False)
    return _figure_of(axes)


def _drawn(stats: Sequence[Mapping[str, ProjectionStats]]) -> list[str]:
    """The paths of parameters with more than one direction."""
    if isinstance(stats, Mapping) or not stats or not stats[0]:
        found = f"a {type(stats).__name__} of length {len(stats)}"
        raise ValueError(
            f"stats is {found}; expected a list of rgo_jax.projection_stats(opt_state): of before "
            "the first task, of after it, and so on, with a parameter at least."
        )
    paths = [path for path, layer in stats[0].items() if layer.dim > 1]
    return paths or list(stats[0])


def _check_not_empty(r: Mapping[str, Any]) -> None:
    if not r:
        raise ValueError("No accuracies to draw. Expected R under the label of each method.")


def _accuracies(r: jax.typing.ArrayLike) -> np.ndarray:
    """In percent, ``[num_seeds, num_tasks, num_tasks]``."""
    r = 100 * np.asarray(r, np.float64)
    if r.ndim == 2:
        r = r[None]
    if r.ndim != 3 or r.shape[1] != r.shape[2] or not r.size:
        raise ValueError(
            f"R has shape {r.shape}; expected [num_tasks, num_tasks] or "
            "[num_seeds, num_tasks, num_tasks]."
        )
    if np.nanmax(r, initial=0) > 100:
        raise ValueError(
            f"R has accuracies of up to {np.nanmax(r) / 100:g}; expected 0 to 1. Divide by 100."
        )
    return r


def _figure(width: float, height: float) -> "Figure":
    try:
        figure = importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise ImportError(
            "rgo_jax.plots needs matplotlib, which is not installed. Run: pip install matplotlib"
        ) from error
    return figure.Figure(figsize=(width, height), dpi=100, layout="constrained")


def _axes(width: float = 6, height: float = 4) -> "Axes":
    return _prepare(_figure(width, height).subplots())


def _colour(number: int, count: int) -> tuple[float, float, float, float]:
    """From dark to bright."""
    colormaps = importlib.import_module("matplotlib").colormaps
    return cast("tuple[float, float, float, float]", colormaps["viridis"](0.9 * number / count))


def _figure_of(axes: "Axes") -> "Figure":
    """The whole figure, of which these axes may be in a part."""
    return axes.figure.figure


def _prepare(axes: "Axes") -> "Axes":
    axes.grid(alpha=0.3)
    axes.xaxis.set_major_locator(_whole_numbers())
    return axes


def _whole_numbers() -> Any:
    return importlib.import_module("matplotlib.ticker").MaxNLocator(integer=True)
