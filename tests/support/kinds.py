"""One small checkpoint of each kind of model, and which operations its kind takes."""

from dataclasses import dataclass, field

from support.families import build as family
from support.tiny import build as tiny

#: Operation -> its recipe; the head's task depends on the kind.
OPERATIONS = {
    "extend_vocab": {"op": "extend_vocab", "special_tokens": ["<|a|>", "<|b|>"]},
    "replace_head": {"op": "replace_head", "labels": ["x", "y", "z"]},
    "reinit": {"op": "reinit", "layers": "last 1"},
    "add_lora": {"op": "add_lora", "r": 4},
}

NO_CLASS = "config.json: transformers has no class for sequence_classification of model type "


@dataclass(frozen=True)
class Kind:
    """How to build it, the task of its head, and what is refused: operation -> exit code and how the sentence begins."""

    build: object
    task: str = "sequence_classification"
    refused: dict = field(default_factory=dict)
    ids: bool = True

    def operation(self, name):
        """The recipe of an operation for this kind."""
        spec = OPERATIONS[name]
        return {**spec, "task": self.task} if name == "replace_head" else spec


def _images(directory):
    tiny("ViTForImageClassification", directory)
    for path in directory.glob("tokenizer*"):
        path.unlink()


KINDS = {
    "encoder": Kind(lambda directory: family("bert_base", directory)),
    "masked_lm": Kind(lambda directory: family("bert", directory)),
    "causal_lm_tied": Kind(lambda directory: family("llama_tied", directory)),
    "causal_lm": Kind(lambda directory: family("llama", directory)),
    "experts": Kind(lambda directory: family("mixtral", directory)),
    "state_space": Kind(
        lambda directory: tiny("MambaForCausalLM", directory),
        refused={
            "replace_head": (3, f"{NO_CLASS}'mamba'"),
            "add_lora": (2, "operations.0: add_lora: peft refuses: ValueError: [PEFT:PeftType.LORA] Module 'out_proj' is incompatible"),
        },
    ),
    "encoder_decoder": Kind(lambda directory: family("t5", directory)),
    "encoder_decoder_bart": Kind(lambda directory: family("bart", directory)),
    "classifier": Kind(lambda directory: tiny("BertForSequenceClassification", directory)),
    "classifier_of_two_sides": Kind(lambda directory: tiny("BartForSequenceClassification", directory)),
    "vision_language": Kind(
        lambda directory: family("llava", directory), refused={"replace_head": (3, f"{NO_CLASS}'llava'")}
    ),
    "image_classifier": Kind(
        _images, "image_classification", {"extend_vocab": (3, "ViTForImageClassification: takes pixel_values and no token ids")},
        ids=False,
    ),
}  # fmt: skip
