"""What each choice of the authors' program is worth: what is run, and the table of it."""

import dataclasses

import numpy as np
import pytest

from benchmarks import __main__ as cli
from benchmarks import presets
from benchmarks.methods import METHODS
from benchmarks.presets import ablation
from benchmarks.presets.ablation import BENCHMARKS, CHANGES, METHODS_ABLATED, Change
from benchmarks.report.ablation import markdown
from benchmarks.run import results
from benchmarks.run.measurements import no_measurements
from tests.benchmarks.made_results import ORIGIN

TINY = {"num_tasks": 2, "examples_per_task": 100, "epochs": 1}
OF_FEL = {"fel_on_input", "fel_per_layer", "fel_on_first_task"}


def names_of(benchmark, method):
    """What is changed of a method, one set of names for each case."""
    found = ablation.cases(benchmark, METHODS_ABLATED)
    return [set(change.fields) for change, of_method in found if of_method == method]


def test_cases_are_those_that_mean_something():
    assert len(CHANGES) > 10
    everything = [set(change.fields) for change in CHANGES]
    assert names_of("rotated-mnist", "rgo") == everything
    # Images that are not rotated are not interpolated, and RGO-2 has no FEL.
    unrotated = [names for names in everything if "interpolation" not in names]
    assert len(unrotated) == len(everything) - 1
    assert names_of("permuted-mnist", "rgo") == unrotated
    for benchmark in BENCHMARKS:
        without_fel = [n for n in names_of(benchmark, "rgo") if not n or not n <= OF_FEL]
        assert names_of(benchmark, "rgo-2") == without_fel
        assert len(without_fel) == len(names_of(benchmark, "rgo")) - 3
    # The authors' program itself comes first.
    first = next(ablation.cases("permuted-mnist", METHODS_ABLATED))
    assert first == (Change("the authors' program", {}), "rgo")


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_each_change_changes_the_experiment(benchmark):
    known = {field.name for field in dataclasses.fields(presets.Config)} | {
        field.name for field in dataclasses.fields(METHODS["rgo"].options)
    }
    seen: dict = {method: [] for method in METHODS_ABLATED}
    for change, method in ablation.cases(benchmark, METHODS_ABLATED):
        assert set(change.fields) <= known, change.label
        plain = presets.config(benchmark, method=METHODS[method])
        changed = presets.config(benchmark, method=METHODS[method], **change.fields)
        differing = {name for name in plain.flat if changed.flat[name] != plain.flat[name]}
        assert differing == set(change.fields), change.label
        assert changed not in seen[method], change.label
        seen[method].append(changed)
    assert len({change.label for change in CHANGES}) == len(CHANGES)


@pytest.fixture
def two_changes(monkeypatch):
    """The whole and one change, on a benchmark that takes a moment."""
    monkeypatch.setattr(ablation, "CHANGES", (CHANGES[0], Change("weak", {"alpha": 50.0})))
    protocol = presets.PROTOCOLS["permuted", "digits"]["small"] | TINY
    monkeypatch.setitem(presets.PROTOCOLS, ("permuted", "digits"), {"small": protocol})


def row_of(folder, label):
    lines = (folder / "ABLATION.md").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"| {label} |"))
    return [cell.strip() for cell in line.split("|")[2:-1]]


@pytest.mark.slow
def test_command_line(two_changes, tmp_path):
    argv = ["run", "--ablation", "permuted-digits", "--methods", "rgo", "--seeds", "2"]
    argv += ["--out", str(tmp_path)]
    assert cli.main(argv) == 0
    found = {result.changes.get("alpha"): result for result in results.load_all(tmp_path)}
    assert set(found) == {None, 50.0}
    whole, weak = found[None], found[50.0]
    assert whole.changes == {}
    assert whole.config.options | {"alpha": 50.0} == weak.config.options
    assert whole.provenance["command"].startswith(
        "python -m benchmarks run --ablation permuted-digits "
    )

    assert cli.main(["report", str(tmp_path)]) == 0
    assert "[ABLATION.md](ABLATION.md)" in (tmp_path / "README.md").read_text()
    (cell,) = row_of(tmp_path, "the authors' program")
    expected = [f"{x.mean():.2f} ± {x.std(ddof=1):.2f}" for x in (whole.acc, whole.bwt)]
    assert cell == " / ".join(expected)
    (cell,) = row_of(tmp_path, "weak")
    assert cell.startswith(f"{weak.acc.mean():.2f} ± ")
    assert f"{weak.acc.mean() - whole.acc.mean():+.2f}" in cell
    # Nothing of it is in the paper.
    assert row_of(tmp_path, "*the paper*") == ["- / -"]

    # What has been run is not run again.
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*.json")}
    assert cli.main([*argv, "--resume"]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*.json")}


@pytest.mark.slow
def test_a_change_that_the_preset_has_already_is_not_run_again(two_changes, tmp_path, monkeypatch):
    same, smaller = Change("the same", {"alpha": 0.01}), Change("smaller", {"alpha": 0.001})
    monkeypatch.setattr(ablation, "CHANGES", (CHANGES[0], same, smaller))
    runs = []

    def run(job, *args):
        runs.append((job.method, job.changes, job.config.options["alpha"]))
        return make_result([90], method=job.method, benchmark="permuted-digits", **job.changes)

    monkeypatch.setattr(cli.Job, "run", run)
    argv = ["run", "--ablation", "permuted-digits", "--seeds", "1", "--out", str(tmp_path)]
    assert cli.main(argv) == 0
    # Of both methods, unless others are named.
    whole = [("rgo", {}, 0.01), ("rgo-2", {}, 0.01)]
    changed = {"alpha": 0.001}
    assert runs == [*whole, ("rgo", changed, 0.001), ("rgo-2", changed, 0.001)]
    runs.clear()
    # What the user changes is changed in every case, the change of the case aside.
    assert cli.main([*argv, "--methods", "rgo-2", "--epochs", "2", "--alpha", "3"]) == 0
    assert runs == [
        ("rgo-2", {"epochs": 2, "alpha": 3.0}, 3.0),
        ("rgo-2", {"epochs": 2}, 0.01),
        ("rgo-2", {"epochs": 2, "alpha": 0.001}, 0.001),
    ]


def make_result(accs, seeds=None, method="rgo", benchmark="permuted-mnist", **changes):
    """A result with such an ACC, in percent, of each seed, and a BWT of -1."""
    num_seeds = len(accs)
    r = np.array([[[a / 100 + 0.01, np.nan], [a / 100, a / 100]] for a in accs])
    return results.Result(
        method=method,
        config=presets.config(benchmark, method=METHODS[method], **changes),
        changes=changes,
        seeds=list(range(num_seeds) if seeds is None else seeds),
        measured=no_measurements(num_seeds, 2)._replace(r=r),
        memory_bytes=1,
        data="d",
        provenance=ORIGIN,
    )


def cells(found, label):
    (line,) = (x for x in markdown(found).splitlines() if x.startswith(f"| {label}"))
    return [cell.strip() for cell in line.split("|")[2:-1]]


def test_differences_are_of_the_same_seeds():
    whole = make_result([90, 92, 94])
    clear = make_result([89, 91, 93.1], alpha=1.0)
    (cell,) = cells([whole, clear], "alpha = 1")
    assert cell == "91.03 ± 2.05 / -1.00 ± 0.00 (**-0.97**)"
    assert cells([whole, clear], "*the paper*") == ["91.15 / -2.05"]
    # Not clear, though each by itself is far from the mean.
    (cell,) = cells([whole, make_result([91, 91, 94.3], alpha=1.0)], "alpha = 1")
    assert cell.endswith("(+0.10)")
    # Only the seeds of both count: 92 against 91 and 94 against 93.
    (cell,) = cells([whole, make_result([91, 93], seeds=[1, 2], alpha=1.0)], "alpha = 1")
    assert cell.endswith("(**-1.00**)")
    (cell,) = cells([whole, make_result([91], seeds=[2], alpha=1.0)], "alpha = 1")
    assert cell.endswith("(-3.00)")  # one seed is never clear
    (cell,) = cells([whole, make_result([91], seeds=[7], alpha=1.0)], "alpha = 1")
    assert cell == "91.00 / -1.00"


def test_only_single_changes_of_the_preset_paper_are_in_the_table():
    whole, changed = make_result([90, 91]), make_result([80, 81], columns="sum")
    assert cells([whole, changed], "the sum of the columns, not their mean")[0].startswith("80.50")
    for other in (
        changed._replace(config=dataclasses.replace(changed.config, preset="recommended")),
        make_result([80, 81], columns="sum", num_tasks=5),
        make_result([80, 81], alpha=7.0),
        make_result([80, 81], method="sgd"),
    ):
        assert markdown([whole, other]) == ""
    assert markdown([]) == ""
    # Two changes at once are one of the list, where it has them.
    both = make_result([70, 71], columns="sum", alpha=1.0)
    assert cells([whole, changed, both], "the sum, and alpha = 1")[0].startswith("70.50")
    # The result of the most seeds stands for others.
    assert (
        cells([whole, changed, make_result([10], columns="sum")], "the sum of the c")[0][:5]
        == "80.50"
    )
