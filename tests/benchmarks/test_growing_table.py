"""Methods with another capacity than the network's, in tables."""

import numpy as np
import pytest

from benchmarks.methods import METHODS
from benchmarks.report import growing, tables
from benchmarks.report import pages as report
from tests.benchmarks.made_results import diverge, make_result
from tests.benchmarks.markdown import rows, section


@pytest.fixture(autouse=True)
def apd(monkeypatch):
    """Whatever it is: a method that needs a head per task and counts its numbers."""
    spec = METHODS["gpm"]._replace(label="APD", heads=("per_task",), capacity=lambda *args: 1)
    monkeypatch.setitem(METHODS, "apd", spec)


def counted(*args, shares=(1.2, 1.3, 1.4), **changes):
    result = make_result(*args, **changes)
    return result._replace(measured=result.measured._replace(capacity=np.array(shares)))


def test_what_has_not_been_run_says_so():
    text = section(tables.papers_tables([]), "Networks that grow")
    for method in ("APD", "RGO"):
        found = rows(text, method)
        assert [row[:2] for row in found] == [
            ["permuted-mnist", "true"],
            ["superclass-cifar100", "true"],
            ["superclass-cifar100", "scrambled"],
        ]
        assert [row[4:] for row in found] == [["not yet run", *["-"] * 6]] * 3
    # What was published is of scrambled images.
    assert [row[3] for row in rows(text, "APD")] == ["-", "-", "56.81 at 130 %"]
    assert [row[3] for row in rows(text, "RGO")] == ["-", "-", "-"]


def test_ours_stands_beside_what_was_published():
    superclass = "superclass-cifar100"
    found = [
        counted("apd", 55, superclass, scrambled=True),
        counted("apd", 60, superclass),
        counted("apd", 90, "permuted-mnist", head="per_task", shares=[2.0], seeds=1),
        counted("apd", 91, "permuted-mnist", head="per_task"),
        counted("apd", 92, "permuted-mnist", head="per_task", epochs=2),
        make_result("rgo", 70, superclass),
        make_result("rgo", 66, superclass, head="per_task", seeds=1),
        make_result("rgo", 80, "permuted-mnist"),
        make_result("rgo", 65, superclass, network="vgg-11", head="per_task"),
    ]
    text = section(tables.papers_tables(found), "Networks that grow")
    measured = {tuple(row[:3]): row[3:] for row in rows(text, "APD") + rows(text, "RGO")}
    origin = ["0.00", "3", "d", "1.5"]
    assert measured == {
        ("permuted-mnist", "true", "APD"): [
            "-", "92.00 ± 1.00", "0.00 ± 0.00", "130.0 %", *origin,
        ],
        (superclass, "true", "APD"): ["-", "61.00 ± 1.00", "0.00 ± 0.00", "130.0 %", *origin],
        (superclass, "scrambled", "APD"): [
            "56.81 at 130 %", "56.00 ± 1.00", "0.00 ± 0.00", "130.0 %", *origin,
        ],
        ("permuted-mnist", "true", "RGO"): [
            "-", "81.00 ± 1.00", "0.00 ± 0.00", "100 %", *origin,
        ],
        # With a head for each task, as the others have.
        (superclass, "true", "RGO"): ["-", "66.00", "0.00", "100 %", "0.00", "1", "d", "1.5"],
        (superclass, "scrambled", "RGO"): ["-", "not yet run", *["-"] * 6],
    }  # fmt: skip


def test_capacity_in_percent_of_the_network():
    assert growing.capacity(make_result("gpm", 80, num_tasks=3)) == "100 %"
    assert growing.capacity(make_result("stl", 80, num_tasks=3)) == "300 %"
    assert growing.capacity(counted("apd", 80, num_tasks=3)) == "130.0 %"
    unmeasured = make_result("apd", 80, num_tasks=3)  # from before there was such a number
    assert growing.capacity(unmeasured) == "-"


def test_the_full_tables_have_it():
    found = [counted("apd", 80, "split-digits"), make_result("stl", 70, "split-digits")]
    text = report.markdown(found, {"split-digits": "f"})
    (header,) = rows(section(text, "split-digits"), "method")
    by_method = {
        label: dict(zip(header, rows(section(text, "split-digits"), label)[0], strict=True))
        for label in ("APD", "STL")
    }
    assert by_method["APD"]["capacity"] == "130.0 %"
    assert by_method["STL"]["capacity"] == "500 %"
    columns = [column.header for column in report.terminal_table(found).columns]
    assert "capacity" not in columns


def test_a_diverged_run_says_so_there():
    found = [diverge(make_result("rgo", 80, "permuted-mnist"), [0, 1, 2])]
    text = section(tables.papers_tables(found), "Networks that grow")
    assert rows(text, "RGO", "permuted-mnist")[0][4:6] == ["diverged", "diverged"]
