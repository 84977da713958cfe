"""Measure `apply` by 1, 2 and 4 ranks of one machine: bytes read, written and sent, memory and work of each rank.

A Llama-shaped bf16 checkpoint is made of a config in a temporary directory and deleted. Ranks on one machine share its processors and its
disk, so that work per rank is what to look at, in seconds of the processor, not the time that passed. ``--gigabytes`` is the size of the
checkpoint. Each round runs every number of ranks on the same source; the outputs must be equal, byte for byte but for the report.
With ``--run`` the models are run and compared too, and a second table says what each rank read of weights for it and what moved.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

#: Gigabytes -> hidden size, feed-forward units and layers of a Llama that is about so large in bf16 with 32,768 ids, untied.
SHAPES = {1: (1536, 4096, 14), 2: (2048, 5632, 18), 6: (2560, 8192, 34), 18: (4096, 14336, 39)}
ROWS, SHARD = 32_768, 250 << 20

#: What the model of 405 B assumes of a machine: gigabytes a second that it reads and writes, and cores.
READ, WRITE, CORES = 2.0, 1.0, 32

#: Where a rank leaves what it measured, and what Linux counts of a process.
NOTES = "GRAFTKIT_BENCH_NOTES"
COUNTED = {"rchar": "read", "wchar": "written"}


def build(directory: Path, gigabytes: int) -> int:
    """Write the checkpoint in shards of about 250 MB, one block of random numbers again and again; return the bytes of its tensors."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    width, units, layers = SHAPES[gigabytes]
    config = LlamaConfig(
        vocab_size=ROWS, hidden_size=width, intermediate_size=units, num_hidden_layers=layers,
        num_attention_heads=width // 128, num_key_value_heads=4, tie_word_embeddings=False, bos_token_id=0,
        eos_token_id=1, dtype="bfloat16", architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in LlamaForCausalLM(config).state_dict().items()}
    config.save_pretrained(directory)
    write_tokenizer(directory)
    pool = torch.randn(1 << 24, generator=torch.Generator().manual_seed(0)).mul(0.02).bfloat16()
    shards: list[dict[str, Any]] = [{}]
    for name, shape in shapes.items():
        if sum(value.nbytes for value in shards[-1].values()) > SHARD:
            shards.append({})
        size = shape.numel()
        shards[-1][name] = pool.repeat(-(-size // len(pool)))[:size].view(shape)
        if name == list(shapes)[-1] or sum(value.nbytes for value in shards[-1].values()) > SHARD:
            save_file(shards[-1], directory / f"model-{len(shards):05}.safetensors", {"format": "pt"})
            shards[-1] = {held: _Size(value.nbytes) for held, value in shards[-1].items()}
    places = {name: f"model-{place:05}.safetensors" for place, held in enumerate(shards, 1) for name in held}
    total = sum(value.nbytes for held in shards for value in held.values())
    (directory / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": places})
    )
    return total


class _Size:
    """What is left of a tensor that was written."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes


def write_tokenizer(directory: Path) -> None:
    """A tokenizer of 1,000 ids; the other rows are padding."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<s>", "</s>", *alphabet, *(f"w{number}" for number in range(1000))][:1000]
    tokenizer = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(directory)


def as_rank(arguments: list[str]) -> int:
    """Run the command line in this rank and leave what Linux counted of the process behind the imports."""
    import torch
    import transformers.conversion_mapping

    from graftkit import cli, engine
    from graftkit.ranks import group

    held: list[group.Group] = []
    join = group.Group.join
    group.Group.join = lambda self: (held.append(self), join(self))[1]  # type: ignore[method-assign, func-returns-value]
    loaded = (torch, transformers.conversion_mapping, engine)
    before, peak, start = _counts(), _peak(), time.perf_counter()
    code = cli.main(arguments)
    figures = {name: value - before[name] for name, value in _counts().items()}
    figures |= {
        "seconds": time.perf_counter() - start,
        "peak above imports": _peak() - peak,
        "sent": sum(one.sent for one in held),
    }
    rank = os.environ.get("RANK", "0")
    Path(os.environ[NOTES], f"{rank}.json").write_text(json.dumps(figures))
    return code if loaded else 1


def _counts() -> dict[str, float]:
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        **{what: float(lines[name]) for name, what in COUNTED.items()},
        "work": used.ru_utime + used.ru_stime,
    }


def _peak() -> float:
    """Bytes of memory at most so far; what `getrusage` says begins with the parent's."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return float(lines["VmHWM"].split()[0]) * 1024


def measure(recipe: Path, ranks: int, notes: Path) -> list[dict[str, float]]:
    """What each of so many ranks measured, by rank."""
    shutil.rmtree(notes, ignore_errors=True)
    notes.mkdir()
    start = [] if ranks == 1 else ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
    line = [sys.executable, *start, __file__, "--as-rank", "apply", str(recipe), "-q"]
    environment = {"OMP_NUM_THREADS": "1", **os.environ, NOTES: str(notes)}
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return [json.loads((notes / f"{rank}.json").read_text()) for rank in range(ranks)]


def rows_of(ranks: int, found: list[dict[str, float]]) -> list[str]:
    """One row of the table for each rank."""
    rows = []
    for rank, one in enumerate(found):
        sizes = " | ".join(f"{one[what] / 1e9:.2f}" for what in ("read", "written"))
        rows.append(
            f"| {ranks} | {rank} | {sizes} | {one['sent'] / 1e3:.1f} | {one['peak above imports'] / 1e6:.0f} | {one['work']:.1f} |"
            f" {one['seconds']:.1f} |"
        )
    return rows


def run_rows(ranks: int, output: Path) -> list[str]:
    """One row for each rank of what it did to run the models, from the report; none of a single process, whose report has none."""
    found = json.loads((output / "graft_report.json").read_text()).get("by_ranks", {"ranks": []})
    return [
        f"| {ranks} | {one['rank']} | {one['blocks']} | {one['weight_bytes_read'] / 1e9:.2f} | {one['bytes_moved'] / 1e6:.1f} |"
        f" {one['processor_seconds']:.1f} |"
        for one in found["ranks"]
    ]


def work_per_gigabyte(measured: dict[int, list[dict[str, float]]], gigabytes: float) -> tuple[float, float]:
    """Least squares of ``work of all = ranks · a + gigabytes · b`` over the runs: ``(a, b)`` in seconds of the processor."""
    points = [(ranks, sum(one["work"] for one in found)) for ranks, found in measured.items()]
    mean_ranks, mean_work = (sum(column) / len(points) for column in zip(*points, strict=True))
    spread = sum((ranks - mean_ranks) ** 2 for ranks, _ in points)
    each = sum((ranks - mean_ranks) * (work - mean_work) for ranks, work in points) / spread if spread else 0.0
    return each, (mean_work - each * mean_ranks) / gigabytes


def modelled(per_gigabyte: float) -> list[str]:
    """Rows for 405 B parameters on 1 and on 8 machines, by the model of docs/scale.md; no measurement."""
    whole, files = 810.0, 191
    rows = []
    for machines in (1, 8):
        share = whole * -(-files // machines) / files
        disk, work = share * (3 / READ + 1 / WRITE), share * per_gigabyte / CORES
        run = 2 * whole / machines / READ
        rows.append(f"| {machines} | {share:.0f} | {disk:,.0f} | {work:,.0f} | {max(disk, work):,.0f} | {run:,.0f} |")
    return rows


def main() -> None:
    """Build, run each number of ranks, compare the outputs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=int, choices=SHAPES, default=2)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--run", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        (place / "model").mkdir()
        total = build(place / "model", options.gigabytes)
        shards = len(list((place / "model").glob("*.safetensors")))
        rows, run, measured = [], [], {}
        for ranks in options.ranks:
            output = place / f"out-{ranks}"
            recipe = {
                "version": 1, "base_model": str(place / "model"), "output": str(output), "verify": {"outputs": options.run},
                "operations": [{"op": "extend_vocab", "special_tokens": [f"<|{number}|>" for number in range(16)]}],
            }  # fmt: skip
            (place / "recipe.yaml").write_text(json.dumps(recipe))
            measured[ranks] = measure(place / "recipe.yaml", ranks, place / "notes")
            rows += rows_of(ranks, measured[ranks])
            run += run_rows(ranks, output)
            for path in sorted((place / "model").glob("*.safetensors")):
                first = place / f"out-{options.ranks[0]}" / path.name
                if not filecmp.cmp(first, output / path.name, shallow=False):
                    sys.exit(f"{path.name} of {ranks} ranks is not that of {options.ranks[0]}")
            if ranks != options.ranks[0]:
                shutil.rmtree(output)
    what = "with" if options.run else "without"
    print(f"{total / 1e9:.1f} GB in {shards} shards, {os.cpu_count()} processors; {what} the run of the model\n")
    print(
        "| ranks | rank | GB read | GB written | kB sent | MB of memory above imports | seconds of the processor | seconds |"
    )
    print("|---:|---:|---:|---:|---:|---:|---:|---:|")
    print("\n".join(rows))
    if run:
        print(
            "\n| ranks | rank | blocks | GB of weights read to run both models | MB moved between it and others | seconds of the processor to run them |"
        )
        print("|---:|---:|---:|---:|---:|---:|")
        print("\n".join(run))
    each, per_gigabyte = work_per_gigabyte(measured, total / 1e9)
    print(f"\nwork of all ranks: {each:.1f} s for each rank and {per_gigabyte:.1f} s for each GB\n")
    print(f"405 B, modelled, at {READ:g} GB/s read, {WRITE:g} GB/s written and {CORES} cores for each machine\n")
    print(
        "| machines | GB each | s of reading and writing | s of work | s in all, at best | s of each reading its blocks of both models to run them |"
    )
    print("|---:|---:|---:|---:|---:|---:|")
    print("\n".join(modelled(per_gigabyte)))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--as-rank"]:
        sys.exit(as_rank(sys.argv[2:]))
    main()
