"""What the JSON of a result holds: types, shapes and ranges, checked before any of it is used."""

import dataclasses
from typing import Any

import numpy as np

from benchmarks import presets
from benchmarks.json_input import (
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
from benchmarks.methods import METHODS
from benchmarks.tasks import SEQUENCES

FORMAT = 1

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
    """The fields of a `benchmarks.results.Result` from a file's JSON.

    Raises:
      ValueError: it is not one; tells which value, and what was expected.
    """
    as_it_is: Check = lambda where, value: value  # noqa: E731
    required = ("format", "benchmark", "method", "preset", "changes", "config", "seeds", "r",
                "losses", "seconds", "provenance")  # fmt: skip
    given = record(
        "the file",
        content,
        dict.fromkeys(required, as_it_is),
        # Files from before there were these.
        dict.fromkeys(("train", "memory_bytes", "data"), as_it_is),
    )
    if given["format"] != FORMAT:
        refuse("format", given["format"], str(FORMAT))
    method = choice(METHODS)("method", given["method"])
    config = _config(given["config"], method)
    seeds = sequence(integer(0, 2**31 - 1))("seeds", given["seeds"])
    if seeds != list(range(seeds[0], seeds[0] + len(seeds))):
        refuse("seeds", seeds, "numbers that follow one another")
    benchmark = f"{config.sequence}-{config.dataset}"
    preset = config.preset
    for name, expected in (("benchmark", benchmark), ("preset", preset)):
        if given[name] != expected:
            refuse(name, given[name], f"{expected!r}, as config has it")
    by_task = len(seeds), config.num_tasks
    return {
        "benchmark": benchmark,
        "method": method,
        "preset": preset,
        "changes": _changes(given["changes"], config),
        "config": config,
        "seeds": seeds,
        "r": _r(given["r"], (*by_task, config.num_tasks)),
        # Null where a seed diverged.
        "losses": array(by_task, optional(number()))("losses", given["losses"]),
        "seconds": record(
            "seconds",
            given["seconds"],
            {
                "compile": _SECONDS,
                "tasks": sequence(_SECONDS, config.num_tasks),
                "total": _SECONDS,
            },
            {},
        ),
        "provenance": record(
            "provenance",
            given["provenance"],
            _ORIGIN,
            {"before_resuming": sequence(_origin)},
        ),
        "train": optional(array(by_task, optional(_SHARE)))("train", given.get("train")),
        "memory_bytes": optional(integer(0))("memory_bytes", given.get("memory_bytes")),
        "data": optional(text)("data", given.get("data")),
    }


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


def _r(value: Any, shape: tuple[int, int, int]) -> np.ndarray:
    """Accuracies: null above the diagonal, where the task lay in the future."""
    r: np.ndarray = array(shape, optional(_SHARE))("r", value)
    future = np.argwhere(np.triu(~np.isnan(r), 1))
    if len(future):
        seed, row, task = future[0].tolist()
        refuse(f"r[{seed}][{row}][{task}]", float(r[seed, row, task]), "null above the diagonal")
    return r
