"""axolotl: the first loss on the base and on an adapter is the base's."""

from __future__ import annotations

import json
from pathlib import Path

from compared import Rows, main, references
from trained_once import DECIMALS, first_loss, run_command

STEP = {
    "max_steps": 1, "num_epochs": 1, "micro_batch_size": 1, "gradient_accumulation_steps": 1, "logging_steps": 1, "save_steps": 1,
    "sequence_len": 512, "learning_rate": 1e-5, "optimizer": "adamw_torch", "lr_scheduler": "constant", "bf16": False,
    "fp16": False, "tf32": False, "float32": True, "attn_implementation": "eager", "val_set_size": 0, "sample_packing": False,
    "use_tensorboard": False, "dataset_num_proc": 1, "gradient_checkpointing": False,
}  # fmt: skip


def run(material: Path, scratch: Path, rows: Rows) -> None:
    """Train one step each through the command line."""
    from models import TEXTS, load, loss, tokenizer

    texts = scratch / "texts.jsonl"
    texts.write_text(json.dumps({"text": TEXTS[0]}) + "\n", encoding="utf-8")
    base = material / "base"
    words = tokenizer(base)
    expected = loss(load(base), words(TEXTS[0])["input_ids"] + [words.eos_token_id])
    noise = abs(references(material)["base/losses"] - references(material)["base/losses_exact"]).max()
    dataset = {"path": str(texts), "ds_type": "json", "type": "completion"}
    fields = {
        **STEP,
        "base_model": str(base),
        "datasets": [dataset],
        "dataset_prepared_path": str(scratch / "prepared"),
    }
    lora = {
        "adapter": "lora", "lora_model_dir": str(material / "lora" / "adapter"), "lora_r": 8, "lora_alpha": 16, "lora_target_linear": True,
        "lora_mlp_kernel": False, "lora_qkv_kernel": False, "lora_o_kernel": False,  # they are for CUDA, and on by themselves
    }  # fmt: skip
    for what, more in (("the base", {}), ("a LoRA whose B is zero", lora)):
        out = scratch / f"out{len(more)}"
        config = scratch / f"{out.name}.yaml"
        config.write_text(json.dumps({**fields, **more, "output_dir": str(out)}), encoding="utf-8")
        run_command(["axolotl", "train", config, "--launcher", "python"], scratch)
        noted = first_loss(out)
        held = abs(noted - expected) <= 10**-DECIMALS / 2 + 2 * noise
        rows.true(f"first loss of {what}", held, f"{noted} noted, {expected:.6f} computed")


if __name__ == "__main__":
    main(("transformers", "peft", "trl", "axolotl"), run)
