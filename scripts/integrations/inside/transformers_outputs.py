"""transformers: checkpoints load, and their logits, ids and greedy tokens are those of graftkit's environment."""

from __future__ import annotations

from pathlib import Path

from compared import Rows, main, references


def run(material: Path, _: Path, rows: Rows) -> None:
    """Compare the base, the classifier and the reward model."""
    from models import CAUSAL, CLASSIFIER, flat, generated, ids, load, logits

    expected = references(material)
    for name, auto in (("base", CAUSAL), ("classifier", CLASSIFIER), ("reward", CLASSIFIER)):
        texts = ids(material / name)
        rows.equal(f"token ids of the {name}", flat(texts), expected[f"{name}/ids"])
        model = load(material / name, auto)
        rows.near(f"logits of the {name}", logits(model, texts), expected[f"{name}/logits"], expected[f"{name}/exact"])
        if auto == CAUSAL:
            rows.equal("greedy tokens of the base", generated(model, texts), expected["base/tokens"])


if __name__ == "__main__":
    main(("transformers",), run)
