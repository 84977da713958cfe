"""Measure the schemes of transplant_tokenizer beside the methods of mergekit's tokensurgeon, on one pair in one run.

    python scripts/bench_transplant.py --mergekit PYTHON --page

The base is the demo model. The donor is a model of its size with a SentencePiece-like tokenizer that was trained on code and on half of the
demo model's text, and with tables trained on the demo model's training text. Measured are bits per byte on the held-out text, at step 0
and after training on the training text, the processor's seconds and peak memory of the whole command. ``--mergekit PYTHON`` names the
interpreter of an environment that has mergekit. ``--page`` writes the table into docs/tokens.md, between its two marks. The donor is trained
once, and lies in a temporary folder for the next run, or at ``--donor FOLDER``. ``distill`` is fitted to paragraphs of the training text.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import re
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from sweep_done import add_done, note_done, read_done
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from train_demo_model import CONTEXT, encode, texts, train
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transplant_methods import Transplanted, failed, not_measured, transplant, write_between

from graftkit.running.loaded_tokenizer import LoadedTokenizer
from graftkit.running.scored_texts import score_texts, split_texts

BASE = Path(__file__).parent.parent / "recipes/models/demo-lm"
CODE = ("argparse", "subprocess", "typing", "asyncio.base_events", "email.message", "http.client", "tarfile", "turtle")
SPECIAL = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"}

MARKS = "<!-- transplant_tokenizer: figures -->", "<!-- transplant_tokenizer: end -->"


@dataclass(frozen=True, slots=True)
class Measured:
    """What was found of one method: bits per byte at once and, where it was among the best, after training."""

    name: str
    error: str
    first: float
    seconds: float
    peak: int
    after: float | None = None


def make_donor(folder: Path, tokens: int, steps: int) -> None:
    """Write the donor: tokenizer and weights."""
    training, _ = texts()
    code = [Path(str(importlib.import_module(name).__file__)).read_text(encoding="utf-8") for name in CODE]
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = [*SPECIAL.values(), *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=tokens, special_tokens=special, show_progress=False)
    backend.train_from_iterator([*code, *training[::2]], trainer)
    document = json.loads(backend.to_str())
    document["added_tokens"] = document["added_tokens"][: len(SPECIAL)]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(document)), **SPECIAL)
    model = train(encode(tokenizer, training), steps, 16)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    name_class(folder / "tokenizer_config.json")


def name_class(path: Path) -> None:
    """Let tokenizer_config.json name a class whose mark of a word's beginning mergekit knows; without it mergekit looks for ``Ġ``."""
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, "tokenizer_class": "LlamaTokenizerFast"}, indent=2) + "\n", encoding="utf-8")


def bits(model: Any, tokenizer: LoadedTokenizer, pieces: list[str]) -> float:
    """Bits per byte of the pieces."""
    scores = score_texts(model, tokenizer, pieces, begin=True)
    return sum(sum(score.bits) for score in scores) / sum(len(piece.encode()) for piece in pieces)


def trained(model: Any, ids: torch.Tensor, steps: int) -> Any:
    """The model after ``steps`` of AdamW on random windows, the same for every candidate."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0)
    generator = torch.Generator().manual_seed(1)
    model.train()
    for _ in range(steps):
        places = torch.randint(len(ids) - CONTEXT, (8,), generator=generator)
        rows = torch.stack([ids[place : place + CONTEXT] for place in places.tolist()])
        model(input_ids=rows, labels=rows).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def main() -> None:
    """Make the donor where there is none, transplant, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mergekit", help="the interpreter of an environment with mergekit")
    parser.add_argument(
        "--donor", type=Path, help="a donor, made where it is not there (default: in a temporary folder)"
    )
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--donor-steps", type=int, default=1200)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument(
        "--trained", type=int, default=3, help="how many of each program are trained: the best at step 0"
    )
    parser.add_argument("--only", default="", help="only methods whose name this regular expression finds")
    add_done(parser)
    parser.add_argument("--page", action="store_true", help="write the table into docs/tokens.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench_transplant_") as name:
        named = f"bench_transplant_donor_{options.tokens}_{options.donor_steps}"
        donor = options.donor or Path(tempfile.gettempdir()) / named
        if not (donor / "config.json").is_file():
            make_donor(donor, options.tokens, options.donor_steps)
        lines = report(donor, Path(name), options)
    if options.page:
        write_between(MARKS, lines)


def report(donor: Path, place: Path, options: argparse.Namespace) -> list[str]:
    """Measure each candidate, print it as soon as it is measured, and return the lines of the page."""
    training, held = texts()
    pieces = list(split_texts(held, 512, 1 << 20))
    base, other = LoadedTokenizer.of(BASE), LoadedTokenizer.of(donor)
    ids = encode(other.tokenizer, training)
    own = [bits(_load(folder), tokenizer, pieces) for folder, tokenizer in ((BASE, base), (donor, other))]
    size = sum(len(piece.encode()) for piece in pieces)
    about = (
        f"Held out are {size:,} bytes, of which the demo model's own tokenizer gives {own[0]:.3f} bits per byte. The donor's tokenizer has "
        f"{len(other.ids):,} tokens; its own model, trained for {options.donor_steps:,} steps, gives {own[1]:.3f}."
    )
    print(about, flush=True)
    paragraphs = [" ".join(part.split()) for text in training for part in text.split("\n\n") if part.strip()]

    def made(only: str, done: Collection[str]) -> Iterator[Transplanted]:
        return transplant(BASE, donor, paragraphs, place, options.mergekit, only, done=done)

    found = {one.name: one for one in read_done(options.done, Measured)}
    folders = {}
    for one in made(options.only, {*found}):
        folders[one.name] = one.folder
        first = math.inf if one.error else bits(_load(one.folder), other, pieces)
        found[one.name] = Measured(one.name, one.error, first, one.seconds, one.peak)
        note_done(options.done, found[one.name])
        print(one.name, one.error or f"{first:.3f} in {one.seconds:.1f} s, {one.peak} MB", flush=True)
    ordered = sorted((one for one in found.values() if not one.error), key=lambda one: one.first)
    for program in ("graftkit", "mergekit"):
        finite = [one for one in ordered if one.name.startswith(program) and math.isfinite(one.first)]
        for one in finite[: options.trained]:
            if one.after is None:
                exactly = f"^{re.escape(one.name.replace('`', ''))}$"
                folder = (
                    folders.get(one.name) or next(made(exactly, ())).folder
                )  # measured by an earlier run: made anew
                found[one.name] = replace(one, after=bits(trained(_load(folder), ids, options.steps), other, pieces))
                note_done(options.done, found[one.name])
            print(f"{one.name} after {options.steps} steps: {found[one.name].after:.3f}", flush=True)
    lines = [about, "", f"| | step 0 | after {options.steps} steps | CPU s | MB |", "|---|---|---|---|---|"]
    for one in (found[one.name] for one in ordered):
        later = "" if one.after is None else f"{one.after:.3f}"
        lines.append(f"| {one.name} | {one.first:.3f} | {later} | {one.seconds:.1f} | {one.peak} |")
    return [*lines, "", *failed({one.name: one.error for one in found.values()}), *not_measured(found)]


def _load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


if __name__ == "__main__":
    main()
