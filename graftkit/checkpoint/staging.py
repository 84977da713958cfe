"""An output directory that appears whole or not at all.

Everything is written into a sibling of the output, which is its own lock. Files and directories are made durable,
then one rename (or, when an output is replaced, one exchange) makes it the output.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from graftkit.errors import CommittedWithWarning, Locked, RecipeError, StorageFault, printable

#: Stands in every staging directory from its first moment, so that a directory of somebody else's is never emptied.
MARK = ".graftkit-staging"

RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
_AT_FDCWD = -100


def staging_path(output: Path) -> Path:
    """The staging directory that belongs to ``output``: a hidden sibling with a fixed name."""
    return output.parent / f".{output.name[:200]}.graftkit-staging"


def refuse_output(output: Path, *, source: Path | None, overwrite: bool) -> None:
    """Refuse an output that must not be written. Touches nothing.

    Raises:
        RecipeError: the output exists and is not to be replaced, is no directory, or is, holds or lies in the source.
    """
    shown = printable(output)
    if output.is_symlink() or (output.exists() and not output.is_dir()):
        raise RecipeError(f"output: {shown} exists and is not a directory; name another output")
    if source is not None:
        real, origin = output.resolve(), source.resolve()
        if real == origin or origin in real.parents or real in origin.parents:
            raise RecipeError(
                f"output: {shown} is, holds or lies in the source {printable(source)}; name another output"
            )
    if output.exists() and not overwrite:
        raise RecipeError(f"output: {shown} exists; name another output, or replace it with --overwrite")


def require_space(directory: Path, nbytes: int) -> None:
    """Check that ``nbytes`` are free where ``directory`` will be.

    Raises:
        StorageFault: they are not.
    """
    place = directory.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < nbytes:
        raise StorageFault(f"{printable(directory)}: needs {nbytes:,} bytes, {free:,} are free; nothing was written")


class Staging:
    """The staging directory of an output, locked while it is open; see the module's docstring.

    Raises:
        Locked: another run holds it.
        StorageFault: it cannot be made, or an operating system error happened while it was open.
        CommittedWithWarning: the output is in place, but making it durable or cleaning up failed.
    """

    def __init__(self, output: Path, *, source: Path | None = None, overwrite: bool = False) -> None:
        self.output = Path(os.path.abspath(output))
        self.path = staging_path(self.output)
        self._source, self._overwrite = source, overwrite
        self._fd, self._committed = -1, False
        self._made: list[Path] = []
        self._pool = ThreadPoolExecutor(1)
        self._synced: dict[Path, Future[None]] = {}

    def __enter__(self) -> Self:
        refuse_output(self.output, source=self._source, overwrite=self._overwrite)
        try:
            self._make_parents()
            self._lock()
            self._empty()
        except OSError as error:
            self._release()
            raise _fault(error, self.path) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)
        if not self._committed:
            with contextlib.suppress(OSError):
                self._delete()
                for parent in reversed(self._made):
                    parent.rmdir()
        self._release()
        if isinstance(error, OSError):
            raise _fault(error, self.path) from error

    def written(self, path: Path) -> None:
        """Say that a file is finished: it is made durable in the background while the next one is written."""
        self._synced[path] = self._pool.submit(_sync, path)

    def commit(self) -> None:
        """Make everything durable, then let the output appear at once."""
        (self.path / MARK).unlink()
        for future in self._synced.values():
            future.result()
        for directory, _, files in os.walk(self.path, topdown=False):
            for name in files:
                path = Path(directory, name)
                if path not in self._synced:
                    _sync(path)
            _sync(Path(directory))
        self._rename()
        self._committed = True
        try:
            if self.path.exists():
                self._delete()
            _sync(self.output.parent)
        except OSError as error:
            raise CommittedWithWarning(
                f"{printable(self.output)}: in place and whole, but cleaning up behind it failed: {error.strerror}"
            ) from error

    def _make_parents(self) -> None:
        missing = []
        parent = self.output.parent
        while not parent.exists():
            missing.append(parent)
            parent = parent.parent
        for directory in reversed(missing):
            with contextlib.suppress(FileExistsError):
                directory.mkdir()
                self._made.append(directory)

    def _lock(self) -> None:
        """Make or take the staging directory; the lock is on the directory itself."""
        while True:
            fresh = True
            try:
                self.path.mkdir()
            except FileExistsError:
                fresh = False
            try:
                self._fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except FileNotFoundError:
                continue
            except BlockingIOError as error:
                raise Locked(
                    f"{printable(self.output)}: another run is writing it; wait for that run to end"
                ) from error
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(self._fd), self.path.stat()):
                    if fresh or self._is_ours():
                        return
                    raise StorageFault(f"{printable(self.path)}: stands in the way and is not graftkit's; move it away")
            self._release()

    def _is_ours(self) -> bool:
        """A marked directory, an empty one (killed before the mark), or an old output that was exchanged here."""
        names = set(os.listdir(self.path))
        return not names or MARK in names or "graft_report.json" in names

    def _delete(self) -> None:
        """Delete what stands at the staging path; the mark goes last, so that a run after a kill may go on with it."""
        self._empty()
        (self.path / MARK).unlink()
        self.path.rmdir()

    def _empty(self) -> None:
        (self.path / MARK).touch()
        for entry in os.scandir(self.path):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            elif entry.name != MARK:
                os.unlink(entry.path)

    def _rename(self) -> None:
        if self._overwrite and self.output.exists():
            old = os.open(self.output, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(old, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _renameat2(self.path, self.output, RENAME_EXCHANGE)
                self._fd, old = old, self._fd
            finally:
                os.close(old)
            return
        try:
            _renameat2(self.path, self.output, RENAME_NOREPLACE)
        except FileExistsError as error:
            raise StorageFault(
                f"{printable(self.output)}: appeared while this run was writing; it was left alone"
            ) from error

    def _release(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _renameat2(old: Path, new: Path, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), flags) == 0:
        return
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS):
        if flags == RENAME_EXCHANGE:
            raise StorageFault(f"{printable(new)}: this file system cannot exchange directories; name a new output")
        if new.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(new))
        os.rename(old, new)
        return
    raise OSError(number, os.strerror(number), str(new))


def _fault(error: OSError, path: Path) -> StorageFault:
    where = error.filename if error.filename is not None else path
    return StorageFault(f"{printable(where)}: {error.strerror or error}; nothing was written")
