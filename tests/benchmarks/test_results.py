"""What results tell, and how they are written and put together."""

import dataclasses
import json

import numpy as np
import pytest

from benchmarks import files, merging, presets, results
from benchmarks.methods import METHODS


def test_only_seeds_of_one_experiment_are_put_together(folder):
    rgo, stl = results.load_all(folder)
    later = rgo._replace(seeds=[2, 3])
    assert [found.seeds for found in merging.merged([later, rgo])] == [[0, 1, 2, 3]]
    for other in (
        rgo,  # the same seeds once more
        stl._replace(seeds=[2, 3]),
        later._replace(config=changed(rgo.config, alpha=2.0)),
        later._replace(data="other examples"),
    ):
        assert len(merging.merged([rgo, other])) == 2


def changed(config, **options):
    return dataclasses.replace(config, options=config.options | options)


def test_results_of_an_earlier_version_are_taken_for_what_they_are(folder, tmp_path):
    """Baselines', whose setting is what all methods had before there was a choice."""
    rgo, _ = results.load_all(folder)
    config = presets.config("permuted-digits", method=METHODS["gpm"], num_tasks=2)
    gpm = rgo._replace(method="gpm", changes={"num_tasks": 2}, config=config)
    path = results.save(gpm._replace(seeds=[2, 3]), tmp_path)
    content = json.loads(path.read_text())
    earlier = {k: v for k, v in content["config"].items() if k not in presets.DEFAULTS}
    assert len(earlier) == 11
    content["config"] = earlier
    for later in ("train", "memory_bytes", "data"):
        del content[later]
    path.write_text(json.dumps(content))
    # What a kill in the middle of writing leaves behind.
    (path.parent / ".gpm.4242.json").write_text("{")
    (old,) = results.load_all(tmp_path)
    assert old.config == gpm.config
    assert [found.seeds for found in merging.merged([gpm, old])] == [[0, 1, 2, 3]]
    # Of unknown data, it brings none of different data together.
    parts = [
        old._replace(seeds=[0, 1]),
        gpm._replace(seeds=[2, 3]),
        gpm._replace(data="other examples", seeds=[4, 5]),
    ]
    assert [found.seeds for found in merging.merged(parts)] == [[0, 1, 2, 3], [4, 5]]


def test_results_round_trip(folder, tmp_path):
    (first, second) = results.load_all(folder)
    copy = results.load(results.save(first, tmp_path))
    np.testing.assert_array_equal(copy.r, first.r)
    np.testing.assert_array_equal(copy.train, first.train)
    arrays = {"r": 0, "losses": 0, "train": 0}
    assert copy._replace(**arrays) == first._replace(**arrays)
    assert (first.train_acc > 30).all()
    assert (first.memory_bytes, second.memory_bytes) > (0, 0)
    assert first.acc.shape == (2,)
    np.testing.assert_allclose(
        first.accuracy_curve[0], [100 * first.r[0, 0, 0], 100 * first.r[0, 1].mean()]
    )
    assert (second.bwt == 0).all()  # single-task learning


def test_a_failed_write_leaves_the_old_results_whole(folder, tmp_path, monkeypatch):
    result = results.load_all(folder)[0]
    path = results.save(result, tmp_path)
    before = path.read_text()

    def full(*args):
        raise OSError("no space left")

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        results.save(result._replace(preset="recommended"), tmp_path)
    with pytest.raises(OSError, match="no space left"):
        results.save(result, tmp_path)
    assert path.read_text() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]
