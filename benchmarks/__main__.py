"""The command line: ``python -m benchmarks --help``."""

import argparse
import dataclasses
import os
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from benchmarks import data, presets
from benchmarks.language import command as language
from benchmarks.methods import METHODS
from benchmarks.methods.base import check_count
from benchmarks.perf import page as perf
from benchmarks.presets import ablation
from benchmarks.report import figures, listing, pages
from benchmarks.run import checks, command_line, dry_run, experiment, results
from benchmarks.run.jobs import Job, lock_jobs
from benchmarks.run.provenance import num_cores, provenance

_DEFAULT = presets.BENCHMARKS[:1]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    command = shlex.join(["python", "-m", "benchmarks", *argv])
    arguments = make_parser().parse_args(argv or ["run"])
    console = Console(markup=False)  # Square brackets in a path are no markup.
    try:
        arguments.execute(arguments, command, console)
    except (ValueError, FileNotFoundError, RuntimeError, MemoryError) as error:
        print(f"error: {str(error) or type(error).__name__}", file=sys.stderr)
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
    return 0


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=(
            "Trains networks through sequences of tasks and measures how much they forget. Without "
            "a command: RGO beside SGD on permuted digits, in under a minute, nothing to download."
        ),
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, text: str, execute: Any) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(execute=execute)
        return command

    run = add("run", "run benchmarks; write a JSON for each run, and a figure, to --out", _run)
    command_line.add_arguments(run)
    report = add("report", "make the tables and figures of a folder of results", _report)
    report.add_argument(
        "folder",
        metavar="FOLDER",
        nargs="?",
        type=Path,
        default=command_line.DEFAULT_OUT,
        help="of results (default: %(default)s)",
    )
    perf.add_arguments(add("perf", "measure what RGO costs on this machine", perf.run))
    language.add_arguments(
        add("language", "train a language model on one kind of text after another", language.run)
    )
    add("list", "list datasets, networks, methods and presets", _list)
    return parser


def _run(arguments: argparse.Namespace, command: str, console: Console) -> None:
    arguments.seeds = command_line.seeds_of(arguments.seeds)
    check_count("checkpoint_every", arguments.checkpoint_every)
    default_methods = command_line.DEFAULT_METHODS
    if arguments.ablation:
        default_methods = ",".join(ablation.METHODS_ABLATED)
    methods = command_line.methods_of(arguments.methods or default_methods)
    default = ablation.BENCHMARKS if arguments.ablation else _DEFAULT
    if arguments.data:
        default = ("split",)
    changes = {
        name: value
        for name, value in vars(arguments).items()
        if name in command_line.changeable() and value is not None
    }

    def cases(benchmark: str) -> list[tuple[str, dict[str, Any]]]:
        """Each method to run, with what is changed of the preset."""
        if not arguments.ablation:
            return [(method, changes) for method in methods]
        return [
            (method, changes | change.fields)
            for change, method in ablation.cases(benchmark, methods)
        ]

    # Everything that can be wrong is found before the first run.
    origin = provenance(command)
    told: set[str] = set()
    jobs = {
        name: _jobs(name, cases(name), arguments, origin, told)
        for name in dict.fromkeys(arguments.benchmarks or default)
    }
    every = [job for benchmark_jobs in jobs.values() for job in benchmark_jobs]
    with lock_jobs(every, arguments.resume):
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
            console.print(pages.terminal_table(finished))
            for divergence in pages.divergences(finished):
                console.print(divergence)
            path = arguments.out / benchmark / "accuracy"
            pages.replace_all(figures.render(figures.accuracy(benchmark, finished), path))
            console.print(f"Results and {path.with_suffix('.png')} are in {arguments.out}.")


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
        config = configured(arguments.protocol, **changes)
        default, preset = configured(), configured(arguments.protocol)
        if whole is None:
            whole = data.load(config.dataset, data_dir=arguments.data_dir)
            _tell(whole.notes(), told)
        dataset = experiment.data_of(config, whole)
        if arguments.examples_per_task is None:
            config = checks.limit_examples(config, dataset)
        dry_run.check(config, METHODS[method], dataset, len(arguments.seeds))
        _tell(checks.notes(config, METHODS[method], dataset), told)
        infer_task = experiment.infers_tasks(config, METHODS[method])
        config = dataclasses.replace(config, infer_task=infer_task)
        differing = {
            field: value
            for field, value in changes.items()
            if value != preset.flat.get(field, value) and field not in presets.MEASURED
        }
        if config.protocol != default.protocol:
            differing = {"protocol": config.protocol} | differing
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


def _report(arguments: argparse.Namespace, command: str, console: Console) -> None:
    del command
    found = results.load_all(arguments.folder)
    if not found:
        raise FileNotFoundError(
            f"{arguments.folder}: no results (*/*.json) there; run a benchmark first."
        )
    written = pages.write(found, arguments.folder)
    for told in pages.divergences(found):
        console.print(told)
    console.print(f"Wrote {written}.")


def _list(arguments: argparse.Namespace, command: str, console: Console) -> None:
    del arguments, command
    for table in listing.tables():
        console.print(table)


if __name__ == "__main__":
    # A device for each core: seeds are spread over devices, and the small products of one seed do
    # not fill two cores. What is timed has all cores to itself.
    if sys.argv[1:2] != ["perf"] and "host_platform_device_count" not in os.environ.get(
        "XLA_FLAGS", ""
    ):
        jax.config.update("jax_num_cpu_devices", num_cores())
    sys.exit(main())
