"""Train the demo model: a small causal LM on the English that comes with Python itself.

    python scripts/train_demo_model.py [DIRECTORY] [--steps N]

Writes a complete checkpoint of about 3 MB: bf16, untied head, a byte-level BPE of 2,040 tokens under 2,048 rows, no pad
token. The text is Python's documentation topics (`pydoc_data.topics`) and the standard library's docstrings. Topics repeat
one another at length, so only topics that share no paragraph with another are held out; the loss that the model card
states is measured on them after the cast to bf16, and the card says how much of them the training text repeats.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import math
import platform
import re
import sysconfig
import time
from collections import Counter
from pathlib import Path
from pydoc_data.topics import topics
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

if TYPE_CHECKING:
    from collections.abc import Iterator

ROWS, TOKENS, CONTEXT = 2_048, 2_040, 128
NOT_DOCUMENTATION = {"site-packages", "test", "tests", "idlelib", "lib2to3", "pydoc_data", "turtledemo"}

CARD = """---
license: other
license_name: psf-2.0
license_link: https://docs.python.org/3/license.html
language: en
tags: [demo]
---

# A demo model

A Llama-shaped causal language model of {parameters:,} parameters, trained by `scripts/train_demo_model.py` on the text of Python
{python}: its documentation topics (`pydoc_data.topics`) and the docstrings of its standard library, {characters:,} characters
in all. It is large enough to have learned something and small enough to ship: it exists so that `graftkit` can be tried
without a download. It is of no other use.

- held-out loss: {loss:.4f} nats per token over {count:,} tokens (unigram entropy of the same tokens: {entropy:.4f})
- held-out topics: {names}
- held-out text: {repeated:.1%} of its 40-character windows occur in the training text; SHA-256 {digest}
- training: {steps} steps of {batch} x {context} tokens, seed 0
"""


def paragraphs(text: str) -> set[str]:
    """The blocks of at least 40 characters between blank lines, white space normalised."""
    blocks = (" ".join(block.split()) for block in re.split(r"\n\s*\n", text))
    return {block for block in blocks if len(block) >= 40}


def held_out_topics() -> list[str]:
    """Every sixth of the topics that share no paragraph with another topic."""
    shared = Counter(block for text in topics.values() for block in paragraphs(text))
    alone = sorted(name for name, text in topics.items() if all(shared[block] == 1 for block in paragraphs(text)))
    return alone[::6]


def docstrings() -> Iterator[str]:
    """Each docstring of the standard library once, in the order of its files."""
    library, seen = Path(sysconfig.get_path("stdlib")), set[str]()
    for path in sorted(library.rglob("*.py")):
        if NOT_DOCUMENTATION.intersection(path.relative_to(library).parts):
            continue
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                text = ast.get_docstring(node) or ""
                if len(text) > 60 and text not in seen:
                    seen.add(text)
                    yield text


def training_texts() -> list[str]:
    """All topics that are not held out, twice, between the docstrings."""
    held = held_out_topics()
    kept = [topics[name] for name in sorted(topics) if name not in held]
    return [*kept, *docstrings(), *kept]


def held_out_texts() -> list[str]:
    """The held-out topics, in the order of their names."""
    return [topics[name] for name in held_out_topics()]


def digest(corpus: list[str]) -> str:
    """SHA-256 of the texts: another release of Python may ship other topics."""
    return hashlib.sha256("\0".join(corpus).encode()).hexdigest()


def repeated_share(held: list[str], training: list[str], width: int = 40) -> float:
    """The part of the held-out text's windows of ``width`` characters that the training text contains."""
    haystack = "\0".join(" ".join(text.split()) for text in training)
    windows = [
        flat[place : place + width]
        for flat in (" ".join(text.split()) for text in held)
        for place in range(0, max(len(flat) - width, 1), width // 2)
    ]
    return sum(window in haystack for window in windows) / len(windows)


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
    torch.set_num_threads(1)  # sums in another order on another number of cores would train another model
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
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--batch", type=int, default=16)
    options = parser.parse_args()
    training, held = training_texts(), held_out_texts()
    tokenizer = train_tokenizer(training)
    ids = encode(tokenizer, held)
    model = train(encode(tokenizer, training), options.steps, options.batch)
    model.to(torch.bfloat16).save_pretrained(options.directory)
    tokenizer.save_pretrained(options.directory)
    (options.directory / "model.safetensors").chmod(0o644)
    saved = AutoModelForCausalLM.from_pretrained(options.directory, dtype=torch.float32)
    loss, count = held_out_loss(saved, ids)
    card = CARD.format(
        parameters=saved.num_parameters(), characters=sum(map(len, {*training, *held})), python=platform.python_version(),
        loss=loss, count=count, entropy=unigram_entropy(ids), names=", ".join(held_out_topics()), digest=digest(held),
        repeated=repeated_share(held, training), steps=options.steps, batch=options.batch, context=CONTEXT,
    )  # fmt: skip
    (options.directory / "README.md").write_text(card, encoding="utf-8")
    prompt = tokenizer("The import statement", return_tensors="pt")["input_ids"]
    print(tokenizer.decode(saved.generate(prompt, max_new_tokens=40, do_sample=False, pad_token_id=1)[0]))
    print(card)


if __name__ == "__main__":
    main()
