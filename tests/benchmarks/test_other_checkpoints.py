"""Checkpoints that are older, damaged or of something else."""

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import __main__ as cli
from benchmarks.run import checkpoints as checkpoint_files
from benchmarks.run import train
from benchmarks.run.checkpoints import Checkpoints
from benchmarks.run.measurements import no_measurements
from tests.benchmarks.made_progress import ORIGIN, progress


def test_a_checkpoint_from_before_a_field_has_its_default(tmp_path):
    path = tmp_path / "run"
    Checkpoints(path, {"head": "shared"}, ORIGIN).save(progress(1, 0.5))
    now = {"head": "shared", "label_smoothing": 0.0}
    assert Checkpoints(path, now, ORIGIN).restore(progress(0, 0.0)).tasks_done == 1
    with pytest.raises(ValueError, match=r"its label_smoothing is 0\.0; this one's is 0\.1"):
        Checkpoints(path, now | {"label_smoothing": 0.1}, ORIGIN).restore(progress(0, 0.0))


@pytest.mark.parametrize("content", [b"", b"5", b"PK\3\4", np.random.default_rng(0).bytes(3000)])
def test_foreign_and_corrupt_checkpoints_are_refused(tmp_path, content):
    path = tmp_path / "run"
    Checkpoints(path, {"head": "shared"}, ORIGIN).save(progress(1, 0.5))
    with pytest.raises(ValueError, match="its head is 'shared'; this one's is 'frozen'"):
        Checkpoints(path, {"head": "frozen"}, ORIGIN).restore(progress(0, 0.0))
    for damaged in (content, path.read_bytes()[: len(content)]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"the checkpoint cannot be read .* Delete it to beg"):
            Checkpoints(path, {"head": "shared"}, ORIGIN).restore(progress(0, 0.0))
        assert path.read_bytes() == damaged  # nothing is removed


def test_a_file_from_before_all_of_this_was_measured(tmp_path):
    checkpoints = Checkpoints(tmp_path / "run", {}, ORIGIN)
    checkpoints.save(progress(1, 0.5))
    with np.load(tmp_path / "run") as file:
        later = ("initial", "capacity", "inference", "digest")
        content = {name: file[name] for name in file if not name.startswith(later)}
    with (tmp_path / "run").open("wb") as file:
        np.savez(file, **content, digest=np.array(checkpoint_files._digest(content)))
    fresh = progress(0, 0.0)
    fresh = fresh._replace(measured=no_measurements(1, 2))
    restored = checkpoints.restore(fresh)
    assert restored.tasks_done == 1
    assert np.isnan(restored.measured.initial).all()
    assert np.isnan(restored.measured.capacity).all()
    assert all(np.isnan(x).all() for x in restored.measured.inference)
    np.testing.assert_array_equal(restored.measured.r, 0.5)


def test_a_state_of_another_program_is_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path / "run", {}, ORIGIN)
    checkpoints.save(progress(1, 0.5))
    fresh = progress(0, 0.0)
    for state in ({"v": jnp.zeros((1, 3))}, fresh.state | {"w": jnp.zeros((1, 4))}):
        with pytest.raises(ValueError, match="its state is "):
            checkpoints.restore(fresh._replace(state=state))


def test_a_whole_result_wins_over_a_checkpoint_that_cannot_be_read(tmp_path, monkeypatch, capsys):
    run = ["run", "permuted-digits", "--methods", "sgd", "--seeds", "1", "--num-tasks", "2"]
    run += ["--resume", "--out", str(tmp_path)]
    r, per_task = np.array([[[0.5, np.nan], [0.5, 0.5]]]), np.full((1, 2), 0.5)
    whole = no_measurements(1, 2)._replace(r=r, train=per_task, losses=per_task)
    monkeypatch.setattr(train, "run", lambda *args: whole)
    assert cli.main(run) == 0
    (result,) = tmp_path.glob("*/*.json")
    result.with_suffix(".checkpoint").write_text("cut short")
    monkeypatch.setattr(train, "run", None)
    capsys.readouterr()
    assert cli.main(run) == 0
    assert "the checkpoint cannot be read" in capsys.readouterr().out
