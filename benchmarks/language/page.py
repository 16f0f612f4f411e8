"""The table of the language model's results."""

from typing import Any

import numpy as np

from benchmarks.report.markup import code, mean_and_spread, table


def forgetting(losses: np.ndarray) -> np.ndarray:
    """How much higher each text's loss is in the end than when it had just been learned.

    Args:
      losses: ``[seeds, T, T]``: after each text, of each.

    Returns:
      ``[seeds]``: the mean over all texts but the last.
    """
    learned = np.diagonal(losses, axis1=1, axis2=2)
    return np.asarray(np.mean((losses[:, -1] - learned)[:, :-1], axis=1))


def plasticity(losses: np.ndarray) -> np.ndarray:
    """The mean loss of each text but the first when it has just been learned, ``[seeds]``."""
    return np.asarray(np.mean(np.diagonal(losses, axis1=1, axis2=2)[:, 1:], axis=1))


def final(losses: np.ndarray) -> np.ndarray:
    """The mean loss of all texts in the end, ``[seeds]``."""
    return np.asarray(np.mean(losses[:, -1], axis=1))


def summary(losses: np.ndarray) -> str:
    """One line for the terminal."""
    numbers = (f"{name} {mean_and_spread(of(losses))}" for name, of in _COLUMNS.items())
    return ", ".join(numbers)


_COLUMNS = {"final": final, "forgetting": forgetting, "just learned": plasticity}


def markdown(experiment: dict[str, Any], found: dict[str, Any], labels: dict[str, str]) -> str:
    """The page.

    Args:
      experiment: what all methods have in common.
      found: by method, what was measured.
      labels: of the methods, in the table's order.
    """
    kinds, settings = experiment["kinds"], experiment["settings"]
    rows = []
    for name, label in labels.items():
        if name not in found:
            rows.append([label, *["not yet run"] * len(_COLUMNS), *["-"] * len(kinds), "-"])
            continue
        losses = np.array(found[name]["losses"])
        rows.append(
            [
                label,
                *[mean_and_spread(of(losses)) for of in _COLUMNS.values()],
                *[f"{loss:.2f}" for loss in losses[:, -1].mean(axis=0)],
                f"{found[name]['seconds'] / 60:.1f}",
            ]
        )
    header = ["method", *_COLUMNS, *[f"final, {kind}" for kind in kinds], "minutes"]
    origins = [found[name]["provenance"] for name in labels if name in found]
    return "\n".join(
        [
            "# A language model learns one kind of text after another",
            "",
            f"A transformer over bytes learns {', '.join(kinds)}, in this order.",
            "The first is that of pre-training, which all methods share. Losses are of held-out",
            "documents, in nats a byte: lower is better. Mean ± standard deviation over",
            f"{experiment['seeds']} seeds.",
            "",
            "* Final: the mean over all texts after the last one.",
            "* Forgetting: how much higher a text's loss is in the end than when just learned.",
            "* Just learned: the mean loss of each text but the first when just learned.",
            "",
            "RGO and GPM come after Adam, unless the table says otherwise. GPM changes kernels.",
            "",
            *table(header, rows),
            "",
            "Settings, chosen on other kinds of text:",
            "",
            *table(["setting", "value"], [[name, str(v)] for name, v in settings.items()]),
            "",
            *table(
                ["command", "commit", "device", "date"],
                sorted(
                    {
                        (code(o["command"]), o["commit"][:10], o["device"], o["date"])
                        for o in origins
                    }
                ),
            ),
            "",
        ]
    )
