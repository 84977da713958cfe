"""The staging directory of another rank: this one writes into it, and neither makes, commits nor replaces anything."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from graftkit.checkpoint.signals import held_signals
from graftkit.checkpoint.staging import Staging
from graftkit.checkpoint.staging_lock import lock_staging
from graftkit.errors import StorageFault, printable

#: Seconds between two looks at a shared file system, which shows late what another machine did.
LOOK = 0.1


class JoinedStaging(Staging):
    """The staging directory that another rank made for ``output``, whose ``inode`` and parents ``made`` it told.

    Leaving the block with an error removes it where no other rank holds it any more: whoever leaves last does.

    Raises:
        Locked: another run holds it.
        StorageFault: it is not there after ``patience`` seconds, or a write failed.
    """

    def __init__(self, output: Path, inode: int, made: Sequence[Path], patience: float) -> None:
        super().__init__(output)
        self._shared = True
        self._made, self._inode, self._patience = list(made), inode, patience

    def _take(self) -> None:
        wait_until(self._joins, self._patience, f"{self._root} is not there")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._committed = error is None  # what this rank wrote is the other's by now
        super().__exit__(kind, error, trace)

    def settle(self) -> None:
        """Wait until every file of this rank is on the disk, and give the directory up to the rank that commits it."""
        for pending in self._pending:
            pending.result()
        self._release()

    def _joins(self) -> bool:
        if not self.path.is_dir():
            return False
        try:
            with held_signals():  # a lock that nobody knows of would keep every rank from removing the directory
                self._lock = lock_staging(self._root, shared=True)
        except FileNotFoundError:
            return False
        except BlockingIOError as error:
            raise self._held() from error
        if self._root.lstat().st_ino != self._inode:
            raise self._held()
        return True


def wait_until(is_so: Callable[[], bool], patience: float, otherwise: str) -> None:
    """Look again and again until something is so.

    Raises:
        StorageFault: it is not after ``patience`` seconds.
    """
    until = time.monotonic() + patience
    while not is_so():
        if time.monotonic() > until:
            raise StorageFault(
                f"{printable(otherwise)}: source and output must lie on a file system that all ranks share"
            )
        time.sleep(LOOK)
