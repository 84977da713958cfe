"""Moving bytes between files inside the kernel: whole files by reflink, copy or link, and byte ranges into new files.

Five habits make this about as fast as the disk: the blocks of a file are reserved before it is filled, its writeback
starts while the next piece is copied, bytes that do not change never pass through this process, new ones are made
while it waits, and zeros are not written, since reserved blocks read as zeros.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Literal, Self

from graftkit.checkpoint.hub.file import HubFile
from graftkit.checkpoint.tensors import FileRange, Produced, Segment, SourceFile
from graftkit.errors import InputRejected, StorageFault, printable

Progress = Callable[[int], None]

#: How much one system call moves: large enough that calls cost nothing, small enough for a live progress bar.
PIECE = 32 << 20

#: The most that is made before its place in the file is reached.
AHEAD = 64 << 20

#: What is asked of the hub at a time.
FETCHED = 8 << 20

#: What is held in memory where the kernel cannot copy between two file systems.
BUFFER = 1 << 20

#: Requests of Linux: share all blocks with another file, reserve blocks without growing the file, start writeback.
FICLONE, FALLOC_FL_KEEP_SIZE, SYNC_FILE_RANGE_WRITE = 0x40049409, 1, 2

#: What a system call answers where this kernel, file system or sandbox does not offer it for these two files; macOS sends files to
#: sockets alone.
UNSUPPORTED = frozenset(
    {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EPERM, errno.ENOTSOCK}
)

_LIBC = ctypes.CDLL(None, use_errno=True)


def take_file(
    source: Path, target: Path, *, link: bool = False, progress: Progress | None = None
) -> Literal["reflink", "copy", "link"]:
    """Take ``source`` over as the new file ``target``: linked when asked for, else reflinked, else copied.

    Symbolic links are resolved first, since a hub snapshot holds links and a hard link to a link is a link.

    Raises:
        InputRejected: the source is not a regular file.
        StorageFault: a hard link was asked for and cannot be made, or the source became shorter.
        OSError: reading or writing failed.
    """
    real = Path(os.path.realpath(source, strict=True))
    if not real.is_file():
        raise InputRejected(f"{printable(source)}: is not a regular file; replace it by one")
    if link:
        _link(real, target)
        _report(progress, target.stat().st_size)
        return "link"
    with real.open("rb", buffering=0) as old, target.open("xb", buffering=0) as new, _paths_in_errors(real, target):
        size = os.fstat(old.fileno()).st_size
        try:
            fcntl.ioctl(new.fileno(), FICLONE, old.fileno())
        except OSError:  # whatever the reason, a copy either works or says what is wrong
            reserve(new.fileno(), size)
            copy_range(old.fileno(), 0, size, new.fileno(), progress)
            return "copy"
    _report(progress, size)
    return "reflink"


def write_segments(target_fd: int, segments: Iterable[Segment], progress: Progress | None = None) -> None:
    """Write segments one after another from the current position on; adjacent ranges of one file are copied as one.

    Zeros are skipped over: the file must have its length already, or zeros at its end are missing.
    While a range is copied, which is waiting for the disk for the most part, what follows it is made by another thread.

    Raises:
        ValueError: a produced segment has another length than it said.
        StorageFault, OSError: see :func:`copy_range`.
    """
    merged = list(_merged(segments))
    reserve(target_fd, sum(segment.nbytes for segment in merged))
    with _Sources() as sources, ThreadPoolExecutor(1, thread_name_prefix="produce") as ahead:
        made: Future[memoryview] | None = None
        for segment, follower in zip(merged, [*merged[1:], None], strict=False):
            if isinstance(segment, FileRange):
                if isinstance(follower, Produced) and not follower.blank and follower.nbytes <= AHEAD:
                    made = ahead.submit(follower.produce)
                if isinstance(segment.path, HubFile) and not segment.path.is_here:
                    _copy_from_hub(segment.path, segment, target_fd, progress)
                    continue
                with _paths_in_errors(segment.path, _name_of(target_fd)):
                    copy_range(sources.open(segment.path), segment.offset, segment.nbytes, target_fd, progress)
            elif segment.blank:
                os.lseek(target_fd, segment.nbytes, os.SEEK_CUR)
                _report(progress, segment.nbytes)
            else:
                _write_produced(target_fd, segment, made.result() if made else segment.produce(), progress)
                made = None


def _copy_from_hub(file: HubFile, segment: FileRange, target_fd: int, progress: Progress | None) -> None:
    for start in range(0, segment.nbytes, FETCHED):
        count = min(FETCHED, segment.nbytes - start)
        _write_all(target_fd, file.read(segment.offset + start, count))
        _report(progress, count)


def copy_range(source_fd: int, offset: int, nbytes: int, target_fd: int, progress: Progress | None = None) -> None:
    """Copy a byte range to the target's current position, inside the kernel where it can.

    Raises:
        StorageFault: the source ends before the range does.
        OSError: reading or writing failed.
    """
    for move in (_by_copy_file_range, _by_sendfile, _by_memory):
        while nbytes > 0:
            done = move(source_fd, offset, min(nbytes, PIECE), target_fd)
            if done == 0:
                break  # not offered here, or the end of the source: the last way knows
            offset, nbytes = offset + done, nbytes - done
            _start_writeback(target_fd, done)
            _report(progress, done)
    if nbytes > 0:
        raise StorageFault(
            f"{_name_of(source_fd)}: ends at byte {offset:,}, {nbytes:,} bytes early: it was changed meanwhile; run again"
        )


def reserve(fd: int, nbytes: int) -> None:
    """Reserve blocks for ``nbytes`` from the current position on; the file's size stays as it is.

    A full disk shows before anything is copied, and filling reserved blocks is faster. A file system that cannot
    reserve is left alone.

    Raises:
        OSError: there is no space, or the disk fails.
    """
    function = getattr(_LIBC, "fallocate64", None)
    if function is None or nbytes <= 0:
        return
    start, length = ctypes.c_int64(os.lseek(fd, 0, os.SEEK_CUR)), ctypes.c_int64(nbytes)
    if function(fd, FALLOC_FL_KEEP_SIZE, start, length) == 0:
        return
    number = ctypes.get_errno()
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
        raise OSError(number, os.strerror(number), _name_of(fd))


class _Sources:
    """Holds open the file that was read last: a shard's tensors mostly follow one another in one file."""

    def __init__(self) -> None:
        self._path: SourceFile | None = None
        self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def open(self, path: SourceFile) -> int:
        if path != self._path:
            self.__exit__()
            self._path, self._fd = path, os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return self._fd


def _merged(segments: Iterable[Segment]) -> Iterator[Segment]:
    """Join ranges that follow one another in one file, and leave out empty ones."""
    held: FileRange | None = None
    for segment in segments:
        if isinstance(segment, Produced):
            if held is not None:
                yield held
            held = None
            yield segment
        elif held is not None and (segment.path, segment.offset) == (held.path, held.offset + held.nbytes):
            held = FileRange(held.path, held.offset, held.nbytes + segment.nbytes)
        elif segment.nbytes > 0:
            if held is not None:
                yield held
            held = segment
    if held is not None:
        yield held


def _write_produced(fd: int, segment: Produced, produced: memoryview, progress: Progress | None) -> None:
    data = memoryview(produced)
    if data.nbytes != segment.nbytes:
        raise ValueError(f"a produced segment has {data.nbytes} bytes, planned were {segment.nbytes}")
    if data.nbytes > 0:
        _write_all(fd, data.cast("B"))
    _report(progress, segment.nbytes)


def _write_all(fd: int, data: bytes | memoryview) -> None:
    view, done = memoryview(data), 0
    while done < len(view):
        count = os.write(fd, view[done : done + PIECE])
        _start_writeback(fd, count)
        done += count


def _by_copy_file_range(source_fd: int, offset: int, count: int, target_fd: int) -> int:
    if not hasattr(os, "copy_file_range"):  # only Linux has it
        return 0
    try:
        return os.copy_file_range(source_fd, target_fd, count, offset_src=offset)
    except OSError as error:
        if error.errno in UNSUPPORTED:
            return 0
        raise


def _by_sendfile(source_fd: int, offset: int, count: int, target_fd: int) -> int:
    if not hasattr(os, "sendfile"):
        return 0
    try:
        return os.sendfile(target_fd, source_fd, offset, count)
    except OSError as error:
        if error.errno in UNSUPPORTED:
            return 0
        raise


def _by_memory(source_fd: int, offset: int, count: int, target_fd: int) -> int:
    data = os.pread(source_fd, min(count, BUFFER), offset)
    _write_all(target_fd, data)
    return len(data)


def _start_writeback(fd: int, nbytes: int) -> None:
    """Let the disk begin with each mebibyte that the last ``nbytes`` filled; a failure shows in the fsync that follows."""
    function = getattr(_LIBC, "sync_file_range", None)
    position = os.lseek(fd, 0, os.SEEK_CUR)
    start, stop = (place // BUFFER * BUFFER for place in (position - nbytes, position))
    if function is not None and stop > start:
        function(fd, ctypes.c_int64(start), ctypes.c_int64(stop - start), SYNC_FILE_RANGE_WRITE)


def _link(real: Path, target: Path) -> None:
    try:
        os.link(real, target)
    except OSError as error:
        if error.errno not in UNSUPPORTED | {errno.EMLINK, errno.EACCES}:
            raise
        raise StorageFault(
            f"{printable(target)}: cannot be a hard link to {printable(real)} ({error.strerror}); drop --link"
        ) from error


@contextlib.contextmanager
def _paths_in_errors(source: SourceFile, target: Path | str) -> Iterator[None]:
    """Add both paths to an error of a system call that works on file descriptors."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename, error.filename2 = str(source), str(target)
        raise


def _name_of(fd: int) -> str:
    try:
        return printable(os.readlink(f"/proc/self/fd/{fd}"))
    except OSError:
        return f"file descriptor {fd}"


def _report(progress: Progress | None, nbytes: int) -> None:
    if progress is not None:
        progress(nbytes)
