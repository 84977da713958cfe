"""From the file of a recipe, or standard input, to its document."""

import os
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

from graftkit.errors import RecipeError, printable
from graftkit.recipe_file.overrides import apply_overrides
from graftkit.recipe_file.paths import RecipeFolder
from graftkit.recipe_file.problems import Document, Place
from graftkit.recipe_file.yaml_source import MAX_BYTES, parse_yaml

#: What errors call the recipe that the command line names ``-``.
STANDARD_INPUT = "standard input"


def read_document(path: str | Path, overrides: Sequence[str] = ()) -> Document:
    """The values at ``path``, or for ``-`` on standard input, with ``overrides`` in their places; nothing says yet what they mean.

    Problems of YAML and of overrides are among those of the document.

    Raises:
        RecipeError: it cannot be read, or holds nothing.
    """
    name = STANDARD_INPUT if path == "-" else str(path)
    document = parse_yaml(_read(path, name), lambda line: Place(f"{name}:{line}", (0, line)))
    document.folder = None if path == "-" else RecipeFolder(os.path.dirname(path))
    if document.data is None:
        raise RecipeError(document.lines() or f"{printable(name)}: is empty; a recipe begins with version: 1")
    apply_overrides(list(overrides), document)
    return document


def _read(path: str | Path, shown: str) -> str:
    """The text of the regular file at ``path`` or of standard input, at most a little more than a recipe may hold."""
    name = printable(shown)
    try:
        content = _read_standard_input() if path == "-" else _read_file(Path(path), name)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "a path cannot hold a null character"
        raise RecipeError(f"{name}: cannot be read: {reason}") from error
    if len(content) > MAX_BYTES:
        raise RecipeError(f"{name}: larger than {MAX_BYTES} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise RecipeError(f"{name}:{line}: is not UTF-8 text (byte 0x{content[error.start]:02X})") from error


def _read_file(path: Path, name: str) -> bytes:
    if not stat.S_ISREG(path.stat().st_mode):
        raise RecipeError(f"{name}: is not a regular file")
    with path.open("rb") as file:
        return file.read(MAX_BYTES + 1)


def _read_standard_input() -> bytes:
    if sys.stdin is None:  # closed by whoever started the command
        raise RecipeError(f"{STANDARD_INPUT}: is closed")
    return sys.stdin.buffer.read(MAX_BYTES + 1)
