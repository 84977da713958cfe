"""Models and their outputs with whatever transformers is installed, in float32 and with eager attention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

#: Old text, and text with the tokens that graftkit added.
TEXTS = (
    "def mean(values): return sum(values) / len(values)",
    "The socket was closed before the file was read.",
    "<|tool_call|>open the file<|tool_result|> coroutine metaclass",
)
CAUSAL, CLASSIFIER = "AutoModelForCausalLM", "AutoModelForSequenceClassification"
NEW_TOKENS = 12


def load(folder: Path, auto: str = CAUSAL, dtype: torch.dtype = torch.float32) -> Any:
    """The model of a folder in ``dtype``; every version loads the same values, whatever its default is."""
    return getattr(transformers, auto).from_pretrained(str(folder), attn_implementation="eager").eval().to(dtype)


def tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder."""
    return transformers.AutoTokenizer.from_pretrained(str(folder))


def ids(folder: Path) -> list[list[int]]:
    """The ids of each text."""
    return [tokenizer(folder)(text)["input_ids"] for text in TEXTS]


def flat(lists: list[list[int]]) -> np.ndarray:
    """Lists of ids one behind the other."""
    return np.array([item for each in lists for item in each], dtype=np.int64)


def logits(model: Any, texts: list[list[int]]) -> np.ndarray:
    """The logits of each text alone, one behind the other: `(values,)`."""
    with torch.inference_mode():
        return np.concatenate([model(input_ids=torch.tensor([each])).logits.flatten().numpy() for each in texts])


def generated(model: Any, texts: list[list[int]]) -> np.ndarray:
    """The ids that greedy decoding adds to each text."""
    found = []
    with torch.inference_mode():
        for each in texts:
            given = torch.tensor([each])
            out = model.generate(
                input_ids=given, attention_mask=torch.ones_like(given), do_sample=False, min_new_tokens=NEW_TOKENS,
                max_new_tokens=NEW_TOKENS,
            )  # fmt: skip
            found.append(out[0, given.shape[1] :].tolist())
    return flat(found)


def loss(model: Any, text: list[int]) -> float:
    """The mean loss of the next token over one text."""
    given = torch.tensor([text])
    with torch.inference_mode():
        return float(model(input_ids=given, labels=given).loss)


def sentence_embeddings(folder: Path, texts: tuple[str, ...], dtype: torch.dtype = torch.float32) -> np.ndarray:
    """Mean-pooled embeddings of length one, each text alone: `(texts, width)`."""
    model, words = load(folder, "AutoModel", dtype), tokenizer(folder)
    rows = []
    with torch.inference_mode():
        for text in texts:
            hidden = model(**words(text, return_tensors="pt")).last_hidden_state[0].mean(0)
            rows.append(torch.nn.functional.normalize(hidden, dim=0).numpy())
    return np.stack(rows)
