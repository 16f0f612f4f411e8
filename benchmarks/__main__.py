"""The command line: ``python -m benchmarks --help``."""

import argparse
import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks import data, presets, report, results, train
from benchmarks.methods import METHODS
from benchmarks.models import HEADS
from benchmarks.tasks import SEQUENCES

_RESULTS = Path("benchmarks") / "results"
_DEFAULT_OUT = Path("results")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    console = Console()
    try:
        if argv[:1] == ["report"]:
            return _report(argv[1:], console)
        return _run(argv, console)
    except (ValueError, FileNotFoundError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted. What had finished is saved.", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=(
            "Trains networks through sequences of tasks and measures how much they forget. Without "
            "arguments: RGO beside SGD on permuted digits, in under a minute, nothing to download."
        ),
        epilog=(
            "Writes a JSON for each run, and a figure, to --out. 'python -m benchmarks report "
            "[FOLDER]' makes the tables and figures of a folder of results."
        ),
    )
    parser.add_argument(
        "benchmarks",
        nargs="*",
        metavar="BENCHMARK",
        help=(
            f"any of {', '.join(presets.BENCHMARKS)}; with --data: {', '.join(SEQUENCES)}; the "
            "first of them if none is named"
        ),
    )
    parser.add_argument(
        "--methods",
        default="rgo,sgd",
        help=f"comma-separated, any of {', '.join(METHODS)} (default: %(default)s)",
    )
    parser.add_argument(
        "--seeds",
        type=int,
        default=results.DEFAULT_SEEDS,
        help="how many seeds, from 0 (default: %(default)s)",
    )
    parser.add_argument(
        "--preset",
        default="paper",
        help=f"one of {', '.join(presets.PRESETS)} (default: %(default)s)",
    )
    parser.add_argument("--data", metavar="FILE.npz", help="make tasks of your own images")
    parser.add_argument(
        "--data-dir",
        metavar="FOLDER",
        help=(
            "where TFDS keeps prepared datasets, and you miniImageNet, as mini-imagenet (default: "
            "TFDS_DATA_DIR, or TFDS's own)"
        ),
    )
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        type=Path,
        default=_DEFAULT_OUT,
        help="folder for results (default: %(default)s)",
    )
    changes = parser.add_argument_group("changes to the preset")
    changes.add_argument(
        "--head", help="; ".join(f"{name}: {text}" for name, text in HEADS.items())
    )
    changes.add_argument(
        "--learning-rate", metavar="RATE", type=float, help="of SGD, at the start of a task"
    )
    changes.add_argument(
        "--schedule", help=f"inside each task, one of {', '.join(presets.SCHEDULES)}"
    )
    changes.add_argument("--num-tasks", metavar="N", type=int, help="length of the sequence")
    changes.add_argument(
        "--examples-per-task", metavar="N", type=int, help="drawn anew for each task"
    )
    changes.add_argument("--epochs", metavar="N", type=int, help="over a task's examples")
    changes.add_argument(
        "--batch-size", metavar="N", type=int, help="in training and in the curvature pass"
    )
    changes.add_argument("--alpha", type=float, help="RGO's alpha; smaller protects more")
    changes.add_argument(
        "--fel",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="feature encoding layers, with any method (default: as the method has it)",
    )
    changes.add_argument(
        "--validation",
        action="store_true",
        default=None,
        help="measure on held-out training data: for choosing among settings",
    )
    return parser


def _run(argv: list[str], console: Console) -> int:
    arguments = _parser().parse_args(argv)
    if arguments.seeds < 1:
        raise ValueError(f"--seeds is {arguments.seeds}; expected 1 or more.")
    methods = arguments.methods.split(",")
    for method in methods:
        if method not in METHODS:
            raise ValueError(f"Unknown method {method!r}; expected some of {', '.join(METHODS)}.")
    known = tuple(SEQUENCES) if arguments.data else presets.BENCHMARKS
    benchmarks = arguments.benchmarks or [known[0]]
    fields = {field.name for field in dataclasses.fields(presets.Config)}
    changes = {
        name: value
        for name, value in vars(arguments).items()
        if name in fields - {"preset"} and value is not None
    }
    configs = {
        name: presets.config(name, arguments.preset, arguments.data, **changes)
        for name in dict.fromkeys(benchmarks)
    }
    # Everything that can be wrong is found before the first run.
    jobs = []
    for name, config in configs.items():
        dataset = data.load(config.dataset, data_dir=arguments.data_dir)
        if config.validation:
            dataset = dataset.validation()
        if arguments.examples_per_task is None:
            config = config.fitted_to(len(dataset.x_train))
        train.check(config, dataset)
        jobs.append((name, config, dataset))
    origin = results.provenance(shlex.join(["python", "-m", "benchmarks", *argv]))
    for name, config, dataset in jobs:
        benchmark = f"{config.sequence}-{dataset.name}"
        preset = presets.config(name, arguments.preset, arguments.data)
        differing = {
            field: value for field, value in changes.items() if value != getattr(preset, field)
        }
        finished = []
        for method in methods:
            title = " ".join([benchmark, method, *(f"{k}={v}" for k, v in differing.items())])
            run = _run_with_progress(title, config, method, dataset, arguments.seeds, console)
            result = results.collect(
                benchmark,
                method,
                arguments.preset,
                differing,
                dataclasses.asdict(config) | {"dataset": dataset.name},
                run,
                origin,
            )
            results.save(result, arguments.out)
            finished.append(result)
        console.print(
            f"{benchmark}, preset {arguments.preset}, {arguments.seeds} seeds; percent after the "
            "last task, mean ± standard deviation"
        )
        console.print(report.terminal_table(finished))
        figure = arguments.out / benchmark / "accuracy"
        report.figure(benchmark, finished, figure)
        console.print(f"Results and {figure.with_suffix('.png')} are in {arguments.out}.")
    return 0


def _run_with_progress(
    title: str,
    config: presets.Config,
    method: str,
    dataset: data.Dataset,
    num_seeds: int,
    console: Console,
) -> train.Run:
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("tasks {task.fields[status]}"),
        TimeRemainingColumn(),
        console=console,
    ) as progress:
        bar = progress.add_task(title, total=config.num_tasks, status="(compiling)")

        def on_task(task_id: int, r: np.ndarray) -> None:
            accuracy = 100 * np.nanmean(r[:, task_id])
            progress.update(bar, completed=task_id + 1, status=f"ACC {accuracy:.2f}")

        return train.run(config, METHODS[method], dataset, num_seeds, on_task)


def _report(argv: list[str], console: Console) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks report",
        description="Makes the table and the figures of a folder of results.",
    )
    parser.add_argument("folder", nargs="?", type=Path, default=_RESULTS)
    folder = parser.parse_args(argv).folder
    found = results.load_all(folder)
    if not found:
        raise FileNotFoundError(f"{folder}: no results (*/*.json) there; run a benchmark first.")
    console.print(f"Wrote {report.write(found, folder)}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
