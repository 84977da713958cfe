"""Measure adapters on a 1.5 B bf16 Llama-shaped checkpoint against peft's own way, imports apart.

What a library builds at its first use (transformers' table of renamed weights, pydantic's validators) counts as its import: each
process makes an adapter in its own way for a tiny checkpoint first. ``--cold`` leaves that out.

Every figure is a ratio within one run, since machines are noisy; seconds of the processor, in all threads and in the kernel,
stand beside those of the clock, for they change less where other jobs run. The checkpoint is random, built in a temporary directory
and deleted. ``--headers`` adds the adapter of a 405 B-shaped set of files whose headers are real and whose data is a hole.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import tempfile
import time
from pathlib import Path

from bench_vocab import build_apart, child, floor

#: In each child: the imports of its own way first, then the work; prints seconds and the peak above the imports.
PEFT = """
import json, resource, sys, tempfile, time, warnings
warnings.simplefilter('ignore')
import torch, transformers, peft
import transformers.conversion_mapping
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
import peft.tuners.lora.variants
"""
GRAFTKIT = (
    PEFT
    + """
import graftkit.engine as engine
from graftkit.checkpoint.staging import Staging
from graftkit.checkpoint.adapter import write_adapter
from graftkit.checkpoint.write import write_checkpoint
from pathlib import Path
"""
)
#: An adapter for a tiny checkpoint, by the same way, so that what is built at the first use is there.
TINY = """
place = tempfile.TemporaryDirectory()
LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                             num_attention_heads=2)).save_pretrained(place.name + '/tiny')
"""
PEFT_WARM_UP = (
    TINY
    + """
model = AutoModelForCausalLM.from_pretrained(place.name + '/tiny')
adapted = get_peft_model(model, LoraConfig(r=4, target_modules='all-linear', task_type='CAUSAL_LM'))
adapted.save_pretrained(place.name + '/peft')
del model, adapted
"""
)
GRAFTKIT_WARM_UP = (
    TINY
    + """
engine.plan({'version': 1, 'base_model': place.name + '/tiny', 'operations': [{'op': 'add_lora', 'r': 4}], 'output': 'never'})
"""
)
CLOCK = """
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start, busy = time.perf_counter(), time.process_time()
"""
END = """
print(json.dumps({'seconds': time.perf_counter() - start, 'busy': time.process_time() - busy,
                  'peak_mb': (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024}))
"""

#: The start of a child, by whether it is graftkit's way.
START = {False: PEFT + PEFT_WARM_UP + CLOCK, True: GRAFTKIT + GRAFTKIT_WARM_UP + CLOCK}
COLD = {False: PEFT + CLOCK, True: GRAFTKIT + CLOCK}

#: Plan and write a recipe without the pass that compares and without models: what peft's own way is compared with.
WRITE = """
planned = engine.plan(json.loads(sys.argv[1]))
with Staging(Path(planned.recipe.output)) as staging:
    if planned.writes_base:
        write_checkpoint(planned.source, planned.result, staging.path, written=staging.written)
    if planned.adapter is not None:
        write_adapter(planned.adapter, staging.path / 'adapter')
    staging.commit()
"""
APPLY = "engine.apply(json.loads(sys.argv[1]))\n"
MAKE = """
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
adapted = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules='all-linear', task_type='CAUSAL_LM',
                                           init_lora_weights=json.loads(sys.argv[3])))
for name, parameter in adapted.named_parameters():
    if 'lora_B' in name and sys.argv[4] == 'trained':
        torch.nn.init.normal_(parameter, std=0.01)
adapted.save_pretrained(sys.argv[2])
"""
MERGE = """
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
PeftModel.from_pretrained(model, sys.argv[3]).merge_and_unload().save_pretrained(sys.argv[2], max_shard_size='550MB')
"""
PRODUCTS = """
from safetensors.torch import load_file
tensors = load_file(sys.argv[1] + '/adapter_model.safetensors')
start, busy = time.perf_counter(), time.process_time()
for name in tensors:
    if 'lora_A' in name:
        tensors[name.replace('lora_A', 'lora_B')] @ tensors[name]
"""


class Bench:
    """The contenders, each into a fresh directory that is deleted at once; figures are collected by name."""

    def __init__(self, place: Path, start: dict[bool, str]) -> None:
        self.start = start
        self.source, self.target, self.adapter = place / "source", place / "target", place / "adapter"
        self.found: dict[str, list[float]] = {}

    def note(self, name: str, value: float) -> None:
        """Collect one figure."""
        self.found.setdefault(name, []).append(value)
        print(f"{name}: {value:.2f}", flush=True)

    def run(self, name: str, body: str, *arguments: str) -> None:
        """Run a child, note its seconds and its peak, and delete what it wrote."""
        done = child(self.start["graftkit" in name] + body + END, *arguments)
        self.note(f"{name}, s", done["seconds"])
        self.note(f"{name}, processor s", done["busy"])
        self.note(f"{name}, MB above imports", done["peak_mb"])
        os.system(f"rm -rf {self.target}; sync")  # noqa: S605 - a path of our own

    def recipe(self, **operation: object) -> str:
        """A recipe of one operation as JSON."""
        verify = {"outputs": False}
        recipe = {"version": 1, "base_model": str(self.source), "operations": [operation], "output": str(self.target)}
        return json.dumps({**recipe, "verify": verify})

    def merging(self) -> None:
        """merge_adapter, peft's merge, a plain copy, and the matrix products alone."""
        recipe = self.recipe(op="merge_adapter", adapter=str(self.adapter))
        before = os.times()
        self.note("cp -r and sync, s", floor(self.source, self.target))
        after = os.times()
        spent = after.children_user + after.children_system - before.children_user - before.children_system
        self.note("cp -r and sync, processor s", spent)
        os.system(f"rm -rf {self.target}; sync")  # noqa: S605 - a path of our own
        self.run("products alone", PRODUCTS, str(self.adapter))
        self.run("merge: graftkit", WRITE, recipe)
        self.run("merge: graftkit with every byte read back", APPLY, recipe)
        self.run("merge: peft", MERGE, str(self.source), str(self.target), str(self.adapter))

    def making(self, init: bool | str) -> None:
        """add_lora and peft's load, get_peft_model, save."""
        operation = {
            "op": "add_lora",
            "r": 16,
            "lora_alpha": 32,
            "target_modules": "all-linear",
            "init_lora_weights": init,
        }
        name = "zero-B" if init is True else str(init)
        self.run(f"{name}: graftkit", WRITE, self.recipe(**operation))
        self.run(f"{name}: peft", MAKE, str(self.source), str(self.target), json.dumps(init), "fresh")

    def headers(self, place: Path) -> None:
        """The adapter of a 405 B-shaped set of headers, and a plain fsynced write of the same bytes."""
        nbytes = header_set(place)
        self.source = place
        recipe = self.recipe(op="add_lora", r=16, lora_alpha=32, target_modules="all-linear")
        self.note("405 B: base, GB", nbytes / 1e9)
        done = child(self.start[True] + WRITE + END, recipe)
        size = sum(path.stat().st_size for path in (self.target / "adapter").iterdir())
        self.note("405 B: adapter, GB", size / 1e9)
        self.note("405 B: graftkit, s", done["seconds"])
        self.note("405 B: graftkit, processor s", done["busy"])
        self.note("405 B: graftkit, MB above imports", done["peak_mb"])
        os.system(f"rm -rf {self.target}; sync")  # noqa: S605 - a path of our own
        busy = time.process_time()
        self.note("405 B: plain write and fsync of as many bytes, s", plain_write(self.target, size))
        self.note("405 B: plain write and fsync of as many bytes, processor s", time.process_time() - busy)
        self.target.unlink()

    def ratios(self) -> None:
        """The medians' ratios."""
        middle = {name: statistics.median(values) for name, values in self.found.items()}
        for unit in ("s", "processor s"):
            bound = 1.3 * middle[f"cp -r and sync, {unit}"] + middle[f"products alone, {unit}"]
            print(f"merge: {middle[f'merge: graftkit, {unit}'] / bound:.2f} x (1.3 x cp -r + products), in {unit}")
        for name in [name.removesuffix(": peft, s") for name in middle if name.endswith(": peft, s")]:
            speeds = (
                middle[f"{name}: peft, {unit}"] / middle[f"{name}: graftkit, {unit}"] for unit in ("s", "processor s")
            )
            memory = middle[f"{name}: peft, MB above imports"] / middle[f"{name}: graftkit, MB above imports"]
            both = " x, in processor time ".join(f"{speed:.2f}" for speed in speeds)
            print(f"{name}: as fast as peft {both} x; peft's peak is {memory:.1f} x as high")


def header_set(place: Path, layers: int = 126) -> int:
    """Write config, index and shards of Llama 3.1 405 B's shape, or of fewer layers: the headers are real, the data is a hole."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from graftkit.checkpoint.safetensors_header import encode_header

    config = LlamaConfig(
        vocab_size=128_256, hidden_size=16_384, intermediate_size=53_248, num_hidden_layers=layers, num_attention_heads=128,
        num_key_value_heads=8, tie_word_embeddings=False, dtype="bfloat16", architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    place.mkdir()
    config.save_pretrained(place)
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in LlamaForCausalLM(config).state_dict().items()}
    shards: list[list[str]] = [[]]
    for name in shapes:
        if sum(2 * math.prod(shapes[held]) for held in shards[-1]) > 5e9:
            shards.append([])
        shards[-1].append(name)
    weight_map = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        entries = [(name, "BF16", shapes[name], 2 * math.prod(shapes[name])) for name in names]
        header = encode_header(entries, {"format": "pt"})
        with (place / file).open("wb") as out:
            out.write(header)
            out.truncate(len(header) + sum(nbytes for *_, nbytes in entries))
        weight_map |= dict.fromkeys(names, file)
    total = sum(2 * math.prod(shape) for shape in shapes.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (place / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


def plain_write(target: Path, nbytes: int) -> float:
    """Seconds to write and fsync so many random bytes, the bytes being made beforehand."""
    block = os.urandom(32 << 20)
    start = time.perf_counter()
    with target.open("wb") as out:
        for _ in range(nbytes // len(block)):
            out.write(block)
        out.flush()
        os.fsync(out.fileno())
    return time.perf_counter() - start


def main() -> None:
    """Build, run the contenders in turn, print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=16, help="16 make 1.5 B parameters")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--inits", nargs="+", default=[], help="also these, once: pissa_niter_4; pissa takes minutes")
    parser.add_argument("--headers", action="store_true", help="also the adapter of a 405 B-shaped set of headers")
    parser.add_argument("--cold", action="store_true", help="count what a library builds at its first use as work")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="graftkit-bench-") as folder:
        bench = Bench(Path(folder), COLD if options.cold else START)
        build_apart(bench.source, options.layers)
        child(bench.start[False] + MAKE + END, str(bench.source), str(bench.adapter), "true", "trained")
        for _ in range(options.rounds):
            bench.merging()
            bench.making(init=True)
        for init in options.inits:
            bench.making(init)
        bench.ratios()
        if options.headers:
            bench.headers(Path(folder) / "headers")


if __name__ == "__main__":
    main()
