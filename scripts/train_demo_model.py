"""Train the demo model: a small causal LM on the English of Python's own documentation (`pydoc_data.topics`).

    python scripts/train_demo_model.py [DIRECTORY] [--steps N] [--measure-only]

Writes a complete checkpoint of about 3 MB: bf16, untied head, a byte-level BPE of 2,040 tokens under 2,048 rows, no pad
token. Every eleventh topic is held out. Topics repeat one another at length, so the held-out loss that the model card
states is measured, after the cast to bf16, only on the held-out topics that the training text does not repeat.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from collections import Counter
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from graftkit.checkpoint.tokenizer.class_note import KNOWN_NAME

ROWS, TOKENS, CONTEXT = 2_048, 2_040, 128

CARD = """---
license: other
license_name: psf-2.0
license_link: https://docs.python.org/3/license.html
language: en
tags: [demo]
---

# A demo model

A Llama-shaped causal language model of {parameters:,} parameters, trained by `scripts/train_demo_model.py` on the text of Python's
documentation topics (`pydoc_data.topics`, {characters:,} characters, every eleventh topic held out). It is large enough to have learned
something and small enough to ship: it exists so that `graftkit` can be tried without a download. It knows its training text
nearly by heart and is of no other use.

- held-out loss: {loss:.4f} nats per token over {count:,} tokens (unigram model of the training text on the same tokens: {unigram:.4f})
- measured on the held-out topics that the training text does not repeat: {names} (SHA-256 {digest})
- {steps} steps of {batch} x {context} tokens, seed 0
"""


def held_out_topics() -> list[str]:
    """The names of the topics that the model was not trained on."""
    return sorted(topics)[::11]


def texts() -> tuple[list[str], list[str]]:
    """Training topics, and the held-out topics that the training topics do not repeat."""
    names = held_out_topics()
    training = [topics[name] for name in sorted(topics) if name not in names]
    return training, [topics[name] for name in names if repeated_share(topics[name], training) < 0.1]


def repeated_share(text: str, corpus: list[str], width: int = 40) -> float:
    """The part of the text's windows of ``width`` characters, white space normalised, that stand in the corpus too."""
    haystack, flat = "\0".join(" ".join(part.split()) for part in corpus), " ".join(text.split())
    windows = [flat[place : place + width] for place in range(0, max(len(flat) - width, 1), width // 2)]
    return sum(window in haystack for window in windows) / len(windows)


def digest(corpus: list[str]) -> str:
    """SHA-256 of the texts: another release of Python may ship other topics."""
    return hashlib.sha256("\0".join(corpus).encode()).hexdigest()


def train_tokenizer(corpus: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE of TOKENS ids with `<s>` and `</s>`, and no pad token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENS,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def name_known_class(path: Path) -> None:
    """Let tokenizer_config.json name the class as all versions of transformers know it."""
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, "tokenizer_class": KNOWN_NAME}, indent=2) + "\n", encoding="utf-8")


def encode(tokenizer: PreTrainedTokenizerFast, corpus: list[str]) -> torch.Tensor:
    """All texts in one row of ids, each between `<s>` and `</s>`."""
    ids: list[int] = []
    for text in corpus:
        ids += [0, *tokenizer(text)["input_ids"], 1]
    return torch.tensor(ids)


@torch.inference_mode()
def held_out_loss(model: Any, ids: torch.Tensor, windows: int | None = None) -> tuple[float, int]:
    """Mean loss in nats over consecutive windows of CONTEXT tokens, and the number of predicted tokens."""
    count = len(ids) // CONTEXT
    rows = ids[: count * CONTEXT].view(count, CONTEXT)[:windows]
    losses = [float(model(input_ids=batch, labels=batch).loss) * batch.numel() for batch in rows.split(16)]
    return sum(losses) / rows.numel(), rows.numel() - len(rows)


def unigram_loss(ids: torch.Tensor, training: torch.Tensor) -> float:
    """Loss in nats of a model without context: the (add-one) frequencies of the training text's tokens."""
    counts, total = Counter(training.tolist()), len(training) + ROWS
    return -sum(math.log((counts[token] + 1) / total) for token in ids.tolist()) / len(ids)


def train(ids: torch.Tensor, steps: int, batch: int) -> LlamaForCausalLM:
    """AdamW with warm-up and cosine decay on random windows."""
    config = LlamaConfig(
        vocab_size=ROWS, hidden_size=160, intermediate_size=448, num_hidden_layers=3, num_attention_heads=5,
        num_key_value_heads=5, max_position_embeddings=512, tie_word_embeddings=False, bos_token_id=0, eos_token_id=1,
        pad_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.05)
    warm = max(steps // 20, 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / warm, 0.5 * (1 + math.cos(math.pi * s / steps)) + 0.02)
    )
    generator, start = torch.Generator().manual_seed(0), time.monotonic()
    for step in range(steps):
        places = torch.randint(len(ids) - CONTEXT, (batch,), generator=generator)
        rows = torch.stack([ids[place : place + CONTEXT] for place in places.tolist()])
        loss = model(input_ids=rows, labels=rows).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            print(f"step {step} loss {loss:.3f} {time.monotonic() - start:.0f} s", flush=True)
    return model.eval()


def write_card(directory: Path, steps: int, batch: int) -> str:
    """Reload what was saved, measure it, write README.md and return its text."""
    training, held = texts()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    saved = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    ids = encode(tokenizer, held)
    loss, count = held_out_loss(saved, ids)
    card = CARD.format(
        parameters=saved.num_parameters(), characters=sum(map(len, topics.values())), loss=loss, count=count,
        unigram=unigram_loss(ids, encode(tokenizer, training)), digest=digest(held), steps=steps, batch=batch,
        names=", ".join(name for name in held_out_topics() if topics[name] in held), context=CONTEXT,
    )  # fmt: skip
    (directory / "README.md").write_text(card, encoding="utf-8")
    prompt = tokenizer("The import statement", return_tensors="pt")["input_ids"]
    print(tokenizer.decode(saved.generate(prompt, max_new_tokens=40, do_sample=False, pad_token_id=1)[0]))
    return card


def main() -> None:
    """Train, save, reload, measure, write the card."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "directory", nargs="?", type=Path, default=Path(__file__).parent.parent / "recipes/models/demo-lm"
    )
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--measure-only", action="store_true", help="measure what was saved and write its card anew")
    options = parser.parse_args()
    if not options.measure_only:
        training, _ = texts()
        tokenizer = train_tokenizer(training)
        model = train(encode(tokenizer, training), options.steps, options.batch)
        model.to(torch.bfloat16).save_pretrained(options.directory)
        tokenizer.save_pretrained(options.directory)
        name_known_class(options.directory / "tokenizer_config.json")
        (options.directory / "model.safetensors").chmod(0o644)
    print(write_card(options.directory, options.steps, options.batch))


if __name__ == "__main__":
    main()
