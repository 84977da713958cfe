"""optimum: exported to ONNX, the checkpoints give the logits that they give in torch."""

from __future__ import annotations

from pathlib import Path

from compared import Rows, main, references


def run(material: Path, scratch: Path, rows: Rows) -> None:
    """Export the base and the classifier, and compare what onnxruntime computes."""
    from models import flat, ids, logits
    from optimum.onnxruntime import ORTModelForCausalLM, ORTModelForSequenceClassification

    expected = references(material)
    for name, kind in (("base", ORTModelForCausalLM), ("classifier", ORTModelForSequenceClassification)):
        model = kind.from_pretrained(str(material / name), export=True, dtype="fp32")
        model.save_pretrained(str(scratch / name))
        texts = ids(material / name)
        rows.equal(f"token ids of the {name}", flat(texts), expected[f"{name}/ids"])
        rows.near(
            f"logits of the {name}", logits(Masked(model), texts), expected[f"{name}/logits"], expected[f"{name}/exact"]
        )


class Masked:
    """A model that is given the attention mask which an exported graph asks for."""

    def __init__(self, model: object) -> None:
        self.model = model

    def __call__(self, input_ids: object) -> object:
        """The outputs over ids without padding."""
        import torch

        return self.model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids))


if __name__ == "__main__":
    main(("transformers", "onnxruntime", "optimum.onnxruntime"), run)
