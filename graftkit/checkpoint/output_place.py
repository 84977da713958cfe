"""Where an output may appear: what is refused before anything is touched."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

from graftkit.errors import RecipeError, StorageFault, printable

#: Only a directory that is empty or holds one of these is replaced: --overwrite must not cost anybody a home directory.
REPLACEABLE = ("graft_report.json", "config.json", "adapter_config.json")


def refuse_output(output: Path, *, source: Path | None, overwrite: bool) -> None:
    """Refuse an output that must not or cannot be written. Touches nothing.

    Raises:
        RecipeError: the output exists and is not to be replaced, is no checkpoint that could be, cannot be made, or is,
            holds or lies in the source.
    """
    place = f"output: {printable(output)}"
    if "\0" in str(output):
        raise RecipeError(f"{place} holds a null character; name another output")
    output = absolute(output)
    try:
        found = os.lstat(output)
    except FileNotFoundError:
        found = None
    except OSError as error:
        raise RecipeError(f"{place} cannot be written ({error.strerror}); name another output") from error
    if found is not None and not stat.S_ISDIR(found.st_mode):
        raise RecipeError(f"{place} exists and is not a directory; name another output")
    if source is not None and _overlap(output, source):
        raise RecipeError(f"{place} is, holds or lies in the source {printable(source)}; name another output")
    if found is None:
        _refuse_parent(output, place)
    elif not overwrite:
        raise RecipeError(f"{place} exists; name another output, or replace it with --overwrite")
    else:
        _refuse_replacing(output, place)


def require_space(directory: Path, nbytes: int) -> None:
    """Check that ``nbytes`` are free on the file system where ``directory`` is or will be.

    Raises:
        StorageFault: they are not.
    """
    free = shutil.disk_usage(nearest_existing(absolute(directory))).free
    if free < nbytes:
        raise StorageFault(f"{printable(directory)}: needs {nbytes:,} bytes, {free:,} are free; nothing was written")


def absolute(output: Path) -> Path:
    """Resolve a symlinked parent, but not the output itself: a link that stands there is seen as one."""
    if output.name in ("", ".."):
        return Path(os.path.realpath(output))
    return Path(os.path.realpath(output.parent)) / output.name


def nearest_existing(path: Path) -> Path:
    """Return ``path`` or the first of its parents that exists."""
    while not path.exists():
        path = path.parent
    return path


def _overlap(output: Path, source: Path) -> bool:
    """Compare by inode, so that a bind mount or another spelling of the same place is seen."""
    if not source.exists():
        return False
    real, origin = Path(os.path.realpath(output)), Path(os.path.realpath(source))
    inside = any(place.exists() and place.samefile(origin) for place in (real, *real.parents))
    return inside or (real.exists() and any(place.samefile(real) for place in origin.parents))


def _refuse_parent(output: Path, place: str) -> None:
    parent = nearest_existing(output.parent)
    if not parent.is_dir():
        raise RecipeError(f"{place}: {printable(parent)} is not a directory; name another output")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise RecipeError(f"{place}: {printable(parent)} cannot be written; name another output or change its rights")


def _refuse_replacing(output: Path, place: str) -> None:
    if output.is_mount():
        raise RecipeError(f"{place} is a mount point, which cannot be replaced; name a directory inside it")
    names = os.listdir(output)
    if names and not any(name in names for name in REPLACEABLE):
        raise RecipeError(f"{place} is not a checkpoint (it has no {' or '.join(REPLACEABLE)}); name another output")
