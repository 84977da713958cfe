"""A tiny checkpoint on disk, whole or sharded, into which the tests plant one fault each."""

import hashlib
import json
import struct
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 4, "vocab_size": 6}
SHARDS = {
    "model-00001-of-00002.safetensors": ("model.embed_tokens.weight", "model.norm.weight"),
    "model-00002-of-00002.safetensors": ("lm_head.weight",),
}
SHAPES = {"model.embed_tokens.weight": (6, 4), "model.norm.weight": (4,), "lm_head.weight": (6, 4)}


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2))


def tensors(*names: str) -> dict[str, np.ndarray]:
    return {name: np.arange(np.prod(SHAPES[name]), dtype=np.float32).reshape(SHAPES[name]) for name in names}


def make_single(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", CONFIG)
    write_json(folder / "tokenizer_config.json", {"eos_token": "</s>"})
    save_file(tensors(*SHAPES), folder / "model.safetensors", {"format": "pt"})
    return folder


def make_sharded(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", CONFIG)
    for shard, names in SHARDS.items():
        save_file(tensors(*names), folder / shard, {"format": "pt"})
    write_index(folder, {name: shard for shard, names in SHARDS.items() for name in names})
    return folder


def write_index(folder: Path, weight_map: object) -> None:
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": 208}, "weight_map": weight_map})


def raw_file(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    """Return a file made by hand, from a JSON value or from the header's bytes as they are."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype: object = "F32", shape: object = (1,), offsets: object = (0, 4)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def digest(folder: Path) -> dict[str, str]:
    """Return what every regular file of ``folder`` holds, to see that nothing was touched."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
