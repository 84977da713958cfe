"""Random damage to JSON values and to bytes, reproducible from a generator."""

from __future__ import annotations

import copy
import json
import random
import struct
from typing import Any

#: Values that code does not expect: of another type, at an edge, with no end, or that act on a terminal.
ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 64, 1 << 31, 1 << 63, 10**9, 10**30, -(1 << 40), 0.5, -0.0, 1e308, float("nan"), float("inf"),
    "", " ", "a", "\0", "\x1b[31m", "\ud800", "é→😀", "x" * 5000, "../x", "/etc/passwd", "~nosuchuser/x", "{{ 1 }}", "{% for", "(a+)+$", "[",
    "*", "auto", "all-linear", "mean", "NaN", [], {}, [None], [[]], {"": None}, {"a": {"b": []}}, ["a", "a"], [1, "a", None], list(range(40)),
)  # fmt: skip

_RARE = 0.15


def nested(depth: int) -> Any:
    """Containers in one another."""
    value: Any = 1
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return value


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value inside ``value``, at most some thousand of them."""
    found: list[tuple[Any, ...]] = [path]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(items)[:60]:
        found += places(item, (*path, key))
    return found


def damage_json(value: Any, dice: random.Random) -> Any:
    """A copy of ``value`` with one to three things changed."""
    value = copy.deepcopy(value)
    for _ in range(dice.choice((1, 1, 1, 2, 3))):
        try:
            value = _damage_once(value, dice)
        except RecursionError:  # something nested, put into something nested
            break
    return value


def _damage_once(value: Any, dice: random.Random) -> Any:
    known = places(value)
    path = dice.choice(known)
    if not path:
        return odd(dice) if dice.random() < _RARE else value
    parent = value
    for key in path[:-1]:
        parent = parent[key]
    key, kind = path[-1], dice.randrange(7)
    if kind == 0:
        del parent[key]
    elif kind == 1 and isinstance(parent, dict):
        parent[str(odd(dice))[:100] if dice.random() < 0.5 else f"{key}x"] = parent.pop(key)
    elif kind == 2:
        other = dice.choice(known)
        found = value
        try:
            for step in other:
                found = found[step]
        except (KeyError, IndexError, TypeError):
            found = None
        parent[key] = copy.deepcopy(found)
    elif kind == 3 and isinstance(parent[key], int | float):
        parent[key] = dice.choice(
            (parent[key] + 1, parent[key] - 1, -parent[key], parent[key] * 1000, str(parent[key]), [parent[key]])
        )
    elif kind == 4 and isinstance(parent[key], str):
        parent[key] = dice.choice(
            (
                parent[key] + "x",
                parent[key][:-1],
                parent[key].upper(),
                [parent[key]],
                {parent[key]: 1},
                parent[key] * 50,
            )
        )
    else:
        parent[key] = odd(dice)
    return value


def odd(dice: random.Random) -> Any:
    """One of the values that nobody expects."""
    return nested(dice.choice((5, 62, 65, 900))) if dice.random() < 0.04 else copy.deepcopy(dice.choice(ODD))


def as_json(value: Any) -> bytes:
    """JSON of whatever came out; half surrogate pairs as escapes, NaN as Python writes it."""
    try:
        return json.dumps(value).encode()
    except (RecursionError, ValueError):
        return b"[" * 3000


def damage_bytes(raw: bytes, dice: random.Random) -> bytes:
    """``raw`` with one to four places changed, cut, doubled or overwritten."""
    data = bytearray(raw)
    for _ in range(dice.randint(1, 4)):
        if not data:
            break
        at = dice.randrange(len(data)) if dice.random() < 0.5 else dice.randrange(min(len(data), 400))
        kind = dice.randrange(6)
        if kind == 0:
            data[at] ^= 1 << dice.randrange(8)
        elif kind == 1:
            del data[at : at + dice.choice((1, 2, 8, 100))]
        elif kind == 2:
            data[at:at] = dice.choice(
                (b"\0", b'"', b"{", b"[" * 2000, b"\xff\xfe", b"9" * 5000, b"\n", b"}", b"\\u0000")
            )
        elif kind == 3:
            del data[at:]
        elif kind == 4:
            data[at : at + 8] = struct.pack("<Q", dice.choice((0, 1, 8, 1 << 20, 1 << 31, (1 << 64) - 1)))
        else:
            data[at:at] = data[at : at + dice.choice((1, 16, 300))]
    return bytes(data)


def damage_safetensors(raw: bytes, dice: random.Random) -> bytes:
    """A file whose header is damaged as JSON, or whose bytes are."""
    if dice.random() < 0.3:
        return damage_bytes(raw, dice)
    length = int.from_bytes(raw[:8], "little")
    header = as_json(damage_json(json.loads(raw[8 : 8 + length]), dice))
    return struct.pack("<Q", len(header)) + header + raw[8 + length :]


#: A chat template that works.
MESSAGES = "{% for message in messages %}{{ message.content }}{% endfor %}"

#: What a chat template is put together from; a number takes the place of N.
_TEMPLATE = (
    MESSAGES, "{{ messages }}", "{{ 'x' * N }}", "{{ [0] * N }}", "{{ 7 ** N }}",
    "{{ messages[0].role * N }}", "{{ eos_token * N }}", "{{ 'x' | center(N) }}", "{{ '%Ns' | format('x') }}", "{% for a in range(N) %}",
    "{% endfor %}", "{% if no %}", "{% endif %}", "{% set many = namespace(value='x' * N) %}", "{{ raise_exception('no') }}",
    "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}", "{{ messages | tojson }}", "{{ tools[0].function.name * N }}", "{{", "%}",
)  # fmt: skip


def odd_template(dice: random.Random) -> str:
    """A text that is a chat template or nearly one, and may have no bound."""
    pieces = (
        piece.replace("N", str(10 ** dice.randrange(11))) for piece in dice.choices(_TEMPLATE, k=dice.randint(1, 6))
    )
    return "".join((MESSAGES if dice.random() < 0.7 else "", *pieces))
