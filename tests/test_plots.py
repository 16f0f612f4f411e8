"""Pictures hold the numbers they were given, and nothing else is changed."""

import subprocess
import sys

import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import pytest

import rgo_jax
from rgo_jax import plots

R = np.array([[0.9, np.nan, np.nan], [0.5, 0.8, np.nan], [0.4, 0.6, 0.7]])


def stats(num_tasks=2):
    """Before the first task and after each: more and more of a kernel's directions are taken."""
    state = rgo_jax.rgo(0.1).init({"bias": jnp.zeros(1), "kernel": jnp.zeros((4, 2))})
    found = [rgo_jax.projection_stats(state)]
    for task in range(num_tasks):
        grads = {"bias": jnp.ones(1), "kernel": jnp.zeros((4, 2)).at[task].set(1.0)}
        state = rgo_jax.rls_update(state, grads)
        found.append(rgo_jax.projection_stats(state))
    return found


def lines(figure):
    return [
        (line.get_label(), np.asarray(line.get_xdata()), np.asarray(line.get_ydata()))
        for axes in figure.axes
        for line in axes.lines
    ]


def test_average_accuracy():
    ((label, x, y),) = lines(plots.average_accuracy_curves({"SGD": np.stack([R, R - 0.1])}))
    assert label == "SGD"
    np.testing.assert_array_equal(x, [1, 2, 3])
    np.testing.assert_allclose(y, [85, 60, 100 * (0.4 + 0.6 + 0.7) / 3 - 5])


def test_the_band_is_one_standard_deviation():
    figure = plots.average_accuracy_curves({"SGD": np.stack([R, R - 0.1])})
    (band,) = figure.axes[0].collections
    heights = np.ptp(band.get_paths()[0].vertices[:, 1][[1, -2]])
    np.testing.assert_allclose(heights, 2 * np.std([90, 80], ddof=1))


def test_a_line_ends_where_accuracies_do():
    ended = np.where(np.arange(3)[:, None] < 2, R, np.nan)
    ((_, _, y),) = lines(plots.average_accuracy_curves({"SGD": ended}))
    np.testing.assert_allclose(y, [90, 65, np.nan])


def test_styles_and_axes_of_ones_own():
    figure = mpl.figure.Figure()
    axes = figure.add_subplot()
    styles = {"A": {"color": "red", "linestyle": "--"}}
    assert plots.average_accuracy_curves({"A": R, "B": R}, styles=styles, axes=axes) is figure
    first, second = axes.lines
    assert (first.get_color(), first.get_linestyle()) == ("red", "--")
    assert second.get_linestyle() == "-"
    assert axes.get_legend() is None


def test_accuracy_of_each_task():
    figure = plots.task_accuracy_curves({"SGD": R, "RGO": R + 0.1})
    assert [axes.get_title() for axes in figure.axes] == ["SGD", "RGO"]
    found = lines(figure)
    assert [label for label, *_ in found] == ["task 1", "task 2", "task 3"] * 2
    np.testing.assert_allclose(found[0][2], [90, 50, 40])
    np.testing.assert_array_equal(found[1][1], [2, 3])
    np.testing.assert_allclose(found[4][2], [90, 70])


def test_accuracy_matrix():
    figure = plots.accuracy_matrix(np.stack([R, R - 0.2]), title="SGD")
    axes = figure.axes[0]
    np.testing.assert_allclose(axes.images[0].get_array().filled(np.nan), 100 * (R - 0.1))
    assert [text.get_text() for text in axes.texts] == ["80", "40", "70", "30", "50", "60"]
    assert len(plots.accuracy_matrix(np.ones((20, 20))).axes[0].texts) == 0  # could not be read


def test_spectra():
    before, first, second = stats()
    figure = plots.spectra([before, first, second])
    assert [axes.get_title() for axes in figure.axes] == [
        "kernel"
    ]  # a bias of one direction has none
    found = lines(figure)
    assert [label for label, *_ in found] == ["0", "1", "2"]
    for (_, _, y), layer in zip(found, (before, first, second), strict=True):
        np.testing.assert_allclose(y, layer["kernel"].eigenvalues, rtol=1e-6)
    # From the default alpha: 0.01 / 1.01 where a vector of length 1 has been folded in.
    np.testing.assert_allclose(found[2][2], [0.01 / 1.01, 0.01 / 1.01, 1, 1], rtol=1e-4)


def test_remaining_room():
    ((label, x, y),) = lines(plots.remaining_room(stats()))
    assert label == "kernel"
    np.testing.assert_array_equal(x, [0, 1, 2])
    assert y[0] == pytest.approx(100, abs=1e-3)
    assert 50 < y[2] < y[1] < y[0]


@pytest.mark.parametrize("draw", [plots.spectra, plots.remaining_room])
def test_what_is_no_list_of_stats(draw):
    for wrong in ([], [{}], stats()[0]):
        with pytest.raises(ValueError, match=r"expected a list of rgo_jax\.projection_stats"):
            draw(wrong)


def test_accuracies_in_percent_and_none_at_all():
    with pytest.raises(ValueError, match=r"accuracies of up to 90; expected 0 to 1. Divide by 100"):
        plots.accuracy_matrix(100 * R)
    for draw in (plots.task_accuracy_curves, plots.average_accuracy_curves):
        with pytest.raises(ValueError, match="Expected R under the label of each method"):
            draw({})


def test_many_tasks_have_colours_of_their_own():
    figure = plots.task_accuracy_curves({"SGD": np.ones((20, 20))})
    assert len({line.get_color() for line in figure.axes[0].lines}) == 20
    assert len(figure.legends[0].get_texts()) == 10


def test_axes_of_a_part_of_a_figure():
    figure = mpl.figure.Figure()
    axes = figure.subfigures(1, 2)[0].add_subplot()
    assert plots.average_accuracy_curves({"A": R}, axes=axes) is figure


@pytest.mark.parametrize("shape", [(3,), (2, 3), (0, 0), (2, 2, 2, 2)])
def test_what_is_no_matrix_of_accuracies(shape):
    for draw in (
        plots.accuracy_matrix,
        lambda r: plots.average_accuracy_curves({"SGD": r}),
        lambda r: plots.task_accuracy_curves({"SGD": r}),
    ):
        with pytest.raises(ValueError, match="R has shape"):
            draw(np.zeros(shape))


def test_nothing_else_is_changed():
    before = dict(mpl.rcParams)
    plots.accuracy_matrix(R).savefig("/dev/null", format="png")
    plots.spectra(stats()).savefig("/dev/null", format="svg")
    assert dict(mpl.rcParams) == before


def test_without_matplotlib():
    """The library and its plots are imported without it; drawing tells what to install."""
    program = """
import sys
sys.modules["matplotlib"] = sys.modules["matplotlib.figure"] = None
from rgo_jax import plots
try:
    plots.accuracy_matrix([[1.0]])
except ImportError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "pip install matplotlib" in done.stdout
