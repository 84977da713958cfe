"""The weights of a checkpoint that has only pickles: pytorch_model.bin, or several with their index."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graftkit.checkpoint.archive import mapped_tensors
from graftkit.checkpoint.documents import decode_json
from graftkit.checkpoint.files import is_plain_name, is_there, read_bounded, resolve_member
from graftkit.checkpoint.tensors import LazyTensor
from graftkit.checkpoint.weights import INDEX, MAX_INDEX_BYTES, SINGLE, Weights
from graftkit.errors import InputRejected, printable

PICKLED, PICKLED_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"


def has_only_pickles(directory: Path) -> bool:
    """Whether a folder has the pickles that transformers loads, and no weights that it would rather load."""
    plain, pickled = (
        (directory / one, directory / other) for one, other in ((SINGLE, INDEX), (PICKLED, PICKLED_INDEX))
    )
    return any(map(is_there, pickled)) and not any(map(is_there, plain))


def read_pickled_weights(directory: Path, config: Mapping[str, Any]) -> Weights[LazyTensor]:
    """What :func:`~graftkit.checkpoint.weights.read_weights` gives, of pickles; their values are mapped and not read.

    Raises:
        InputRejected: there are none, one is malformed or asks to run code, or index and files disagree.
        StorageFault: the file system failed.
    """
    del config
    if is_there(directory / PICKLED):
        tensors = _tensors(directory, PICKLED)
        superseded = {PICKLED_INDEX: f"transformers loads {PICKLED} and does not look at this"}
        superseded = superseded if is_there(directory / PICKLED_INDEX) else {}
        return Weights(tensors, {PICKLED: tuple(tensors)}, {PICKLED: {}}, None, superseded)
    weight_map = _weight_map(directory)
    shards = {shard: _tensors(directory, shard) for shard in sorted(set(weight_map.values()))}
    homes = {name: shard for shard, tensors in shards.items() for name in tensors}
    if homes != weight_map or len(homes) != sum(map(len, shards.values())):
        names = sorted({**homes, **weight_map})
        wrong = next((name for name in names if homes.get(name) != weight_map.get(name)), names[0])
        raise InputRejected(
            f"{PICKLED_INDEX}: weight_map: '{printable(wrong)}': is not in the file that this names, alone"
        )
    return Weights(
        {name: tensor for tensors in shards.values() for name, tensor in tensors.items()},
        {shard: tuple(tensors) for shard, tensors in shards.items()},
        {shard: {} for shard in shards},
        None,
        {PICKLED_INDEX: "the index of the source's pickles; the output has its own"},
    )


def _tensors(directory: Path, name: str) -> dict[str, LazyTensor]:
    return mapped_tensors(resolve_member(directory, name), printable(name))


def _weight_map(directory: Path) -> dict[str, str]:
    index = decode_json(read_bounded(directory, PICKLED_INDEX, MAX_INDEX_BYTES), PICKLED_INDEX)
    found = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(found, dict) or not found:
        raise InputRejected(f"{PICKLED_INDEX}: has no weight_map object that maps tensor names to files")
    for name, shard in found.items():
        if not isinstance(shard, str) or not is_plain_name(shard) or not shard.endswith(".bin"):
            raise InputRejected(
                f"{PICKLED_INDEX}: weight_map: '{printable(name)}': '{printable(shard)}' is not the plain name of a .bin file beside it"
            )
    return found
