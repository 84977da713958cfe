"""Measure graft on a model in memory beside `resize_token_embeddings`, in the same run: seconds, and peak memory above the model.

Each contender runs in a fresh process, imports and loading apart, on a Llama-shaped bf16 model with untied tables of
128,256 x 2,048, whose weights lie in memory of their own. Figures are medians over rounds, and ratios to the peer's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from bench_vocab import ROWS, TOKENS, WIDTH, build_apart, child

#: Loads the model, and measures what stands for ``{work}``: seconds, and the peak above what lay in memory before.
PROGRAM = """
import json, sys, time
import torch, transformers, graftkit.grafting
from transformers import AutoModelForCausalLM, AutoTokenizer
transformers.utils.logging.disable_progress_bar()
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
for tensor in (*model.parameters(), *model.buffers()):
    tensor.data = tensor.data.clone()
tokens = json.loads(sys.argv[2])

def status(name):
    return next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith(name)) / 1024

open('/proc/self/clear_refs', 'w').write('5')
before, start = status('VmRSS'), time.perf_counter()
{work}
print(json.dumps({{'seconds': time.perf_counter() - start, 'peak_mb': status('VmHWM') - before}}))
"""

#: What users write today. Both tables are resized; the new rows are drawn around the mean.
PEER = """
tokenizer.add_special_tokens({'extra_special_tokens': tokens})
model.resize_token_embeddings(len(tokenizer))
"""

#: The same without the sampling, which leaves the new rows at their random start.
BARE_PEER = PEER.replace("len(tokenizer)", "len(tokenizer), mean_resizing=False")

GRAFT = """
recipe = {{'version': 1, 'verify': {{'outputs': {outputs}}}, 'operations': [
    {{'op': 'extend_vocab', 'special_tokens': tokens, 'init': 'mean'}}]}}
graftkit.grafting.graft(model, tokenizer, recipe)
"""

CONTENDERS = {
    "resize_token_embeddings": PEER,
    "resize_token_embeddings(mean_resizing=False)": BARE_PEER,
    "graft, outputs not compared": GRAFT.format(outputs=False),
    "graft, fully verified": GRAFT.format(outputs=True),
}


def measure(source: Path, rounds: int) -> dict[str, tuple[float, float]]:
    """Median seconds and peak MB of each contender."""
    tokens = json.dumps([f"<|new_{index}|>" for index in range(TOKENS)])
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in CONTENDERS}
    for _ in range(rounds):
        for name, work in CONTENDERS.items():
            done = child(PROGRAM.format(work=work), str(source), tokens)
            found[name].append((done["seconds"], done["peak_mb"]))
            print(f"{name}: {done['seconds']:.2f} s, {done['peak_mb']:.0f} MB", flush=True)
    return {
        name: (statistics.median(s for s, _ in runs), statistics.median(mb for _, mb in runs))
        for name, runs in found.items()
    }


def main() -> None:
    """Build, measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=16)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="graftkit-bench-") as place:
        build_apart(Path(place, "source"), options.layers)
        found = measure(Path(place, "source"), options.rounds)
    seconds, peak = found["resize_token_embeddings"]
    print(f"\n{TOKENS} tokens, two tables of {ROWS:,} x {WIDTH:,}, {options.layers} layers, bf16\n")
    print(
        "| what | seconds | over the peer's | peak above the model, MB | over the peer's |\n|---|---:|---:|---:|---:|"
    )
    for name, (own, mb) in found.items():
        print(f"| {name} | {own:.1f} | {own / seconds:.2f} | {mb:,.0f} | {mb / peak:.2f} |")


if __name__ == "__main__":
    main()
