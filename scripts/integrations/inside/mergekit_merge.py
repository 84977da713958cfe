"""mergekit: a base merged with a copy of itself is itself, with the rows and tokens that graftkit added."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

from compared import Rows, main


def run(material: Path, scratch: Path, rows: Rows) -> None:
    """Merge half of the base with half of its copy (mergekit takes no folder twice), and compare every tensor and the ids of texts."""
    from models import flat, ids, tokenizer
    from safetensors.torch import load_file

    base, recipe, out = material / "base", scratch / "merge.yaml", scratch / "merged"
    copy = shutil.copytree(base, scratch / "copy")
    halves = [{"model": str(folder), "parameters": {"weight": 0.5}} for folder in (base, copy)]
    fields = {
        "merge_method": "linear",
        "models": halves,
        "dtype": "bfloat16",
        "tokenizer_source": "base",
        "base_model": str(base),
    }
    recipe.write_text(json.dumps(fields), encoding="utf-8")
    done = subprocess.run(["mergekit-yaml", recipe, out], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    before = {name: tensor for file in base.glob("*.safetensors") for name, tensor in load_file(file).items()}
    after = {name: tensor for file in out.glob("*.safetensors") for name, tensor in load_file(file).items()}
    rows.true("names of the tensors", before.keys() == after.keys(), f"{len(after)}")
    tokens, padded = len(tokenizer(base)), before["lm_head.weight"].shape[0]
    cut = {name: tensor[:tokens] if tensor.shape[0] == padded else tensor for name, tensor in before.items()}
    same = sum(after[name].equal(tensor) for name, tensor in cut.items() if name in after)
    said = f"{same} of {len(cut)}; mergekit leaves {padded - tokens} padding rows behind"
    rows.true("tensors, bit by bit, less the padding rows", same == len(cut), said)
    rows.equal("token ids", flat(ids(out)), flat(ids(base)))


if __name__ == "__main__":
    main(("transformers", "mergekit"), run)
