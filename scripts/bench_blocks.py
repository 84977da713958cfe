"""What new blocks learn, and what the model forgets: the demo model trained on Python's source code, its new blocks alone.

    python scripts/bench_blocks.py --run            # some minutes on one core; goes on where it was stopped
    python scripts/bench_blocks.py --insertion      # seconds and memory of an insertion into 3.1 GB beside `cp -r`
    python scripts/bench_blocks.py --write          # table and plot of docs/blocks.md from docs/bench_blocks.json

The demo model knows the English of Python's documentation (`pydoc_data.topics`). A new block behind each of its three begins as the
identity, as a copy, or at random (`reinit`); plain transformers and torch then train these alone on the source of the standard library.
`--insertion --mergekit PYTHON` names the interpreter of an environment of its own that has mergekit; without it that row is left out.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", TOKENIZERS_PARALLELISM="false")

ROOT = Path(__file__).parent.parent
DEMO, DOCS = ROOT / "recipes" / "models" / "demo-lm", ROOT / "docs"
RESULTS, PAGE, FIGURE = DOCS / "bench_blocks.json", DOCS / "blocks.md", DOCS / "img" / "blocks.svg"

#: Row of the table -> operations, by the seed of the recipe. New blocks stand behind each of the three old ones.
STARTS: dict[str, list[dict[str, Any]]] = {
    "identity": [{"op": "insert_blocks", "every": 1}],
    "copy": [{"op": "insert_blocks", "every": 1, "init": "copy"}],
    "random": [{"op": "insert_blocks", "every": 1, "init": "copy"}, {"op": "reinit", "layers": [1, 3, 5]}],
}
SEEDS, STEPS, EVERY = (0, 1, 2), 200, 25

#: Sequences of a step, tokens of each, sequences that are measured on, and the learning rate of AdamW, which was not tuned.
BATCH, LENGTH, MEASURED, RATE = 8, 64, 64, 1e-3

#: Packages of the standard library to train on, and to measure on.
TRAINED, TESTED = ("asyncio", "email", "http", "importlib", "multiprocessing"), ("json", "logging", "unittest", "xml")

#: Sizes of the checkpoint that blocks are inserted into: 1.57 billion parameters in bfloat16. A block is copied behind every fourth.
WIDTH, INNER, DEPTH, ROWS, SHARD = 2048, 5632, 28, 32000, 4

BEGIN, END = "<!-- bench_blocks -->", "<!-- end -->"


def code(packages: tuple[str, ...]) -> Iterator[str]:
    """Yield the source of every module of some packages, tests left out."""
    for package in packages:
        for path in sorted(Path(sysconfig.get_path("stdlib"), package).rglob("*.py")):
            if not {"test", "tests"} & set(path.parts):
                yield path.read_text(encoding="utf-8", errors="replace")


def sequences(texts: Iterator[str], tokenizer: Any) -> torch.Tensor:
    """``(sequences, LENGTH)`` ids of the texts, one behind the other."""
    ids = [index for text in texts for index in tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]]
    return torch.tensor(ids[: len(ids) // LENGTH * LENGTH]).view(-1, LENGTH)


def loss_of(model: Any, ids: torch.Tensor) -> Any:
    """Mean next-token loss in nats."""
    logits = model(input_ids=ids, use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())


def measure(model: Any, ids: torch.Tensor) -> float:
    """The loss on some sequences, drawn once for all runs."""
    chosen = ids[random.Random("measured").sample(range(len(ids)), MEASURED)]  # noqa: S311 - a benchmark's lot
    with torch.inference_mode():
        return float(loss_of(model.eval(), chosen))


def train(start: str, seed: int) -> list[dict[str, float]]:
    """Loss on code and on the documentation after every so many steps; batches are the same for every start."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    new, test = sequences(code(TRAINED), tokenizer), sequences(code(TESTED), tokenizer)
    old = sequences(iter([topics[name] for place, name in enumerate(sorted(topics)) if place % 11]), tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        blocks = insert(start, seed, Path(folder) / "out")
        model: Any = AutoModelForCausalLM.from_pretrained(Path(folder) / "out", dtype=torch.float32)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.startswith(blocks)
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE, weight_decay=0.0)
    draw, found = random.Random(f"batches {seed}"), []  # noqa: S311 - a benchmark's lot
    for step in range(STEPS + 1):
        if step % EVERY == 0:
            found.append({"step": step, "new": measure(model, test), "old": measure(model, old)})
        loss = loss_of(model.train(), new[draw.sample(range(len(new)), BATCH)])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return found


def insert(start: str, seed: int, output: Path) -> tuple[str, ...]:
    """Write the model with new blocks; what the names of their parameters begin with, as the report has it."""
    import graftkit

    recipe: Any = {"version": 1, "seed": seed, "base_model": str(DEMO), "output": str(output),
                   "operations": STARTS[start], "verify": {"outputs": False}}  # fmt: skip
    figures = graftkit.apply(recipe).figures["operations.0.insert_blocks"]
    return tuple(f"{block}." for block in figures["new_blocks"])


def write_large(folder: Path) -> None:
    """A Llama of random values, a file for every few blocks."""
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=ROWS, hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=DEPTH, num_attention_heads=16
    )
    config.architectures, config.dtype = ["LlamaForCausalLM"], torch.bfloat16
    config.save_pretrained(folder)
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in LlamaForCausalLM(config).state_dict().items()}
    values = torch.randn(ROWS * WIDTH).mul(0.02).bfloat16()
    files: dict[str, list[str]] = {}
    for name in shapes:
        part = int(name.split(".")[2]) // SHARD if ".layers." in name else DEPTH // SHARD
        files.setdefault(f"model-{part}.safetensors", []).append(name)
    for file, names in files.items():
        made = {name: values[: math.prod(shapes[name])].view(shapes[name]).clone() for name in names}
        save_file(made, folder / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, names in files.items() for name in names}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


#: Runs a command from a process that is small itself, since what is forked begins with the memory of its parent.
LAUNCH = """
import json, os, sys, time
started = time.monotonic()
process = os.spawnvp(os.P_NOWAIT, sys.argv[1], sys.argv[1:])
_, status, usage = os.wait4(process, 0)
assert not status
print(json.dumps([time.monotonic() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024]), file=sys.stderr)
"""


def timed(command: list[str]) -> list[float]:
    """Seconds that a command takes, seconds of a core, and its largest memory in MB."""
    run = subprocess.run(
        [sys.executable, "-S", "-c", LAUNCH, *command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=True
    )
    found: list[float] = json.loads(run.stderr.splitlines()[-1])
    return found


def insertion(mergekit: str | None) -> dict[str, Any]:
    """Seconds and memory of what makes a checkpoint with a quarter more blocks, of one in the cache of files."""
    with tempfile.TemporaryDirectory() as place:
        base, found = Path(place) / "base", {}
        base.mkdir()
        write_large(base)
        recipe = Path(place) / "recipe.json"
        recipe.write_text(json.dumps({
            "version": 1, "base_model": str(base), "output": f"{place}/grown", "verify": {"outputs": False},
            "operations": [{"op": "insert_blocks", "every": SHARD}],
        }))  # fmt: skip
        found["cp -r"] = timed(["cp", "-r", str(base), f"{place}/copy"])
        found["graftkit apply, outputs not run"] = timed([sys.executable, "-m", "graftkit", "apply", str(recipe)])
        size, grown = (sum(f.stat().st_size for f in Path(place, n).glob("*.safetensors")) for n in ("base", "grown"))
        if mergekit is None:
            print("mergekit: left out, since --mergekit names no interpreter that has it")
        else:
            ends = [*range(SHARD, DEPTH, SHARD), DEPTH, DEPTH]
            begins = [0, *(end - 1 for end in ends[:-1])]
            slices = [
                {"sources": [{"model": str(base), "layer_range": [begin, end]}]}
                for begin, end in zip(begins, ends, strict=True)
            ]
            Path(place, "merge.yaml").write_text(
                json.dumps({"slices": slices, "merge_method": "passthrough", "dtype": "bfloat16"})
            )
            found["mergekit"] = timed(
                [mergekit, "-m", "mergekit.scripts.run_yaml", f"{place}/merge.yaml", f"{place}/merged"]
            )
    return {"bytes": size, "grown": grown, "rows": found}


def write(done: dict[str, Any]) -> None:
    """Put table and plot into docs."""
    page = PAGE.read_text(encoding="utf-8")
    head, _, rest = page.partition(BEGIN)
    PAGE.write_text(f"{head}{BEGIN}\n{table(done)}{END}{rest.partition(END)[2]}", encoding="utf-8")
    plot(done)


def table(done: dict[str, Any]) -> str:
    """Mean over seeds and standard deviation of both losses before and after, and the cost of an insertion."""
    lines = [
        "| new blocks | code, step 0 | code, step 200 | documentation, step 0 | documentation, step 200 |",
        "|---|---:|---:|---:|---:|",
    ]
    for start in STARTS:
        runs = [done["runs"][f"{start} {seed}"] for seed in SEEDS]
        cells = [[run[place][side] for run in runs] for side in ("new", "old") for place in (0, -1)]
        lines.append(
            f"| {start} | " + " | ".join(f"{statistics.mean(c):.3f} ± {statistics.stdev(c):.3f}" for c in cells) + " |"
        )
    if "insertion" in done:
        cost = done["insertion"]
        sizes = f"{cost['bytes'] / 1e9:.2f} GB to {cost['grown'] / 1e9:.2f}"
        lines += [
            "",
            f"| {DEPTH // SHARD} new blocks, {sizes} | s | s of a core | largest memory, MB |",
            "|---|---:|---:|---:|",
        ]
        lines += [
            f"| {name} | {seconds:.1f} | {core:.1f} | {memory:,.0f} |"
            for name, (seconds, core, memory) in cost["rows"].items()
        ]
    return "\n".join([*lines, ""])


def plot(done: dict[str, Any]) -> None:
    """Both losses by step: each seed, and their mean."""
    from matplotlib import pyplot as plt
    from plot_initializers import GRID, save, style

    style()
    figure, both = plt.subplots(1, 2, figsize=(8.4, 3.1), constrained_layout=True)
    for axes, (side, title) in zip(
        both, (("new", "code: new to the model"), ("old", "documentation: what it knew")), strict=True
    ):
        for start, colour in zip(STARTS, ("#1c4f86", "#d1772d", "#6b6b6b"), strict=True):
            runs = [done["runs"][f"{start} {seed}"] for seed in SEEDS]
            steps = [item["step"] for item in runs[0]]
            for run in runs:
                axes.plot(steps, [item[side] for item in run], color=colour, linewidth=0.6, alpha=0.5)
            means = [statistics.mean(values) for values in zip(*([i[side] for i in run] for run in runs), strict=True)]
            axes.plot(steps, means, color=colour, linewidth=1.8, label=start)
        axes.set(xlabel="step", title=title)
        axes.title.set(fontsize=9.5)
        axes.grid(axis="y", color=GRID, linewidth=0.6)
    both[0].set_ylabel("loss, nats per token")
    both[1].legend(frameon=False, fontsize=8)
    save(figure, FIGURE)


def main() -> int:
    """Run what was not run yet, or write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("run", "insertion", "write"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--mergekit", metavar="PYTHON")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    done: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"runs": {}}
    cells = [f"{start} {seed}" for seed in SEEDS for start in STARTS] if arguments.run else []
    for cell in cells:
        if cell not in done["runs"]:
            started, (start, seed) = time.process_time(), cell.split()
            done["runs"][cell] = train(start, int(seed))
            print(cell, done["runs"][cell][-1], f"{time.process_time() - started:.0f} s of a core", flush=True)
            RESULTS.write_text(f"{json.dumps(done, indent=1)}\n")
    if arguments.insertion:
        done["insertion"] = insertion(arguments.mergekit)
        print(done["insertion"])
        RESULTS.write_text(f"{json.dumps(done, indent=1)}\n")
    if arguments.write:
        write(done)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
