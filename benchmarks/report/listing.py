"""What can be named on the command line, as tables."""

import dataclasses
from collections.abc import Iterator

from rich import box
from rich.table import Table

from benchmarks import presets
from benchmarks.methods import METHODS
from benchmarks.networks.architectures import ARCHITECTURES

_PRESETS = {
    "paper": "the settings that the paper's numbers come from",
    "recommended": "on MNIST the best found on held-out training images",
}


def tables() -> Iterator[Table]:
    """Benchmarks with their datasets, networks, methods and presets."""
    benchmarks = [
        [f"{sequence}-{dataset}", dataset, protocol, f"{numbers['num_tasks']}", numbers["network"]]
        for (sequence, dataset), protocols in presets.PROTOCOLS.items()
        for protocol, numbers in protocols.items()
    ]
    header = ("name", "dataset", "protocol", "tasks", "network")
    yield _table("Benchmarks", header, benchmarks)
    networks = [
        [name, " x ".join(map(str, network.input_shape)), f"{network.smallest or '-'}"]
        for name, network in ARCHITECTURES.items()
    ]
    yield _table("Networks", ("name", "input in the paper", "smallest image"), networks)
    methods = [
        [
            name,
            spec.label,
            spec.setting,
            "yes" if spec.fel else "no",
            "any" if spec.heads is None else ", ".join(spec.heads),
            ", ".join(field.name for field in dataclasses.fields(spec.options)) or "-",
        ]
        for name, spec in METHODS.items()
    ]
    yield _table("Methods", ("name", "label", "setting", "FEL", "heads", "options"), methods)
    yield _table("Presets", ("name", "what"), [[name, _PRESETS[name]] for name in presets.PRESETS])


def _table(title: str, columns: tuple[str, ...], rows: list[list[str]]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*row)
    return table
