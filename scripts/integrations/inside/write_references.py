"""Write what graftkit's own environment computes of the material, in float32 and float64: references.npz."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from models import CLASSIFIER, TEXTS, flat, generated, ids, load, logits, loss, sentence_embeddings

#: Checkpoints whose logits are compared, and the class that loads them.
COMPARED = {"base": "AutoModelForCausalLM", "classifier": CLASSIFIER, "reward": CLASSIFIER}

#: Adapters -> the checkpoint that each stands on.
ADAPTERS = {"lora": "base", "rows": "rows", "pissa": "pissa"}


def of_checkpoint(folder: Path, auto: str) -> dict[str, np.ndarray]:
    """Ids, logits, and of a causal model what it generates and its loss."""
    texts = ids(folder)
    model = load(folder, auto)
    found = {
        "ids": flat(texts),
        "logits": logits(model, texts),
        "exact": logits(load(folder, auto, torch.float64), texts),
    }
    if auto != CLASSIFIER:
        found["tokens"] = generated(model, texts)
        found["losses"] = np.array([loss(model, text) for text in texts])
        found["losses_exact"] = np.array([loss(load(folder, auto, torch.float64), text) for text in texts])
    return found


def of_adapter(base: Path, adapter: Path) -> dict[str, np.ndarray]:
    """Logits with the adapter, and how many values it trains."""
    from peft import PeftModel

    texts = ids(base)
    found = {}
    for key, dtype in (("logits", torch.float32), ("exact", torch.float64)):
        model = PeftModel.from_pretrained(load(base, dtype=dtype), str(adapter), is_trainable=True).to(dtype).eval()
        found[key] = logits(model, texts)
        found["trained"] = np.array(sum(each.numel() for each in model.parameters() if each.requires_grad))
        found["tokens"] = generated(model, texts) if dtype == torch.float32 else found["tokens"]
    return found


def main() -> None:
    """Write references.npz into argv's folder."""
    material = Path(sys.argv[1])
    found = {}
    for name, auto in COMPARED.items():
        found |= {f"{name}/{key}": value for key, value in of_checkpoint(material / name, auto).items()}
    for name, base in ADAPTERS.items():
        of = of_adapter(
            material / base if (material / base / "config.json").exists() else material / "base",
            material / name / "adapter",
        )
        found |= {f"{name}/{key}": value for key, value in of.items()}
    if (material / "sentences").is_dir():
        for key, dtype in (("embeddings", torch.float32), ("exact", torch.float64)):
            found[f"sentences/{key}"] = sentence_embeddings(material / "sentences", TEXTS, dtype)
    np.savez(material / "references.npz", **found)


if __name__ == "__main__":
    main()
