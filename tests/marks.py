"""Which parameters of a test are quick enough, or telling enough, for every run."""

from collections.abc import Iterable
from typing import Any

import pytest


def slow_but(names: Iterable[Any], *quick: Any) -> list[Any]:
    """All of them as parameters, tuples as several; but for a few they are slow."""
    return [
        name
        if name in quick
        # A single parameter, or those of one case.
        else pytest.param(*(name if isinstance(name, tuple) else (name,)), marks=pytest.mark.slow)
        for name in names
    ]
