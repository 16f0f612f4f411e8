"""The arguments of `python -m benchmarks run`, and what they mean."""

import argparse
import dataclasses
from pathlib import Path
from textwrap import shorten
from typing import Any

from benchmarks import presets
from benchmarks.data.limits import MAX_COUNT
from benchmarks.data.tasks import INTERPOLATIONS, SEQUENCES
from benchmarks.methods import METHODS
from benchmarks.methods.base import switch
from benchmarks.networks.architectures import ARCHITECTURES
from benchmarks.networks.initializers import INITIAL_VALUES
from benchmarks.networks.layers import BIASES, HEADS
from benchmarks.presets import ablation
from benchmarks.run import results

DEFAULT_METHODS = "rgo,sgd"
DEFAULT_OUT = Path("results")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of ``run``."""
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
        "--ablation",
        action="store_true",
        help=(
            "run RGO with one choice of the authors' program changed at a time, on "
            f"{' and '.join(ablation.BENCHMARKS)} if none is named"
        ),
    )
    parser.add_argument(
        "--protocol",
        help="the paper's table whose numbers are taken, table-1 or table-3, where there are both",
    )
    parser.add_argument(
        "--methods",
        help=(
            f"comma-separated, any of {', '.join(METHODS)} (default: {DEFAULT_METHODS}; with "
            f"--ablation {','.join(ablation.METHODS_ABLATED)})"
        ),
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
        default=DEFAULT_OUT,
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
        "--scrambled",
        action="store_true",
        default=None,
        help=(
            "colour images with their bytes out of order, as several published loaders of "
            "CIFAR-100's superclasses have them"
        ),
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
    parser.add_argument(
        "--forward-transfer",
        action="store_true",
        default=None,
        help="measure accuracy on tasks to come too; takes as long again as measuring that so far",
    )
    parser.add_argument(
        "--infer-task",
        action="store_true",
        default=None,
        help="measure accuracy without task ids too: the network finds them out",
    )
    _add_options(parser)


def _add_options(parser: argparse.ArgumentParser) -> None:
    """The methods' own options, each under its field's name."""
    group = parser.add_argument_group("options of methods; left out for those that lack them")
    fields = [field for spec in METHODS.values() for field in dataclasses.fields(spec.options)]
    for field in {field.name: field for field in fields}.values():
        name, type_ = switch(field.name), field.metadata["type"]
        is_switch = {"action": argparse.BooleanOptionalAction}
        kind: dict[str, Any] = is_switch if type_ is bool else {"type": type_}
        group.add_argument(name, default=None, help=field.metadata["help"], **kind)


def methods_of(text: str) -> list[str]:
    """The methods of ``"rgo,sgd"``.

    Raises:
      ValueError: an unknown one.
    """
    methods = text.split(",")
    for method in methods:
        if method not in METHODS:
            raise ValueError(f"Unknown method {method!r}; expected some of {', '.join(METHODS)}.")
    return methods


def changeable() -> set[str]:
    """What of the arguments changes a preset."""
    fields = {field.name for field in dataclasses.fields(presets.Config)}
    options = {
        field.name for spec in METHODS.values() for field in dataclasses.fields(spec.options)
    }
    return (fields - {"protocol", "preset", "options"}) | options


def seeds_of(text: str) -> range:
    """The seeds of ``"5"``, from 0 to 4, or of ``"3-4"``, both of them included.

    Raises:
      ValueError: it is neither, or there are none.
    """
    parts = text.split("-")
    if len(parts) <= 2 and all(part.isdecimal() and len(part) <= 10 for part in parts):
        first, last = (0, int(text) - 1) if len(parts) == 1 else map(int, parts)
        if first <= last <= MAX_COUNT:
            return range(first, last + 1)
    raise ValueError(
        f"--seeds is {shorten(text, 40)!r}; expected how many, 1 or more, or the first and the "
        "last, as 3-4, all below 2 ** 31."
    )
