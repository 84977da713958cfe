"""What a fitted head is worth before any training where a text has several labels, or each word has one, on all-MiniLM-L6-v2.

    python scripts/bench_head_labels.py             # some minutes on one core; --seeds 0 is a third of it
    python scripts/bench_head_labels.py --write     # and the table into docs/heads.md
    python scripts/bench_head_labels.py --example   # only writes recipes/examples/docstrings.conll

Both tasks are made of docstrings of the standard library; no module is fitted to and tested on. *Several labels*: a text is one docstring or two
of different domains, its labels are the domains. *One for each word*: a word is ARG where it is a parameter of the documented function, BUILTIN
where it is an exception, None, True or False, else O. Each head is made by graftkit, and measured by plain transformers.
"""

from __future__ import annotations

import argparse
import ast
import builtins
import json
import os
import random
import re
import statistics
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docstrings
import torch
from bench_heads import PAGE, source

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")

SEEDS = (0, 1, 2)

#: Texts and sentences that are fitted to and tested on, and tokens of each.
TRAIN, TEST, LENGTH = 240, 240, 64

#: Docstrings of each domain that the texts are drawn from, on each side.
OF_DOMAIN = 60

TAGS = ("O", "ARG", "BUILTIN")

#: Fewest letters of a parameter: shorter ones are words of English too.
LETTERS = 3

BEGIN, END = "<!-- bench_head_labels -->", "<!-- end labels -->"

#: The file of tagged sentences that a recipe shows, and how many it has.
SHOWN, SHOWN_SENTENCES = Path(__file__).parent.parent / "recipes/examples/docstrings.conll", 120

Example = dict[str, Any]


def several(seed: int) -> tuple[list[Example], list[Example]]:
    """Texts with one domain or two: to fit to, and to test on. No docstring stands in two texts."""
    parts = docstrings.split(docstrings.texts(), seed, train=OF_DOMAIN, test=OF_DOMAIN)
    draw = random.Random(f"several {seed}")  # noqa: S311 - a benchmark's lot
    sides = []
    for texts, size in ((parts.train, TRAIN), (parts.test, TEST)):
        of_label = {label: [text.text for text in texts if text.label == label] for label in docstrings.LABELS}
        found = []
        for _ in range(size):
            left = [label for label in docstrings.LABELS if of_label[label]]
            labels = draw.sample(left, min(draw.choice((1, 2, 2)), len(left)))
            found.append({"text": " ".join(of_label[label].pop() for label in labels), "label": labels})
        sides.append(found)
    return sides[0], sides[1]


def tagged(seed: int) -> tuple[list[Example], list[Example]]:
    """Sentences whose words have tags, half of the modules on each side."""
    draw = random.Random(f"tagged {seed}")  # noqa: S311 - a benchmark's lot
    modules = sorted(
        {module for names in docstrings.DOMAINS.values() for module in names.split()} - {*docstrings.COMPILED}
    )
    draw.shuffle(modules)
    sides = []
    for part, size in ((modules[::2], TRAIN), (modules[1::2], TEST)):
        found = [sentence for module in part for sentence in _sentences(module)]
        sides.append(draw.sample(found, size))
    return sides[0], sides[1]


def _sentences(module: str) -> Iterator[Example]:
    """First paragraphs of docstrings in which a parameter, an exception or a constant is named."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in (root / f"{module}.py", *sorted((root / module).rglob("*.py"))):
        if not path.exists() or {"test", "tests", "idle_test"} & set(path.relative_to(root).parts):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or not (text := ast.get_docstring(node)):
                continue
            names = {one.arg for one in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)} - {
                "self",
                "cls",
            }
            words = re.findall(r"\w+|[^\w\s]", re.split(r"\n\s*\n", text.strip())[0])
            tags = [_tag(word, names) for word in words]
            if {*tags} > {"O"}:
                yield {"tokens": words, "tags": tags}


def _tag(word: str, names: set[str]) -> str:
    value = getattr(builtins, word, None)
    if word in ("None", "True", "False") or (isinstance(value, type) and issubclass(value, BaseException)):
        return "BUILTIN"
    return "ARG" if word in names and len(word) >= LETTERS else "O"


def make(task: dict[str, Any], init: Any, train: list[Example], seed: int, folder: Path) -> tuple[Path, Any]:
    """A checkpoint with a head that was fitted to ``train``, and what graftkit measured on what it held out."""
    import graftkit

    examples = folder / "train.jsonl"
    examples.write_text("".join(json.dumps(row) + "\n" for row in train), encoding="utf-8")
    fitted = init["scheme"] != "zeros"
    scheme = {**init, "examples": str(examples), "max_length": LENGTH} if fitted else init
    recipe = {
        "version": 1, "seed": seed, "base_model": str(source()), "output": str(folder / "out"),
        "operations": [{"op": "replace_head", **task, "init": scheme}], "verify": {"outputs": False},
    }  # fmt: skip
    apply: Any = graftkit.apply
    return folder / "out", apply(recipe).figures["operations.0.replace_head"].get("held_out")


def measure_several(folder: Path, test: list[Example]) -> tuple[float, float]:
    """Loss in nats averaged over texts and labels, and macro F1."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(folder).eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    inputs = tokenizer(
        [row["text"] for row in test], truncation=True, max_length=LENGTH, padding=True, return_tensors="pt"
    )
    target = torch.tensor([[float(label in row["label"]) for label in docstrings.LABELS] for row in test])
    with torch.inference_mode():
        logits = model(**inputs).logits
    chosen = (logits > 0).float()
    f1 = 2 * (chosen * target).sum(0) / (chosen + target).sum(0).clamp(min=1)
    return float(torch.nn.functional.binary_cross_entropy_with_logits(logits, target)), float(f1.mean())


def measure_tagged(folder: Path, test: list[Example]) -> tuple[float, float]:
    """Loss of a word in nats, and accuracy averaged over the tags."""
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    model, tokenizer = (
        AutoModelForTokenClassification.from_pretrained(folder).eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    inputs = tokenizer(
        [row["tokens"] for row in test],
        is_split_into_words=True,
        truncation=True,
        max_length=LENGTH,
        padding=True,
        return_tensors="pt",
    )
    labels = torch.full(inputs["input_ids"].shape, -100)
    for index, row in enumerate(test):
        before = None
        for place, word in enumerate(inputs.word_ids(index)):
            if word is not None and word != before:
                labels[index, place] = TAGS.index(row["tags"][word])
            before = word
    with torch.inference_mode():
        logits = model(**inputs).logits
    kept = labels >= 0
    right = (logits.argmax(-1) == labels)[kept]
    of_tag = [float(right[labels[kept] == tag].float().mean()) for tag in range(len(TAGS))]
    return float(torch.nn.functional.cross_entropy(logits[kept], labels[kept])), statistics.mean(of_tag)


def table(seeds: list[int]) -> str:
    """One row for each task and init."""
    lines = [
        f"{TRAIN} texts or sentences to fit to, {TEST} of other modules to test on, {len(seeds)} seeds", "",
        "| labels | init | loss | score | held out by graftkit: loss | score |", "|---|---|" + "---:|" * 4,
    ]  # fmt: skip
    words = {"scheme": "zeros", "class_prior": [0.9, 0.08, 0.02]}
    kinds: tuple[tuple[str, dict[str, Any], Any, Any, Any, str], ...] = (
        ("several for each text (macro F1)", {"task": "sequence_classification", "labels": list(docstrings.LABELS), "problem_type": "multi_label_classification"},
         {"scheme": "zeros", "class_prior": round(5 / 3 / len(docstrings.LABELS), 3)}, several, measure_several, "macro_f1"),
        ("one for each word (balanced accuracy)", {"task": "token_classification", "labels": list(TAGS)}, words, tagged, measure_tagged, "balanced_accuracy"),
    )  # fmt: skip
    for name, task, prior, examples, measure, score in kinds:
        for init in (prior, {"scheme": "ridge"}, {"scheme": "lda"}):
            found, held = [], []
            for seed in seeds:
                train, test = examples(seed)
                with tempfile.TemporaryDirectory() as folder:
                    output, figures = make(task, init, train, seed, Path(folder))
                    found.append(measure(output, test))
                    held += [(figures["loss"], figures[score])] if figures else []
            cells = [*zip(*found, strict=True), *(zip(*held, strict=True) if held else ((), ()))]
            shown = "zeros + prior" if init is prior else init["scheme"]
            lines.append(f"| {name} | {shown} | " + " | ".join(map(_shown, cells)) + " |")
            print(lines[-1], flush=True)
    return "\n".join(lines)


def _shown(values: tuple[float, ...]) -> str:
    if not values:
        return "-"
    return f"{statistics.mean(values):.3f}" + (f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else "")


def main() -> None:
    """Measure, and write where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the table into docs/heads.md")
    parser.add_argument(
        "--example", action="store_true", help="write the tagged sentences of a recipe, and nothing else"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    arguments = parser.parse_args()
    if arguments.example:
        sentences = tagged(0)[0][:SHOWN_SENTENCES]
        columns = ("\n".join(map("{} {}".format, one["tokens"], one["tags"])) for one in sentences)
        SHOWN.write_text("\n\n".join(columns) + "\n", encoding="utf-8")
        return
    torch.set_num_threads(1)
    made = table(arguments.seeds)
    if arguments.write:
        page = PAGE.read_text(encoding="utf-8")
        before, after = page[: page.index(BEGIN) + len(BEGIN)], page[page.index(END) :]
        PAGE.write_text(f"{before}\n{made}\n{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
