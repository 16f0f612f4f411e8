"""The command line: ``python -m benchmarks --help``."""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from benchmarks import (
    ablation,
    command_line,
    data,
    dry_run,
    experiment,
    figures,
    presets,
    report,
    results,
)
from benchmarks.jobs import Job, reserved
from benchmarks.methods import METHODS
from benchmarks.methods.base import check_count

_RESULTS = Path("benchmarks") / "results"
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


def _run(argv: list[str], console: Console) -> int:
    command = ["python", "-m", "benchmarks", *argv]
    is_ablation = argv[:1] == [_ABLATION]
    parser = command_line.make_parser()
    if is_ablation:
        argv = argv[1:]
        parser.set_defaults(methods=",".join(ablation.METHODS_ABLATED))
    arguments = parser.parse_args(argv)
    arguments.seeds = command_line.seeds_of(arguments.seeds)
    check_count("checkpoint_every", arguments.checkpoint_every)
    methods = command_line.methods_of(arguments.methods)
    default = ["split"] if arguments.data else ablation.BENCHMARKS if is_ablation else _DEFAULT
    changes = {
        name: value
        for name, value in vars(arguments).items()
        if name in command_line.changeable() and value is not None
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
            for divergence in report.divergences(finished):
                console.print(divergence)
            figure = arguments.out / benchmark / "accuracy"
            report.replace_all(figures.accuracy(benchmark, finished, figure))
            console.print(f"Results and {figure.with_suffix('.png')} are in {arguments.out}.")
    return 0


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
        dry_run.check(config, METHODS[method], dataset, len(arguments.seeds))
        _tell(experiment.notes(config, dataset), told)
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
    written = report.write(found, folder)
    for told in report.divergences(found):
        console.print(told)
    console.print(f"Wrote {written}.")
    return 0


if __name__ == "__main__":
    # A device for each core: seeds are spread over devices, and the small products of one seed do
    # not fill two cores.
    if "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", results.num_cores())
    sys.exit(main())
