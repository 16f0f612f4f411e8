"""The command line: ``python -m benchmarks --help``."""

import argparse
import dataclasses
import os
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import Any

import jax
from rich.console import Console

from benchmarks import ablation, data, dry_run, experiment, figures, presets, report, results
from benchmarks.initializers import INITIAL_VALUES
from benchmarks.jobs import Job, reserved
from benchmarks.layers import BIASES, HEADS
from benchmarks.limits import MAX_COUNT
from benchmarks.methods import METHODS
from benchmarks.methods.base import check_count, switch
from benchmarks.networks import ARCHITECTURES
from benchmarks.tasks import INTERPOLATIONS, SEQUENCES

_RESULTS = Path("benchmarks") / "results"
_DEFAULT_OUT = Path("results")
_DEFAULT = presets.BENCHMARKS[:1]
_ABLATION = "ablation"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    console = Console(markup=False)  # Square brackets in a path are no markup.
    try:
        if argv[:1] == ["report"]:
            return _report(argv[1:], console)
        return _run(argv, console)
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(
            f"error: {error}. What had been saved is whole. Make room there or choose another "
            "folder, and give the command again; --resume goes on with runs.",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print(
            "Interrupted. What had finished is saved; the same command with --resume goes on.",
            file=sys.stderr,
        )
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
            "[FOLDER]' makes the tables and figures of a folder of results. 'python -m benchmarks "
            "ablation' runs RGO with one choice of the authors' program changed at a time."
        ),
    )
    parser.add_argument(
        "benchmarks",
        nargs="*",
        metavar="BENCHMARK",
        help=(
            f"any of {', '.join(presets.BENCHMARKS)}, the first of them if none is named; with "
            f"--data any of {', '.join(SEQUENCES)}, and split if none is named"
        ),
    )
    parser.add_argument(
        "--methods",
        default="rgo,sgd",
        help=f"comma-separated, any of {', '.join(METHODS)} (default: %(default)s)",
    )
    parser.add_argument(
        "--seeds",
        metavar="N",
        default=str(results.DEFAULT_SEEDS),
        help=(
            "how many seeds, from 0; or which, as 3-4, whose results the report puts together with "
            "those of other seeds (default: %(default)s)"
        ),
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
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with the same command's interrupted runs; skip its finished ones",
    )
    parser.add_argument(
        "--checkpoint-every",
        metavar="N",
        type=int,
        default=1,
        help=(
            "how many tasks a kill may undo (default: %(default)s); with wide networks and many "
            "seeds a checkpoint is gigabytes"
        ),
    )
    changes = parser.add_argument_group("changes to the preset")
    changes.add_argument("--network", help=f"one of {', '.join(ARCHITECTURES)}")
    changes.add_argument(
        "--head", help="; ".join(f"{name}: {text}" for name, text in HEADS.items())
    )
    changes.add_argument(
        "--learning-rate",
        metavar="RATE",
        type=float,
        help="of SGD, at the start of a task",
    )
    changes.add_argument(
        "--schedule", help=f"inside each task, one of {', '.join(presets.SCHEDULES)}"
    )
    changes.add_argument(
        "--num-tasks", "--tasks", metavar="N", type=int, help="length of the sequence"
    )
    changes.add_argument(
        "--examples-per-task", metavar="N", type=int, help="drawn anew for each task"
    )
    changes.add_argument("--epochs", metavar="N", type=int, help="over a task's examples")
    changes.add_argument(
        "--batch-size", metavar="N", type=int, help="in training and in the curvature pass"
    )
    changes.add_argument(
        "--training-images", metavar="N", type=int, help="so many of the dataset's first are used"
    )
    changes.add_argument(
        "--initial-values", help=f"of the network, one of {', '.join(INITIAL_VALUES)}"
    )
    changes.add_argument(
        "--biases", help="; ".join(f"{name}: {text}" for name, text in BIASES.items())
    )
    changes.add_argument(
        "--interpolation", help=f"of rotated images, one of {', '.join(INTERPOLATIONS)}"
    )
    changes.add_argument(
        "--label-smoothing",
        metavar="SHARE",
        type=float,
        help="what each label gives up, dealt out to all classes alike; 0 is none",
    )
    changes.add_argument(
        "--fel",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="feature encoding layers, with any method (default: as the method has it)",
    )
    for name, text in (
        ("--conv-biases", "whether convolutions have biases"),
        ("--fel-on-convs", "feature encoding layers, where there are any, before convolutions too"),
        ("--fel-on-input", "and before the first layer"),
        ("--fel-per-layer", "permutations of its own for each layer, or one for each width"),
        ("--fel-on-first-task", "whether the first task is permuted"),
    ):
        changes.add_argument(name, action=argparse.BooleanOptionalAction, default=None, help=text)
    changes.add_argument(
        "--validation",
        action="store_true",
        default=None,
        help="measure on held-out training data: for choosing among settings",
    )
    _add_options(parser)
    return parser


def _add_options(parser: argparse.ArgumentParser) -> None:
    """The methods' own options, each under its field's name."""
    group = parser.add_argument_group("options of methods; left out for those that lack them")
    fields = [field for spec in METHODS.values() for field in dataclasses.fields(spec.options)]
    for field in {field.name: field for field in fields}.values():
        name, type_ = switch(field.name), field.metadata["type"]
        is_switch = {"action": argparse.BooleanOptionalAction}
        kind: dict[str, Any] = is_switch if type_ is bool else {"type": type_}
        group.add_argument(name, default=None, help=field.metadata["help"], **kind)


def _run(argv: list[str], console: Console) -> int:
    command = ["python", "-m", "benchmarks", *argv]
    is_ablation = argv[:1] == [_ABLATION]
    parser = _parser()
    if is_ablation:
        argv = argv[1:]
        parser.set_defaults(methods=",".join(ablation.METHODS_ABLATED))
    arguments = parser.parse_args(argv)
    arguments.seeds = _seeds(arguments.seeds)
    check_count("checkpoint_every", arguments.checkpoint_every)
    methods = _methods(arguments.methods)
    default = ["split"] if arguments.data else ablation.BENCHMARKS if is_ablation else _DEFAULT
    changes = {
        name: value
        for name, value in vars(arguments).items()
        if name in _changeable() and value is not None
    }

    def cases(benchmark: str) -> list[tuple[str, dict[str, Any]]]:
        """Each method to run, with what is changed of the preset."""
        if not is_ablation:
            return [(method, changes) for method in methods]
        return [
            (method, changes | change.fields)
            for change, method in ablation.cases(benchmark, methods)
        ]

    # Everything that can be wrong is found before the first run.
    origin = results.provenance(shlex.join(command))
    told: set[str] = set()
    jobs = {
        name: _jobs(name, cases(name), arguments, origin, told)
        for name in dict.fromkeys(arguments.benchmarks or default)
    }
    every = [job for benchmark_jobs in jobs.values() for job in benchmark_jobs]
    with reserved(every, arguments.resume):
        for benchmark_jobs in jobs.values():
            finished = []
            for job in benchmark_jobs:
                result = job.finished(console) if arguments.resume else None
                finished.append(result or job.run(arguments.resume, console))
            benchmark, count = finished[0].benchmark, len(arguments.seeds)
            console.print(
                f"{benchmark}, preset {arguments.preset}, {count} seed{'s' if count > 1 else ''}; "
                "percent after the last task, mean ± standard deviation"
            )
            console.print(report.terminal_table(finished))
            figure = arguments.out / benchmark / "accuracy"
            figures.accuracy(benchmark, finished, figure)
            console.print(f"Results and {figure.with_suffix('.png')} are in {arguments.out}.")
    return 0


def _methods(text: str) -> list[str]:
    methods = text.split(",")
    for method in methods:
        if method not in METHODS:
            raise ValueError(f"Unknown method {method!r}; expected some of {', '.join(METHODS)}.")
    return methods


def _changeable() -> set[str]:
    """What of the arguments changes a preset."""
    fields = {field.name for field in dataclasses.fields(presets.Config)}
    options = {
        field.name for spec in METHODS.values() for field in dataclasses.fields(spec.options)
    }
    return (fields - {"preset", "options"}) | options


def _seeds(text: str) -> range:
    """The seeds of ``"5"``, from 0 to 4, or of ``"3-4"``, both of them included."""
    parts = text.split("-")
    if len(parts) <= 2 and all(part.isdecimal() and len(part) <= 10 for part in parts):
        first, last = (0, int(text) - 1) if len(parts) == 1 else map(int, parts)
        if first <= last <= MAX_COUNT:
            return range(first, last + 1)
    raise ValueError(
        f"--seeds is {shorten(text, 40)!r}; expected how many, 1 or more, or the first and the "
        "last, as 3-4, all below 2 ** 31."
    )


def _jobs(
    benchmark: str,
    cases: Sequence[tuple[str, dict[str, Any]]],
    arguments: argparse.Namespace,
    origin: dict[str, Any],
    told: set[str],
) -> list[Job]:
    """The runs of a benchmark, one for each method with its changes to the preset.

    What was told of the data goes into ``told``, and is not told again.

    Raises:
      ValueError: a run is not possible.
    """
    jobs: list[Job] = []
    whole: data.Dataset | None = None
    for method, changes in cases:
        configured = partial(
            presets.config, benchmark, arguments.preset, METHODS[method], arguments.data
        )
        config, preset = configured(**changes), configured()
        if whole is None:
            whole = data.load(config.dataset, data_dir=arguments.data_dir)
            _tell(whole.notes(), told)
        dataset = experiment.data_of(config, whole)
        if arguments.examples_per_task is None:
            config = experiment.fitted(config, dataset)
        _tell(experiment.notes(config, dataset), told)
        dry_run.check(config, METHODS[method], dataset, len(arguments.seeds))
        differing = {
            field: value
            for field, value in changes.items()
            if value != preset.flat.get(field, value)
        }
        job = Job(
            method,
            config,
            dataset,
            differing,
            arguments.seeds,
            arguments.out,
            origin,
            arguments.checkpoint_every,
        )
        if any(job.path == other.path for other in jobs):
            continue  # Its change is what the preset has.
        jobs.append(job)
    return jobs


def _tell(notes: Sequence[str], told: set[str]) -> None:
    for note in notes:
        if note not in told:
            print(f"note: {note}", file=sys.stderr)
            told.add(note)


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
    # A device for each core: seeds are spread over devices, and the small products of one seed do
    # not fill two cores.
    if "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", results.num_cores())
    sys.exit(main())
