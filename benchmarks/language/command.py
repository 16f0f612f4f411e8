"""``python -m benchmarks language``: the methods beside one another on a language model."""

import argparse
import dataclasses
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from benchmarks.data.files import atomic_write
from benchmarks.language import methods, page, texts, train
from benchmarks.language.base import Settings
from benchmarks.language.model import LanguageModel
from benchmarks.methods.base import check_choice, check_count
from benchmarks.run.provenance import provenance
from rgo_jax.baselines import Method

_LENGTH = 64
_PRE_TRAINING_STEPS = 2000

# The first is that of pre-training. Settings are chosen on the second sequence.
_KINDS = ("english", "python", "c", "json")
_VALIDATION_KINDS = ("english", "bytecode", "syntax-trees", "stubs")


class Entry(NamedTuple):
    """A method of the table.

    Attributes:
      label: what the table calls it.
      build: from the model, the settings and the pre-trained parameters.
      replay: whether it keeps all data.
      learning_rate: where it is not that of `Settings`.
    """

    label: str
    build: Callable[[LanguageModel, Settings, Any], Method]
    replay: bool = False
    learning_rate: float | None = None


METHODS = {
    "adam": Entry("Adam", methods.adam),
    "adam-slow": Entry("Adam, a tenth of the rate", methods.adam, learning_rate=1e-4),
    "replay": Entry("Adam, replay of all data", methods.adam, replay=True),
    "ewc": Entry("EWC", methods.ewc),
    "gpm": Entry("GPM", methods.gpm),
    "rgo": Entry("RGO", methods.rgo),
    "rgo-mean": Entry('RGO, columns="mean"', partial(methods.rgo, columns="mean")),
    "rgo-trace": Entry("RGO, trace rule", partial(methods.rgo, normalize=True)),
    "rgo-before-adam": Entry("RGO before Adam", partial(methods.rgo, before_adam=True)),
    "lora-adam": Entry("LoRA, Adam", partial(methods.adam, adapters=True)),
    "lora-olora": Entry("LoRA, O-LoRA", partial(methods.o_lora, num_tasks=len(_KINDS) - 1)),
    "lora-rgo": Entry("LoRA, RGO", partial(methods.rgo, adapters=True)),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of ``language``."""
    parser.add_argument("--methods", default=",".join(METHODS), help="comma-separated")
    parser.add_argument("--seeds", metavar="N", type=int, default=3, help="how many, from 0")
    parser.add_argument("--steps", metavar="N", type=int, default=Settings.steps, help="of a task")
    parser.add_argument(
        "--pre-training-steps",
        metavar="N",
        type=int,
        default=_PRE_TRAINING_STEPS,
        help="on English",
    )
    parser.add_argument(
        "--validation",
        action="store_true",
        help="with other kinds of text: for choosing among settings",
    )
    parser.add_argument("--out", metavar="FOLDER", type=Path, default=Path("results"))
    parser.add_argument(
        "--resume", action="store_true", help="keep the results there and run what lacks"
    )


def run(arguments: argparse.Namespace, command: str, console: Console) -> None:
    """Trains, and writes ``language.json`` and ``LANGUAGE.md`` after each method.

    Raises:
      ValueError: an unknown method, a number that is not positive, or results of other settings.
    """
    names = arguments.methods.split(",")
    for name in names:
        check_choice("methods", name, tuple(METHODS))
    for option in ("seeds", "steps", "pre_training_steps"):
        check_count(option, getattr(arguments, option))
    settings = Settings(steps=arguments.steps)
    kinds = _VALIDATION_KINDS if arguments.validation else _KINDS
    origin = provenance(command)
    experiment = {
        "kinds": list(kinds),
        "seeds": arguments.seeds,
        "length": _LENGTH,
        "pre_training_steps": arguments.pre_training_steps,
        "settings": dataclasses.asdict(settings),
    }
    stem = "language-validation" if arguments.validation else "language"
    path = arguments.out / f"{stem}.json"
    found: dict[str, Any] = {}
    if arguments.resume and path.exists():
        found = _earlier(path, experiment)
    net = LanguageModel(length=_LENGTH)
    loaded = [texts.load(kind, _LENGTH + 1) for kind in kinds]
    seeds = range(arguments.seeds if set(names) - set(found) else 0)
    pre_trained = train.pre_train(net, loaded[0], arguments.pre_training_steps, seeds)
    for name in names:
        if name in found:
            continue
        started = time.perf_counter()
        entry = METHODS[name]
        rate = entry.learning_rate or settings.learning_rate
        own = dataclasses.replace(settings, learning_rate=rate)
        run_one = train.compiled(partial(entry.build, net, own), settings.steps)
        losses = [
            run_one(params, loaded, seed, replay=entry.replay)
            for seed, params in enumerate(pre_trained)
        ]
        found[name] = {
            "losses": np.round(losses, 5).tolist(),
            "seconds": round(time.perf_counter() - started, 1),
            "provenance": origin,
        }
        _write(path, experiment | {"methods": found})
        console.print(f"{entry.label}: {page.summary(np.array(losses))}")
    text = page.markdown(experiment, found, {k: v.label for k, v in METHODS.items()})
    with atomic_write(arguments.out / f"{stem.upper()}.md") as temporary:
        temporary.write_text(text)
    console.print(text, highlight=False)


def _earlier(path: Path, experiment: dict[str, Any]) -> dict[str, Any]:
    """The methods of an earlier run.

    Raises:
      ValueError: the file is damaged, or of another experiment.
    """
    try:
        whole = json.loads(path.read_text())
        found = dict(whole.pop("methods"))
    except (ValueError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path}: not a result of this command ({error}). Move it away, or leave out --resume."
        ) from error
    if whole != experiment:
        raise ValueError(
            f"{path}: of another experiment, {whole}; expected {experiment}. Choose another --out, "
            "or leave out --resume."
        )
    return found


def _write(path: Path, result: dict[str, Any]) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")
