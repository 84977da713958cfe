"""The weight files of a checkpoint: which of them transformers loads, and whether headers and index agree."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from graftkit.checkpoint.documents import decode_json
from graftkit.checkpoint.file_kinds import PICKLES, is_model_weights, is_training_state
from graftkit.checkpoint.files import is_plain_name, is_there, read_bounded, resolve_member
from graftkit.checkpoint.safetensors_header import Header, read_header
from graftkit.checkpoint.tensors import LazyTensor
from graftkit.errors import InputRejected, printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from graftkit.checkpoint.hub.file import HubFile
    from graftkit.checkpoint.tensors import SourceFile, Stored

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

MAX_INDEX_BYTES = 64 * 2**20

#: Headers that are asked of the hub at a time; each takes two requests, which wait for the most part.
READERS = 8

#: Where every weight file lies in the folder.
NONE_ON_HUB: Mapping[str, HubFile] = MappingProxyType({})


#: The kind of tensors: those of files are all stored.
Kind_co = TypeVar("Kind_co", bound=LazyTensor, covariant=True)


@dataclass(frozen=True, slots=True)
class Weights(Generic[Kind_co]):
    """The tensors in shard order, then file order; ``superseded`` names what transformers would not load, and why."""

    tensors: Mapping[str, Kind_co]
    shards: Mapping[str, tuple[str, ...]]
    metadata: Mapping[str, Mapping[str, str]]
    index: Mapping[str, Any] | None
    superseded: Mapping[str, str]


def read_weights(
    directory: Path, config: Mapping[str, Any], on_hub: Mapping[str, HubFile] = NONE_ON_HUB
) -> Weights[Stored]:
    """Return what the headers and the index of the checkpoint in ``directory`` say; no weight is read.

    As in transformers' ``from_pretrained``, ``model.safetensors`` wins over an index beside it, which is not read. Files
    ``on_hub`` count as if they lay in the folder.

    Raises:
        InputRejected: there are no safetensors weights, or a file is malformed, or they disagree; the file is named.
        StorageFault: the file system or the hub failed.
    """
    single = SINGLE in on_hub or is_there(directory / SINGLE)
    _check_explicit(SINGLE if single else INDEX, config)
    if single:
        header = _header(directory, SINGLE, on_hub)
        reason = f"transformers loads {SINGLE} and does not look at this"
        superseded = {INDEX: reason} if is_there(directory / INDEX) else {}
        return Weights(header.tensors, {SINGLE: tuple(header.tensors)}, {SINGLE: header.metadata}, None, superseded)
    if is_there(directory / INDEX):
        return _sharded(directory, on_hub)
    raise InputRejected(_no_weights(directory, config))


def _check_explicit(standard: str, config: Mapping[str, Any]) -> None:
    explicit = config.get("transformers_weights")
    if explicit is not None and explicit != standard:
        raise InputRejected(
            f"config.json: transformers_weights: names '{printable(explicit)}'; "
            f"rename the weights to {SINGLE} and remove this key"
        )


def _sharded(directory: Path, on_hub: Mapping[str, HubFile]) -> Weights[Stored]:
    index = _index(directory)
    weight_map = index["weight_map"]
    headers = _headers(directory, sorted(set(weight_map.values())), on_hub)
    tensors: dict[str, Stored] = {}
    homes: dict[str, str] = {}
    for shard, header in headers.items():
        for tensor, stored in header.tensors.items():
            if tensor in homes:
                raise InputRejected(f"{shard}: tensor '{printable(tensor)}': stands in {homes[tensor]} too")
            tensors[tensor], homes[tensor] = stored, shard
    fault = next(_disagreements(weight_map, homes), None)
    if fault is not None:
        raise InputRejected(fault)
    shards = {shard: tuple(header.tensors) for shard, header in headers.items()}
    return Weights(tensors, shards, {shard: header.metadata for shard, header in headers.items()}, index, {})


def _index(directory: Path) -> dict[str, Any]:
    index = decode_json(read_bounded(directory, INDEX, MAX_INDEX_BYTES), INDEX)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(index, dict) or not isinstance(weight_map, dict) or not weight_map:
        raise InputRejected(f"{INDEX}: has no weight_map object that maps tensor names to files")
    if not isinstance(index.get("metadata"), dict):
        raise InputRejected(f'{INDEX}: has no metadata object, which transformers needs; add "metadata": {{}}')
    for tensor, shard in weight_map.items():
        place = f"{INDEX}: weight_map: '{printable(tensor)}'"
        if not isinstance(shard, str) or not is_plain_name(shard):
            raise InputRejected(f"{place}: '{printable(shard)}' is not the plain name of a file beside the index")
        if not shard.endswith(".safetensors"):
            raise InputRejected(f"{place}: '{printable(shard)}' is not a safetensors file")
    return index


def _disagreements(weight_map: Mapping[str, str], homes: Mapping[str, str]) -> Iterator[str]:
    for tensor, shard in weight_map.items():
        found = homes.get(tensor)
        if found != shard:
            where = f"it is in {printable(found)}" if found else "it is in no shard"
            yield f"{INDEX}: weight_map: '{printable(tensor)}': is not in {printable(shard)}: {where}"
    for tensor, shard in homes.items():
        if tensor not in weight_map:
            yield f"{printable(shard)}: tensor '{printable(tensor)}': is not in the weight_map of {INDEX}"


def _headers(directory: Path, shards: Sequence[str], on_hub: Mapping[str, HubFile]) -> dict[str, Header]:
    """The header of each shard; those on the hub are asked for while others are waited for."""
    if on_hub.keys().isdisjoint(shards):
        return {shard: _header(directory, shard, on_hub) for shard in shards}
    with ThreadPoolExecutor(READERS, thread_name_prefix="headers") as pool:
        try:
            return dict(zip(shards, pool.map(lambda shard: _header(directory, shard, on_hub), shards), strict=True))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # one that fails is enough
            raise


def source_file(directory: Path, name: str, on_hub: Mapping[str, HubFile]) -> SourceFile:
    """Where the bytes of a checkpoint's file are.

    Raises:
        InputRejected: it is in neither place, or no regular file of the checkpoint.
        StorageFault: the file system failed.
    """
    return on_hub[name] if name in on_hub else resolve_member(directory, name)


def _header(directory: Path, name: str, on_hub: Mapping[str, HubFile]) -> Header:
    header = read_header(source_file(directory, name, on_hub), shown=name)
    if not header.tensors:
        raise InputRejected(f"{printable(name)}: holds no tensors")
    return header


def _no_weights(directory: Path, config: Mapping[str, Any]) -> str:
    found = (path.name for path in directory.iterdir() if path.name.lower().endswith(PICKLES))
    pickles = sorted(found, key=lambda name: (not is_model_weights(name), is_training_state(name), name))
    if not pickles and any((path / ".metadata").is_file() for path in (directory, *directory.iterdir())):
        return (
            "its weights lie in pieces, as torch.distributed.checkpoint writes them, and what describes them is a pickle; if you trust"
            " it, begin the recipe with - op: convert and pass --allow-pickle"
        )
    if not pickles:
        return f"has neither {SINGLE} nor {INDEX}; pickle weights are not read, and must be converted first"
    loader = f"transformers.{next(iter(config.get('architectures') or []), 'AutoModelForCausalLM')}"
    return (
        f"{printable(pickles[0])}: is a pickle, which can run code when read, and there are no safetensors files; "
        "if you trust it, begin the recipe with - op: convert and pass --allow-pickle, or convert it:"
        f" {loader}.from_pretrained('{printable(directory)}').save_pretrained(...)"
    )
