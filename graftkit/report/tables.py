"""Tables and texts for a terminal: plain where nobody watches, and with nothing in them that a file could make act."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from graftkit.errors import printable, shortened


def open_console() -> Console:
    """A console that wraps at the terminal's width, or at 120 columns where there is none."""
    return Console(highlight=False, soft_wrap=not sys.stdout.isatty(), width=None if sys.stdout.isatty() else 120)


def captured(show: Callable[[Console], None]) -> str:
    """The text that ``show`` prints where nobody watches, without the last line's end."""
    file = io.StringIO()
    show(Console(file=file, highlight=False, soft_wrap=True, width=120))
    return file.getvalue().removesuffix("\n")


def text(value: object) -> str:
    """``value`` with control characters and markup escaped; what is too long for a line loses its middle."""
    return escape(shortened(printable(value)))


def table(title: str, *columns: str) -> Table:
    """An empty table without lines."""
    made = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="dim")
    for column in columns:
        made.add_column(column, overflow="fold")
    return made
