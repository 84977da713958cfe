"""Writing a checkpoint: clean shards are taken over whole, dirty shards are written as byte ranges and produced rows."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.documents import encode_document
from graftkit.checkpoint.safetensors_header import encode_header
from graftkit.checkpoint.signals import held_signals
from graftkit.checkpoint.tensors import LazyTensor
from graftkit.checkpoint.transfer import take_file, write_segments
from graftkit.checkpoint.value_head import FILE

Item = TypeVar("Item")
Progress = Callable[[int], None]

#: Shards are independent jobs, and so are the parts of a single file. Two at a time, so that one is copied while rows of
#: another are computed.
WRITERS = 2

INDEX = "model.safetensors.index.json"

#: What transformers and LLaMA-Factory write as ``__metadata__``.
METADATA = {"format": "pt"}


def is_clean(source: Checkpoint, result: Checkpoint, file: str) -> bool:
    """Whether a weight file of ``result`` holds just the source's tensors, so that it can be taken over whole."""
    names, old, new = result.files[file], source.all_tensors, result.all_tensors
    return source.files.get(file) == names and all(old[name] is new[name] for name in names)


def file_sizes(result: Checkpoint) -> dict[str, int]:
    """Bytes of the tensors in each weight file of ``result``."""
    tensors = result.all_tensors
    return {file: sum(tensors[name].nbytes for name in names) for file, names in result.files.items()}


def bytes_to_write(source: Checkpoint, result: Checkpoint) -> tuple[int, int]:
    """``(bytes of clean weight files, bytes of dirty ones)``."""
    sizes = file_sizes(result)
    clean = sum(size for file, size in sizes.items() if is_clean(source, result, file))
    return clean, sum(sizes.values()) - clean


def write_checkpoint(
    source: Checkpoint,
    result: Checkpoint,
    target: Path,
    *,
    link: bool = False,
    files: Collection[str] | None = None,
    documents: bool = True,
    progress: Progress | None = None,
    written: Callable[[Path], None] | None = None,
) -> None:
    """Write ``result`` into the empty directory ``target``; ``written`` is called with each finished weight file.

    Ranks write one result together: of its weight files each writes its ``files``, and one of them everything else, the ``documents``.

    Raises:
        OSError: writing failed; the caller discards the directory.
    """  # fmt: skip

    def job(file: str) -> None:
        if is_clean(source, result, file):
            take_file(source.path_of(file), target / file, link=link, progress=progress)
        else:
            _write_file(result, file, target / file, progress)
        if written is not None:
            written(target / file)

    with _in_threads(job, [file for file in result.files if files is None or file in files], WRITERS) as jobs:
        if documents:
            _write_documents(source, result, target)  # meanwhile
        for _ in jobs:
            pass  # the first error is raised here


@contextlib.contextmanager
def _in_threads(job: Callable[[Item], None], items: Iterable[Item], workers: int) -> Iterator[Iterator[None]]:
    """Do a job for each of the items; what is given is through when all are done, and raises the first error.

    All threads have ended when the block is left: whoever removes what they write must not do so beside one of them. So a signal
    that comes while one starts, which a pool would not know of then, acts when all have, and one that comes behind an error when all
    have ended. What has not begun by then never will.
    """
    pool = ThreadPoolExecutor(workers)
    try:
        with held_signals():
            jobs = pool.map(job, items)
        yield jobs
    finally:
        with held_signals():
            pool.shutdown(cancel_futures=True)


def _write_documents(source: Checkpoint, result: Checkpoint, target: Path) -> None:
    """Write everything but the weights."""
    if result.index is not None:
        (target / INDEX).write_bytes(encode_document(_index(result)))
    for name, value in result.documents.items():
        if name == "README.md":
            continue  # the model card is written by the report, with the source's README as its body
        _make_parent(target / name)
        if name in source.documents and source.documents[name] is value:
            take_file(source.path_of(name), target / name)
        elif result.folder_of(name) is not None:
            take_file(result.path_of(name), target / name)
        else:
            (target / name).write_bytes(encode_document(value))
    for name in result.carried:
        _make_parent(target / name)
        take_file(result.path_of(name), target / name)


def _make_parent(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)


def _write_file(result: Checkpoint, file: str, path: Path, progress: Progress | None) -> None:
    found = result.all_tensors
    tensors = {name: found[name] for name in result.files[file]}
    writers = WRITERS if len(result.shards) == 1 else 1
    metadata = METADATA if file == FILE else result.shard_metadata.get(file, {})
    write_tensors(tensors, path, metadata, progress, writers=writers)


def write_tensors(
    tensors: Mapping[str, LazyTensor],
    path: Path,
    metadata: Mapping[str, str],
    progress: Progress | None = None,
    *,
    writers: int = WRITERS,
) -> None:
    """Write the new safetensors file ``path``: byte ranges are copied, other bytes are made as they are needed.

    Each of ``writers`` threads writes a part of the file of its own.

    Raises:
        OSError: writing failed; the caller discards the file.
    """
    header = encode_header([(name, t.dtype, t.shape, t.nbytes) for name, t in tensors.items()], metadata)
    with path.open("xb") as file:
        file.write(header)
        file.truncate(len(header) + sum(tensor.nbytes for tensor in tensors.values()))

    def job(part: tuple[int, list[LazyTensor]]) -> None:
        offset, members = part
        with path.open("r+b", buffering=0) as file:
            file.seek(len(header) + offset)
            write_segments(file.fileno(), (segment for tensor in members for segment in tensor.segments()), progress)

    with _in_threads(job, split_evenly(list(tensors.values()), writers), writers) as jobs:
        for _ in jobs:
            pass  # an error is raised here


def split_evenly(tensors: list[LazyTensor], count: int) -> list[tuple[int, list[LazyTensor]]]:
    """Split tensors into at most ``count`` runs of about equal bytes, each with the offset of its first byte."""
    share = sum(tensor.nbytes for tensor in tensors) / count
    parts: list[tuple[int, list[LazyTensor]]] = []
    offset = 0
    for tensor in tensors:
        if len(parts) < count and offset >= share * len(parts):
            parts.append((offset, []))
        parts[-1][1].append(tensor)
        offset += tensor.nbytes
    return parts


def _index(result: Checkpoint) -> Mapping[str, Any]:
    """The source's index with the new sizes and names; every other key is kept."""
    import math

    index = dict(result.index or {})
    metadata = dict(index.get("metadata") or {})
    if "total_size" in metadata:
        metadata["total_size"] = sum(tensor.nbytes for tensor in result.tensors.values())
    if "total_parameters" in metadata:
        metadata["total_parameters"] = sum(math.prod(tensor.shape) for tensor in result.tensors.values())
    if metadata:
        index["metadata"] = metadata
    index["weight_map"] = {name: shard for shard, names in result.shards.items() for name in names}
    return index
