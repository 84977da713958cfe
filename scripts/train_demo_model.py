"""Train the demo model: a small causal LM on the English of Python's own documentation (`pydoc_data.topics`).

    python scripts/train_demo_model.py [DIRECTORY] [--steps N]

Writes a complete checkpoint of about 3 MB: bf16, untied head, a byte-level BPE of 2,040 tokens under 2,048 rows, no pad
token. Every eleventh topic is held out; the held-out loss that the model card states is measured after the cast to bf16.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import Counter
from pathlib import Path
from pydoc_data import topics
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

ROWS, TOKENS, CONTEXT = 2_048, 2_040, 128

CARD = """---
license: psf-2.0
language: en
tags: [demo]
---

# A demo model

A Llama-shaped causal language model of {parameters:,} parameters, trained by `scripts/train_demo_model.py` on the text of Python's
documentation topics (`pydoc_data.topics`, {characters:,} characters, every eleventh topic held out). It is large enough to have learned
something and small enough to ship: it exists so that `graftkit` can be tried without a download.

- held-out loss: {loss:.4f} nats per token over {count:,} tokens (unigram entropy of the same tokens: {entropy:.4f})
- {steps} steps of {batch} x {context} tokens
"""


def texts() -> tuple[list[str], list[str]]:
    """Training and held-out topics."""
    names = sorted(topics.topics)
    held = set(names[::11])
    return [topics.topics[n] for n in names if n not in held], [topics.topics[n] for n in sorted(held)]


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


def unigram_entropy(ids: torch.Tensor) -> float:
    """Entropy in nats of the tokens' own frequencies: what a model without context could reach."""
    counts = Counter(ids.tolist())
    return -sum(n / len(ids) * math.log(n / len(ids)) for n in counts.values())


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


def main() -> None:
    """Train, save, reload, measure, write the card."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "directory", nargs="?", type=Path, default=Path(__file__).parent.parent / "recipes/models/demo-lm"
    )
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch", type=int, default=16)
    options = parser.parse_args()
    training, held = texts()
    tokenizer = train_tokenizer(training)
    model = train(encode(tokenizer, training), options.steps, options.batch)
    model.to(torch.bfloat16).save_pretrained(options.directory)
    tokenizer.save_pretrained(options.directory)
    ids = encode(tokenizer, held)
    saved = AutoModelForCausalLM.from_pretrained(options.directory, dtype=torch.float32)
    loss, count = held_out_loss(saved, ids)
    card = CARD.format(
        parameters=saved.num_parameters(), characters=sum(map(len, training + held)), loss=loss, count=count,
        entropy=unigram_entropy(ids), steps=options.steps, batch=options.batch, context=CONTEXT,
    )  # fmt: skip
    (options.directory / "README.md").write_text(card, encoding="utf-8")
    prompt = tokenizer("The import statement", return_tensors="pt")["input_ids"]
    print(tokenizer.decode(saved.generate(prompt, max_new_tokens=40, do_sample=False, pad_token_id=1)[0]))
    print(f"held-out loss {loss:.4f}, unigram entropy {unigram_entropy(ids):.4f}")


if __name__ == "__main__":
    main()
