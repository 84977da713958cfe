"""How a recipe names modules: by full name, by the end of one, or by a glob; a name that fits nothing is an error."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterable, Sequence

from graftkit.errors import RecipeError, printable

_GLOB = re.compile(r"[*?\[]")


def is_glob(entry: str) -> bool:
    """Whether an entry holds a wildcard."""
    return _GLOB.search(entry) is not None


def ends_with(name: str, entry: str) -> bool:
    """Whether ``entry`` is the name or the end of it, as peft reads it."""
    return name == entry or name.endswith(f".{entry}")


def names_matching(names: Iterable[str], glob: str) -> list[str]:
    """The names that ``glob`` matches, as a whole or from one of their dots on."""
    return [name for name in names if fnmatch.fnmatchcase(name, glob) or fnmatch.fnmatchcase(name, f"*.{glob}")]


def expand_names(field: str, entries: Sequence[str], names: Sequence[str]) -> list[str]:
    """The entries of ``field``, globs replaced by the ``names`` that they fit.

    Raises:
        RecipeError: an entry fits no name.
    """
    found: list[str] = []
    for entry in entries:
        fits = (
            names_matching(names, entry) if is_glob(entry) else [entry] * any(ends_with(name, entry) for name in names)
        )
        if not fits:
            raise no_match(field, entry, names)
        found += fits
    return list(dict.fromkeys(found))


def no_match(field: str, entry: str, names: Iterable[str], others: Iterable[str] = ()) -> RecipeError:
    """The error of an entry that fits no name, with near ones of ``names``, or of the ``others`` where none of those is near."""
    close = _near(entry, names) or _near(entry, others) or _last_steps(names)[-8:]
    return RecipeError(f"{printable(entry)!r} matches no module; near names: {', '.join(close)}", field=field)


def _near(entry: str, names: Iterable[str]) -> list[str]:
    return difflib.get_close_matches(entry, list(names) if "." in entry else _last_steps(names), n=3, cutoff=0.5)


def _last_steps(names: Iterable[str]) -> list[str]:
    lasts = (name.rpartition(".")[2] for name in names)
    return list(dict.fromkeys(last for last in lasts if not last.isdigit()))
