"""Tables and texts for a terminal: plain where nobody watches, and with nothing in them that a file could make act.

On a terminal a line ends between two words, and what is one word stays whole: a path that is longer than the line is left to the
terminal, which wraps it so that it can still be copied. Tables fit: names lose their middle there before any word is broken.
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.table import Table as Grid
from rich.text import Text

from graftkit.errors import printable, shortened
from graftkit.report.terminal.column_widths import GAP, column_widths, shortened_words

#: Columns where nobody watches.
WIDTH = 120

#: What a line may end between, and what is one word.
_WORD = re.compile(r"\S+")


class Lines(Console):
    """A console that breaks lines between words alone; ``paste`` prints lines that are to be copied as they are."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as rich does; a text on a terminal in lines of its width."""
        if options or len(objects) != 1 or not isinstance(objects[0], str) or self.soft_wrap:
            super().print(*objects, **{"crop": False, **options})
            return
        for line in wrapped(Text.from_markup(objects[0]), self.width):
            super().print(line, soft_wrap=True)

    def paste(self, text: str) -> None:
        """Print text whose lines end where they end, but for comments, which go on behind another ``#``."""
        for line in text.split("\n"):
            if self.soft_wrap or not line.startswith("# "):
                super().print(line, soft_wrap=True)
                continue
            for part in wrapped(Text.from_markup(line.removeprefix("# ")), self.width - 2):
                super().print(Text("# ") + part, soft_wrap=True)


def open_console() -> Lines:
    """A console that wraps at the terminal's width, or at :data:`WIDTH` columns where there is none."""
    watched = sys.stdout.isatty()
    return Lines(highlight=False, soft_wrap=not watched, width=None if watched else WIDTH)


def captured(show: Callable[[Lines], None]) -> str:
    """The text that ``show`` prints where nobody watches, without the last line's end."""
    file = io.StringIO()
    show(Lines(file=file, highlight=False, soft_wrap=True, width=WIDTH))
    return file.getvalue().removesuffix("\n")


def wrapped(text: Text, width: int) -> Iterator[Text]:
    """Yield the lines of ``text``, each of as many whole words as fit into ``width``; one longer word has a line of its own."""
    for line in text.split("\n", allow_blank=True):
        start, ends = 0, []
        for word in _WORD.finditer(line.plain):
            if word.start() > start and cell_len(line.plain[start : word.end()]) > width:
                start = word.start()
                ends.append(start)
        for part in line.divide(ends):
            part.rstrip()
            yield part


def text(value: object) -> str:
    """``value`` with control characters and markup escaped; what is too long for a line loses its middle."""
    return escape(shortened(printable(value)))


class Table:
    """A table without lines, which fits into the terminal that it is printed on."""

    def __init__(self, title: str, columns: tuple[str, ...]) -> None:
        self._title, self._columns = title, columns
        self._rows: list[tuple[Text, ...]] = []

    @property
    def row_count(self) -> int:
        """How many rows it has."""
        return len(self._rows)

    def add_row(self, *cells: str) -> None:
        """Add a row: a text with rich's markup for each column."""
        self._rows.append(tuple(map(Text.from_markup, cells)))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        content = [[cells[place].plain for cells in self._rows] for place in range(len(self._columns))]
        widths = column_widths(self._columns, content, options.max_width, whole=not console.is_terminal)
        title = Text.from_markup(self._title, style="bold", overflow="ignore")
        yield from wrapped(title, options.max_width)
        grid = Grid(box=None, pad_edge=False, header_style="dim", padding=(0, GAP, 0, 0))
        for name, width in zip(self._columns, widths, strict=True):
            grid.add_column(name, width=width)
        narrowed = [shortened_words(texts, width) for texts, width in zip(content, widths, strict=True)]
        for place, cells in enumerate(self._rows):
            shown = ((cell, texts[place]) for cell, texts in zip(cells, narrowed, strict=True))
            grid.add_row(*(cell if cell.plain == text else Text(text) for cell, text in shown))
        yield from console.render(grid, options.update_width(sum(widths) + GAP * len(widths)))


def table(title: str, *columns: str) -> Table:
    """An empty table without lines."""
    return Table(title, columns)
