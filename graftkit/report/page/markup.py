"""HTML and SVG from nested calls. Whatever is not markup already is escaped, so a token or a name can never act."""

from __future__ import annotations

import html
import json
from typing import Any

from graftkit.errors import printable

#: Elements that have no closing tag.
_VOID = frozenset({"meta", "input", "br", "hr", "link"})


class Markup(str):
    """Text that is markup already: made by :func:`tag`, :func:`joined` or :func:`data`, never from a report's values."""

    __slots__ = ()


def text(value: object) -> Markup:
    """``value`` as text: control characters shown as escapes, markup characters as entities."""
    return value if isinstance(value, Markup) else Markup(html.escape(printable(value)))


def lines(value: str) -> Markup:
    """Text of several lines, for a preformatted block; line breaks stay."""
    return Markup("\n".join(text(line) for line in value.split("\n")))


def joined(*children: object) -> Markup:
    """Children one after the other; None is left out."""
    return Markup("".join(text(child) for child in children if child is not None))


def tag(name: str, /, *children: object, **attributes: object) -> Markup:
    """One element. ``class_`` is written ``class`` and ``stroke_width`` ``stroke-width``; None and False leave one out."""
    words = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        label = key.rstrip("_").replace("_", "-")
        words.append(label if value is True else f'{label}="{_attribute(value)}"')
    opening = f"<{' '.join(words)}>"
    return Markup(opening if name in _VOID else f"{opening}{joined(*children)}</{name}>")


def _attribute(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return text(str(value))


def frame(document: str, *, height: int) -> Markup:
    """A frame of ``height`` pixels that shows a whole document."""
    return Markup(
        f'<iframe title="graftkit" srcdoc="{html.escape(document)}" width="100%" height="{height}" frameborder="0"></iframe>'
    )


def data(name: str, value: Any) -> Markup:
    """JSON for the script of the page, in an element of its own that no content can close."""
    raw = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        raw = raw.replace(character, f"\\u{ord(character):04x}")
    return Markup(f'<script type="application/json" id="{text(name)}">{raw}</script>')
