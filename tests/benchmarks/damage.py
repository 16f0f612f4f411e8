"""Ways to spoil the text of a JSON."""

import copy
import json

VALUES = (
    None, True, False, 0, -1, 1, 2, 2**31, 10**25, -0.0, 0.5, 1.5, 1e308, "", "x", "../x", "\n",
    "\ud800", "rgo", [], {}, [[]], [None], {"a": 1}, [0.5, 0.5], ["x"] * 3,
)  # fmt: skip
TEXTS = ("NaN", "-Infinity", "1e400", "9" * 5000, "[" * 3000, "{", '"', "\\ud800", "\x00")


def places(value, path=()):
    """The paths of all values in a JSON."""
    yield path
    inner = value.items() if isinstance(value, dict) else ()
    for key, each in enumerate(value) if isinstance(value, list) else inner:
        yield from places(each, (*path, key))


def damage(text, rng):
    """One of many ways to spoil the text of a file."""
    raw, kind = bytearray(text.encode()), rng.randrange(9)
    if kind == 0:
        return bytes(raw[: rng.randrange(len(raw))])
    if kind == 1:
        for _ in range(rng.randint(1, 4)):
            raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        return bytes(raw)
    start = rng.randrange(len(raw))
    end = min(len(raw), start + rng.randint(1, 40))
    if kind == 2:
        return bytes(raw[:start] + raw[end:])
    if kind == 3:
        return bytes(raw[:end] + raw[start:])
    if kind == 4:
        return bytes(raw[:start] + rng.choice(TEXTS).encode() + raw[end:])
    content = json.loads(text)
    *parents, last = rng.choice([path for path in places(content) if path])
    inner = content
    for key in parents:
        inner = inner[key]
    if kind == 5:
        del inner[last]
    elif kind == 6:
        *others, other = rng.choice([path for path in places(content) if path])
        source = content
        for key in others:
            source = source[key]
        inner[last] = copy.deepcopy(source[other])
    elif kind == 7 and isinstance(inner, dict):
        inner[rng.choice(("x", "../x", "format", "alpha", ""))] = inner.pop(last)
    else:
        inner[last] = rng.choice(VALUES)
    return json.dumps(content).encode()
