"""peft: adapters load, change the base as in graftkit's environment, and train as many values."""

from __future__ import annotations

from pathlib import Path

from compared import Rows, main, references

#: Adapter -> what the table calls it; the base of each lies beside it where the recipe changes one.
ADAPTERS = {"lora": "a LoRA whose B is zero", "pissa": "PiSSA", "rows": "a LoRA with new rows"}


def run(material: Path, _: Path, rows: Rows) -> None:
    """Compare every adapter that this version of peft is said to take."""
    from models import ids, load, logits
    from peft import PeftModel

    expected = references(material)
    for name, called in ADAPTERS.items():
        base = material / (name if (material / name / "config.json").exists() else "base")
        if name == "rows" and not _takes_rows_of_the_head():
            rows.add(f"logits with {called}", "not run", "its own line asks for peft 0.18: the head's rows are trained")
            continue
        model = PeftModel.from_pretrained(load(base), str(material / name / "adapter"), is_trainable=True).eval()
        found = logits(model, ids(base))
        rows.near(f"logits with {called}", found, expected[f"{name}/logits"], expected[f"{name}/exact"])
        trained = sum(each.numel() for each in model.parameters() if each.requires_grad)
        rows.true(f"values that {called} trains", trained == expected[f"{name}/trained"], f"{trained:,}")


def _takes_rows_of_the_head() -> bool:
    import peft
    from packaging.version import Version

    return Version(peft.__version__) >= Version("0.18")


if __name__ == "__main__":
    main(("transformers", "peft"), run)
