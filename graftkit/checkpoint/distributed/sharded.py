"""A tensor that lies in pieces in the files of torch.distributed.checkpoint, read a piece at a time."""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from graftkit.checkpoint.computed import as_bytes
from graftkit.checkpoint.distributed.description import Chunk, Entry, in_rows
from graftkit.checkpoint.files import resolve_member
from graftkit.checkpoint.pickled_file import check_archive, refusal
from graftkit.checkpoint.reading import read_range, torch_dtype
from graftkit.checkpoint.tensors import ITEM_BYTES, Lent, Segment
from graftkit.errors import InputRejected, printable

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Sharded:
    """The tensor that a ``folder`` calls ``entry``. Pieces that are runs of rows are never held together."""

    folder: Path
    entry: str
    held: Entry

    @property
    def dtype(self) -> str:
        return self.held.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.held.shape

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    def segments(self) -> Iterator[Segment]:
        if not in_rows(self.held):
            yield Lent(self.nbytes, self._whole)
            return
        for chunk in self.held.chunks:
            nbytes = math.prod(chunk.sizes) * ITEM_BYTES[self.dtype]
            yield Lent(nbytes, functools.partial(self._piece, chunk))

    def _piece(self, chunk: Chunk) -> memoryview:
        return as_bytes(self._read(chunk))

    def _whole(self) -> memoryview:
        import torch

        whole = torch.empty(self.shape, dtype=torch_dtype(self.dtype))
        for chunk in self.held.chunks:
            place = tuple(slice(start, start + size) for start, size in zip(chunk.offsets, chunk.sizes, strict=True))
            whole[place] = self._read(chunk)
        return as_bytes(whole)

    def _read(self, chunk: Chunk) -> Tensor:
        """One piece, by torch's unpickler of weights.

        Raises:
            InputRejected: what lies there is not that piece, or asks to run code.
        """
        import torch

        shown = f"{printable(chunk.file)}: {printable(self.entry)!r}"
        file = io.BytesIO(read_range(resolve_member(self.folder, chunk.file), chunk.offset, chunk.nbytes).data)
        check_archive(file, shown)
        file.seek(0)
        try:
            found = torch.load(file, map_location="cpu", weights_only=True)
        except (MemoryError, OSError, KeyboardInterrupt):
            raise
        except Exception as error:  # the unpickler raises whatever a damaged file makes it run into
            raise InputRejected(f"{shown}: {refusal(str(error))}") from error
        if not isinstance(found, torch.Tensor) or (tuple(found.shape), found.dtype) != (
            chunk.sizes,
            torch_dtype(self.dtype),
        ):
            raise InputRejected(f"{shown}: is not the piece that .metadata describes")
        return found.detach().resolve_neg()
