"""Protocols and presets by name, and how they become the configuration of an experiment.

`protocols` has the numbers, `configuration` the dataclass and what is possible in it.
"""

import dataclasses
from pathlib import Path
from typing import Any

from benchmarks.data.tasks import SEQUENCES
from benchmarks.methods import METHODS, MethodSpec
from benchmarks.presets.configuration import DEFAULTS, MEASURED, SCHEDULES, Config, check
from benchmarks.presets.protocols import (
    OWN_DATA,
    PRESETS,
    PROTOCOL_FIELDS,
    PROTOCOLS,
    SETTINGS,
)

__all__ = [
    "BENCHMARKS",
    "DEFAULTS",
    "MEASURED",
    "PRESETS",
    "PROTOCOLS",
    "PROTOCOL_FIELDS",
    "SCHEDULES",
    "SETTINGS",
    "Config",
    "check",
    "config",
]

BENCHMARKS = tuple(f"{sequence}-{dataset}" for sequence, dataset in PROTOCOLS)


def config(
    benchmark: str,
    preset: str = "paper",
    method: MethodSpec = METHODS["rgo"],
    data: str | None = None,
    protocol: str | None = None,
    **changes: Any,
) -> Config:
    """Resolves a benchmark's name, a preset, a method and single changes to a `Config`.

    Args:
      benchmark: one of `BENCHMARKS`; or, with ``data``, a key of `SEQUENCES`.
      preset: a key of `PRESETS`.
      method: whose setting, learning rates and networks are its authors', and what options it has.
      data: the path of an ``.npz`` file to make tasks of.
      protocol: a name of those that the benchmark has; by default the first of them.
      **changes: fields of `Config` and options of the method that override all else; None leaves
        a field as it is. Options of other methods are left out.

    Returns:
      The `Config`.

    Raises:
      ValueError: an unknown name; a value outside its range.
    """
    if data is not None:
        _check_known("benchmark for --data", benchmark, tuple(SEQUENCES))
        if not data.endswith(".npz"):
            raise ValueError(
                f"--data is {data!r}; expected the path of an .npz file. Datasets of the paper are "
                f"part of a benchmark's name: {', '.join(BENCHMARKS)}."
            )
        if not Path(data).name.isprintable():
            raise ValueError(
                f"--data is {data!r}; expected a file's name without control characters, since "
                "results are called by it. Rename the file."
            )
        sequence, dataset, protocols = benchmark, data, OWN_DATA[benchmark]
    else:
        _check_known("benchmark", benchmark, BENCHMARKS)
        sequence, dataset = benchmark.split("-", 1)
        protocols = PROTOCOLS[sequence, dataset]
    protocol = protocol or next(iter(protocols))
    _check_known(f"protocol of {benchmark}", protocol, tuple(protocols))
    numbers = protocols[protocol]
    _check_known("preset", preset, tuple(PRESETS))
    settings = SETTINGS[method.setting]
    setting = settings.get(sequence, {}) | settings.get(dataset, {})
    named = PRESETS[preset].get(sequence, {})
    if method.single_task:  # After its one task there is nothing to freeze biases for.
        named = {name: value for name, value in named.items() if name != "biases"}
    own: dict[str, Any] = {}
    if dataset in method.learning_rates:
        own["learning_rate"] = method.learning_rates[dataset]
    if numbers["network"] in method.networks:
        own["network"] = method.networks[numbers["network"]]
    given = {name: value for name, value in changes.items() if value is not None}
    values = numbers | setting | named | own | given
    fields = {field.name for field in dataclasses.fields(Config)}
    options = {name: value for name, value in values.items() if name not in fields}
    _check_known_options(options)
    resolved = Config(
        sequence=sequence,
        dataset=dataset,
        protocol=protocol,
        preset=preset,
        **{name: value for name, value in values.items() if name in fields},
        options=dataclasses.asdict(method.make_options(options)),
    )
    check(resolved)
    return resolved


def _check_known(what: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise ValueError(f"Unknown {what} {name!r}; expected one of {', '.join(known)}.")


def _check_known_options(options: dict[str, Any]) -> None:
    known = {field.name for spec in METHODS.values() for field in dataclasses.fields(spec.options)}
    for name in options:
        _check_known("option", name, tuple(sorted(known)))
