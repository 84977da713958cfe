"""The table of docs/lora.md: how each kind of add_lora starts, measured on the model that ships, in bfloat16 and float32.

python scripts/lora_kinds.py
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import graftkit

DEMO = Path(__file__).parent.parent / "recipes" / "models" / "demo-lm"
TEXTS = {"examples": str(DEMO.parent.parent / "examples" / "docstrings.jsonl")}
KINDS: dict[str, dict[str, Any]] = {
    "`true`": {"init_lora_weights": True},
    "`gaussian`": {"init_lora_weights": "gaussian"},
    "`mica`": {"init_lora_weights": "mica"},
    "`true` with `use_dora`": {"use_dora": True},
    "`orthogonal`": {"init_lora_weights": "orthogonal"},
    "`pissa`": {"init_lora_weights": "pissa"},
    "`pissa_niter_4`": {"init_lora_weights": "pissa_niter_4"},
    "`olora`": {"init_lora_weights": "olora"},
    "`eva`": {"init_lora_weights": "eva", **TEXTS},
    "`corda`": {"init_lora_weights": "corda", **TEXTS},
    "`lora_ga`": {"init_lora_weights": "lora_ga", **TEXTS},
    "`pissa` with `exact`": {"init_lora_weights": "pissa", "exact": True},
    "`olora` with `exact`": {"init_lora_weights": "olora", "exact": True},
    "`orthogonal` with `exact`": {"init_lora_weights": "orthogonal", "exact": True},
    "`corda` with `exact`": {"init_lora_weights": "corda", "exact": True, **TEXTS},
    "`lora_ga` with `exact`": {"init_lora_weights": "lora_ga", "exact": True, **TEXTS},
}


def in_float32(folder: Path) -> Path:
    """The same model, every weight widened to float32."""
    from transformers import AutoModelForCausalLM

    shutil.copytree(DEMO, folder)
    AutoModelForCausalLM.from_pretrained(DEMO, dtype="float32").save_pretrained(folder)
    return folder


def figure(base: Path, operation: dict[str, Any], output: Path) -> tuple[str, str]:
    """The promise, and what base and adapter give beside the source's own outputs."""
    recipe = {"version": 1, "base_model": str(base), "operations": [{"op": "add_lora", "r": 8, **operation}]}
    report = graftkit.apply({**recipe, "output": str(output)})
    gap = next(check for check in report.checks if check.name == "adapter").gap
    return report.plan.promise.strength.word, "bitwise" if gap.bitwise else f"{gap.relative:.1e}"


def main() -> None:
    """Make every kind twice, and print a line for each."""
    print("| kind | promise | bfloat16 | float32 |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as room:
        wide = in_float32(Path(room) / "float32")
        for place, (name, operation) in enumerate(KINDS.items()):
            word, narrow = figure(DEMO, operation, Path(room) / f"narrow-{place}")
            print(
                f"| {name} | `{word}` | {narrow} | {figure(wide, operation, Path(room) / f'wide-{place}')[1]} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
