"""A sweep that goes on where it was stopped: what was found of each class, one line of JSON for each, in a file."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def add_done(parser: argparse.ArgumentParser) -> None:
    """Give a command line the option ``--done``."""
    parser.add_argument(
        "--done", type=Path, help="file of what was found: what stands in it is not tried again, others go into it"
    )


def read_done(place: Path | None, make: Callable[..., Any]) -> list[Any]:
    """What was found before, each made by ``make`` of its fields; of a class that is there twice, the later one.

    A last line without an end, of a sweep that was killed while it wrote, is dropped from the file.
    """
    if place is None or not place.exists():
        return []
    text = place.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        place.write_text(whole, encoding="utf-8")
    found = [json.loads(line) for line in whole.splitlines()]
    return [make(**fields) for fields in {next(iter(fields.values())): fields for fields in found}.values()]


def note_done(place: Path | None, found: Any) -> None:
    """Append what was found of one class, a dataclass whose first field is its name."""
    if place is not None:
        with place.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dataclasses.asdict(found)) + "\n")
