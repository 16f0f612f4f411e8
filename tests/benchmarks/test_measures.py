"""Learning, forgetting and transfer, from results to their table."""

import dataclasses

import numpy as np
import pytest
from rich.console import Console

from benchmarks import data
from benchmarks.report import measures, merging
from benchmarks.run import results
from benchmarks.run.jobs import Job
from tests.benchmarks.made_results import ORIGIN, diverge, make_result
from tests.benchmarks.markdown import rows


def measured_ahead(result, before, initial):
    """The same with accuracies on tasks to come, and on all before the first."""
    config = dataclasses.replace(result.config, forward_transfer=True)
    tasks = config.num_tasks
    r = np.where(np.tri(tasks, dtype=bool), result.measured.r, before / 100)
    initial = np.full((len(result.seeds), tasks), initial / 100)
    return result._replace(config=config, measured=result.measured._replace(r=r, initial=initial))


def test_forward_transfer_is_no_other_experiment(tmp_path):
    ahead = measured_ahead(make_result("rgo", 80, seeds=2), before=15, initial=12)
    plain = make_result("rgo", 80, seeds=2)
    (whole,) = merging.merge([ahead, plain._replace(seeds=[2, 3])])
    assert whole.seeds == [0, 1, 2, 3]
    np.testing.assert_allclose(whole.fwt, [3, 3, np.nan, np.nan], rtol=1e-5)
    assert results.save(ahead, tmp_path).name == results.save(plain, tmp_path).name
    loaded = results.load(results.save(ahead, tmp_path))
    np.testing.assert_allclose(loaded.fwt, 3, rtol=1e-5)
    # What was not to be measured is not there.
    wrong = ahead._replace(config=plain.config)
    with pytest.raises(ValueError, match="null above the diagonal"):
        results.load(results.save(wrong, tmp_path))
    wrong = wrong._replace(measured=wrong.measured._replace(r=plain.measured.r))
    with pytest.raises(ValueError, match="null, as config has no forward_transfer"):
        results.load(results.save(wrong, tmp_path))


def test_measures_beside_acc_and_bwt():
    rgo = make_result("rgo", 80, network="lenet-5")._replace(changes={})
    r = rgo.measured.r.copy()
    r[:, -1, 0] -= 0.19  # of one of 20 tasks; so much is forgotten of it
    rgo = rgo._replace(measured=rgo.measured._replace(r=r))
    alone = make_result("stl", 84, network="lenet-5")._replace(changes={})
    (row,) = rows(measures.markdown([rgo, alone]), "RGO")
    assert row == [
        "split-cifar100", "RGO", "paper", "81.00 ± 1.00", "4.00 ± 0.00", "1.00 ± 0.00",
        "-1.00 ± 0.00", "-",
    ]  # fmt: skip
    others = [
        alone._replace(seeds=[3, 4, 5]),
        make_result("stl", 84),  # another network
        make_result("stl", 84, network="lenet-5", learning_rate=0.3),
        make_result("stl", 84, network="lenet-5", momentum=0.9),
    ]
    for other in others:
        (row,) = rows(measures.markdown([rgo, other]), "RGO")
        assert row[4] == "-"
    ahead = measured_ahead(make_result("sgd", 50), before=15, initial=12)
    (row,) = rows(measures.markdown([ahead]), "SGD")
    assert row[-1] == "3.00 ± 0.00"


def test_measures_are_of_presets_as_they_stand():
    changed = make_result("rgo", 80, alpha=0.5)
    diverged = diverge(make_result("sgd", 50), [0])
    assert measures.markdown([changed, diverged, make_result("stl", 84)]) == ""


def test_a_finished_run_counts_if_it_measured_what_is_wanted(tmp_path):
    few = {"num_tasks": 2}
    plain = make_result("rgo", 80, "permuted-digits", seeds=2, **few)
    ahead = measured_ahead(plain, before=15, initial=12)

    def is_finished(saved, wanted):
        results.save(saved, tmp_path)
        job = Job(
            "rgo", wanted.config, data.load("digits"), wanted.changes, range(2), tmp_path, ORIGIN
        )
        return job.finished(Console(quiet=True)) is not None

    assert is_finished(plain, plain)
    assert is_finished(ahead, ahead)
    assert is_finished(ahead, plain)
    assert not is_finished(plain, ahead)
    other = make_result("rgo", 80, "permuted-digits", seeds=2, **few)
    other = other._replace(config=dataclasses.replace(other.config, learning_rate=0.3))
    assert not is_finished(plain, other)
