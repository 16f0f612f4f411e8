"""Runs that are killed, and go on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import __main__ as cli
from benchmarks import results
from benchmarks.checkpoints import Checkpoints
from benchmarks.train import Progress

ROOT = Path(__file__).parent.parent.parent
RUN = ["permuted-digits", "--methods", "sgd,rgo", "--seeds", "2", "--num-tasks", "6"]
ORIGIN = {"commit": "a" * 40, "versions": {"jax": "1"}, "device": "d", "command": "c", "date": ""}


def kill_after_second_task(out):
    """Starts the run in a process of its own, and kills it while rgo learns its third task.

    On one device, like this process: a checkpoint's seeds are spread over so many.
    """
    flags = "--xla_force_host_platform_device_count=1"
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks", *RUN, "--out", str(out)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": flags},
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 200
    while not list(out.glob("*/rgo*.checkpoint/2/_CHECKPOINT_METADATA")):
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


@pytest.mark.slow
def test_killed_run_goes_on_with_the_same_numbers(tmp_path, capsys):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    kill_after_second_task(killed)
    (sgd,) = results.load_all(killed)  # finished before
    assert cli.main([*RUN, "--out", str(killed)]) == 2
    assert "an interrupted run of rgo. Go on with it by --resume" in capsys.readouterr().err
    before = (killed / "permuted-digits" / sgd.file_name).stat().st_mtime_ns

    assert cli.main([*RUN, "--resume", "--out", str(killed)]) == 0
    assert cli.main([*RUN, "--out", str(whole)]) == 0
    # What had finished was not run again.
    assert (killed / "permuted-digits" / sgd.file_name).stat().st_mtime_ns == before
    for resumed, expected in zip(results.load_all(killed), results.load_all(whole), strict=True):
        assert resumed.method == expected.method
        np.testing.assert_array_equal(resumed.r, expected.r)
        np.testing.assert_array_equal(resumed.losses, expected.losses)
        np.testing.assert_array_equal(resumed.train, expected.train)
        assert (np.array(resumed.seconds["tasks"]) > 0).all()
    assert not list(killed.glob("*/*.checkpoint"))


def test_results_of_other_data_stay_and_resume_does_not_hide_an_unfinished_run(tmp_path, capsys):
    def write_data(seed):
        rng = np.random.default_rng(seed)
        arrays = {f"y_{s}": np.arange(200) % 2 for s in ("train", "test")}
        arrays |= {f"x_{s}": rng.random((200, 4, 4), np.float32) for s in ("train", "test")}
        np.savez(tmp_path / "mine.npz", **arrays)

    run = ["permuted", "--data", str(tmp_path / "mine.npz"), "--num-tasks", "2", "--seeds", "1"]
    run += ["--methods", "sgd", "--out", str(tmp_path / "out")]
    write_data(0)
    assert cli.main(run) == 0
    (first,) = results.load_all(tmp_path / "out")
    finished = tmp_path / "out" / "permuted-mine.npz" / first.file_name
    before = finished.read_bytes()
    write_data(1)
    for again in (run, [*run, "--resume"]):
        assert cli.main(again) == 2
        assert "is the result of other data" in capsys.readouterr().err
    assert finished.read_bytes() == before

    # A later run of the same that was killed is gone on with, whatever finished before.
    write_data(0)
    Checkpoints(finished.with_suffix(".checkpoint"), {"head": "x"}, ORIGIN).save(progress(1, 0.5))
    assert cli.main([*run, "--resume"]) == 2
    assert "a checkpoint of another run" in capsys.readouterr().err


def progress(tasks_done, value):
    return Progress(
        tasks_done=tasks_done,
        r=np.full((1, 2, 2), value),
        train=np.full((1, 2), np.nan),
        losses=np.array([[1 / 3, value]]),
        task_seconds=np.zeros(2),
        state={"w": jnp.full(3, value), "count": jnp.int32(tasks_done)},
    )


def test_round_trip(tmp_path):
    checkpoints = Checkpoints(tmp_path / "run", {"head": "shared", "hidden": (1, 2)}, ORIGIN)
    assert not checkpoints.exists()
    for tasks_done in (1, 2):
        checkpoints.save(progress(tasks_done, 0.1 * tasks_done))
    assert checkpoints.exists()
    restored = checkpoints.restore(progress(0, 0.0))
    expected = progress(2, 0.2)
    assert restored.tasks_done == 2
    for name in ("r", "train", "losses"):
        assert getattr(restored, name).dtype == np.float64
        np.testing.assert_array_equal(getattr(restored, name), getattr(expected, name))
    np.testing.assert_array_equal(restored.state["w"], expected.state["w"])
    checkpoints.discard()
    assert not checkpoints.exists()


def test_checkpoints_may_be_fewer(tmp_path, monkeypatch, capsys):
    saved = []
    monkeypatch.setattr(Checkpoints, "save", lambda self, progress: saved.append(progress))
    run = [*RUN, "--methods", "sgd", "--examples-per-task", "100", "--out", str(tmp_path)]
    assert cli.main([*run, "--checkpoint-every", "4"]) == 0
    assert [progress.tasks_done for progress in saved] == [4]
    assert cli.main([*run, "--checkpoint-every", "0"]) == 2
    assert "--checkpoint-every is 0" in capsys.readouterr().err


def test_a_result_names_all_that_it_was_made_by(tmp_path):
    """Two commits made it, the second of them in two goes."""
    other = ORIGIN | {"commit": "b" * 40}
    for tasks_done, origin in enumerate([ORIGIN, other, other | {"date": "later"}], start=1):
        checkpoints = Checkpoints(tmp_path / "run", {}, origin)
        if tasks_done > 1:
            checkpoints.restore(progress(0, 0.0))
        checkpoints.save(progress(tasks_done, 0.5))
    made_by = results.combined(checkpoints.origins)
    assert made_by == other | {"date": "later", "before_resuming": [ORIGIN]}
    assert results.combined([ORIGIN, ORIGIN]) == ORIGIN


def test_a_flipped_bit_is_noticed(tmp_path):
    folder, rng = tmp_path / "run", np.random.default_rng(0)
    saved = progress(1, 0.5)._replace(
        state={"w": jnp.asarray(rng.normal(size=5000), jnp.float32), "key": jax.random.key(3)}
    )
    Checkpoints(folder, {}, ORIGIN).save(saved)
    restored = Checkpoints(folder, {}, ORIGIN).restore(saved)
    assert jnp.array_equal(restored.state["key"], saved.state["key"])
    largest = max(folder.glob("1/state/**/*"), key=lambda file: file.stat().st_size)
    content = bytearray(largest.read_bytes())
    assert len(content) > 10_000  # normal numbers cannot be compressed: it is they
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    with pytest.raises(ValueError, match="checkpoint after task 1 cannot be read"):
        Checkpoints(folder, {}, ORIGIN).restore(saved)


def test_a_checkpoint_from_before_a_field_has_its_default(tmp_path):
    folder = tmp_path / "run"
    Checkpoints(folder, {"head": "shared"}, ORIGIN).save(progress(1, 0.5))
    now = {"head": "shared", "label_smoothing": 0.0}
    assert Checkpoints(folder, now, ORIGIN).restore(progress(0, 0.0)).tasks_done == 1
    with pytest.raises(ValueError, match=r"its label_smoothing is 0\.0; this one's is 0\.1"):
        Checkpoints(folder, now | {"label_smoothing": 0.1}, ORIGIN).restore(progress(0, 0.0))


def test_foreign_and_corrupt_checkpoints_are_refused(tmp_path):
    folder = tmp_path / "run"
    Checkpoints(folder, {"head": "shared"}, ORIGIN).save(progress(1, 0.5))
    with pytest.raises(ValueError, match="its head is 'shared'; this one's is 'frozen'"):
        Checkpoints(folder, {"head": "frozen"}, ORIGIN).restore(progress(0, 0.0))
    origins = folder / "1" / "origins" / "metadata"
    whole = origins.read_bytes()
    origins.write_text("5")
    with pytest.raises(ValueError, match="checkpoint after task 1 cannot be read"):
        Checkpoints(folder, {"head": "shared"}, ORIGIN).restore(progress(0, 0.0))
    origins.write_bytes(whole)
    for file in folder.glob("1/state/**/*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(ValueError, match="checkpoint after task 1 cannot be read"):
        Checkpoints(folder, {"head": "shared"}, ORIGIN).restore(progress(0, 0.0))
    assert folder.is_dir()  # nothing is removed
