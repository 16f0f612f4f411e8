"""Files that are replaced, locks, and what killed processes leave behind."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import __main__ as cli
from benchmarks.data import files
from benchmarks.run import experiment, results, train
from benchmarks.run.measurements import no_measurements

ROOT = Path(__file__).parent.parent.parent
RUN = ["run", "permuted-digits", "--methods", "sgd", "--seeds", "1", "--num-tasks", "2"]


@pytest.fixture
def other_process():
    """Starts another process in a `with` of `files`, which prints and then waits."""
    processes = []

    def start(context):
        code = "from pathlib import Path\nfrom benchmarks.data.files import *\n"
        code += f"with {context} as inside:"
        code += "\n print(inside, flush=True)\n input()"
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process, process.stdout.readline().strip()

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_a_lock_lets_one_process_in_and_is_freed_by_a_kill(tmp_path, other_process):
    path = tmp_path / "folder" / "lock"
    process, _ = other_process(f"exclusive_lock(Path({str(path)!r}))")
    expected = rf"{path}: the same run is under way in process {process.pid} on .* since 20"
    with pytest.raises(ValueError, match=expected), files.exclusive_lock(path):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert path.exists()
    with files.exclusive_lock(path):
        # Within one process too.
        with pytest.raises(ValueError, match=f"process {os.getpid()} "), files.exclusive_lock(path):
            pass
        assert path.exists()
    assert not path.exists()


def test_what_a_killed_process_left_is_swept_and_what_a_living_one_writes_is_not(
    tmp_path, other_process
):
    path = tmp_path / "x.json"
    killed, left = other_process(f"atomic_write(Path({str(path)!r}))")
    _, living = other_process(f"atomic_write(Path({str(path)!r}))")
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert {str(p) for p in tmp_path.iterdir()} == {left, living}
    with files.atomic_write(path) as temporary:
        assert temporary.exists()  # nobody else can have made it
        temporary.write_text("new")
    assert {str(p) for p in tmp_path.iterdir()} == {str(path), living}
    assert path.read_text() == "new"


def test_a_temporary_file_is_never_one_that_is_there(tmp_path, monkeypatch):
    (tmp_path / ".benchmarks-0.json").write_text("another's")
    monkeypatch.setattr(files, "_sweep", lambda folder: None)
    monkeypatch.setattr(files.secrets, "token_hex", lambda size: "0")
    with pytest.raises(FileExistsError), files.atomic_write(tmp_path / "x.json"):
        pass
    assert (tmp_path / ".benchmarks-0.json").read_text() == "another's"


def test_permissions_are_the_users(tmp_path):
    (tmp_path / "usual").write_text("")
    with files.atomic_write(tmp_path / "replaced") as temporary:
        temporary.write_text("")
    assert (tmp_path / "replaced").stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize("missing", ["fcntl", "flock"])
def test_without_locks_files_are_still_replaced(tmp_path, monkeypatch, missing):
    """On Windows, and on file systems that have none: nobody is kept out, nothing is swept."""

    def flock(*args):
        raise OSError("not supported")

    if missing == "fcntl":
        monkeypatch.setattr(files, "fcntl", None)
    else:
        monkeypatch.setattr(files.fcntl, "flock", flock)
    path = tmp_path / "x.json"
    with files.atomic_write(path) as outer, files.atomic_write(path) as inner:
        outer.write_text("outer")
        inner.write_text("inner")
    assert path.read_text() == "outer"
    with files.exclusive_lock(tmp_path / "lock"), files.exclusive_lock(tmp_path / "lock"):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_two_processes_are_not_at_one_run(tmp_path, monkeypatch, capsys, other_process):
    name = ".sgd_num_tasks=2_seeds=1.checkpoint.lock"
    lock = tmp_path / "permuted-digits" / name
    process, _ = other_process(f"exclusive_lock(Path({str(lock)!r}))")
    monkeypatch.setattr(train, "run", None)
    for resume in ([], ["--resume"]):
        assert cli.main([*RUN, *resume, "--out", str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert re.search(rf"under way in process {process.pid} on .*choose another --out", error)
    # All of a command's runs are free, or none begins.
    assert cli.main([*RUN, "--methods", "stl,sgd", "--out", str(tmp_path)]) == 2
    assert [p.name for p in lock.parent.iterdir()] == [name]


# Patterns, escapes and markup to one library or the other; all of it is in names of some folders.
@pytest.mark.parametrize("name", ["a[b] [/c] *?#%", "back\\slash", "\u00e4 {x} ~...", "-x"])
def test_any_folder_will_do(tmp_path, monkeypatch, capsys, name):
    def interrupted(config, spec, dataset, seeds, observer, resume):
        observer.on_task(begun._replace(tasks_done=1))
        raise KeyboardInterrupt

    def gone_on(config, spec, dataset, seeds, observer, resume):
        assert resume(begun).tasks_done == 1
        return measured

    r, per_task = np.array([[[0.5, np.nan], [0.5, 0.5]]]), np.full((1, 2), 0.5)
    measured = no_measurements(1, 2)._replace(r=r, train=per_task, losses=per_task)
    begun = train.Progress(0, measured, {"w": jnp.zeros((1, 3))})
    monkeypatch.setattr(experiment, "memory_bytes", lambda *args: 0)
    monkeypatch.chdir(tmp_path)
    run = [*RUN, f"--out={name}"]
    monkeypatch.setattr(train, "run", interrupted)
    assert cli.main(run) == 130
    assert cli.main(run) == 2
    assert f"{name}/permuted-digits/sgd_num_tasks=2_seeds=1.checkpoint: an interrupted" in (
        capsys.readouterr().err
    )
    monkeypatch.setattr(train, "run", gone_on)
    assert cli.main([*run, "--resume"]) == 0
    assert f"are in {name}." in capsys.readouterr().out.replace("\n", "")
    (result,) = results.load_all(Path(name))
    assert sorted(p.name for p in Path(name).rglob("*")) == [
        "accuracy.png", "accuracy.svg", "permuted-digits", result.file_name,
    ]  # fmt: skip
