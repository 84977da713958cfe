"""A peft adapter as a value, written beside the base and read back byte for byte."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftkit.checkpoint.documents import decode_json, encode_json
from graftkit.checkpoint.files import is_there, read_bounded, resolve_member
from graftkit.checkpoint.safetensors_header import read_header
from graftkit.checkpoint.tensors import FLOATING, LazyTensor
from graftkit.checkpoint.write import write_tensors
from graftkit.errors import InputRejected, NotThere, few, plural, printable
from graftkit.recipe_file.paths import expand_path

#: The folder of the adapter below the output, and the names that peft loads from it.
FOLDER, CONFIG, WEIGHTS = "adapter", "adapter_config.json", "adapter_model.safetensors"
#: What peft would load instead of WEIGHTS: a pickle.
PICKLE = "adapter_model.bin"

_MAX_CONFIG_BYTES = 16 << 20

#: The shape that DeepSpeed's ZeRO-3 leaves of a parameter whose values are spread over the ranks.
_PARTITIONED = (0,)


@dataclass(frozen=True, slots=True)
class Adapter:
    """What peft loads: ``config`` is adapter_config.json, ``tensors`` are by their names in adapter_model.safetensors.

    ``frozen`` names the tensors that training leaves as they are, such as VeRA's projections.
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, LazyTensor]
    frozen: frozenset[str] = frozenset()

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def write_adapter(adapter: Adapter, directory: Path, progress: Callable[[int], None] | None = None) -> None:
    """Write config and weights into the new folder ``directory``.

    Raises:
        OSError: writing failed; the caller discards the folder.
    """
    directory.mkdir()
    config = json.dumps(dict(adapter.config), indent=2, sort_keys=True, ensure_ascii=False)
    (directory / CONFIG).write_bytes(encode_json(config))
    write_tensors(adapter.tensors, directory / WEIGHTS, {"format": "pt"}, progress)


def open_adapter(path: str | os.PathLike[str]) -> Adapter:
    """Open the folder of a peft adapter: its config and the header of its weights are read, no weight.

    Raises:
        InputRejected: there is no such folder, a file is missing or malformed, the weights are a pickle or those of a partitioned
            model, or a tensor of a LoRA is not floating point; the file is named.
        StorageFault: the file system failed.
    """
    path = os.fspath(path)
    try:
        directory = Path(expand_path(path))
    except ValueError as error:
        raise InputRejected(f"{printable(path)}: {printable(error)}") from error
    if not directory.is_dir():
        raise NotThere(f"{printable(path)}: is not the folder of an adapter, which holds {CONFIG} and {WEIGHTS}")
    try:
        return _open(directory)
    except InputRejected as error:
        raise InputRejected(f"{printable(path)}: {error}") from error


def read_adapter_config(directory: Path) -> dict[str, Any]:
    """The config of the adapter in a folder.

    Raises:
        InputRejected: it is missing, malformed or too large.
    """
    config = decode_json(read_bounded(directory, CONFIG, _MAX_CONFIG_BYTES), CONFIG)
    if not isinstance(config, dict) or not isinstance(config.get("peft_type"), str):
        raise InputRejected(f"{CONFIG}: is not an object that names its peft_type")
    return config


def _open(directory: Path) -> Adapter:
    config = read_adapter_config(directory)
    if not is_there(directory / WEIGHTS) and is_there(directory / PICKLE):
        raise InputRejected(
            f"{PICKLE}: is a pickle, which can run code when read; load the adapter with peft if you trust it, and"
            f" save it again: save_pretrained writes {WEIGHTS}"
        )
    header = read_header(resolve_member(directory, WEIGHTS), shown=WEIGHTS)
    if not header.tensors:
        raise InputRejected(f"{WEIGHTS}: holds no tensors")
    if left := [name for name, tensor in header.tensors.items() if tensor.shape == _PARTITIONED]:
        raise InputRejected(
            f"{WEIGHTS}: {plural(len(left), 'tensor')} of shape [0]: {few(left)}; saved from a partitioned model (DeepSpeed"
            " ZeRO-3), so that their values are not in the file: gather the weights before saving"
            " (stage3_gather_16bit_weights_on_model_save: true)"
        )
    for name, tensor in header.tensors.items():
        if tensor.dtype not in FLOATING and config["peft_type"] == "LORA":  # other kinds also store places
            raise InputRejected(f"{WEIGHTS}: tensor {printable(name)!r} is {tensor.dtype}, not floating point")
    return Adapter(config, header.tensors)


#: Where an adapter is: in a folder, or in memory.
AdapterPlace = Path | Adapter


def adapter_at(place: AdapterPlace) -> Adapter:
    """The adapter as a value.

    Raises:
        InputRejected: a folder cannot be opened as one.
    """
    return open_adapter(str(place)) if isinstance(place, Path) else place


def config_at(place: AdapterPlace) -> dict[str, Any]:
    """The config of an adapter, whose weights may be missing.

    Raises:
        InputRejected: it is missing, malformed or too large.
    """
    return read_adapter_config(place) if isinstance(place, Path) else dict(place.config)


def tensors_at(place: AdapterPlace) -> Mapping[str, LazyTensor]:
    """The tensors of an adapter, none where peft has saved none."""
    return read_header(place / WEIGHTS).tensors if isinstance(place, Path) else place.tensors


def adapter_digests(directory: Path) -> dict[str, str]:
    """SHA-256 of the adapter's two files, by name."""
    digests = {}
    for name in (CONFIG, WEIGHTS):
        with (directory / name).open("rb") as file:
            digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests
