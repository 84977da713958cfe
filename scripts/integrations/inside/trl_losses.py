"""TRL: the first loss of a training step on the base, on an adapter, and on rewards, is the one it has to be."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from compared import Rows, main, references

STEP = {
    "max_steps": 1, "per_device_train_batch_size": 1, "report_to": [], "use_cpu": True, "save_strategy": "no", "bf16": False,
    "gradient_checkpointing": False, "logging_strategy": "no", "disable_tqdm": True, "learning_rate": 1e-3,
}  # fmt: skip


def recorded(trainer: type) -> type:
    """A trainer that keeps every loss as it is computed: what is logged is rounded."""

    class Recorded(trainer):
        losses: list[float]
        divisor: Any = None

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            self.divisor = kwargs.get("num_items_in_batch")
            found = super().compute_loss(*args, **kwargs)
            self.losses = [*getattr(self, "losses", []), float(found[0] if isinstance(found, tuple) else found)]
            return found

    return Recorded


def run(material: Path, scratch: Path, rows: Rows) -> None:
    """Train one step each."""
    import torch
    from datasets import Dataset
    from models import CLASSIFIER, ids, load, tokenizer
    from peft import PeftModel
    from trl import RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

    expected = references(material)
    base, words = material / "base", tokenizer(material / "base")
    text = ids(base)[0]
    for what, adapter in (("the base", None), ("a LoRA whose B is zero", "lora")):
        model = load(base)
        if adapter is not None:
            model = PeftModel.from_pretrained(model, str(material / adapter / "adapter"), is_trainable=True)
        before = {name: each.detach().clone() for name, each in model.named_parameters() if each.requires_grad}
        trainer = recorded(SFTTrainer)(
            model=model, args=SFTConfig(str(scratch / "sft"), **STEP), processing_class=words,
            train_dataset=Dataset.from_list([{"input_ids": text}]),
        )  # fmt: skip
        trainer.train()
        # A Trainer of transformers 4 divides by the number of labels, of which the first is no target.
        share = 1.0 if trainer.divisor is None else (len(text) - 1) / float(trainer.divisor)
        rows.near(
            f"first SFT loss of {what}",
            np.float64(trainer.losses[0]),
            expected["base/losses"][0] * share,
            expected["base/losses_exact"][0] * share,
        )
        moved = sum(not torch.equal(each, before[name]) for name, each in model.named_parameters() if name in before)
        rows.true(f"tensors of {what} that one step moves", moved > 0, f"{moved} of {len(before)}")
    chosen, rejected = ids(base)[:2]
    pair = {
        "chosen_ids": chosen, "rejected_ids": rejected, "chosen_input_ids": chosen, "rejected_input_ids": rejected,
    }  # fmt: skip
    for name in ("zero_reward", "reward"):
        trainer = recorded(RewardTrainer)(
            model=load(material / name, CLASSIFIER), args=RewardConfig(str(scratch / name), **STEP),
            processing_class=tokenizer(material / name), train_dataset=Dataset.from_list([pair]),
        )  # fmt: skip
        trainer.train()
        if name == "zero_reward":
            rows.near(
                "first loss of rewards that are zero",
                np.float32(trainer.losses[0]),
                np.float32(math.log(2)),
                math.log(2),
            )
        else:
            pairs = {key: _pair_loss(expected[f"reward/{key}"]) for key in ("logits", "exact")}
            rows.near(
                "first loss of a small reward head",
                np.float32(trainer.losses[0]),
                np.float32(pairs["logits"]),
                pairs["exact"],
            )


def _pair_loss(rewards: np.ndarray) -> float:
    """The loss of a reward model that prefers the first of two texts."""
    return math.log1p(math.exp(-(float(rewards[0]) - float(rewards[1]))))


if __name__ == "__main__":
    main(("transformers", "peft", "trl"), run)
