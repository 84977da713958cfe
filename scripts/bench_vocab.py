"""Measure extend_vocab on a 1.5 B bf16 Llama-shaped checkpoint against the usual script and against `cp -r` and sync.

Every figure is a ratio within one run, since machines are noisy. The checkpoint is built in a temporary directory and
deleted. Run with ``--rounds N`` for more rounds, ``--layers N`` for another size, ``--markdown`` for the README's table.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROWS, WIDTH, TOKENS = 128_256, 2_048, 16

#: Runs in a fresh process: imports first, then the work is timed; prints seconds and the peak above the imports.
WRITING = """
import json, resource, sys, time
import torch, transformers, graftkit.engine as engine
from graftkit.checkpoint.write import write_checkpoint
from graftkit.checkpoint.staging import Staging
from pathlib import Path
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
planned = engine.plan(json.loads(sys.argv[1]))
plan_seconds = time.perf_counter() - start
start = time.perf_counter()
with Staging(Path(planned.recipe.output)) as staging:
    write_checkpoint(planned.source, planned.result, staging.path, link=sys.argv[2] == 'link', written=staging.written)
    staging.commit()
print(json.dumps({'plan': plan_seconds, 'write': time.perf_counter() - start,
                  'peak_mb': (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024}))
"""

APPLY = """
import json, resource, sys, time
import torch, transformers, graftkit.engine as engine
start = time.perf_counter()
engine.apply(json.loads(sys.argv[1]))
print(json.dumps({'seconds': time.perf_counter() - start}))
"""

USUAL = """
import json, resource, sys, time
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
start = time.perf_counter()
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
tokenizer.add_special_tokens({'extra_special_tokens': json.loads(sys.argv[3])})
model.resize_token_embeddings(len(tokenizer))
model.save_pretrained(sys.argv[2])
tokenizer.save_pretrained(sys.argv[2])
print(json.dumps({'seconds': time.perf_counter() - start,
                  'peak_mb': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
"""


def build(directory: Path, layers: int) -> None:
    """A Llama-shaped checkpoint of about 1.5 B parameters in about six shards, with a tokenizer of all its ids."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    config = LlamaConfig(
        vocab_size=ROWS, hidden_size=WIDTH, intermediate_size=8192, num_hidden_layers=layers, num_attention_heads=32,
        num_key_value_heads=8, max_position_embeddings=8192, tie_word_embeddings=False, bos_token_id=0, eos_token_id=1,
        dtype="bfloat16",
    )  # fmt: skip
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    model = LlamaForCausalLM(config)
    model.save_pretrained(directory, max_shard_size="550MB")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<s>", "</s>", *alphabet]
    words += [a + b for a in alphabet for b in alphabet]
    words += [f"w{i}" for i in range(ROWS)]
    vocabulary = {word: index for index, word in enumerate(list(dict.fromkeys(words))[:ROWS])}
    merges = [(a, b) for a in alphabet for b in alphabet if a + b in vocabulary]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    wrapped.save_pretrained(directory)


def child(program: str, *arguments: str) -> dict[str, float]:
    """Run a program in a fresh process and return what it measured."""
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.strip().splitlines()[-1])


def floor(source: Path, target: Path) -> float:
    """Seconds of `cp -r` followed by sync."""
    subprocess.run(["sync"], check=True)
    start = time.perf_counter()
    subprocess.run(["cp", "-r", str(source), str(target)], check=True)
    subprocess.run(["sync"], check=True)
    return time.perf_counter() - start


def measure(place: Path, rounds: int, *, usual: bool) -> dict[str, list[float]]:
    """Alternate the contenders, round by round, each into a fresh directory that is deleted at once."""
    source = place / "source"
    tokens = [f"<|new_{index}|>" for index in range(TOKENS)]
    found: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        found.setdefault(name, []).append(value)
        print(f"{name}: {value:.2f}", flush=True)

    def recipe(output: Path) -> str:
        operation = {"op": "extend_vocab", "special_tokens": tokens, "init": "mean"}
        return json.dumps({"version": 1, "base_model": str(source), "operations": [operation], "output": str(output)})

    for _ in range(rounds):
        target = place / "target"
        note("cp -r and sync, s", floor(source, target))
        subprocess.run(["rm", "-rf", str(target)], check=True)
        for mode in ("copy", "link"):
            subprocess.run(["sync"], check=True)
            done = child(WRITING, recipe(target), mode)
            note(f"graftkit writing, {mode}, s", done["write"])
            note("graftkit plan, s", done["plan"])
            note(f"graftkit peak above imports, {mode}, MB", done["peak_mb"])
            subprocess.run(["rm", "-rf", str(target)], check=True)
        note("graftkit apply with full verification, s", child(APPLY, recipe(target))["seconds"])
        subprocess.run(["rm", "-rf", str(target)], check=True)
        if usual:
            done = child(USUAL, str(source), str(target), json.dumps(tokens))
            note("transformers script, s", done["seconds"])
            note("transformers script peak, MB", done["peak_mb"])
            subprocess.run(["rm", "-rf", str(target)], check=True)
    return found


def main() -> None:
    """Build, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--no-usual", action="store_true", help="leave out the transformers script")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="graftkit-bench-") as place:
        subprocess.run(
            [sys.executable, "-c", "import sys; sys.path.insert(0, sys.argv[1]); import bench_vocab; from pathlib import Path;"
             "bench_vocab.build(Path(sys.argv[2]), int(sys.argv[3]))",
             str(Path(__file__).parent), f"{place}/source", str(options.layers)], check=True,
        )  # fmt: skip
        found = measure(Path(place), options.rounds, usual=not options.no_usual)
    base = statistics.median(found["cp -r and sync, s"])
    print("\n| what | median | ratio to cp -r and sync |\n|---|---|---|")
    for name, values in found.items():
        middle = statistics.median(values)
        print(f"| {name} | {middle:.2f} | {f'{middle / base:.2f}' if name.endswith(', s') else ''} |")
    print(f"\npeak of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


if __name__ == "__main__":
    main()
