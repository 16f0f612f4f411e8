import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks.methods import METHODS
from benchmarks.networks.architectures import ARCHITECTURES
from benchmarks.presets import BENCHMARKS
from benchmarks.report import figures, heads_and_fel, markup, measures, merging, paper, tables
from benchmarks.report import pages as report
from benchmarks.run import results
from tests.benchmarks.made_results import make_result
from tests.benchmarks.markdown import rows, section

RESULTS = [make_result("rgo", 80, train=95), make_result("stl", 75), make_result("sgd", 50)]


def test_what_the_paper_has_and_we_have_not_is_told():
    text = tables.papers_tables([])
    assert "+" not in text.split("## Table")[1]  # no difference anywhere
    for row in rows(section(text, "Table 1"), "RGO"):
        assert row[2:7] == ["RGO", "authors", "paper", row[5], "not yet run"]
    assert len(rows(section(text, "Table 1"), "RGO")) == 4
    assert len(rows(section(text, "Table 1"), "GPM", "harness")) == 3
    assert len(rows(section(text, "Table 2"), "RGO", "lenet-5-no-pool", "not yet run")) == 2
    # Once each, with the networks that the authors trained them with.
    stl = rows(section(text, "Table 3"), "STL", "authors")
    assert [row[1] for row in stl] == [
        "lenet-5-no-pool", "alexnet-6", "vgg-11", "vgg-13",
        "alexnet-7-narrow", "vgg-11", "vgg-13", "resnet-18-batch-norm",
    ]  # fmt: skip


def test_memory_of_rgo_is_the_same_for_any_number_of_tasks():
    text = section(tables.papers_tables([]), "What is kept of the past")
    found = {}
    for label in (spec.label for spec in METHODS.values()):
        ((_, *cells),) = rows(text, label)
        found[label] = [float(cell) for cell in cells]
    # Each layer's P: its kernel's and its bias's.
    layers = [(784, 256), (256, 256), (256, 10)]
    mib = 4 * sum(d**2 + m**2 for d, m in layers) / 2**20
    np.testing.assert_allclose(found["RGO"], [mib] * 3, atol=0.005)
    for method in ("A-GEM", "ER-Ring"):
        first = found[method][0]
        np.testing.assert_allclose(found[method], [first, 2 * first, 4 * first], atol=0.03)
    # A model for each task but one is beside the network.
    np.testing.assert_allclose(found["STL"], found["STL"][0] / 9 * np.array([9, 19, 39]), rtol=0.01)


def test_ours_stands_beside_the_papers():
    (row,) = rows(section(tables.papers_tables(RESULTS), "Table 3"), "RGO", "lenet-5")
    assert row == [
        "split-cifar100", "lenet-5", "RGO", "authors", "paper", "81.03", "81.00 ± 1.00", "-0.03",
        "-0.99", "0.00 ± 0.00", "**+0.99**", "95.00 ± 0.00", "14.00 ± 1.00", "3", "d", "1.5",
    ]  # fmt: skip


def test_methods_and_presets_that_the_paper_lacks_have_rows_of_their_own():
    text = tables.papers_tables([*RESULTS, make_result("rgo", 85, preset="recommended")])
    table_3 = section(text, "Table 3")
    (row,) = rows(table_3, "SGD")
    assert row[1] == "lenet-5-no-pool"
    assert (row[5], row[6]) == ("-", "51.00 ± 1.00")
    (row,) = rows(table_3, "RGO", "recommended")
    assert row[5:8] == ["81.03", "86.00 ± 1.00", "**+4.97**"]


def test_stl_with_the_authors_network_stands_beside_the_papers_and_with_rgos_beside_nothing():
    both = [make_result("stl", 75), make_result("stl", 77, network="lenet-5")]
    own, ours = rows(section(tables.papers_tables(both), "Table 3"), "STL", "split-cifar100")[:2]
    assert own[1:8] == [
        "lenet-5-no-pool", "STL", "authors", "paper", "75.01", "76.00 ± 1.00", "+0.99",
    ]  # fmt: skip
    assert ours[1:8] == ["lenet-5", "STL", "authors", "paper", "-", "78.00 ± 1.00", "-"]
    assert paper.numbers(paper.setting_of(both[0]), "stl") == (75.01, None)
    assert paper.numbers(paper.setting_of(both[1]), "stl") == (None, None)
    assert paper.numbers(paper.setting_of(both[1]), "rgo") == (81.03, -0.99)
    # No BWT of a model per task.
    assert own[8:11] == ours[8:11] == ["-", "-", "-"]


def test_gain_over_a_model_per_task():
    few = [make_result("rgo", 80, seeds=5), make_result("stl", 75)]
    # Against the same seeds; there are five of RGO and three of STL.
    (row,) = rows(section(tables.papers_tables(few), "Table 2"), "RGO", "split-cifar100")
    assert row[1:8] == [
        "lenet-5-no-pool", "RGO", "paper", "+6.02", "+5.00 ± 0.00", "**-1.02**", "3",
    ]  # fmt: skip
    others = [make_result("rgo", 80), make_result("stl", 75)._replace(seeds=[3, 4, 5])]
    (row,) = rows(section(tables.papers_tables(others), "Table 2"), "RGO", "split-cifar100")
    assert row[4:6] == ["+6.02", "not yet run"]
    text = section(tables.papers_tables(RESULTS), "Table 2")
    (row,) = rows(text, "RGO", "split-cifar100")
    assert row[4:8] == ["+6.02", "+5.00 ± 0.00", "**-1.02**", "3"]


def test_gain_over_a_model_per_task_with_the_same_network_has_no_number_of_the_papers():
    found = [*RESULTS, make_result("stl", 78, network="lenet-5")]
    text = section(tables.papers_tables(found), "Table 2")
    theirs, ours = rows(text, "RGO", "split-cifar100")
    assert theirs[1:7] == [
        "lenet-5-no-pool", "RGO", "paper", "+6.02", "+5.00 ± 0.00", "**-1.02**",
    ]  # fmt: skip
    assert ours[1:7] == ["lenet-5", "RGO", "paper", "-", "+2.00 ± 0.00", "-"]
    # Of another method there is no number either, and it is in the table with RGO's network.
    found = [make_result("sgd", 50, network="lenet-5"), *RESULTS]
    (row,) = rows(section(tables.papers_tables(found), "Table 2"), "SGD")
    assert row[1:7] == ["lenet-5-no-pool", "SGD", "paper", "-", "-25.00 ± 0.00", "-"]


def test_gain_names_the_devices_of_both():
    on_gpu = make_result("stl", 75)
    on_gpu = on_gpu._replace(provenance=on_gpu.provenance | {"device": "d; a GPU"})
    text = section(tables.papers_tables([RESULTS[0], on_gpu]), "Table 2")
    (row,) = rows(text, "RGO", "split-cifar100")
    assert row[-2:] == ["d; a GPU", "3.0"]


def test_figure_1_has_the_result_of_table_1():
    whole = make_result("rgo", 90, benchmark="permuted-mnist", seeds=5)
    other = make_result("rgo", 10, benchmark="permuted-mnist", seeds=1)._replace(seeds=[3])
    (axes,) = figures.figure_1([whole, other]).axes
    (line,) = axes.get_lines()
    np.testing.assert_allclose(line.get_ydata(), 92)


def test_gain_of_a_preset_over_a_model_per_task_trained_alike():
    def recommended(method, acc, **config):
        return make_result(method, acc, preset="recommended", **config)._replace(changes={})

    def gains(*results):
        text = section(tables.papers_tables(results), "Table 2")
        return [row[5] for row in rows(text, "RGO", "recommended")]

    decayed, alone = recommended("rgo", 85, schedule="cosine", alpha=0.1), RESULTS[1]
    assert gains(decayed, alone) == []  # that one had another schedule
    assert gains(decayed, alone, recommended("stl", 78, schedule="cosine")) == ["+7.00 ± 0.00"]
    assert gains(recommended("rgo", 85, label_smoothing=0.1), alone) == []
    # What a preset changes of RGO only does not matter to a model per task.
    assert gains(recommended("rgo", 85, alpha=0.1), alone) == ["+10.00 ± 0.00"]


@pytest.mark.parametrize("change", [{"head": "shared"}, {"num_tasks": 5}, {"fel": True}])
def test_other_settings_have_no_place(change):
    changed = make_result("rgo", 33, **change)
    assert not tables.have_a_row([changed])
    assert "34.00" not in tables.papers_tables([changed])


def test_network_and_epochs_find_their_row():
    other = make_result("rgo", 70, protocol="table-1")
    (row,) = rows(section(tables.papers_tables([other]), "Table 1"), "RGO", "resnet-18", "73.18")
    assert row[6] == "71.00 ± 1.00"


def test_many_variants_can_be_told_apart_in_a_figure():
    variants = [
        make_result("rgo", acc, alpha=acc, schedule="cosine", validation=True)
        for acc in range(1, 10)
    ]
    title = "split-$a_{$.npz"  # no mathematics
    fig = figures.accuracy(title, variants)
    (axes,) = fig.axes
    assert axes.get_title() == title
    looks = {(line.get_color(), line.get_linestyle()) for line in axes.get_lines()}
    assert len(looks) == len(variants)
    fig.canvas.draw()
    inside, legend = axes.get_window_extent(), axes.get_legend().get_window_extent()
    assert inside.width > legend.width
    assert 0 <= legend.y0 < legend.y1 <= fig.bbox.height


def test_names_do_not_break_tables():
    assert markup.table(["a"], [["x | y"]])[-1] == r"| x \| y |"
    assert markup.code("python x") == "`python x`"
    assert markup.code("echo `x`") == "`` echo `x` ``"


def test_networks_and_their_projections():
    text = section(tables.papers_tables([]), "The networks")
    (row,) = rows(text, "lenet-5")
    # By hand: all layers, and 20 heads of 5 classes; P of each kernel and bias, and of no head.
    layers = [(75, 20), (500, 50), (2450, 800), (800, 500)]
    parameters = sum(d * m for d, m in layers) + 800 + 500 + 20 * (500 * 5 + 5)
    sides = [d for d, _ in layers] + [800, 500]
    assert row == [
        "lenet-5",
        "32 x 32 x 3",
        f"{parameters:,}",
        f"{parameters * 4 / 2**20:.1f}",
        f"{sum(d * d for d in sides) * 4 / 2**20:.1f}",
    ]
    assert [line.split("|")[1].strip() for line in text.splitlines() if "32 x 32" in line] == [
        name for name, network in ARCHITECTURES.items() if network.input_shape == (32, 32, 3)
    ]


@pytest.mark.parametrize(
    ("ours", "theirs", "far"),
    [
        ([80.0, 81, 82], 83.0, False),
        ([80.0, 81, 82], 83.1, True),
        ([80.0, 81, 82], 78.9, True),
        ([80.0], 50.0, False),
        ([80.0, 81, 82], None, False),
    ],
)
def test_two_standard_deviations(ours, theirs, far):
    assert tables.is_far(np.array(ours), theirs) is far


def test_every_difference_from_the_paper_has_a_note():
    """Of the committed results: a section of the notes for each benchmark and method."""
    folder = Path(tables.__file__).parents[1] / "results"
    headings = [line for line in (folder / "NOTES.md").read_text().splitlines() if "## " in line]
    # "benchmark: RGO, SGD and STL, with LeNet-5" is of three methods.
    noted = {
        (heading.split(": ")[0].removeprefix("## "), label)
        for heading in headings
        if ": " in heading
        for label in re.split(", (?!by the letter)| and ", heading.split(": ")[1])
    }
    literal = [
        result
        for result in merging.merge(results.load_all(folder))
        if paper.is_literal(result) and result.preset == "paper"
    ]
    far = [
        (result.benchmark, METHODS[result.method].label)
        for result in literal
        for ours, theirs in zip(
            (result.acc, result.bwt),
            paper.numbers(paper.setting_of(result), result.method),
            strict=True,
        )
        if tables.is_far(ours, theirs)
    ]
    assert ("permuted-mnist", "EWC") in far
    assert set(far) <= noted, f"{folder / 'NOTES.md'} has no section for {set(far) - noted}"


def test_the_papers_tables_name_what_there_is():
    for table in (paper.TABLE_1, paper.TABLE_2, paper.TABLE_3):
        for setting in table:
            assert setting.benchmark in BENCHMARKS
            assert setting.network in ARCHITECTURES
    for methods in (paper.TABLE_1 | paper.TABLE_3).values():
        assert methods.keys() <= METHODS.keys()


def test_a_resumed_result_names_both_commits():
    first = RESULTS[0].provenance | {"versions": {"jax": "1"}}
    second = first | {"commit": "y" * 40 + " with local changes", "before_resuming": [first]}
    text = report.markdown([RESULTS[0]._replace(provenance=second)], {"split-cifar100": "f"})
    assert f"| {'x' * 10}, then {'y' * 10} with local changes | d | jax 1 |" in text


def test_report_writes_tables_and_figure_1_where_there_is_a_row(tmp_path):
    found = [*RESULTS, make_result("rgo", 90, "permuted-mnist")]
    for result in found:
        results.save(result, tmp_path)
    text = report.write(results.load_all(tmp_path), tmp_path).read_text()
    assert "[TABLES.md](TABLES.md)" in text
    assert "NOTES.md" not in text
    assert (tmp_path / "TABLES.md").read_text() == tables.papers_tables(found, "figure-1.png")
    in_order = [found[-1], *RESULTS]
    assert (tmp_path / "MEASURES.md").read_text() == measures.markdown(in_order)
    assert (tmp_path / "figure-1.png").read_bytes()[:4] == b"\x89PNG"
    first = (tmp_path / "figure-1.svg").read_text()
    (tmp_path / "NOTES.md").write_text("why")
    assert "[NOTES.md](NOTES.md)" in report.write(found, tmp_path).read_text()
    assert (tmp_path / "figure-1.svg").read_text() == first

    own = tmp_path / "own"
    results.save(make_result("rgo", 33, num_tasks=5), own)
    assert "TABLES.md" not in report.write(results.load_all(own), own).read_text()
    assert sorted(path.name for path in own.iterdir()) == ["README.md", "split-cifar100"]


def test_rgo_2_is_rgo_without_fel_and_others_are_with_it_on_demand():
    found = [
        make_result("rgo", 80, "permuted-mnist", head="shared"),
        make_result("rgo", 85, "permuted-mnist", head="masked"),  # not a matter of this table
        make_result("rgo-2", 70, "permuted-mnist", head="shared"),
        make_result("gpm", 60, "permuted-mnist", head="shared"),
        make_result("gpm", 20, "permuted-mnist", head="shared", seeds=2),  # fewer seeds
        make_result("gpm", 65, "permuted-mnist", head="shared", fel=True),
        make_result("gpm", 66, "permuted-mnist", head="per_task", fel=True),
        make_result("gpm", 30, "permuted-mnist", head="shared", epochs=2),
        make_result("sgd", 40, "permuted-mnist", head="shared"),  # nothing to compare with
    ]
    text = heads_and_fel.markdown(found)
    (header,) = rows(text, "method")
    assert header[2:] == ["shared", "shared, FEL", "per_task", "per_task, FEL"]
    (rgo,) = rows(text, "RGO")
    assert [cell[:5] for cell in rgo[2:]] == ["71.00", "81.00", "-", "-"]
    (gpm,) = rows(text, "GPM")
    assert [cell[:5] for cell in gpm[2:]] == ["61.00", "66.00", "-", "67.00"]
    assert gpm[2].endswith(" / 0.00")
    assert not rows(text, "RGO-2")
    assert not rows(text, "SGD")
    assert heads_and_fel.markdown(found[-2:]) == ""
