"""Reading files that nobody has vouched for: regular files only, bounded in size, links only inside the checkpoint."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from graftkit.errors import InputRejected, RecipeError, StorageFault, printable


def is_plain_relative(path: str) -> bool:
    """Say whether ``path`` stays below the folder that it is joined to: relative, no ``..``, no NUL, no backslash."""
    parts = path.split("/")
    return bool(path) and not {"", ".", ".."} & set(parts) and "\0" not in path and "\\" not in path


def is_plain_name(name: str) -> bool:
    """Say whether ``name`` names a file of the folder itself."""
    return is_plain_relative(name) and "/" not in name


def is_there(path: Path) -> bool:
    """Whether a folder holds this name, be it a link to nothing; `os.path.lexists` says no where the disk cannot tell.

    Raises:
        StorageFault: the file system failed.
    """
    try:
        os.lstat(path)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP}:
            return False
        raise StorageFault(f"{printable(path.name)}: cannot be read: {error.strerror}") from error
    return True


def raise_error(error: OSError) -> None:
    """Raise what `os.walk` would keep to itself, a folder that cannot be read."""
    raise error


def resolve_member(directory: Path, relative: str) -> Path:
    """Return the real path of the file ``relative`` of the checkpoint in ``directory``.

    A link may lead to another file below ``directory``; in a snapshot of the hub's cache also to the blobs of the same
    repository, where the cache keeps every file's content.

    Raises:
        InputRejected: there is no such file, it is not a regular file, or a link leads elsewhere.
        StorageFault: the file system failed.
    """
    shown = printable(relative)
    try:
        real = Path(os.path.realpath(directory / relative, strict=True))
        regular = stat.S_ISREG(real.stat().st_mode)
    except OSError as error:
        raise _read_fault(error, shown) from error
    home = directory.resolve()
    if not any(real.is_relative_to(root) for root in (home, *_blob_folders(home))):
        raise InputRejected(
            f"{shown}: is a link that leaves the checkpoint, to {printable(real)}; put a copy in its place"
        )
    if not regular:
        raise InputRejected(f"{shown}: is not a regular file")
    return real


def _blob_folders(home: Path) -> tuple[Path, ...]:
    """Return the blobs that belong to ``home`` if it is ``models--ORG--NAME/snapshots/COMMIT`` of a hub cache."""
    repository = home.parent.parent
    is_snapshot = home.parent.name == "snapshots" and repository.name.startswith("models--")
    return (repository / "blobs",) if is_snapshot else ()


def open_regular(path: Path, shown: str) -> BinaryIO:
    """Open ``path`` for reading if it is a regular file and no link; ``shown`` is its printable name in errors.

    A FIFO is refused at once instead of waiting for a writer.

    Raises:
        InputRejected: it is missing or not a regular file.
        StorageFault: the file system failed.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise _read_fault(error, shown) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputRejected(f"{shown}: is not a regular file")
    return os.fdopen(descriptor, "rb")


def open_given(path: Path) -> BinaryIO:
    """Open a file that a recipe names, through any link, if it is regular: no pipe and no device, which may have no end.

    Raises:
        RecipeError: it is not regular.
        OSError: it cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise RecipeError(f"{printable(path)}: is not a regular file")
    return os.fdopen(descriptor, "rb")


def read_bounded(directory: Path, relative: str, limit: int) -> bytes:
    """Return the bytes of the file ``relative`` of the checkpoint in ``directory``.

    Raises:
        InputRejected: the file is larger than ``limit`` bytes, missing, not regular, or a link that leads elsewhere.
        StorageFault: the file system failed.
    """
    shown = printable(relative)
    with open_regular(resolve_member(directory, relative), shown) as file:
        try:
            raw = file.read(min(os.fstat(file.fileno()).st_size, limit) + 1)  # the buffer is as large as is asked for
        except OSError as error:
            raise _read_fault(error, shown) from error
    if len(raw) > limit:
        raise InputRejected(f"{shown}: is larger than {limit} bytes, the most that graftkit reads of such a file")
    return raw


def _read_fault(error: OSError, shown: str) -> InputRejected | StorageFault:
    if error.errno in {errno.ENOENT, errno.ENOTDIR}:
        return InputRejected(f"{shown}: is missing, or a link to nothing")
    if error.errno == errno.ENAMETOOLONG:
        return InputRejected(f"{shown}: is too long for the name of a file")
    if error.errno == errno.ELOOP:
        return InputRejected(f"{shown}: is a symbolic link that cannot be followed")
    if error.errno == errno.ENXIO:
        return InputRejected(f"{shown}: is not a regular file")
    return StorageFault(f"{shown}: cannot be read: {error.strerror}")
