"""A run whose loss is not finite is told as such, wherever its accuracy would be."""

import json

import numpy as np
import pytest

from benchmarks import __main__ as cli
from benchmarks.methods import METHODS
from benchmarks.report import ablation, figures, heads_and_fel, markup, merging, tables
from benchmarks.report import pages as report
from benchmarks.run import results
from tests.benchmarks.made_results import diverge, make_result
from tests.benchmarks.problems import head_of

TINY = ["--num-tasks", "2", "--examples-per-task", "50", "--epochs", "1", "--seeds", "2"]
QUICK = {"num_tasks": 3}


def no_constant(name):
    raise AssertionError(f"{name} is not JSON")


@pytest.mark.parametrize(
    "method",
    ["sgd", *(pytest.param(m, marks=pytest.mark.slow) for m in METHODS if m != "sgd")],
)
def test_a_diverged_run_says_so(tmp_path, capsys, method):
    argv = ["run", "permuted-digits", "--methods", method, "--learning-rate", "1e30", *TINY]
    argv += ["--head", head_of(method)]
    assert cli.main([*argv, "--out", str(tmp_path)]) == 0
    told = f"permuted-digits, {method}: seeds 0, 1 diverged: the loss is not finite. Choose a "
    told += "--learning-rate below 1e+30."
    shown = " ".join(capsys.readouterr().out.split())
    assert told in shown
    assert "task 1/2, diverged" in shown
    assert "diverged" in shown.split("percent after the last task")[1].split(told)[0]

    (path,) = tmp_path.glob("*/*.json")
    content = json.loads(path.read_text(), parse_constant=no_constant)
    assert content["losses"][0][1] is None
    assert content["r"][0][1] == [None, None]  # not that of the first class, 10 percent
    (result,) = results.load_all(tmp_path)
    assert result.diverged.all()
    assert np.isnan([result.acc, result.bwt, result.train_acc]).all()

    assert cli.main(["report", str(tmp_path)]) == 0
    assert told in " ".join(capsys.readouterr().out.split())
    row = (
        "- | 2 | diverged | - | - | - |" if method == "stl" else "| 2 | diverged | - | - | diverged"
    )
    assert row in (tmp_path / "README.md").read_text()


def test_seeds_that_learned_are_not_averaged_with_those_that_did_not():
    whole = make_result("rgo", 80, "permuted-mnist", train=90, **QUICK)
    part = diverge(whole, [1], task=1)
    assert part.diverged.tolist() == [False, True, False]
    np.testing.assert_array_equal(part.acc[[0, 2]], whole.acc[[0, 2]])
    assert np.isnan([part.acc[1], part.bwt[1], part.train_acc[1]]).all()
    assert markup.mean_and_spread(part.acc) == "1 of 3 diverged"
    assert markup.mean_and_spread(diverge(whole, [0, 1, 2]).acc) == "diverged"
    assert markup.difference(part.acc, 90.0) == "-"
    assert not tables.is_far(part.acc, 10.0)
    # What had been learned before is known.
    np.testing.assert_array_equal(np.isnan(part.r)[1, :, 0], [False, True, True])
    np.testing.assert_allclose(part.r[1, 0, 0], 0.81)
    (told,) = report.divergences([whole, part])
    assert told.startswith("permuted-mnist, rgo: seed 1 diverged: the loss")
    # In one result with others, too.
    later = make_result("rgo", 80, "permuted-mnist", **QUICK)._replace(seeds=[3, 4, 5])
    (joined,) = merging.merge([part, later])
    assert joined.diverged.tolist() == [False, True, False, False, False, False]


def test_a_loss_that_was_infinite_for_a_while_is_no_result():
    result = make_result("sgd", 50, "permuted-digits", seeds=1, **QUICK)
    losses = np.array([[1.0, np.inf, 1.0]])
    assert result._replace(measured=result.measured._replace(losses=losses)).diverged.all()


def test_what_a_diverged_run_is_saved_as_is_read_as_the_same(tmp_path):
    part = diverge(make_result("rgo", 80, "permuted-digits", train=90, **QUICK), [1], task=1)
    found = results.load(results.save(part, tmp_path))
    for name in ("r", "losses", "train"):
        np.testing.assert_allclose(
            getattr(found.measured, name), getattr(part.measured, name), atol=1e-6
        )


def line(text, *words):
    (found,) = (row for row in text.splitlines() if all(f"| {word} |" in row for word in words))
    return found


def test_tables_tell_it():
    stl, rgo = make_result("stl", 75, train=80), make_result("rgo", 80, train=90)
    for found in ([diverge(rgo, [0, 1, 2]), stl], [rgo, diverge(stl, [0, 1, 2])]):
        text = tables.papers_tables(found)
        gain = line(text.split("## Table 2")[1], "split-cifar100", "lenet-5-no-pool", "RGO")
        assert "| +6.02 | diverged | - |" in gain
        assert "nan" not in text
    row = line(tables.papers_tables([diverge(rgo, [1])]).split("## Table 3")[1], "RGO", "lenet-5")
    assert "| 81.03 | 1 of 3 diverged | - | -0.99 | 1 of 3 diverged | - | 1 of 3 diverged |" in row

    mnist = [
        make_result("rgo", 80, "permuted-mnist"),
        make_result("rgo", 70, "permuted-mnist", alpha=1.0),
    ]
    for found, cell in (
        ([mnist[0], diverge(mnist[1], [0])], "1 of 3 diverged"),
        ([diverge(mnist[0], [0]), mnist[1]], "71.00 ± 1.00 / 0.00 ± 0.00"),
    ):
        assert f"| alpha = 1, as in the paper's text | {cell} |" in ablation.markdown(found)

    ways = [
        make_result("gpm", 60, "permuted-mnist"),
        make_result("gpm", 65, "permuted-mnist", fel=True),
    ]
    text = heads_and_fel.markdown([ways[0], diverge(ways[1], [0, 1, 2])])
    assert "| 61.00 ± 1.00 / 0.00 | diverged |" in text


def test_figures_end_where_it_diverged():
    whole = make_result("rgo", 80, "permuted-mnist")
    found = [
        diverge(whole, [1], task=5),
        diverge(make_result("sgd", 50, "permuted-mnist"), [0, 1, 2]),
    ]
    figure = figures.accuracy("permuted-mnist", found)
    for drawn in (figure, figures.figure_1(found)):
        drawn.canvas.draw()
    (axes,) = figure.axes
    rgo, sgd = axes.get_lines()
    assert np.isfinite(rgo.get_ydata()).sum() == 5
    assert not np.isfinite(sgd.get_ydata()).any()
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["RGO, 1 of 3 diverged", "SGD, diverged"]


def test_figure_1_has_a_panel_for_what_has_been_run():
    assert figures.figure_1([make_result("rgo", 80)]) is None  # none of Table 1
    found = [make_result("rgo", 90, "permuted-mnist"), make_result("sgd", 40, "rotated-mnist")]
    found.append(make_result("rgo", 70, protocol="table-1"))
    for count in (1, 2, 3):
        titles = [axes.get_title() for axes in figures.figure_1(found[:count]).axes]
        assert titles == [
            "permuted-mnist, mlp", "rotated-mnist, mlp", "split-cifar100, resnet-18",
        ][:count]  # fmt: skip
