"""What results tell, and how they are written and put together."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from benchmarks import presets
from benchmarks.data import files
from benchmarks.methods import METHODS
from benchmarks.report import merging
from benchmarks.run import results


def test_only_seeds_of_one_experiment_are_put_together(folder):
    rgo, stl = results.load_all(folder)
    later = rgo._replace(seeds=[2, 3])
    assert [found.seeds for found in merging.merge([later, rgo])] == [[0, 1, 2, 3]]
    for other in (
        rgo,  # the same seeds once more
        stl._replace(seeds=[2, 3]),
        later._replace(config=changed(rgo.config, alpha=2.0)),
        later._replace(data="other examples"),
    ):
        assert len(merging.merge([rgo, other])) == 2


def changed(config, **options):
    return dataclasses.replace(config, options=config.options | options)


def test_a_field_that_a_result_lacks_has_its_default(folder, tmp_path):
    rgo, _ = results.load_all(folder)
    config = presets.config("permuted-digits", method=METHODS["gpm"], num_tasks=2)
    gpm = rgo._replace(method="gpm", changes={"num_tasks": 2}, config=config)
    path = results.save(gpm._replace(seeds=[2, 3]), tmp_path)
    content = json.loads(path.read_text())
    content["config"] = {k: v for k, v in content["config"].items() if k not in presets.DEFAULTS}
    assert len(content["config"]) == 12
    path.write_text(json.dumps(content))
    # What a kill in the middle of writing leaves behind.
    (path.parent / ".gpm.4242.json").write_text("{")
    (found,) = results.load_all(tmp_path)
    assert found.config == gpm.config
    assert [whole.seeds for whole in merging.merge([gpm, found])] == [[0, 1, 2, 3]]


def test_results_of_other_data_are_not_put_together(folder):
    rgo, _ = results.load_all(folder)
    parts = [
        rgo._replace(seeds=[0, 1]),
        rgo._replace(seeds=[2, 3]),
        rgo._replace(data="other examples", seeds=[4, 5]),
    ]
    assert [whole.seeds for whole in merging.merge(parts)] == [[0, 1, 2, 3], [4, 5]]


def test_results_round_trip(folder, tmp_path):
    (first, second) = results.load_all(folder)
    copy = results.load(results.save(first, tmp_path))
    jax.tree.map(np.testing.assert_array_equal, copy.measured, first.measured)
    assert copy._replace(measured=None) == first._replace(measured=None)
    assert (first.train_acc > 30).all()
    assert (first.memory_bytes, second.memory_bytes) > (0, 0)
    assert first.acc.shape == (2,)
    r = first.measured.r[0]
    np.testing.assert_array_equal(first.r[0], r)
    assert (second.bwt == 0).all()  # single-task learning


def test_a_failed_write_leaves_the_old_results_whole(folder, tmp_path, monkeypatch):
    result = results.load_all(folder)[0]
    path = results.save(result, tmp_path)
    before = path.read_text()

    def full(*args):
        raise OSError("no space left")

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        results.save(result._replace(seeds=[7, 8]), tmp_path)
    with pytest.raises(OSError, match="no space left"):
        results.save(result, tmp_path)
    assert path.read_text() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]
