"""What several tables show: a shape, a short value, and how many rows were left out."""

from __future__ import annotations

from graftkit.report.terminal.tables import Lines, text


def shape_words(shape: tuple[int, ...] | None) -> str:
    """``2048 x 160``; a dash where there is none."""
    return "-" if shape is None else " x ".join(map(str, shape)) or "scalar"


def short(value: object, limit: int = 60) -> str:
    """A value of a document in at most ``limit`` characters; a dash where there is none."""
    if value is None:
        return "[dim]-[/dim]"
    said = str(value)
    return text(said if len(said) <= limit else f"{said[: limit - 1]}…")


def print_more(console: Lines, count: int) -> None:
    """Say how many were left out, if any were."""
    if count:
        console.print(f"[dim]… and {count:,} more (--verbose)[/dim]")
