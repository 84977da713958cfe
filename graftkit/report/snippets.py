"""Lines to paste into the common trainers' configs, for a checkpoint whose new rows stand in its base."""

from __future__ import annotations

import json


def trainer_snippets(output: str, new_tokens: list[str]) -> str:
    """Return what transformers/TRL, axolotl, LLaMA-Factory and ms-swift need to train from ``output``."""
    path = json.dumps(output)
    lines = [
        "# transformers Trainer, TRL",
        f"model = AutoModelForCausalLM.from_pretrained({path})  # tokenizer: AutoTokenizer.from_pretrained({path})",
        "# axolotl",
        f"base_model: {path}",
        "# LLaMA-Factory",
        f"model_name_or_path: {path}",
        "# ms-swift",
        f"swift sft --model {path}",
    ]
    if new_tokens:
        shown = json.dumps(new_tokens, ensure_ascii=False)
        lines += [
            "# LoRA (peft): let the new rows learn, both tables where the head is untied",
            f'trainable_token_indices={{"embed_tokens": tokenizer.convert_tokens_to_ids({shown})}}',
        ]
    return "\n".join(lines)
