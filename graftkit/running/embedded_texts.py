"""Texts as vectors: the mean of the last hidden states of an encoder, as it is used for search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from graftkit.running.loaded_tokenizer import LoadedTokenizer
from graftkit.running.texts import known_inputs

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


def embed_texts(model: PreTrainedModel, tokenizer: LoadedTokenizer, texts: Sequence[str]) -> Tensor:
    """The mean over a text's tokens of what the base model, or its encoder, gives last. *Shape:* float64 ``(len(texts), d)``."""
    import torch

    inner: Any = model.get_encoder() if model.config.is_encoder_decoder else model.base_model
    rows = []
    for text in texts:
        inputs = known_inputs(inner, tokenizer.tokenizer(text, return_tensors="pt"))
        with torch.inference_mode():
            outputs = inner(**inputs)
        hidden = outputs["last_hidden_state"] if "last_hidden_state" in outputs else outputs[0]
        rows.append(hidden[0].double().mean(0))
    return torch.stack(rows)
