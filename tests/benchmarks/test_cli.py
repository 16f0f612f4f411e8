import dataclasses
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from benchmarks import __main__ as cli
from benchmarks import presets
from benchmarks.data import limits
from benchmarks.methods import METHODS
from benchmarks.networks.architectures import ARCHITECTURES
from benchmarks.report import merging
from benchmarks.report import pages as report
from benchmarks.run import jobs, provenance, results
from tests.benchmarks.made_results import make_result
from tests.benchmarks.problems import QUICK


def test_writes_json_and_figure(folder, capsys):
    below = sorted(p.name for p in (folder / "permuted-digits").iterdir())
    assert [name for name in below if name.endswith(".json")] == [
        "rgo_epochs=4_examples_per_task=200_num_tasks=2_seeds=2.json",
        "stl_epochs=4_examples_per_task=200_num_tasks=2_seeds=2.json",
    ]
    assert {"accuracy.png", "accuracy.svg"} < set(below)
    assert (folder / "permuted-digits" / "accuracy.png").read_bytes()[:4] == b"\x89PNG"

    content = json.loads((folder / "permuted-digits" / below[2]).read_text())
    assert content["method"] == "rgo"
    assert np.array(content["r"], float).shape == (2, 2, 2)
    assert content["r"][0][0][1] is None  # not measured: the task lay in the future
    assert content["config"]["num_tasks"] == 2
    assert content["seeds"] == [0, 1]
    assert "python -m benchmarks run permuted-digits" in content["provenance"]["command"]
    assert {"jax", "optax", "python"} < set(content["provenance"]["versions"])
    assert content["compile_seconds"] > 0


def test_the_command_tells_flags_of_xla(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    assert provenance.provenance("python x")["command"] == "python x"
    monkeypatch.setenv("XLA_FLAGS", "--one=1 --two=2")
    assert provenance.provenance("python x")["command"] == "XLA_FLAGS='--one=1 --two=2' python x"
    monkeypatch.delenv("XLA_FLAGS")
    # On one line, with what is no text (such bytes a file's name may have) as escapes.
    assert provenance.provenance("x 'ä\n\udcff'")["command"] == r"x 'ä\n\udcff'"


@pytest.mark.slow
def test_seeds_run_apart_are_reported_as_one_result(folder, tmp_path):
    (whole,) = [found for found in results.load_all(folder) if found.method == "rgo"]
    for seeds in ("1", "1-1"):
        argv = [
            "run",
            "permuted-digits",
            "--methods",
            "rgo",
            *QUICK[:-1],
            seeds,
            "--out",
            str(tmp_path),
        ]
        assert cli.main(argv) == 0
    parts = results.load_all(tmp_path)
    assert [part.file_name.split("_")[-1] for part in parts] == ["seeds=1-1.json", "seeds=1.json"]
    (joined,) = merging.merge(parts)
    for ours, theirs in zip(joined.measured[:4], whole.measured[:4], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert joined.seeds == [0, 1]
    assert joined.measured.seconds == pytest.approx(sum(part.measured.seconds for part in parts))

    assert cli.main(["report", str(tmp_path)]) == 0
    text = (tmp_path / "README.md").read_text()
    assert f"| 2 | {whole.acc.mean():.2f} ±" in text
    # The parts' origins are told one by one.
    assert "--seeds 1-1 " in text
    assert "--seeds 1 " in text


def test_fel_is_told_by_the_results(tmp_path):
    argv = ["run", "permuted-digits", "--methods", "sgd", "--fel", *QUICK, "--out", str(tmp_path)]
    assert cli.main(argv) == 0
    (result,) = results.load_all(tmp_path)
    assert result.changes["fel"] is True
    assert result.config.fel is True
    assert "_fel=True_" in result.file_name


def test_switches_are_told_by_the_results(tmp_path):
    argv = ["run", "permuted-digits", "--methods", "rgo", *QUICK, "--out", str(tmp_path)]
    switches = ["--no-normalize", "--no-fel-on-convs", "--label-smoothing", "0.1"]
    assert cli.main([*argv, *switches]) == 0
    (result,) = results.load_all(tmp_path)
    assert result.changes["label_smoothing"] == result.config.label_smoothing == 0.1
    assert result.changes["fel_on_convs"] is result.config.fel_on_convs is False
    assert result.changes["normalize"] is result.config.options["normalize"] is False


def test_options_are_those_of_the_methods_that_have_them(jobs_run, tmp_path):
    """The others run as they are, and are told so."""
    argv = ["run", "permuted-digits", "--methods", "rgo,sgd,gpm", "--alpha", "1", "--seeds", "2"]
    assert cli.main([*argv, "--momentum", "0.5", "--out", str(tmp_path)]) == 0
    assert [job.changes for job in jobs_run] == [
        {"alpha": 1.0, "momentum": 0.5}, {"momentum": 0.5}, {},
    ]  # fmt: skip
    plain = presets.config("permuted-digits").options
    assert [job.config.options for job in jobs_run] == [
        plain | {"alpha": 1.0, "momentum": 0.5}, {"momentum": 0.5}, {},
    ]  # fmt: skip
    assert [job.path.name for job in jobs_run] == [
        "rgo_alpha=1.0_momentum=0.5_seeds=2.json", "sgd_momentum=0.5_seeds=2.json",
        "gpm_seeds=2.json",
    ]  # fmt: skip


def test_what_is_given_as_the_preset_has_it_is_no_change(jobs_run, tmp_path):
    given = ["--alpha", "0.01", "--initial-values", "uniform", "--curvature-classes", "present"]
    given += ["--no-fel-on-input", "--protect-biases", "--no-online", "--seeds", "1"]
    argv = ["run", "permuted-digits", "--methods", "rgo,gpm", *given, "--out", str(tmp_path)]
    assert cli.main(argv) == 0
    # It is a change of what has another preset.
    assert [job.changes for job in jobs_run] == [
        {}, {"initial_values": "uniform", "fel_on_input": False},
    ]  # fmt: skip
    assert jobs_run[0].path.name == "rgo_seeds=1.json"


def test_training_images_are_the_first(jobs_run, tmp_path, digits):
    argv = [
        "run",
        "permuted-digits",
        "--methods",
        "rgo,sgd",
        "--training-images",
        "500",
        "--seeds",
        "1",
    ]
    assert cli.main([*argv, "--out", str(tmp_path)]) == 0
    for job in jobs_run:
        np.testing.assert_array_equal(job.dataset.x_train, digits.x_train[:500])
        assert job.changes == {"training_images": 500}
        assert job.config.examples_per_task == 500  # no more than there are


def test_a_methods_own_learning_rate_stands_until_the_user_gives_one(
    jobs_run, tmp_path, monkeypatch
):
    own = METHODS["sgd"]._replace(learning_rates={"digits": 0.05})
    monkeypatch.setitem(METHODS, "sgd", own)
    argv = ["run", "permuted-digits", "--out", str(tmp_path)]
    assert cli.main([*argv, "--methods", "sgd,stl"]) == 0
    assert cli.main([*argv, "--methods", "sgd", "--learning-rate", "0.1"]) == 0
    sgd, stl, given = jobs_run
    assert (sgd.config.learning_rate, stl.config.learning_rate) == (0.05, 0.1)
    assert sgd.changes == {}
    assert given.config.learning_rate == 0.1
    assert given.changes == {"learning_rate": 0.1}


def test_report(folder, capsys):
    assert cli.main(["report", str(folder)]) == 0
    text = (folder / "README.md").read_text()
    (rgo, stl) = results.load_all(folder)
    assert f"{rgo.acc.mean():.2f} ± {rgo.acc.std(ddof=1):.2f}" in text
    assert f"{stl.acc.mean():.2f}" in text
    assert "![Average accuracy against tasks](permuted-digits/accuracy.png)" in text
    assert "`python -m benchmarks run permuted-digits" in text


def test_report_sets_the_papers_numbers_beside_ours():
    result = make_result("rgo", 90, "permuted-mnist", seeds=2, head="frozen")
    text = report.markdown([result], {"permuted-mnist": "f.png"})
    assert (
        "| RGO | paper | frozen | 2 | 90.50 ± 0.71 | 91.15 | -0.65 | 0.00 ± 0.00 | -2.05 | +2.05 "
        "| 1.5 |" in text
    )
    # Another protocol is not compared.
    for change in ({"epochs": 2}, {"num_tasks": 3}, {"fel": True}, {"network": "mlp-100"}):
        config = dataclasses.replace(result.config, **change)
        other = result._replace(changes=change, config=config)
        text = report.markdown([other], {"permuted-mnist": "f.png"})
        assert "91.15" not in text


@pytest.mark.parametrize(
    ("argv", "match"),
    [
        (["permuted-mnst"], "Unknown benchmark 'permuted-mnst'; expected one of permuted-digits"),
        (["--methods", "rgo,ewcc"], "Unknown method 'ewcc'; expected some of rgo, rgo-2, sgd, stl"),
        (["--seeds", "0"], "--seeds is '0'; expected how many, 1 or more"),
        (["--seeds", "3-1"], "--seeds is '3-1'; expected how many, 1 or more, or the first and"),
        (["--seeds", "1.5"], "--seeds is '1.5'; expected"),
        (["--head", "x"], "--head is 'x'; expected one of shared, frozen, per_task, masked"),
        (["--columns", "x"], "--columns is 'x'; expected one of mean, sum, signs, each"),
        (
            ["--methods", "gpm,rgo", "--alpha", "0"],
            "--alpha is 0.0; expected a finite number above 0",
        ),
        (["--methods", "gpm,sgd", "--momentum", "1"], "--momentum is 1.0; expected 0 to below 1"),
        (
            ["split-digits", "--network", "vgg-11", "--conv-biases", "--biases", "input"],
            "convolutions have biases. Add --no-conv-biases.",
        ),
        (["--network", "lenet-5"], "takes images [height, width, channels], but examples of these"),
        (
            ["split-digits", "--network", "vgg-11"],
            "takes images of 32 x 32 pixels or more, but these have 8 x 8. Choose --network mlp",
        ),
        (["--seeds", "3000000000-3000000000"], "3000000000'; expected how many"),
        (["--seeds", "9" * 5000], "--seeds is '[...]'; expected how many"),
        (["--checkpoint-every", "0"], "--checkpoint-every is 0; expected an integer from 1"),
        (["--epochs", "3000000000"], "--epochs is 3000000000; expected an integer from 1"),
        (["--batch-size", "2000"], "--batch-size is 2000, but a task has 1000 examples. Set --b"),
        (["--examples-per-task", "2000"], "Set --examples-per-task to 1297 or less"),
        (
            ["--num-tasks", "1000000000"],
            "--num-tasks 1000000000 and --epochs 5 make 500000000000 steps of 10 examples; expec",
        ),
        (
            ["--methods", "rgo", "--num-tasks", "2000000", "--epochs", "1"],
            "--num-tasks 2000000 takes 146 TiB of memory; there is",
        ),
        (
            ["--seeds", "1000000000"],
            "what 1000000000 seeds draw in --epochs 5 and measure on --num-tasks 10 takes",
        ),
        (["--learning-rate", "inf"], "--learning-rate is inf; expected a finite number above 0"),
        (["--validation", "--training-images", "1"], "Raise --training-images, or leave --valid"),
        (["--data", "absent.npz"], "absent.npz: no such file"),
        (["--data", "digits"], "--data is 'digits'; expected the path of an .npz file"),
        (["split", "--data", "a\nb.npz"], "a file's name without control characters"),
        (["--out", __file__], "test_cli.py'. Choose a folder that can be written to"),
    ],
)
def test_errors_are_one_line(argv, match, capsys):
    check_error(["run", *argv], match, capsys)


def test_a_report_of_nothing(capsys):
    check_error(["report", "nowhere"], "nowhere: no results", capsys)


def check_error(argv, match, capsys):
    assert cli.main(argv) == 2
    captured = capsys.readouterr().err
    assert captured.startswith("error: ")
    assert match in captured
    assert "Traceback" not in captured


def test_all_benchmarks_are_checked_before_the_first_runs(tmp_path, capsys):
    argv = ["run", "permuted-digits", "rotated-digits", "--num-tasks", "21", "--out", str(tmp_path)]
    assert cli.main(argv) == 2
    assert "20 angles" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_too_many_seeds_for_the_memory(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(limits, "memory", lambda: 2**20)
    argv = ["run", "permuted-digits", "--methods", "sgd,rgo", "--out", str(tmp_path), "--seeds"]
    assert cli.main([*argv, "10"]) == 2
    error = capsys.readouterr().err
    possible = int(re.search(r"Run fewer at a time: --seeds (\d+), or", error)[1])
    assert 1 <= possible < 10
    assert "10 seeds of --network mlp-100 take" in error
    assert cli.main([*argv, "10", "--network", "alexnet-7"]) == 2
    monkeypatch.setattr(limits, "memory", lambda: 2**18)
    assert cli.main([*argv, "1"]) == 2
    assert "Choose a smaller --network" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_bar_tells_how_far_it_is_and_how_long_it_will_take():
    clock = [0.0]
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    bar = jobs.progress_bar(console, lambda: clock[0])
    config = presets.config("permuted-digits")  # ten tasks of 500 steps
    display = jobs.Display(bar, SimpleNamespace(config=config, checkpoint_every=1), None)
    for piece in range(1, 5):  # a minute for each tenth of a task
        clock[0] += 60
        display.on_piece(0, piece / 10)
    (shown,) = bar.tasks
    assert shown.description == "task 1/10, step 200/500"
    assert shown.time_remaining == pytest.approx(96 * 60, rel=0.4)
    console.print(bar.get_renderable())
    (line,) = console.file.getvalue().splitlines()
    assert "task 1/10, step 200/500 " in line
    assert "1:36:00" in line


@pytest.mark.parametrize("flags", ["", "--xla_force_host_platform_device_count=3"])
def test_a_core_is_a_device_unless_the_user_says_otherwise(flags):
    code = """
import runpy, sys
import jax
sys.argv = ["benchmarks", "report", "nowhere"]
try:
    runpy.run_module("benchmarks", run_name="__main__")
except SystemExit:
    print(jax.local_device_count("cpu"))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(cli.__file__).parent.parent,
        env=os.environ | {"XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) == (3 if flags else provenance.num_cores())


def test_help_names_everything(capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["run", "--help"])
    assert exit_.value.code == 0
    text = "".join(capsys.readouterr().out.split())  # argparse breaks lines inside words
    for word in ("permuted-mnist", "rotated-digits", "rgo-2", "recommended", "per_task", "cosine"):
        assert word in text


def test_list_names_everything(capsys):
    assert cli.main(["list"]) == 0
    text = capsys.readouterr().out
    for name in (*presets.BENCHMARKS, *ARCHITECTURES, *METHODS, *presets.PRESETS):
        assert f" {name} " in text


def test_a_protocol_by_its_name(jobs_run, tmp_path, capsys):
    argv = ["run", "split", "--data", str(tmp_path / "mine.npz"), "--methods", "sgd"]
    x, y = np.zeros((40, 8, 8), np.uint8), np.arange(40) % 4
    np.savez(tmp_path / "mine.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    argv += ["--num-tasks", "2", "--network", "mlp-100", "--protocol", "table-1"]
    assert cli.main([*argv, "--epochs", "20", "--out", str(tmp_path)]) == 0
    (job,) = jobs_run
    assert job.config.protocol == "table-1"
    # Twenty epochs are what the other protocol has, not this one.
    assert {"protocol": "table-1", "epochs": 20}.items() <= job.changes.items()
    check_error(
        ["run", "permuted-mnist", "--protocol", "table-3"], "expected one of table-1", capsys
    )
