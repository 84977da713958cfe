"""The structural check: every byte of what was written is the source's, or was produced by a named operation."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from graftkit.checkpoint.adapter import CONFIG, FOLDER, WEIGHTS, Adapter
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.documents import read_document
from graftkit.checkpoint.held import is_original
from graftkit.checkpoint.reading import CHUNK, Reader, chunks, read_range
from graftkit.checkpoint.safetensors_header import read_header
from graftkit.checkpoint.signals import held_signals
from graftkit.checkpoint.tensors import ITEM_BYTES, FileRange, LazyTensor, from_source
from graftkit.errors import InputRejected, VerificationFailed, printable

#: Exponent bits that are all ones in an infinity or a NaN, by dtype, with the width of the word that holds them.
EXPONENTS = {
    "BF16": ("uint16", 0x7F80),
    "F16": ("uint16", 0x7C00),
    "F32": ("uint32", 0x7F80_0000),
    "F64": ("uint64", 0x7FF0 << 48),
}


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One tensor of the result: where it lies, its digest, and how many of its bytes are the source's.

    One that a model in memory shares with the source has no digest: there are no other bytes.
    """

    name: str
    shard: str
    dtype: str
    shape: tuple[int, ...]
    sha256: str
    source_bytes: int
    produced_bytes: int


def check_structure(
    planned: Checkpoint,
    directory: Path,
    *,
    allow_nonfinite: bool = False,
    progress: Callable[[int], None] | None = None,
) -> tuple[LedgerEntry, ...]:
    """Read the written directory back and compare it with the planned checkpoint, byte for byte.

    The planned tensors name the source's byte ranges and the produced rows, so the written bytes are compared with
    the source itself. Every float is looked at for NaN and infinity.

    Raises:
        VerificationFailed: a name, shape, dtype or byte is not what was planned, or a produced value is not finite.
        InputRejected: the source holds a value that is not finite, and ``allow_nonfinite`` is off.
    """
    with StructureCheck(planned, directory, allow_nonfinite=allow_nonfinite, progress=progress) as check:
        for file in planned.files:
            if (directory / file).is_file():
                check.shard(directory / file)
        return check.finish()


class StructureCheck:
    """:func:`check_structure` shard by shard, so that one is read back while the next is written."""

    def __init__(
        self,
        planned: Checkpoint,
        directory: Path,
        *,
        allow_nonfinite: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self._planned, self._directory = planned, directory
        self._tensors = planned.all_tensors
        self._allow, self._progress = allow_nonfinite, progress
        self._jobs: dict[str, Future[LedgerEntry]] = {}
        self._pool = ThreadPoolExecutor(max_workers=os.cpu_count() or 1, thread_name_prefix="check")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with held_signals():
            self._pool.shutdown(cancel_futures=True)

    def shard(self, path: Path) -> None:
        """Begin to read a finished weight file back; what is wrong with it is raised by :meth:`finish`."""
        for name, tensor in read_header(path).tensors.items():
            planned = self._tensors.get(name)
            if planned is not None and (tensor.dtype, tensor.shape) == (planned.dtype, planned.shape):
                self._jobs[name] = self._pool.submit(
                    check_tensor, name, planned, tensor, path.name, self._allow, self._progress
                )

    def entries(self) -> dict[str, LedgerEntry]:
        """The ledger of the files that were read back here, by tensor; raises as :func:`check_structure` does."""
        return {name: self._jobs[name].result() for name in self._tensors if name in self._jobs}

    def finish(self, entries: Mapping[str, LedgerEntry] | None = None) -> tuple[LedgerEntry, ...]:
        """Check what only the whole directory shows, and return the ledger; raises as :func:`check_structure` does.

        ``entries`` are those of all files, where other processes read some of them back.
        """
        written = Checkpoint.open(str(self._directory))
        check_names(self._planned.tensors, written.tensors)
        check_names(self._planned.value_head, written.value_head)
        _check_documents(self._planned, written)
        entries = self.entries() if entries is None else entries
        return tuple(entries[name] for name in self._tensors)


def check_adapter(
    planned: Adapter, directory: Path, *, allow_nonfinite: bool = False, progress: Callable[[int], None] | None = None
) -> tuple[LedgerEntry, ...]:
    """Read the written adapter back and compare it with the planned one, as :func:`check_structure` does for a base.

    Raises:
        VerificationFailed: config, a name, shape, dtype or byte is not what was planned, or a produced value not finite.
        InputRejected: a value that was copied is not finite, and ``allow_nonfinite`` is off.
    """
    if json.loads((directory / CONFIG).read_bytes()) != json.loads(json.dumps(dict(planned.config))):
        raise VerificationFailed(f"structure: {CONFIG} on disk is not the planned one")
    written = read_header(directory / WEIGHTS).tensors
    check_names(planned.tensors, written)
    where = f"{FOLDER}/{WEIGHTS}"
    return tuple(
        check_tensor(name, tensor, written[name], where, allow_nonfinite, progress)
        for name, tensor in planned.tensors.items()
    )


def check_names(planned: Mapping[str, LazyTensor], written: Mapping[str, LazyTensor]) -> None:
    """Compare names, dtypes and shapes.

    Raises:
        VerificationFailed: one is not what was planned.
    """
    if planned.keys() != written.keys():
        names = sorted(planned.keys() ^ written.keys())
        raise VerificationFailed(
            f"structure: written tensors are not the planned ones: {printable(', '.join(names[:4]))}"
        )
    for name, tensor in planned.items():
        found = written[name]
        if (found.dtype, found.shape) != (tensor.dtype, tensor.shape):
            raise VerificationFailed(
                f"structure: tensor {printable(name)!r} was written as {found.dtype} {list(found.shape)},"
                f" planned was {tensor.dtype} {list(tensor.shape)}"
            )


def _check_documents(planned: Checkpoint, written: Checkpoint) -> None:
    for name, value in planned.documents.items():
        edited = name in written.carried  # a file that is no document where nobody edits it, such as vocab.txt
        found = read_document(written.directory, name) if edited else written.documents.get(name)
        if name != "README.md" and found != value:
            raise VerificationFailed(f"structure: {printable(name)} on disk is not the planned document")
    missing = sorted(set(planned.carried) - set(written.carried))
    if missing:
        raise VerificationFailed(f"structure: file {printable(missing[0])} was not carried along")


def check_tensor(
    name: str, planned: LazyTensor, written: LazyTensor, shard: str, allow_nonfinite: bool,
    progress: Callable[[int], None] | None,
) -> LedgerEntry:  # fmt: skip
    """Compare a tensor with the planned one, byte for byte; ``shard`` says where it lies.

    Raises:
        VerificationFailed: a byte is not what was planned, or a produced value is not finite.
        InputRejected: the source holds a value that is not finite, and ``allow_nonfinite`` is off.
    """
    reader = Reader(written)
    digest, done, taken = hashlib.sha256(), 0, 0
    for expected, own in _expected(planned):
        found = reader.read(len(expected))
        if not _equal(expected, found):
            raise VerificationFailed(
                f"structure: tensor {printable(name)!r} differs from {'the source' if own else 'what was computed'}"
                f" in bytes {done}..{done + len(expected)}"
            )
        _check_finite(name, planned.dtype, found, done, own=own, allow=allow_nonfinite)
        digest.update(found.data)
        done += len(expected)
        taken += len(expected) * own
        if progress is not None:
            progress(len(expected))
    return LedgerEntry(name, shard, planned.dtype, planned.shape, digest.hexdigest(), taken, done - taken)


def _expected(tensor: LazyTensor, size: int = CHUNK) -> Iterator[tuple[Any, bool]]:
    """Pieces of what the tensor's bytes must be, with whether they are the source's."""
    import numpy as np

    for segment in tensor.segments():
        if isinstance(segment, FileRange):
            for start in range(0, segment.nbytes, size):
                count = min(size, segment.nbytes - start)
                yield read_range(segment.path, segment.offset + start, count), True
        else:
            yield np.frombuffer(segment.produce(), np.uint8), from_source(segment)


def _equal(left: Any, right: Any) -> bool:
    import numpy as np

    return bool(np.array_equal(left, right))


def first_not_finite(dtype: str, raw: Any) -> int | None:
    """The number of the first value that is NaN or infinite among the bytes ``raw`` of whole values; None where there is none."""
    if dtype not in EXPONENTS:
        return None
    word, mask = EXPONENTS[dtype]
    values = raw.view(word)
    bad = (values & values.dtype.type(mask)) == mask
    return int(bad.argmax()) if bad.any() else None


def not_finite(tensors: Mapping[str, LazyTensor]) -> Iterator[str]:
    """Yield the name of each of the source's tensors that holds NaN or infinity; read in chunks."""
    yield from (name for name, tensor in tensors.items() if is_original(tensor) and holds_not_finite(tensor))


def holds_not_finite(tensor: LazyTensor) -> bool:
    """Whether a tensor of floating point holds NaN or infinity; read in chunks."""
    import numpy as np

    pieces = (np.frombuffer(piece, np.uint8) for piece in chunks(tensor) if tensor.dtype in EXPONENTS)
    return any(first_not_finite(tensor.dtype, piece) is not None for piece in pieces)


def _check_finite(name: str, dtype: str, raw: Any, offset: int, *, own: bool, allow: bool) -> None:
    found = first_not_finite(dtype, raw)
    if found is None:
        return
    index = offset // ITEM_BYTES[dtype] + found
    what = f"tensor {printable(name)!r} has a value that is not finite at element {index}"
    if not own:
        raise VerificationFailed(f"structure: {what}; it was computed by the recipe")
    if not allow:
        raise InputRejected(f"{what}; such weights give garbage silently: set allow_nonfinite: true to keep them")
