"""LLaMA-Factory: the first loss on the base, on an adapter and on a value head is the one it has to be."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from compared import Rows, main, references
from trained_once import DECIMALS, first_loss, run_command

STEP = {
    "do_train": True, "max_steps": 1, "per_device_train_batch_size": 1, "logging_steps": 1, "save_steps": 1, "report_to": "none",
    "overwrite_output_dir": True, "template": "empty", "cutoff_len": 512, "preprocessing_num_workers": 1, "learning_rate": 0.0001,
    "flash_attn": "disabled", "packing": False,
}  # fmt: skip


def run(material: Path, scratch: Path, rows: Rows) -> None:
    """Train one step of each stage through the command line."""
    from models import TEXTS, load, loss, tokenizer

    (scratch / "texts.json").write_text(json.dumps([{"text": TEXTS[0]}]), encoding="utf-8")
    pair = {"instruction": TEXTS[0], "input": "", "chosen": TEXTS[1], "rejected": "no"}
    (scratch / "pairs.json").write_text(json.dumps([pair]), encoding="utf-8")
    columns = {"prompt": "instruction", "query": "input", "chosen": "chosen", "rejected": "rejected"}
    known = {
        "texts": {"file_name": "texts.json", "columns": {"prompt": "text"}},
        "pairs": {"file_name": "pairs.json", "ranking": True, "columns": columns},
    }
    (scratch / "dataset_info.json").write_text(json.dumps(known), encoding="utf-8")
    base = material / "base"
    words = tokenizer(base)
    ids = words(TEXTS[0] + words.eos_token)["input_ids"]
    # The Trainer of its transformers divides by the number of labels, of which the first is no target.
    expected = loss(load(base), ids) * (len(ids) - 1) / len(ids)
    noise = abs(references(material)["base/losses"] - references(material)["base/losses_exact"]).max()
    wide = scratch / "float32"  # beside an adapter it would leave the base in bfloat16
    load(base).save_pretrained(wide)
    words.save_pretrained(wide)
    fields = {"model_name_or_path": str(base), "stage": "pt", "dataset": "texts", "finetuning_type": "full"}
    lora = {
        "finetuning_type": "lora",
        "adapter_name_or_path": str(material / "lora" / "adapter"),
        "model_name_or_path": str(wide),
    }
    for number, (what, more) in enumerate((("the base", {}), ("a LoRA whose B is zero", lora))):
        noted = _trained({**fields, **more}, scratch, f"run{number}")
        held = abs(noted - expected) <= 10**-DECIMALS / 2 + 2 * noise
        rows.true(f"first loss of {what}", held, f"{noted} noted, {expected:.6f} computed")
    value = {
        "model_name_or_path": str(material / "value"),
        "stage": "rm",
        "dataset": "pairs",
        "finetuning_type": "full",
    }
    noted = _trained(value, scratch, "value")
    rows.true(
        "first loss of a value head that is zero", abs(noted - math.log(2)) <= 10**-DECIMALS / 2, f"{noted} noted, ln 2"
    )


def _trained(fields: dict[str, Any], scratch: Path, name: str) -> float:
    config = scratch / f"{name}.yaml"
    config.write_text(
        json.dumps({**STEP, **fields, "dataset_dir": str(scratch), "output_dir": str(scratch / name)}), encoding="utf-8"
    )
    run_command(["llamafactory-cli", "train", config], scratch)
    return first_loss(scratch / name)


if __name__ == "__main__":
    main(("transformers", "peft", "trl", "llamafactory"), run)
