"""Measure extend_vocab on a 1.5 B bf16 Llama-shaped checkpoint against the usual script and against `cp -r` and sync.

Every figure is a ratio within one run, since machines are noisy; imports are apart everywhere. The checkpoint is built in
a temporary directory and deleted. ``--mergekit PYTHON`` names the interpreter of an environment that has mergekit, whose
pinned dependencies want one of their own. ``--larger`` adds the peak memory of writing a model three times larger.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROWS, WIDTH, TOKENS = 128_256, 2_048, 16

#: Runs in a fresh process: imports first, then the work is timed; prints seconds and the peak above the imports.
WRITING = """
import json, resource, sys, time
import torch, transformers, graftkit.engine as engine
import transformers.conversion_mapping
from transformers import LlamaForCausalLM
from graftkit.checkpoint.write import write_checkpoint
from graftkit.checkpoint.staging import Staging
from graftkit.verification.structural import check_structure
from pathlib import Path
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
planned = engine.plan(json.loads(sys.argv[1]))
plan_seconds = time.perf_counter() - start
start = time.perf_counter()
with Staging(Path(planned.recipe.output)) as staging:
    write_checkpoint(planned.source, planned.result, staging.path, link=sys.argv[2] == 'link', written=staging.written)
    staging.commit()
written = time.perf_counter() - start
peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
start = time.perf_counter()
check_structure(planned.result, Path(planned.recipe.output))
print(json.dumps({'plan': plan_seconds, 'write': written, 'peak_mb': peak, 'check': time.perf_counter() - start}))
"""

APPLY = """
import json, resource, sys, time
import torch, transformers, graftkit.engine as engine
import transformers.conversion_mapping
from transformers import LlamaForCausalLM
start, before = time.perf_counter(), time.process_time()
report = engine.apply(json.loads(sys.argv[1]))
print(json.dumps({'seconds': time.perf_counter() - start, 'work': time.process_time() - before,
                  'parts': dict(report.outputs.seconds)}))
"""

USUAL = """
import json, resource, sys, time
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
start, before = time.perf_counter(), time.process_time()
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
tokenizer.add_special_tokens({'extra_special_tokens': json.loads(sys.argv[3])})
model.resize_token_embeddings(len(tokenizer))
model.save_pretrained(sys.argv[2])
tokenizer.save_pretrained(sys.argv[2])
print(json.dumps({'seconds': time.perf_counter() - start, 'work': time.process_time() - before,
                  'peak_mb': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
"""


MERGEKIT = """
import json, resource, sys, time
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
source, target, tokenizer = sys.argv[1:]
start = time.perf_counter()
merge = {'models': [{'model': source}], 'merge_method': 'linear', 'parameters': {'weight': 1.0}, 'dtype': 'bfloat16',
         'tokenizer': {'source': tokenizer}}
run_merge(MergeConfiguration.model_validate(merge), target, MergeOptions(lazy_unpickle=True))
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


def child(program: str, *arguments: str, python: str = sys.executable) -> dict[str, Any]:
    """Run a program in a fresh process and return what it measured."""
    done = subprocess.run([python, "-c", program, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.strip().splitlines()[-1])


def extended_tokenizer(source: Path, target: Path, tokens: list[str]) -> None:
    """What mergekit takes new tokens from: a directory with the extended tokenizer, and no weights."""
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.add_special_tokens({"extra_special_tokens": tokens})
    tokenizer.save_pretrained(target)
    AutoConfig.from_pretrained(source).save_pretrained(target)


def floor(source: Path, target: Path) -> float:
    """Seconds of `cp -r` followed by sync."""
    subprocess.run(["sync"], check=True)
    start = time.perf_counter()
    subprocess.run(["cp", "-r", str(source), str(target)], check=True)
    subprocess.run(["sync"], check=True)
    return time.perf_counter() - start


class Bench:
    """The contenders, each into a fresh directory that is deleted at once; figures are collected by name."""

    def __init__(self, place: Path) -> None:
        self.source, self.target, self.tokenizer = place / "source", place / "target", place / "tokenizer"
        self.found: dict[str, list[float]] = {}
        self.tokens = [f"<|new_{index}|>" for index in range(TOKENS)]

    def note(self, name: str, value: float) -> None:
        """Collect one figure."""
        self.found.setdefault(name, []).append(value)
        print(f"{name}: {value:.2f}", flush=True)

    def recipe(self) -> str:
        """The recipe as JSON."""
        operation = {"op": "extend_vocab", "special_tokens": self.tokens, "init": "mean"}
        return json.dumps(
            {"version": 1, "base_model": str(self.source), "operations": [operation], "output": str(self.target)}
        )

    def clear(self) -> None:
        """Delete the target, and let the disk come to rest."""
        subprocess.run(["rm", "-rf", str(self.target)], check=True)
        subprocess.run(["sync"], check=True)

    def floor(self) -> None:
        """`cp -r` and sync."""
        self.note("cp -r and sync, s", floor(self.source, self.target))
        self.clear()

    def writing(self, mode: str) -> None:
        """Planning, writing, and beside it the pass that compares, digests and looks for non-finite values."""
        done = child(WRITING, self.recipe(), mode)
        self.note(f"graftkit: write, {mode}, s", done["write"])
        self.note("graftkit: plan, s", done["plan"])
        self.note("graftkit: compare, digest, finite, s", done["check"])
        self.note(f"graftkit: peak of plan and write, {mode}, MB above imports", done["peak_mb"])
        self.clear()

    def apply(self) -> None:
        """All of apply."""
        done = child(APPLY, self.recipe())
        self.note("graftkit: apply with full verification, s", done["seconds"])
        self.note("graftkit: apply, seconds of the processor", done["work"])
        for part, seconds in done["parts"].items():
            self.note(f"graftkit: of apply, {part}, s", seconds)
        self.clear()

    def usual(self) -> None:
        """Load, resize, save."""
        done = child(USUAL, str(self.source), str(self.target), json.dumps(self.tokens))
        self.note("transformers script, no verification, s", done["seconds"])
        self.note("transformers script, seconds of the processor", done["work"])
        self.note("transformers script: peak, MB", done["peak_mb"])
        self.clear()

    def mergekit(self, python: str) -> None:
        """A merge of one model with another tokenizer; mergekit leaves the new rows zero."""
        if not self.tokenizer.exists():
            extended_tokenizer(self.source, self.tokenizer, self.tokens)
        done = child(MERGEKIT, str(self.source), str(self.target), str(self.tokenizer), python=python)
        self.note("mergekit, no verification, s", done["seconds"])
        self.note("mergekit: peak, MB", done["peak_mb"])
        self.clear()


def build_apart(source: Path, layers: int) -> None:
    """Build in a process of its own, so that its memory is not this one's."""
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import bench_vocab; from pathlib import Path;"
        "bench_vocab.build(Path(sys.argv[2]), int(sys.argv[3]))"
    )
    arguments = [str(Path(__file__).parent), str(source), str(layers)]
    subprocess.run([sys.executable, "-c", program, *arguments], check=True)


def main() -> None:
    """Build, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--no-usual", action="store_true", help="leave out the transformers script")
    parser.add_argument("--mergekit", metavar="PYTHON", help="the interpreter of an environment that has mergekit")
    parser.add_argument(
        "--larger", action="store_true", help="also write a model with three times as many layers and more"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="graftkit-bench-") as place:
        build_apart(Path(place, "source"), options.layers)
        bench = Bench(Path(place))
        for _ in range(options.rounds):
            bench.floor()
            bench.writing("copy")
            bench.writing("link")
            bench.apply()
            if not options.no_usual:
                bench.usual()
            if options.mergekit:
                bench.mergekit(options.mergekit)
    found = bench.found
    if options.larger:
        with tempfile.TemporaryDirectory(prefix="graftkit-bench-") as place:
            build_apart(Path(place, "source"), 3 * options.layers + 17)
            larger = Bench(Path(place))
            larger.writing("copy")
        name = "graftkit: peak of plan and write, copy, MB above imports"
        found[f"{name}, three times larger"] = larger.found[name]
    base = statistics.median(found["cp -r and sync, s"])
    print("\n| what | median | ratio to `cp -r` and sync |\n|---|---|---|")
    for name, values in found.items():
        middle = statistics.median(values)
        print(f"| {name} | {middle:.2f} | {f'{middle / base:.2f}' if name.endswith(', s') else ''} |")


if __name__ == "__main__":
    main()
