"""What every path that a recipe or the command line gives goes through."""

import os
import re

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


def _value(found: re.Match[str]) -> str:
    value = os.environ.get(found[1])
    if value is None:
        raise ValueError(f"the environment has no variable {found[1]}")
    return value
