"""The command line with images of the user's own."""

import numpy as np
import pytest

from benchmarks import __main__ as cli
from benchmarks.run import results


def write_npz(path, labels, shape=(8, 7), tests=None):
    rng = np.random.default_rng(0)
    y = {"train": np.asarray(labels), "test": np.asarray(labels if tests is None else tests)}
    prototypes = rng.integers(0, 256, (max(labels) + 1, *shape))
    np.savez(
        path,
        **{f"x_{s}": prototypes[y[s]].astype(np.uint8) for s in y},
        **{f"y_{s}": y[s] for s in y},
    )
    return str(path)


def test_all_methods_are_checked_before_the_first_runs(tmp_path, capsys):
    """On these images SGD could train the network, and RGO could not."""
    mine = write_npz(tmp_path / "mine.npz", np.arange(16) % 4, (64, 64, 3))
    argv = ["run", "split", "--data", mine, "--num-tasks", "2", "--batch-size", "4", "--seeds", "1"]
    argv += ["--out", str(tmp_path / "out")]
    assert cli.main([*argv, "--methods", "sgd,rgo"]) == 2
    error = capsys.readouterr().err
    assert "RGO cannot train --network lenet-5 on images of shape (64, 64, 3): Para" in error
    fitting = "alexnet-7, alexnet-7-narrow, vgg-11, vgg-13, resnet-18, resnet-18-narrow, vit"
    assert f"Choose --network {fitting}." in error
    assert "max_fan_in; or" not in error
    assert not (tmp_path / "out").exists()


def test_labels_that_leave_numbers_out_are_told(jobs_run, tmp_path, capsys):
    mine = write_npz(tmp_path / "mine.npz", [3, 7, 9, 12] * 10)
    argv = ["run", "split", "--data", mine, "--methods", "sgd,stl", "--network", "mlp"]
    argv += ["--out", str(tmp_path / "out"), "--num-tasks"]
    assert cli.main([*argv, "3"]) == 2
    error = capsys.readouterr().err
    note = "note: mine.npz: the labels are 3, 7, 9, 12; the 4 classes are numbered from 0 in that "
    assert error.startswith(note)
    assert "error: --num-tasks is 3, but mine.npz has 4 classes" in error
    assert cli.main([*argv, "2"]) == 0
    assert capsys.readouterr().err.count("note: ") == 1
    assert [job.dataset.num_classes for job in jobs_run] == [4, 4]


def test_tasks_of_different_sizes_are_told(jobs_run, tmp_path, capsys):
    labels = np.repeat(np.arange(4), [40, 2, 20, 1])
    mine = write_npz(tmp_path / "mine.npz", labels)
    argv = [
        "run",
        "split",
        "--data",
        mine,
        "--methods",
        "sgd,rgo",
        "--network",
        "mlp",
        "--num-tasks",
        "2",
    ]
    argv += ["--out", str(tmp_path / "out"), "--batch-size", "2"]
    assert cli.main(argv) == 0
    assert capsys.readouterr().err == (
        "note: mine.npz: by its classes a task has 3 to 60 training images. An epoch takes 60 of "
        "every task: one that has fewer goes through its own again. --examples-per-task sets "
        "another number.\n"
    )
    assert cli.main([*argv, "--examples-per-task", "3"]) == 0
    assert not capsys.readouterr().err
    assert [job.config.examples_per_task for job in jobs_run] == [60, 60, 3, 3]


@pytest.mark.slow
def test_a_task_of_few_images_learns_as_long_as_the_others(tmp_path):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(4), [200, 150, 3, 2]))
    mine = write_npz(tmp_path / "mine.npz", labels, tests=np.arange(40) % 4)
    with np.load(mine) as file:
        np.savez(mine, **file, superclasses=np.array([0, 0, 1, 1]))
    argv = ["run", "superclass", "--data", mine, "--methods", "rgo", "--network", "mlp-100"]
    argv += ["--num-tasks", "2", "--epochs", "4", "--seeds", "2", "--out", str(tmp_path)]
    assert cli.main(argv) == 0
    (result,) = results.load_all(tmp_path)
    assert (result.acc > 95).all()


@pytest.mark.slow
def test_own_data(tmp_path, capsys):
    rng = np.random.default_rng(0)
    write_npz(tmp_path / "mine.npz", rng.integers(0, 4, 400), tests=rng.integers(0, 4, 100))
    out = tmp_path / "out"
    argv = ["run", "--data", str(tmp_path / "mine.npz"), "--seeds", "1", "--epochs", "2"]
    argv += ["--methods", "rgo", "--out", str(out)]
    assert cli.main(argv) == 2
    assert "has 4 classes; expected a divisor" in capsys.readouterr().err
    assert cli.main([*argv, "--tasks", "2"]) == 0
    (result,) = results.load_all(out)
    assert result.benchmark == "split-mine.npz"
    assert result.acc[0] > 95
    assert result.config.dataset == "mine.npz"
    # Where there is no terminal to draw a bar on, a line for each task.
    lines = capsys.readouterr().out.splitlines()
    assert "split-mine.npz rgo num_tasks=2 epochs=2" in lines
    assert [line for line in lines if line.startswith("task 1/2, ACC ")]
