"""RGO with one choice of the authors' program changed at a time: what there is to run."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from benchmarks.methods import METHODS

METHODS_ABLATED = ("rgo", "rgo-2")
BENCHMARKS = ("permuted-mnist", "rotated-mnist")


class Change(NamedTuple):
    """A departure from the preset "paper".

    Attributes:
      label: in words.
      fields: what `benchmarks.presets.config` is given.
    """

    label: str
    fields: dict[str, Any]


# Those that take longest are last.
CHANGES = (
    Change("the authors' program", {}),
    Change("alpha = 1, as in the paper's text", {"alpha": 1.0}),
    Change("the sum of the columns, not their mean", {"columns": "sum"}),
    Change("the sum, and alpha = 1", {"columns": "sum", "alpha": 1.0}),
    Change("columns with random signs", {"columns": "signs"}),
    Change("biases without a P", {"protect_biases": False}),
    Change("biases frozen after the first task", {"biases": "frozen"}),
    Change("biases as one more input of the kernel", {"biases": "input"}),
    Change("softmax over all classes", {"curvature_classes": "all"}),
    Change("50 batches in the curvature pass, not 1000", {"curvature_batches": 50}),
    Change("orthogonal initial values, biases of 0.1", {"initial_values": "orthogonal"}),
    Change("FEL on the input too", {"fel_on_input": True}),
    Change("a permutation for each layer", {"fel_per_layer": True}),
    Change("the first task permuted too", {"fel_on_first_task": True}),
    Change("rotation to the nearest pixel", {"interpolation": "nearest"}),
    Change("each column by itself", {"columns": "each"}),
    Change("each column by itself, biases frozen", {"columns": "each", "biases": "frozen"}),
)


def cases(benchmark: str, methods: Sequence[str]) -> Iterator[tuple[Change, str]]:
    """What there is to run: each change with the methods that it means something for."""
    for change in CHANGES:
        for method in methods:
            if applies(change, benchmark, METHODS[method].fel):
                yield change, method


def applies(change: Change, benchmark: str, fel: bool) -> bool:
    """Whether a change means something for a benchmark and a method, with FEL or without."""
    of_fel = all(name.startswith("fel_") for name in change.fields) and change.fields
    of_rotation = "interpolation" in change.fields
    return (fel or not of_fel) and (benchmark.startswith("rotated") or not of_rotation)
