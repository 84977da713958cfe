"""Measure the schemes of transplant_tokenizer beside the methods of mergekit's tokensurgeon, on one pair in one run.

The base is the demo model. The donor is a model of its size with a SentencePiece-like tokenizer that was trained on code and on half of the
demo model's text, and with tables trained on the demo model's training text. Measured are bits per byte on the held-out text, at step 0
and after training on the training text, seconds and peak memory of the whole command. ``--mergekit PYTHON`` names the
interpreter of an environment that has mergekit. ``--json FILE`` keeps the figures. The donor is trained once, and lies in a temporary folder
for the next run, or at ``--donor FOLDER``. ``distill`` is fitted to paragraphs of the training text.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from train_demo_model import CONTEXT, encode, texts, train
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from graftkit.running.loaded_tokenizer import LoadedTokenizer
from graftkit.running.scored_texts import score_texts, split_texts

BASE = Path(__file__).parent.parent / "recipes/models/demo-lm"
CODE = ("argparse", "subprocess", "typing", "asyncio.base_events", "email.message", "http.client", "tarfile", "turtle")
SPECIAL = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"}

OURS: dict[str, Any] = {
    "fvt": "fvt", "mean": "mean", "copy_shared": "copy_shared",
    **{f"omp, k = {k}": {"scheme": "omp", "k": k} for k in (8, 16, 32, 64)},
    "distill": {"scheme": "distill"}, "distill, 4 epochs": {"scheme": "distill", "epochs": 4},
}  # fmt: skip
METHODS = (
    "omp",
    "subword",
    "mean",
    "zero",
    "randn",
    "john_hewitt",
    "common_interpolation",
    "landmark_pca",
    "stb",
    "mp_rope",
)
#: Arguments by name; byte match finds tokens that are spelled otherwise, and is off where it is not asked for.
THEIRS = {name: ("-a", name) for name in METHODS} | {
    f"{name}, byte match": ("-a", name, "-bm", "yes") for name in ("omp", "subword", "zero", "landmark_pca")
}

#: Runs a command and prints its peak memory behind what it prints.
MEASURED = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)
"""


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


def measured(*command: str) -> tuple[float, int, int]:
    """Seconds, exit code and peak MB of a command."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", MEASURED, *command], capture_output=True, text=True, check=True)
    code, peak = map(int, done.stdout.split()[-2:])
    return time.perf_counter() - start, code, peak


def transplanted(
    donor: Path, place: Path, mergekit: str | None, only: str = ""
) -> Iterator[tuple[str, Path, float, int]]:
    """Yield each scheme with the folder that it wrote, seconds and peak MB; what fails is said and left out."""
    paragraphs = (" ".join(part.split()) for text in texts()[0] for part in text.split("\n\n"))
    (place / "texts.txt").write_text("\n".join(part for part in paragraphs if part), encoding="utf-8")
    for name, given in OURS.items():
        if not re.search(only, f"graftkit {name}"):
            continue
        output = place / f"ours {name}"
        init = {**given, "texts": str(place / "texts.txt")} if name.startswith("distill") else given
        operation = {"op": "transplant_tokenizer", "donor": str(donor), "init": init}
        recipe = {"version": 1, "base_model": str(BASE), "operations": [operation], "output": str(output)}
        (place / "recipe.yaml").write_text(json.dumps({**recipe, "verify": {"outputs": False}}), encoding="utf-8")
        seconds, code, peak = measured(sys.executable, "-m", "graftkit", "apply", str(place / "recipe.yaml"))
        yield from [(f"graftkit {name}", output, seconds, peak)] if not code else _failed(name, code)
    for method, arguments in THEIRS.items() if mergekit else ():
        if not re.search(only, f"mergekit {method}"):
            continue
        output = place / f"theirs {method}"
        command = [str(mergekit), "-m", "mergekit.scripts.tokensurgeon", str(BASE), str(donor), str(output)]
        seconds, code, peak = measured(*command, *arguments, "--quiet")
        there = (output / "config.json").is_file()
        yield from [(f"mergekit {method}", output, seconds, peak)] if not code and there else _failed(method, code)


def _failed(name: str, code: int) -> list[tuple[str, Path, float, int]]:
    print(f"{name}: ended with {code}", flush=True)
    return []


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
    parser = argparse.ArgumentParser(description=__doc__)
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
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench_transplant_") as name:
        place = Path(name)
        named = f"bench_transplant_donor_{options.tokens}_{options.donor_steps}"
        donor = options.donor or Path(tempfile.gettempdir()) / named
        if not (donor / "config.json").is_file():
            make_donor(donor, options.tokens, options.donor_steps)
        report(donor, place, options)


def report(donor: Path, place: Path, options: argparse.Namespace) -> None:
    """Print a row of the table for each candidate as soon as it is measured."""
    training, held = texts()
    pieces = list(split_texts(held, 512, 1 << 20))
    base, other = LoadedTokenizer.of(BASE), LoadedTokenizer.of(donor)
    ids = encode(other.tokenizer, training)
    own = [bits(_load(folder), tokenizer, pieces) for folder, tokenizer in ((BASE, base), (donor, other))]
    print(
        f"held out: {sum(len(piece.encode()) for piece in pieces):,} bytes; base {own[0]:.3f}, donor's own model {own[1]:.3f} bits per byte"
    )
    print("| method | step 0 | seconds | MB |\n|---|---|---|---|", flush=True)
    found = []
    for name, folder, seconds, peak in transplanted(donor, place, options.mergekit, options.only):
        first = bits(_load(folder), other, pieces)
        found.append({"method": name, "folder": folder, "step_0": first, "seconds": seconds, "peak_mb": peak})
        print(f"| {name} | {first:.3f} | {seconds:.1f} | {peak} |", flush=True)
    print(f"| method | step 0 | step {options.steps} |\n|---|---|---|", flush=True)
    for row in _best(found, options.trained):
        row["trained"] = bits(trained(_load(row["folder"]), ids, options.steps), other, pieces)
        print(f"| {row['method']} | {row['step_0']:.3f} | {row['trained']:.3f} |", flush=True)
    if options.json:
        for row in found:
            del row["folder"]
        text = json.dumps({"base": own[0], "donor": own[1], "steps": options.steps, "methods": found}, indent=1)
        options.json.write_text(text + "\n", encoding="utf-8")


def _best(found: list[dict[str, Any]], count: int) -> Iterator[dict[str, Any]]:
    """Yield the ``count`` best at step 0 of each program, which are trained."""
    ordered = sorted((row for row in found if math.isfinite(row["step_0"])), key=lambda row: row["step_0"])
    for program in ("graftkit", "mergekit"):
        yield from [row for row in ordered if row["method"].startswith(program)][:count]


def _load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


if __name__ == "__main__":
    main()
