"""Runs that are killed, and go on."""

import contextlib
import json
import os
import re
import resource
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
from benchmarks.run import provenance, results, train
from benchmarks.run.checkpoints import Checkpoints
from tests.benchmarks.made_progress import ORIGIN, progress
from tests.compiling import XLA_FLAG

ROOT = Path(__file__).parent.parent.parent
RUN = ["run", "permuted-digits", "--methods", "sgd,rgo", "--seeds", "3", "--num-tasks", "6"]


def kill_after_second_task(out):
    """Starts the run in a process of its own, and kills it while rgo learns its third task.

    On two devices, which have four places for its three seeds.
    """
    flags = f"--xla_force_host_platform_device_count=2 {XLA_FLAG}"
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks", *RUN, "--out", str(out)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": flags},
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 200
    while not any(tasks_done(path) == 2 for path in out.glob("*/rgo*.checkpoint")):
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def tasks_done(path):
    with np.load(path) as content:
        return json.loads(content["about"].item())["tasks_done"]


@pytest.mark.slow
def test_killed_run_goes_on_with_the_same_numbers(tmp_path, capsys):
    """On another number of devices too: here there is one."""
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
        for ours, theirs in zip(resumed.measured[:4], expected.measured[:4], strict=True):
            np.testing.assert_array_equal(ours, theirs)
        assert (resumed.measured.task_seconds > 0).all()
    assert not list(killed.glob("*/*.checkpoint"))


@pytest.mark.slow
def test_results_of_other_data_stay_and_resume_does_not_hide_an_unfinished_run(tmp_path, capsys):
    def write_data(seed):
        rng = np.random.default_rng(seed)
        arrays = {f"y_{s}": np.arange(200) % 2 for s in ("train", "test")}
        arrays |= {f"x_{s}": rng.random((200, 4, 4), np.float32) for s in ("train", "test")}
        np.savez(tmp_path / "mine.npz", **arrays)

    run = [
        "run",
        "permuted",
        "--data",
        str(tmp_path / "mine.npz"),
        "--num-tasks",
        "2",
        "--seeds",
        "1",
    ]
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


# What file systems allow, and one or the other library takes for a pattern, an escape or markup.
@pytest.mark.parametrize(
    "name",
    ["run", "a[b]", "[/]", "a\\b", "a b", "*", "?#%", "\u00e4\u4e2d", "dots...", "~", "{}", "-"],
)
def test_round_trip(tmp_path, name):
    path = tmp_path / name / f"{name}.checkpoint"
    checkpoints = Checkpoints(path, {"head": "shared", "hidden": (1, 2)}, ORIGIN)
    assert not checkpoints.exists()
    for tasks_done in (1, 2):
        checkpoints.save(progress(tasks_done, 0.1 * tasks_done))
    assert checkpoints.exists()
    restored = checkpoints.restore(progress(0, 0.0))
    expected = progress(2, 0.2)
    assert restored.tasks_done == 2
    jax.tree.map(np.testing.assert_array_equal, restored.measured, expected.measured)
    assert restored.measured.r.dtype == np.float64
    np.testing.assert_array_equal(restored.state["w"], expected.state["w"])
    checkpoints.discard()
    assert not list(path.parent.iterdir())


def test_seeds_may_be_spread_over_other_devices(tmp_path):
    """One of two seeds is run twice, then thrice, to fill up three or four devices."""
    key = jax.random.key(3, impl="rbg")

    def spread(num_places, first):
        places = np.minimum(np.arange(num_places), 1)
        state = {
            "w": jnp.asarray(places + first),
            "key": jax.vmap(lambda i: jax.random.fold_in(key, i))(places),
        }
        one = progress(1, 0.5)
        measured = one.measured._replace(r=one.measured.r.repeat(2, axis=0))
        return one._replace(measured=measured, state=state)

    checkpoints = Checkpoints(tmp_path / "run", {}, ORIGIN)
    checkpoints.save(spread(3, first=7))
    for num_places in (2, 3, 4):
        restored = checkpoints.restore(spread(num_places, first=0))
        expected = spread(num_places, first=7)
        np.testing.assert_array_equal(restored.state["w"], expected.state["w"])
        assert jnp.array_equal(restored.state["key"], expected.state["key"])
        assert restored.state["key"].dtype == expected.state["key"].dtype


@pytest.mark.slow
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
    made_by = provenance.merge_origins(checkpoints.origins)
    assert made_by == other | {"date": "later", "before_resuming": [ORIGIN]}
    assert provenance.merge_origins([ORIGIN, ORIGIN]) == ORIGIN


def test_whatever_is_changed_is_noticed(tmp_path):
    """A bit of a number, the number of tasks, where it comes from, which number is which."""
    path, fresh = tmp_path / "run", progress(0, 0.0, size=5000)
    Checkpoints(path, {}, ORIGIN).save(progress(1, 0.5, size=5000))
    whole = path.read_bytes()
    with np.load(path) as found:
        content = dict(found)
    w = content["state['w']"].copy()
    w.view(np.uint8)[0, 10_000] ^= 1
    about = content["about"].item()
    later = np.array(about.replace('"tasks_done": 1', '"tasks_done": 2'))
    another = np.array(about.replace("a" * 40, "b" * 40))
    r, train = content["r"], content["train"]
    for change in (
        {"state['w']": w}, {"about": later}, {"about": another}, {"r": r[0]}, {"r": r.astype("f4")},
        {"r": train, "train": r}, {"more": r},
    ):  # fmt: skip
        with path.open("wb") as file:
            np.savez(file, **content | change)
        with pytest.raises(ValueError, match=r"checkpoint cannot be read \(its numbers are not"):
            Checkpoints(path, {}, ORIGIN).restore(fresh)
    path.write_bytes(whole)
    assert Checkpoints(path, {}, ORIGIN).restore(fresh).tasks_done == 1


def test_the_one_before_goes_when_the_new_one_has_been_read_back(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "run", {}, ORIGIN)
    checkpoints.save(progress(1, 0.5))
    savez = np.savez

    def one_bit_flips(file, **content):
        savez(file, **content | {"r": content["r"] + 2**-50})

    def cut_short(file, **content):
        savez(file, **content)
        file.truncate(file.tell() // 2)

    for disk in (one_bit_flips, cut_short):
        monkeypatch.setattr(np, "savez", disk)
        with pytest.raises(OSError, match=r"read back is not what had been written: .*run'$"):
            checkpoints.save(progress(2, 0.7))
        assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert checkpoints.restore(progress(0, 0.0)).tasks_done == 1


@contextlib.contextmanager
def largest_file(size):
    """Inside it files have so many bytes at most: the system's way to make a disk seem full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        # Before pytest writes to a file of its own.
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_takes_nothing_that_was_there(tmp_path):
    checkpoints = Checkpoints(tmp_path / "run", {}, ORIGIN)
    checkpoints.save(progress(1, 0.5))
    for size in (0, 100, 5000, 100_000):
        with largest_file(size), pytest.raises(OSError, match=f"{tmp_path / 'run'}"):
            checkpoints.save(progress(2, 0.7, size=100_000))
        assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert checkpoints.restore(progress(0, 0.0)).tasks_done == 1


def test_a_full_disk_is_found_out_before_training(digits, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "run", None)
    out = tmp_path / "out"
    with largest_file(0):
        assert cli.main([*RUN, "--out", str(out)]) == 2
    assert re.search(rf"--out is {out}: .*Choose a folder that can be", capsys.readouterr().err)
    assert not list(out.glob("*/*"))


def test_a_disk_that_fills_up_is_told_with_what_to_do(tmp_path, monkeypatch, capsys):
    def run(config, spec, dataset, seeds, observer, resume):
        with largest_file(100):
            observer.on_task(progress(1, 0.5))

    monkeypatch.setattr(train, "run", run)
    assert cli.main([*RUN, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "sgd_num_tasks=6_seeds=3.checkpoint'. What had been saved is whole. Make room" in error
    assert "--resume goes on" in error
