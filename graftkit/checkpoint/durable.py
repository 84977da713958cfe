"""What the kernel offers to make files durable and to let a directory appear in one step."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import tempfile
from pathlib import Path

from graftkit.checkpoint.files import raise_error
from graftkit.errors import StorageFault, printable

_RENAME_NOREPLACE, _RENAME_EXCHANGE, _AT_FDCWD = 1, 2, -100

#: What renameat2 answers where the file system (NFS, some FUSE) or the kernel does not know the flag.
_UNSUPPORTED = (errno.EINVAL, errno.ENOSYS)

_LIBC = ctypes.CDLL(None, use_errno=True)


def sync(path: Path) -> None:
    """Wait until a file or directory is on the disk.

    Raises:
        OSError: writing it failed, now or earlier.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        os.close(fd)


def sync_tree(root: Path) -> None:
    """Wait until every regular file under ``root`` is on the disk, then every directory, the innermost first.

    Raises:
        OSError: writing one of them failed.
    """
    for directory, _, files in os.walk(root, topdown=False, onerror=raise_error):
        for name in files:
            path = Path(directory, name)
            if stat.S_ISREG(path.lstat().st_mode):
                sync(path)
        sync(Path(directory))


def replace_file(path: Path, data: bytes) -> None:
    """Write a file that is there whole or as it was before; what stands at ``path`` is replaced, a link too.

    Raises:
        OSError: writing it failed.
    """
    fd, name = tempfile.mkstemp(prefix=f".{path.name[:100]}.", dir=path.parent)
    fresh = Path(name)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        fresh.chmod(0o666 & ~_umask())
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def rename_to_new(old: Path, new: Path) -> None:
    """Rename ``old`` to ``new``, which must not exist.

    Raises:
        FileExistsError: something stands at ``new``, and was left alone.
        OSError: the rename failed.
    """
    number = _renameat2(old, new, _RENAME_NOREPLACE)
    if number in _UNSUPPORTED:
        if new.is_symlink() or new.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(new))
        old.rename(new)  # where something appears just now: a directory replaces an empty directory and nothing else
    elif number:
        raise OSError(number, os.strerror(number), str(new))


def exchange(one: Path, other: Path) -> None:
    """Exchange two directories in one step; never in two, which a kill could part.

    Raises:
        StorageFault: the file system cannot.
        OSError: the exchange failed.
    """
    number = _renameat2(one, other, _RENAME_EXCHANGE)
    if number in _UNSUPPORTED:
        raise StorageFault(
            f"{printable(other)}: this file system cannot exchange directories, which --overwrite needs; "
            "name a new output, or delete the old one first"
        )
    if number:
        raise OSError(number, os.strerror(number), str(other))


def _renameat2(old: Path, new: Path, flags: int) -> int:
    """Return 0 or the error's number."""
    function = getattr(_LIBC, "renameat2", None)
    if function is None:
        return errno.ENOSYS
    failed = function(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), flags) != 0
    return ctypes.get_errno() if failed else 0
