"""A peft adapter as a value, written beside the base and read back byte for byte."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftkit.checkpoint.tensors import LazyTensor
from graftkit.checkpoint.write import write_tensors

#: The folder of the adapter below the output, and the names that peft loads from it.
FOLDER, CONFIG, WEIGHTS = "adapter", "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True, slots=True)
class Adapter:
    """What peft loads: ``config`` is adapter_config.json, ``tensors`` are by their names in adapter_model.safetensors."""

    config: Mapping[str, Any]
    tensors: Mapping[str, LazyTensor]

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
    (directory / CONFIG).write_text(config, encoding="utf-8")
    write_tensors(adapter.tensors, directory / WEIGHTS, {"format": "pt"}, progress)


def adapter_digests(directory: Path) -> dict[str, str]:
    """SHA-256 of the adapter's two files, by name."""
    digests = {}
    for name in (CONFIG, WEIGHTS):
        with (directory / name).open("rb") as file:
            digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests
