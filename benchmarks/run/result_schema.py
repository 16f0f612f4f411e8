"""What the JSON of a result holds: types, shapes and ranges, checked before any of it is used."""

import dataclasses
import itertools
from typing import Any

import numpy as np

from benchmarks import presets
from benchmarks.data.tasks import SEQUENCES
from benchmarks.methods import METHODS
from benchmarks.run import inference
from benchmarks.run.inference import Inference
from benchmarks.run.json_input import (
    Check,
    array,
    choice,
    instance,
    integer,
    mapping,
    number,
    optional,
    record,
    refuse,
    sequence,
    text,
)
from benchmarks.run.measurements import Measurements

FORMAT = 2

_SHARE = number(0, 1)
_SECONDS = number(0)
_ORIGIN: dict[str, Check] = {
    "command": text,
    "commit": text,
    "versions": mapping(text),
    "device": text,
    "date": text,
}


def parse(content: Any) -> dict[str, Any]:
    """The fields of a `benchmarks.run.results.Result` from a file's JSON.

    Raises:
      ValueError: it is not one; tells which value, and what was expected.
    """
    as_it_is: Check = lambda where, value: value  # noqa: E731
    names = ["format", "method", "config", "changes", "seeds", "memory_bytes", "data", "provenance",
             "r", "train", "losses", "task_seconds", "compile_seconds"]  # fmt: skip
    needed = dict.fromkeys(names, as_it_is)
    # Results from before they were measured lack them, and those that were not asked for them.
    lacking = ["initial", "capacity", *(f"inference.{name}" for name in Inference._fields)]
    given = record("the file", content, needed, dict.fromkeys(lacking, as_it_is))
    if given["format"] != FORMAT:
        refuse("format", given["format"], str(FORMAT))
    method = choice(METHODS)("method", given["method"])
    config = _config(given["config"], method)
    seeds = sequence(integer(0, 2**31 - 1))("seeds", given["seeds"])
    if seeds != list(range(seeds[0], seeds[0] + len(seeds))):
        refuse("seeds", seeds, "numbers that follow one another")
    by_task = len(seeds), config.num_tasks
    return {
        "method": method,
        "config": config,
        "changes": _changes(given["changes"], config),
        "seeds": seeds,
        "measured": Measurements(
            r=_r(given["r"], (*by_task, config.num_tasks), config.forward_transfer),
            initial=array(by_task, optional(_SHARE) if config.forward_transfer else _not_measured)(
                "initial", given.get("initial", [[None] * by_task[1]] * by_task[0])
            ),
            # Null where a seed diverged.
            train=array(by_task, optional(_SHARE))("train", given["train"]),
            # Null of methods that take no more and no less than the network.
            capacity=array(by_task[:1], optional(number(0)))(
                "capacity", given.get("capacity", [None] * by_task[0])
            ),
            losses=array(by_task, optional(number()))("losses", given["losses"]),
            task_seconds=array(by_task[1:], _SECONDS)("task_seconds", given["task_seconds"]),
            compile_seconds=_SECONDS("compile_seconds", given["compile_seconds"]),
            inference=_inference(given, by_task, config.infer_task),
        ),
        "memory_bytes": integer(0)("memory_bytes", given["memory_bytes"]),
        "data": text("data", given["data"]),
        "provenance": record(
            "provenance",
            given["provenance"],
            _ORIGIN,
            {"before_resuming": sequence(_origin)},
        ),
    }


def _inference(given: dict[str, Any], by_task: tuple[int, int], measured: bool) -> Inference:
    """What is measured without task ids."""
    found: dict[str, Any] = {}
    for name, shape in inference.shapes(*by_task)._asdict().items():
        where = f"inference.{name}"
        if measured != (where in given):
            refuse(where, given.get(where), "there if config has infer_task, and only then")
        found[name] = array(shape, optional(_SHARE))(where, given[where]) if measured else None
    return Inference(**found) if measured else inference.not_measured(*by_task)


def _not_measured(where: str, value: Any) -> None:
    if value is not None:
        refuse(where, value, "null, as config has no forward_transfer")


def _origin(where: str, value: Any) -> dict[str, Any]:
    return record(where, value, _ORIGIN, {})


def _config(value: Any, method: str) -> presets.Config:
    """The configuration; a field that an older file lacks has its default."""

    def options(where: str, value: Any) -> dict[str, Any]:
        return dataclasses.asdict(instance(METHODS[method].options, where, value))

    config = instance(
        presets.Config,
        "config",
        value,
        sequence=choice(SEQUENCES),
        protocol=choice(dict.fromkeys(itertools.chain(*presets.PROTOCOLS.values()))),
        preset=choice(presets.PRESETS),
        options=options,
    )
    presets.check(config)
    benchmark = f"{config.sequence}-{config.dataset}"
    if benchmark not in presets.BENCHMARKS and not config.dataset.endswith(".npz"):
        known = dict.fromkeys(name.split("-", 1)[1] for name in presets.BENCHMARKS)
        refuse("config.dataset", config.dataset, f"one of {', '.join(known)}, or an .npz file")
    return config


def _changes(value: Any, config: presets.Config) -> dict[str, Any]:
    """Fields of the configuration by name, as it has them."""
    flat = config.flat
    if not isinstance(value, dict):
        refuse("changes", value, "an object")
    for name, changed in value.items():
        if name not in flat:
            refuse("a key of changes", name, "a field of config or of its options")
        # An integer may stand for a float, but no number for a switch.
        same = changed == flat[name] and isinstance(changed, bool) == isinstance(flat[name], bool)
        if changed is None or not same:
            refuse(f"changes.{name}", changed, f"{flat[name]!r}, as config has it")
    return {name: flat[name] for name in value}


def _r(value: Any, shape: tuple[int, int, int], forward_transfer: bool) -> np.ndarray:
    """Accuracies: null above the diagonal, where the task lay in the future, if so configured."""
    r: np.ndarray = array(shape, optional(_SHARE))("r", value)
    future = np.argwhere(np.triu(~np.isnan(r), 1))
    if len(future) and not forward_transfer:
        seed, row, task = future[0].tolist()
        refuse(f"r[{seed}][{row}][{task}]", float(r[seed, row, task]), "null above the diagonal")
    return r
