"""mergekit: a base merged with itself is itself, with the rows and tokens that graftkit added."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from compared import Rows, main


def run(material: Path, scratch: Path, rows: Rows) -> None:
    """Merge half of the base with half of the base, and compare every tensor and the ids of texts."""
    from models import flat, ids
    from safetensors.torch import load_file

    base, recipe, out = material / "base", scratch / "merge.yaml", scratch / "merged"
    half = {"model": str(base), "parameters": {"weight": 0.5}}
    fields = {
        "merge_method": "linear",
        "models": [half, half],
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
    same = sum(after[name].equal(tensor) for name, tensor in before.items() if name in after)
    rows.true("tensors, bit by bit", same == len(before), f"{same} of {len(before)}")
    rows.equal("token ids", flat(ids(out)), flat(ids(base)))


if __name__ == "__main__":
    main(("transformers", "mergekit"), run)
