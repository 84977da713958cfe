"""Lines to paste into the common trainers' configs, for a checkpoint whose new rows stand in its base."""

from __future__ import annotations

import json


def trainer_snippets(output: str, architecture: str, modules: list[str], new_ids: list[int]) -> str:
    """Return what the trainers need to train from ``output``.

    ``modules`` are the last names of the modules with new rows, which peft's ``trainable_token_indices`` takes.
    """
    path = json.dumps(output)
    lines = [
        "# transformers Trainer, TRL",
        f"model = {architecture}.from_pretrained({path})",
        f"tokenizer = AutoTokenizer.from_pretrained({path})",
        "# axolotl",
        f"base_model: {path}",
        "# LLaMA-Factory",
        f"model_name_or_path: {path}",
        "# ms-swift",
        f"swift sft --model {path}",
    ]
    if new_ids and modules:
        rows = dict.fromkeys(sorted(set(modules)), new_ids)
        lines += ["# with peft's LoRA, so that the new rows learn", f"trainable_token_indices={json.dumps(rows)}"]
    return "\n".join(lines)


def adapter_snippets(base: str, adapter: str, architecture: str) -> str:
    """Return what the trainers need to go on training the prepared ``adapter`` on ``base``; none makes one of its own."""
    path, prepared = json.dumps(base), json.dumps(adapter)
    return "\n".join(
        [
            "# transformers Trainer, TRL (pass no peft_config)",
            f"model = {architecture}.from_pretrained({path})",
            f"model = PeftModel.from_pretrained(model, {prepared}, is_trainable=True)",
            "# axolotl",
            f"base_model: {path}",
            "adapter: lora",
            f"lora_model_dir: {prepared}",
            "# LLaMA-Factory",
            f"model_name_or_path: {path}",
            "finetuning_type: lora",
            f"adapter_name_or_path: {prepared}",
            "# ms-swift",
            f"swift sft --model {path} --adapters {prepared}",
            "# unsloth",
            f"model, tokenizer = FastLanguageModel.from_pretrained({prepared})",
        ]
    )
