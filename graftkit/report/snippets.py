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
