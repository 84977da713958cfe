"""What every path that a recipe or the command line gives goes through."""

import os
import re
from dataclasses import dataclass, field

_VARIABLE = re.compile(r"\$\{(\w+)\}")

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def expand_path(path: str) -> str:
    """``path`` with each ``${NAME}`` replaced by that variable of the environment, and ``~`` or ``~user`` before it by a home folder.

    Raises:
        ValueError: there is no such variable or user, or the home folder is not known.
    """
    named = _VARIABLE.sub(_value, path)
    expanded = os.path.expanduser(named)
    if expanded.startswith("~"):
        user = named.split("/", 1)[0]
        raise ValueError(f"{user} is no user's home folder; write ./{user} for a folder of that name")
    return expanded


def is_url(path: str) -> bool:
    """Whether a path names a folder of a store, such as ``s3://bucket/model``, and not one of this machine."""
    return _URL.match(path) is not None


@dataclass(frozen=True, slots=True)
class RecipeFolder:
    """The folder of a recipe, from which relative paths start that lead nowhere from the working folder.

    ``missing`` are those that lead nowhere from either: a hub id, or a mistake. ``expanded`` and ``found`` say what
    became of each path.
    """

    folder: str
    missing: list[str] = field(default_factory=list)
    expanded: dict[str, str] = field(default_factory=dict)
    found: dict[str, str] = field(default_factory=dict)

    def expand(self, path: str) -> str:
        """:func:`expand_path`, remembered."""
        self.expanded[path] = expand_path(path)
        return self.expanded[path]

    def find(self, path: str) -> str:
        """``path`` where something is there, or it is no relative path; else the one from this folder, where something is there."""
        self.found[path] = self._find(path)
        return self.found[path]

    def _find(self, path: str) -> str:
        if is_url(path) or os.path.isabs(path) or os.path.exists(path):
            return path
        beside = os.path.join(self.folder, path)
        if os.path.exists(beside):
            return path_from_here(beside)
        self.missing.append(path)
        return path

    def looked(self, message: str) -> str:
        """Where it was looked for one of these paths, for the end of a ``message`` that it leads nowhere; empty for other paths."""
        if not any(f": {path}: " in f": {message}" for path in self.missing):
            return ""
        here = os.path.abspath(self.folder) == os.getcwd()
        return "; looked in the working folder" + ("" if here else f" and in {self.folder}")


def path_from_here(path: str | os.PathLike[str]) -> str:
    """The way to a folder from the working folder, as ``./model``; the whole path where the two share no folder below the root.

    The dot in front keeps it from being taken for a hub id where there is no such folder.
    """
    whole, here = os.path.abspath(path), os.getcwd()
    if os.path.commonpath([whole, here]) == os.sep:
        return whole
    way = os.path.relpath(whole, here)
    return way if way.startswith(os.curdir) else os.path.join(os.curdir, way)


def _value(found: re.Match[str]) -> str:
    value = os.environ.get(found[1])
    if value is None:
        raise ValueError(f"the environment has no variable {found[1]}")
    return value
