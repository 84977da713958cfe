"""Whether a folder is still the one that was opened: file, size and time of change of everything that lies in it."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from graftkit.errors import GraftkitError, StorageFault, few, printable

#: Name of a file -> device, inode, size in bytes, and nanoseconds of its last change.
Stamps = Mapping[str, tuple[int, int, int, int]]


def stamps_of(directory: Path) -> Stamps:
    """The stamps of the regular files in ``directory`` itself, links followed; empty where it cannot be listed."""
    found = {}
    with contextlib.suppress(OSError):
        for name in os.listdir(directory):
            with contextlib.suppress(OSError):
                status = os.stat(directory / name)
                if stat.S_ISREG(status.st_mode):
                    found[name] = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    return found


def require_unchanged(directory: Path, before: Stamps) -> None:
    """Check that every file that had a stamp still has it.

    Raises:
        StorageFault: one was changed, replaced or removed; what was read may be a mixture.
    """
    now = stamps_of(directory)
    if changed := [name for name, stamp in before.items() if now.get(name) != stamp]:
        raise StorageFault(f"{printable(directory)}: changed while it was read: {few(changed)}; run again")


@contextlib.contextmanager
def unchanged(*folders: str | None) -> Iterator[None]:
    """Check at the end, also behind an error, that what lies in the folders (other names are hub ids) is what lay there at the start.

    Raises:
        StorageFault: it is not, so that neither a verdict nor an error says anything.
    """
    watched = {Path(name): stamps_of(Path(name)) for name in folders if name is not None and Path(name).is_dir()}
    try:
        yield
    except GraftkitError as error:
        try:
            _require_all(watched)
        except StorageFault as fault:
            raise fault from error
        raise
    _require_all(watched)


def _require_all(watched: Mapping[Path, Stamps]) -> None:
    for directory, before in watched.items():
        require_unchanged(directory, before)
