"""JSON that anyone may have written: read within bounds, and checked value by value.

A `Check` takes where a value stands and the value, and returns it parsed, or raises a `ValueError`
that tells both and what was expected.
"""

import collections
import dataclasses
import json
import reprlib
import stat
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np

Check = Callable[[str, Any], Any]
T = TypeVar("T")

# A hundred seeds of two hundred tasks take half of it.
MAX_BYTES = 64 * 2**20
_MAX_DIGITS = 30


def read(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
      OSError: it cannot be read.
      ValueError: it is no regular file (which is not opened), larger than `MAX_BYTES`, or not JSON
        by the letter: UTF-8, every key once, every number finite.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        # Opening one of these may wait for ever, or do something.
        raise ValueError("it is a folder, pipe, socket or device; expected a regular file")
    if status.st_size > MAX_BYTES:
        raise ValueError(f"it has {status.st_size} bytes; expected at most {MAX_BYTES}")
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"it has grown; expected at most {MAX_BYTES} bytes")
    try:
        return json.loads(
            content.decode("utf-8"),
            object_pairs_hook=_object,
            parse_int=_int,
            parse_float=_float,
            parse_constant=_constant,
        )
    except RecursionError as error:
        raise ValueError("its brackets are nested too deeply") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        (twice, _), *_ = collections.Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the key {_shown(twice)} is there twice; expected once")
    return found


def _int(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"the number {_shown(digits)} is too large; expected {_MAX_DIGITS} digits")
    return int(digits)


def _float(digits: str) -> float:
    if not np.isfinite(float(digits)):
        raise ValueError(f"the number {_shown(digits)} is too large; expected a finite one")
    return float(digits)


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON; expected a finite number, or null")


def _shown(value: Any) -> str:
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 60
    return short.repr(value)


def refuse(where: str, value: Any, expected: str) -> NoReturn:
    """Raises a `ValueError` that tells a value and what was expected."""
    raise ValueError(f"{where} is {_shown(value)}; expected {expected}")


def text(where: str, value: Any) -> str:
    """A line of text."""
    if not (isinstance(value, str) and value.isprintable()):
        refuse(where, value, "a line of printable text")
    return value


def switch(where: str, value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        refuse(where, value, "true or false")
    return value


def _is_a(number: Any, value: Any) -> bool:
    return isinstance(value, number) and not isinstance(value, bool)


def integer(low: int = -(2**63), high: int = 2**63 - 1) -> Check:
    """A whole number from ``low`` to ``high``."""

    def check(where: str, value: Any) -> int:
        if not (_is_a(int, value) and low <= value <= high):
            refuse(where, value, f"a whole number from {low} to {high}")
        return value

    return check


def number(low: float = -np.inf, high: float = np.inf) -> Check:
    """A number from ``low`` to ``high``, as a float."""

    def check(where: str, value: Any) -> float:
        if not (_is_a(int | float, value) and low <= value <= high):
            refuse(where, value, f"a number from {low:g} to {high:g}")
        return float(value)

    return check


def choice(known: Iterable[str]) -> Check:
    """One of some names."""
    names = tuple(known)

    def check(where: str, value: Any) -> str:
        if not isinstance(value, str) or value not in names:
            refuse(where, value, f"one of {', '.join(names)}")
        return value

    return check


def optional(check: Check) -> Check:
    """What ``check`` wants, or null."""
    return lambda where, value: None if value is None else check(where, value)


def sequence(item: Check, length: int | None = None) -> Check:
    """A list of so many, or of at least one."""

    def check(where: str, value: Any) -> list[Any]:
        right = isinstance(value, list) and len(value) > 0 and length in (None, len(value))
        if not right:
            refuse(where, value, f"a list of {'one or more' if length is None else length}")
        return [item(f"{where}[{i}]", each) for i, each in enumerate(value)]

    return check


def array(shape: tuple[int, ...], item: Check) -> Check:
    """Lists in lists, as a float array; what ``item`` takes null for is NaN."""
    check = item
    for length in reversed(shape):
        check = sequence(check, length)
    return lambda where, value: np.array(check(where, value), float)


def mapping(item: Check) -> Check:
    """An object of any keys that are lines of text."""

    def check(where: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            refuse(where, value, "an object")
        return {text(where, name): item(f"{where}.{name}", each) for name, each in value.items()}

    return check


def record(
    where: str, value: Any, required: Mapping[str, Check], others: Mapping[str, Check]
) -> dict[str, Any]:
    """An object with all of the required keys, and no others than those named."""
    if not isinstance(value, dict):
        refuse(where, value, "an object")
    checks = {**required, **others}
    missing, unknown = required.keys() - value.keys(), value.keys() - checks.keys()
    if missing:
        raise ValueError(f"{where} has no {', '.join(sorted(missing))}")
    if unknown:
        refuse(f"a key of {where}", min(unknown), f"one of {', '.join(checks)}")
    return {name: checks[name](f"{where}.{name}", each) for name, each in value.items()}


def instance(cls: type[T], where: str, value: Any, **own: Check) -> T:
    """An instance of a dataclass from an object of its fields.

    Args:
      cls: the dataclass; its fields are checked by their types, and those without a default are
        required.
      where: stands the value.
      value: the object.
      **own: checks of single fields in place of that by type.
    """
    hints = typing.get_type_hints(cls)
    fields: tuple[dataclasses.Field[Any], ...] = dataclasses.fields(cls)  # type: ignore[arg-type]
    checks = {field.name: own.get(field.name) or of_type(hints[field.name]) for field in fields}
    required = {
        field.name
        for field in fields
        if field.default is field.default_factory is dataclasses.MISSING
    }
    values = record(
        where,
        value,
        {name: check for name, check in checks.items() if name in required},
        {name: check for name, check in checks.items() if name not in required},
    )
    return cls(**values)


def of_type(hint: Any) -> Check:
    """The check of a type: str, bool, int, float, or one of them and None."""
    if isinstance(hint, types.UnionType):
        (inner,) = (each for each in typing.get_args(hint) if each is not types.NoneType)
        return optional(of_type(inner))
    by_type: dict[Any, Check] = {str: text, bool: switch, int: integer(), float: number()}
    return by_type[hint]
