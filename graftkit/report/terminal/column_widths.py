"""How wide the columns of a table are where it is wider than the terminal, and how names become shorter."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rich.cells import cell_len

#: Columns between two columns.
GAP = 2

#: Cells up to this width, numbers and shapes, stay in one line if they can; longer ones are sentences.
WHOLE = 16

#: Names lose no more of their middle than to this width while anything else can give way.
NAME = 16


def column_widths(
    headers: Sequence[str], content: Sequence[Sequence[str]], available: int, *, whole: bool
) -> list[int]:
    """The width of each column so that all fit into ``available``; with ``whole`` no word is made shorter, whatever that takes.

    ``content`` has the cells of each column. Sentences are broken between words first, then names are made shorter down to
    :data:`NAME`, then short cells are broken between words, the longest first, and at last names are made as short as they must be.
    """
    available -= GAP * (len(headers) - 1)
    natural = [max(map(cell_len, (header, *cells)), default=0) for header, cells in zip(headers, content, strict=True)]
    words = [_longest_word([header, *cells]) for header, cells in zip(headers, content, strict=True)]
    lines = [
        max(
            _longest_word([header, *cells]),
            max((cell_len(cell) for cell in cells if cell_len(cell) <= WHOLE), default=0),
        )
        for header, cells in zip(headers, content, strict=True)
    ]
    least = lines
    if not whole:
        least = _capped(least, available, NAME)
        least = _broken(least, [min(width, word) for width, word in zip(least, words, strict=True)], available)
        least = _capped(least, available, 1)
    return _shared(natural, least, available)


def shortened_words(cells: Sequence[str], width: int) -> list[str]:
    """The cells of a column with words of at most ``width`` characters: longer ones lose their middle.

    All lose it at one place: there where most of the names that differ still do, such as those of the weights of a block.
    """
    long = {word for cell in cells for word in cell.split() if cell_len(word) > width}
    if not long:
        return list(cells)
    heads = sorted(range(1, max(width - 1, 2)), key=lambda head: abs(head - (width - 1) // 2))
    head = max(heads, key=lambda head: len({_without_middle(word, head, width) for word in long}))
    return [
        re.sub(r"\S+", lambda word: _without_middle(word[0], head, width) if word[0] in long else word[0], cell)
        for cell in cells
    ]


def _without_middle(word: str, head: int, width: int) -> str:
    tail = max(width - head - 1, 0)
    return f"{word[:head]}…{word[len(word) - tail :]}"


def _longest_word(cells: Sequence[str]) -> int:
    return max((cell_len(word) for cell in cells for word in cell.split()), default=0)


def _capped(widths: list[int], available: int, floor: int) -> list[int]:
    """The widths with the largest cap, of at least ``floor``, under which they fit."""
    cap = max(max(widths, default=0), floor)
    while cap > floor and sum(min(width, cap) for width in widths) > available:
        cap -= 1
    return [min(width, cap) for width in widths]


def _broken(widths: list[int], words: list[int], available: int) -> list[int]:
    """The widths where cells are broken between words, the one that gives most and stands last first, until all fit."""
    found = list(widths)
    while sum(found) > available:
        place = max(range(len(found)), key=lambda each: (found[each] - words[each], each))
        if found[place] == words[place]:
            break
        found[place] = words[place]
    return found


def _shared(natural: list[int], least: list[int], available: int) -> list[int]:
    """``least``, and what is left of ``available`` for those columns that want more, the one that lacks most first."""
    found = [min(want, width) for want, width in zip(natural, least, strict=True)]
    left = available - sum(found)
    while left > 0:
        lacking = [want - has for want, has in zip(natural, found, strict=True)]
        if not any(lacking):
            break
        found[lacking.index(max(lacking))] += 1
        left -= 1
    return found
