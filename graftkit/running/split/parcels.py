"""Arguments and outputs of blocks as bytes, and back: equal values, strides and alignment, so that kernels give equal bits.

Each tensor goes once: both ends of a line keep what went last on a :class:`Shelf`, and what lies there goes by its digest alone.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from graftkit.running.paging.table import Table
from graftkit.running.split.interrupts import CannotSplit

#: Bytes of tensors that both ends keep between two calls.
ROOM = 256 << 20

#: Addresses are kept modulo this many bytes: no vector of a processor is longer, and torch aligns its own memory so.
ALIGNED = 64

#: What is noted of a graph, and what links tensors with it where they arrive.
Note = tuple[Any, ...]
Link = Callable[[list[Tensor], Any], Sequence[Tensor]]

#: Bytes of the length that begins a parcel.
PREFIX = 8


class Laid(NamedTuple):
    """How a tensor lies in memory: from ``lead`` bytes behind an aligned address on, ``nbytes`` from its first to its last element."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    lead: int
    nbytes: int
    digest: bytes


class Shelf:
    """What both ends of a line hold: the last tensors by digest, within ``room`` bytes. Only the owner of blocks keeps bytes."""

    def __init__(self, room: int = ROOM) -> None:
        self._room, self._nbytes = room, 0
        self._held: OrderedDict[bytes, tuple[int, Tensor | None]] = OrderedDict()

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._held

    def bytes_of(self, digest: bytes) -> Tensor:
        """What was put here under a digest. *Shape:* uint8 ``(nbytes,)``."""
        found = self._held[digest][1]
        if found is None:
            raise KeyError("this end keeps digests alone")
        return found

    def put(self, laid: Laid, raw: Tensor | None) -> None:
        """Keep a tensor, or its digest alone, as the last."""
        if laid.digest not in self._held:
            self._held[laid.digest] = laid.nbytes, raw
            self._nbytes += laid.nbytes
        self._held.move_to_end(laid.digest)

    def trim(self) -> None:
        """Drop what went longest ago beyond the room; both ends do so behind each answer."""
        while self._nbytes > self._room:
            _, (nbytes, _) = self._held.popitem(last=False)
            self._nbytes -= nbytes


class _Pickler(pickle.Pickler):
    """Pickles all but tensors, which it numbers: those that the other end gave by their number there."""

    def __init__(self, file: io.BytesIO, given: Sequence[Tensor]) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self._given = {id(tensor): number for number, tensor in enumerate(given)}
        self._numbers: dict[int, int] = {}
        self.tensors: list[Tensor] = []

    def persistent_id(self, value: Any) -> tuple[str, int] | None:
        if isinstance(value, torch.nn.Module):
            raise CannotSplit(f"a block is given a module, {type(value).__name__}")
        if not isinstance(value, Tensor):
            return None
        if id(value) in self._given:
            return "given", self._given[id(value)]
        if id(value) not in self._numbers:
            self._numbers[id(value)] = len(self.tensors)
            self.tensors.append(value)
        return "new", self._numbers[id(value)]


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, given: Sequence[Tensor], new: Sequence[Tensor]) -> None:
        super().__init__(file)
        self._tensors = {"given": given, "new": new}

    def persistent_load(self, number: tuple[str, int]) -> Tensor:
        return self._tensors[number[0]][number[1]]


def pack(
    value: Any, shelf: Shelf, given: Sequence[Tensor] = (), *, owner: bool = False, graph: Note | None = None
) -> tuple[bytes, list[Tensor]]:
    """``value`` as bytes, and the tensors in it but for those that the other end has ``given``.

    The ``owner`` of blocks keeps bytes on its shelf; rank 0 keeps digests alone, so that what comes back to it comes whole. Tensors
    that belong to a graph are sent without it where there is something to note of the ``graph``, which :func:`unpack` then hands over.

    Raises:
        CannotSplit: it holds what cannot be sent.
    """
    objects, pickler = _pickled(value, given)
    tensors = pickler.tensors if graph is None else [tensor.detach() for tensor in pickler.tensors]
    raws = [raw_of(tensor) for tensor in tensors]
    how = [_laid(tensor, raw) for tensor, raw in zip(pickler.tensors, raws, strict=True)]
    sent, bodies = [], []
    for laid, raw in zip(how, raws, strict=True):
        is_new = laid.digest not in shelf
        sent.append(is_new or owner)
        if sent[-1]:
            bodies.append(raw.numpy().tobytes())
        shelf.put(laid, raw.clone() if owner and is_new else None)
    linked = [place for place, tensor in enumerate(pickler.tensors) if tensor.requires_grad]
    header = pickle.dumps((objects, how, sent, None if graph is None else (linked, graph)))
    return b"".join((len(header).to_bytes(PREFIX, "little"), header, *bodies)), pickler.tensors


def unpack(
    data: bytes, shelf: Shelf, given: Sequence[Tensor] = (), *, owner: bool = False, link: Link | None = None
) -> tuple[Any, list[Tensor]]:
    """What :func:`pack` packed, with tensors of their own in fresh memory, and those tensors.

    ``link`` is given those that belong to a graph, and what was noted of it, and returns what stands for them.
    """
    start = PREFIX + int.from_bytes(data[:PREFIX], "little")
    objects, how, sent, graph = pickle.loads(data[PREFIX:start])  # noqa: S301 - ranks trust one another, as torch.distributed does
    tensors = []
    for laid, is_here in zip(how, sent, strict=True):
        if is_here:
            raw = torch.frombuffer(bytearray(data[start : start + laid.nbytes] or b"\0"), dtype=torch.uint8)[
                : laid.nbytes
            ]
            start += laid.nbytes
        else:
            raw = shelf.bytes_of(laid.digest)
        shelf.put(laid, raw if owner else None)
        tensors.append(_built(laid, raw))
    if graph is not None and link is not None:
        for place, tensor in zip(graph[0], link([tensors[place] for place in graph[0]], graph[1]), strict=True):
            tensors[place] = tensor
    return _Unpickler(io.BytesIO(objects), given, tensors).load(), tensors


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors in what is to be packed, each once; raises as :func:`pack` does."""
    return _pickled(value, ())[1].tensors


def _pickled(value: Any, given: Sequence[Tensor]) -> tuple[bytes, _Pickler]:
    file = io.BytesIO()
    pickler = _Pickler(file, given)
    try:
        pickler.dump(value)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise CannotSplit(f"a block is given or gives what cannot be sent: {error}") from error
    return file.getvalue(), pickler


def raw_of(tensor: Tensor) -> Tensor:
    """The bytes from a tensor's first to its last element. *Shape:* uint8 ``(nbytes,)``.

    Raises:
        CannotSplit: it is no plain tensor in this process' memory.
    """
    if (
        isinstance(tensor, Table)
        or tensor.layout != torch.strided
        or tensor.device.type != "cpu"
        or tensor.requires_grad
    ):
        raise CannotSplit(
            f"a block is given or gives a tensor that cannot be sent: {type(tensor).__name__}, {tensor.device}"
        )
    if tensor.is_conj() or tensor.is_neg():
        raise CannotSplit("a block is given or gives a tensor that stands for its conjugate or negative")
    if not tensor.numel():
        return torch.empty(0, dtype=torch.uint8)
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.detach().as_strided((last + 1,), (1,), tensor.storage_offset()).view(torch.uint8)


def _laid(tensor: Tensor, raw: Tensor) -> Laid:
    lead = tensor.data_ptr() % ALIGNED if raw.numel() else 0
    plain = (tensor.dtype, tuple(tensor.shape), tuple(tensor.stride()), lead, raw.numel())
    digest = hashlib.sha256(raw.numpy().data)
    digest.update(repr(plain).encode())
    return Laid(*plain, digest.digest())


def _built(laid: Laid, raw: Tensor) -> Tensor:
    room = torch.empty(laid.lead + laid.nbytes, dtype=torch.uint8)
    room[laid.lead :] = raw
    flat = room[laid.lead :].view(laid.dtype)
    return flat.as_strided(laid.shape, laid.strides, flat.storage_offset())
