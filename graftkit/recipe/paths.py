"""What every path that a recipe or the command line gives goes through."""

import os


def expand_home(path: str) -> str:
    """``path`` with ``~`` or ``~user`` at its beginning replaced by that home folder.

    Raises:
        ValueError: there is no such user, or the home folder is not known.
    """
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        user = path.split("/", 1)[0]
        raise ValueError(f"{user} is no user's home folder; write ./{user} for a folder of that name")
    return expanded
