"""The lock on a staging directory: one process alone, or all those that write the same output together.

Several ranks hold it shared, so that no other run takes the directory while one of them may still write. Where directories cannot be
locked, as on a network file system, the lock is on the mark.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from pathlib import Path

#: The mark that a staging directory is graftkit's.
MARK = ".graftkit-staging"

#: What a file system answers that locks files, but no directories.
_NO_DIRECTORY_LOCKS = frozenset({errno.EBADF, errno.EINVAL, errno.EISDIR, errno.ENOLCK, errno.EOPNOTSUPP})


def lock_staging(root: Path, *, shared: bool = False) -> int:
    """Return a descriptor that holds the lock of the staging directory ``root``, which has its mark then.

    Raises:
        BlockingIOError: another run holds it.
        FileNotFoundError: the directory or its mark was removed meanwhile.
    """
    how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB
    with contextlib.ExitStack() as stack:
        directory = _open(root, os.O_RDONLY | os.O_DIRECTORY, stack)
        try:
            fcntl.flock(directory, how)
        except OSError as error:
            if error.errno not in _NO_DIRECTORY_LOCKS:
                raise
            mark = _open(root / MARK, os.O_RDWR | os.O_CREAT, stack)
            fcntl.flock(mark, how)
            _require_same_file(mark, root / MARK)
            return os.dup(mark)
        _require_same_file(directory, root)
        _open(root / MARK, os.O_RDWR | os.O_CREAT, stack)
        return os.dup(directory)


def share_lock(descriptor: int) -> None:
    """Let other processes hold the lock too, each shared.

    Raises:
        BlockingIOError: another run was quick to take it.
    """
    fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)


def _open(path: Path, flags: int, stack: contextlib.ExitStack) -> int:
    """Open a file or directory, never through a link, until the stack is left."""
    fd = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    stack.callback(os.close, fd)
    return fd


def _require_same_file(fd: int, path: Path) -> None:
    """Raise FileNotFoundError when the name no longer means the open file."""
    if not os.path.samestat(os.fstat(fd), path.lstat()):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
