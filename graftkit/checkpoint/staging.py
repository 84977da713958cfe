"""An output directory that appears whole or not at all.

Beside ``out`` stands, while it is being written::

    .out.graftkit-staging/         locked by the run that writes; removed at the end, whatever the end is
        .graftkit-staging          the mark that it is ours
        checkpoint/                what becomes ``out`` by one rename, or by one exchange with the old ``out``

Nothing that is renamed is locked, so that there is no moment at which another run could take what this one still needs.
After an exchange the old output stands where the new one stood: inside a marked and locked directory, from which any
later run may delete it. Ranks that write one output together hold the lock shared (:mod:`graftkit.checkpoint.joined_staging`), and
the last that leaves an attempt that failed removes the directory.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from graftkit.checkpoint.durable import exchange, rename_to_new, sync, sync_tree
from graftkit.checkpoint.output_place import absolute, nearest_existing, refuse_output, require_space
from graftkit.checkpoint.signals import held_signals
from graftkit.checkpoint.staging_lock import MARK, lock_staging, share_lock
from graftkit.errors import CommittedWithWarning, Locked, StorageFault, printable

__all__ = ["Staging", "refuse_output", "require_space", "staging_path"]

#: Names inside the staging directory, beside its mark. The second exists for an instant, to try an exchange before hours of work.
TREE, TRIAL = "checkpoint", "trial"

_NAME_MAX = 255

#: How often another run may remove the staging directory between two system calls of this one.
_ATTEMPTS = 100


def staging_path(output: Path) -> Path:
    """The staging directory that belongs to ``output``: a hidden sibling with a fixed name."""
    output = absolute(output)
    name = f".{output.name}.graftkit-staging"
    if len(os.fsencode(name)) > _NAME_MAX:
        name = f".{hashlib.sha256(os.fsencode(output.name)).hexdigest()}.graftkit-staging"
    return output.parent / name


class Staging:
    """The staging directory of an output, locked while it is open; see the module's docstring.

    ``path`` is the directory to write into, valid inside the ``with`` block and until :meth:`commit`. Leaving the
    block without a commit removes it, and the parents that were made for it.

    Raises:
        RecipeError: see :func:`refuse_output`.
        Locked: another run holds it.
        StorageFault: it cannot be made, or the operating system reported an error while it was open.
        CommittedWithWarning: the output is in place, but making it durable or cleaning up failed.
    """

    def __init__(self, output: Path, *, source: Path | None = None, overwrite: bool = False) -> None:
        self.output = absolute(output)
        self._root = staging_path(output)
        self.path = self._root / TREE
        self._source, self._overwrite = source, overwrite
        self._lock, self._shared, self._committed = -1, False, False
        self._made: list[Path] = []
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="fsync")
        self._pending: list[Future[None]] = []

    def __enter__(self) -> Self:
        atexit.register(self._discard)  # for a signal that comes between two lines of a clean-up
        try:
            self._take()
        except OSError as error:
            self._discard()
            raise fault(error, self._root) from error
        except BaseException:
            self._discard()
            raise
        return self

    def _take(self) -> None:
        """Get hold of the directory, empty."""
        self._acquire()
        refuse_output(self.output, source=self._source, overwrite=self._overwrite)  # a run may just have ended
        self._remove_trees()
        self.path.mkdir()
        if self.output.exists():
            self._try_exchange()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with held_signals():
            self._pool.shutdown(cancel_futures=True)
            if self._committed:
                self._release()
                return
            self._discard()
        if isinstance(error, OSError):
            raise fault(error, self.path) from error

    def share(self) -> tuple[int, Sequence[Path]]:
        """Let other ranks join; return the inode of the staging directory, and the parents that were made for the output.

        Raises:
            Locked: another run was quick to take it.
        """
        try:
            share_lock(self._lock)
        except BlockingIOError as error:
            raise self._held() from error
        self._shared = True
        return self._root.lstat().st_ino, tuple(self._made)

    def written(self, path: Path) -> None:
        """Say that a file is finished: it is made durable in the background while the next one is written."""
        self._pending.append(self._pool.submit(sync, path))

    def commit(self, committed: Callable[[Path], None] | None = None) -> None:
        """Make everything durable, then let the output appear at once; ``committed`` is called with it as soon as it has.

        The rename is the point of no return: signals are held across it, and whatever goes wrong behind it is a CommittedWithWarning.
        """
        for pending in self._pending:
            pending.result()  # a write error is reported to one fsync only, and must not be lost
        sync_tree(self.path)
        try:
            with held_signals():
                self._rename()
                self._committed = True
                if committed is not None:
                    committed(self.output)
                self._finish()
        except KeyboardInterrupt as error:  # one that came while signals were held
            if not self._committed:
                raise
            raise CommittedWithWarning(
                f"{printable(self.output)}: in place and whole; interrupted behind it"
            ) from error

    def _finish(self) -> None:
        """Make the exchange itself durable, and only then remove the old output: until then, a crash may bring it back."""
        try:
            for parent in (self.output.parent, *(made.parent for made in self._made)):
                sync(parent)
            self._remove_trees()
            self._remove_root()
        except Exception as error:  # whatever it is, the output stands
            reason = _reason(error) if isinstance(error, OSError) else f"{type(error).__name__} {printable(error)}"
            raise CommittedWithWarning(
                f"{printable(self.output)}: in place and whole, but making it durable or cleaning up behind it failed: "
                f"{reason}; delete {printable(self._root)} if it is still there"
            ) from error

    def _acquire(self) -> None:
        """Make or take over the staging directory, and lock it."""
        for attempts_left in reversed(range(_ATTEMPTS)):
            try:
                self._make_parents()
                with contextlib.suppress(FileExistsError):
                    self._root.mkdir()
                self._refuse_foreign()
                with held_signals():  # a lock that nobody knows of would keep every rank from removing the directory
                    self._lock = lock_staging(self._root)
            except FileNotFoundError:  # the run that held it has just removed it: begin again
                if attempts_left == 0:
                    raise
            except BlockingIOError as error:
                raise self._held() from error
            else:
                return

    def _held(self) -> Locked:
        return Locked(
            f"{printable(self.output)}: another run is writing it ({printable(self._root)}); wait for it to end"
        )

    def _make_parents(self) -> None:
        nearest = nearest_existing(self.output.parent)
        for name in self.output.parent.relative_to(nearest).parts:
            nearest = nearest / name
            try:
                nearest.mkdir()
            except FileExistsError:
                if not nearest.is_dir():
                    raise
            else:
                self._made.append(nearest)

    def _refuse_foreign(self) -> None:
        """Never empty what is somebody's: a staging directory holds nothing but what this module puts there."""
        names = set(os.listdir(self._root)) if stat.S_ISDIR(os.lstat(self._root).st_mode) else {""}
        if names and (MARK not in names or names - {MARK, TREE, TRIAL}):
            raise StorageFault(f"{printable(self._root)}: stands in the way and is not graftkit's; move it away")

    def _try_exchange(self) -> None:
        trial = self._root / TRIAL
        trial.mkdir()
        exchange(self.path, trial)
        trial.rmdir()

    def _rename(self) -> None:
        try:
            if self._overwrite and stat.S_ISDIR(os.lstat(self.output).st_mode):
                exchange(self.path, self.output)
                return
        except FileNotFoundError:
            pass
        try:
            rename_to_new(self.path, self.output)
        except FileExistsError as error:
            raise StorageFault(
                f"{printable(self.output)}: appeared while this run was writing, and was left alone; nothing was written"
            ) from error

    def _discard(self) -> None:
        """Remove whatever can be removed of an attempt that failed; what cannot be is taken over by the next run."""
        with held_signals():
            with contextlib.suppress(OSError):
                if self._shared:
                    self._hold_alone()
                if self._lock >= 0:
                    self._remove_trees()
                    self._remove_root()
                else:
                    self._root.rmdir()  # only where not even the mark could be made
            for parent in reversed(self._made):
                with contextlib.suppress(OSError):
                    parent.rmdir()
            self._release()

    def _hold_alone(self) -> None:
        """Give a shared lock up and take the directory alone; where that fails, another rank removes it, or has done so.

        Whoever gives up last finds nobody: to turn one lock into the other would let two ranks wait for one another's.

        Raises:
            OSError: another rank holds it, or it is gone.
        """
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
        self._lock = lock_staging(self._root)

    def _remove_trees(self) -> None:
        for tree in (self.path, self._root / TRIAL):
            if tree.exists():
                shutil.rmtree(tree)

    def _remove_root(self) -> None:
        """Remove the empty staging directory: mark, directory, lock.

        Without its mark a directory that holds anything would never be taken over, so trees go before. A lock on the mark means
        nothing once the mark is gone, and a network file system keeps a file that is open: it goes before the directory.
        """
        (self._root / MARK).unlink()
        if not stat.S_ISDIR(os.fstat(self._lock).st_mode):
            self._release()
        try:
            self._root.rmdir()
        except OSError as error:  # another run was quick to take it
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                raise

    def _release(self) -> None:
        atexit.unregister(self._discard)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _reason(error: OSError) -> str:
    where = " -> ".join(printable(name) for name in (error.filename, error.filename2) if name is not None)
    what = printable(error.strerror or error)
    return f"{where}: {what}" if where else what


def fault(error: OSError, path: Path) -> StorageFault:
    """The error of a system call as one that ends a command, with the path that it is about."""
    if error.filename is None:
        error.filename = str(path)
    return StorageFault(f"{_reason(error)}; nothing was written")
