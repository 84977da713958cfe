"""Moving bytes between files inside the kernel: whole files by reflink, copy or link, and byte ranges into new files."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal

from graftkit.checkpoint.tensors import FileRange, Segment
from graftkit.errors import StorageFault, printable

Progress = Callable[[int], None]

#: How much is moved by one system call: large enough that calls cost nothing, small enough for a live progress bar.
PIECE = 32 << 20

#: ioctl request of Linux that shares all blocks of a file with another (linux/fs.h).
FICLONE = 0x40049409

_NO_KERNEL_COPY = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM}


def take_file(
    source: Path, target: Path, *, link: bool = False, progress: Progress | None = None
) -> Literal["reflink", "copy", "link"]:
    """Take ``source`` over as the new file ``target``: linked when asked for, else reflinked, else copied.

    Symbolic links are resolved first, since a hub snapshot holds links and a hard link to a link is a link.

    Raises:
        StorageFault: a hard link was asked for and cannot be made.
        OSError: reading or writing failed.
    """
    real = source.resolve(strict=True)
    size = real.stat().st_size
    if link:
        try:
            os.link(real, target)
        except OSError as error:
            raise StorageFault(f"{printable(target)}: cannot be hard-linked ({error.strerror}); drop --link") from error
        _tell(progress, size)
        return "link"
    with real.open("rb") as old, target.open("xb") as new:
        try:
            fcntl.ioctl(new.fileno(), FICLONE, old.fileno())
        except OSError:
            copy_range(old.fileno(), 0, size, new.fileno(), progress)
            return "copy"
    _tell(progress, size)
    return "reflink"


def copy_range(source_fd: int, offset: int, nbytes: int, target_fd: int, progress: Progress | None = None) -> None:
    """Copy a byte range to the target's current position, inside the kernel where it can.

    Raises:
        StorageFault: the source ends before the range does.
        OSError: reading or writing failed.
    """
    in_kernel = True
    while nbytes > 0:
        count = min(nbytes, PIECE)
        if in_kernel:
            try:
                done = os.copy_file_range(source_fd, target_fd, count, offset_src=offset)
            except OSError as error:
                if error.errno not in _NO_KERNEL_COPY:
                    raise
                in_kernel = False
                continue
        else:
            done = _write_all(target_fd, os.pread(source_fd, min(count, 1 << 20), offset))
        if done == 0:
            raise StorageFault("a source file became shorter while it was read; run again")
        offset, nbytes = offset + done, nbytes - done
        _tell(progress, done)


def write_segments(target_fd: int, segments: Iterable[Segment], progress: Progress | None = None) -> None:
    """Write segments one after another; adjacent ranges of one file are copied as one.

    Raises:
        ValueError: a produced segment has another length than it said.
        StorageFault, OSError: see :func:`copy_range`.
    """
    path, fd = None, -1
    try:
        for segment in _merged(segments):
            if isinstance(segment, FileRange):
                if segment.path != path:
                    if fd >= 0:
                        os.close(fd)
                    path, fd = segment.path, os.open(segment.path, os.O_RDONLY | os.O_CLOEXEC)
                copy_range(fd, segment.offset, segment.nbytes, target_fd, progress)
            else:
                data = segment.produce()
                if len(data) != segment.nbytes:
                    raise ValueError(f"a produced segment has {len(data)} bytes, planned were {segment.nbytes}")
                _write_all(target_fd, data)
                _tell(progress, segment.nbytes)
    finally:
        if fd >= 0:
            os.close(fd)


def _merged(segments: Iterable[Segment]) -> Iterator[Segment]:
    """Join ranges that follow one another in one file."""
    held: FileRange | None = None
    for segment in segments:
        if not isinstance(segment, FileRange):
            if held is not None:
                yield held
            held = None
            yield segment
        elif held is not None and (segment.path, segment.offset) == (held.path, held.offset + held.nbytes):
            held = FileRange(held.path, held.offset, held.nbytes + segment.nbytes)
        else:
            if held is not None:
                yield held
            held = segment
    if held is not None:
        yield held


def _write_all(fd: int, data: bytes | memoryview) -> int:
    view = memoryview(data)
    done = 0
    while done < len(view):
        done += os.write(fd, view[done : done + PIECE])
    return done


def _tell(progress: Progress | None, nbytes: int) -> None:
    if progress is not None:
        progress(nbytes)
