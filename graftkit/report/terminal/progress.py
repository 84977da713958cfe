"""The bar that shows what is being done, on standard error."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from graftkit.engine import Progress


@contextlib.contextmanager
def progress(*, silent: bool) -> Iterator[Progress | None]:
    """A progress bar with the time left for each phase, on standard error; nothing when silent or when that is not a terminal."""
    if silent or not sys.stderr.isatty():
        yield None
        return
    from rich.progress import BarColumn, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description:<24}"), BarColumn(18), TaskProgressColumn(), TimeElapsedColumn(),
        TextColumn("[dim]left[/dim]"), TimeRemainingColumn(),
    )  # fmt: skip
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def update(what: str, done: float, total: float) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield update
