"""Flip one unit in the last place at random places of a checkpoint and print what sees it: bytes, the lens, the own dtype.

    scripts/bench_lens.py [MODEL] [--places 240] [--dtype bfloat16] [--seed 0] [--json]

For each place the checkpoint's bytes are compared, the model is run in float64 module by module, and in its own dtype, where a
difference counts when it is larger than the noise of runs that change nothing. Places that do not reach the outputs are listed by reason.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import graftkit
from graftkit.architecture.correspondence import IDENTITY
from graftkit.running.forward import load, run, undisturbed
from graftkit.running.nulls import null_runs
from graftkit.running.probes import Probe
from graftkit.verification.lens.reach import BITS, Reach, random_places
from graftkit.verification.lens.setting import prepare

DEMO = Path(__file__).parent.parent / "recipes" / "models" / "demo-lm"

#: Tokens of the probes: every id of the demo model once, and texts.
TOKENS = 2_100


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", type=Path, default=DEMO)
    parser.add_argument("--places", type=int, default=240)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place, undisturbed():
        source = converted(options.model, Path(place) / "source", options.dtype)
        found = measure(source, options.places, options.seed, options.tokens)
    print(json.dumps(found, indent=2) if options.json else table(found))


def converted(model: Path, target: Path, dtype: str) -> Path:
    """Return a copy of ``model`` with every floating tensor in ``dtype``."""
    shutil.copytree(model, target)
    tensors = load_file(target / "model.safetensors")
    wanted = {name: t.to(getattr(torch, dtype)) if t.is_floating_point() else t for name, t in tensors.items()}
    save_file(wanted, target / "model.safetensors", {"format": "pt"})
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, "dtype": dtype}))
    return target


def measure(source: Path, count: int, seed: int, tokens: int) -> dict:
    """Try ``count`` places; everything that was found, as JSON values."""
    start = time.perf_counter()
    loaded = load(source)
    setting = prepare(source, loaded, loaded, IDENTITY, seed, tokens, backbone=False)
    model, parts, extra_inputs = loaded.model, setting.parts, setting.extra_inputs
    reach = Reach(model, parts, extra_inputs, setting.floor.threshold)
    native = [run(model, part, extra_inputs) for part in parts]
    noise = max(
        apart(part, old, null)
        for part, old in zip(parts, native, strict=True)
        for name, null in null_runs(model, part, extra_inputs)
    )
    flips, bytes_seen, bits_seen, beyond_noise = [], 0, 0, 0
    for name, place in random_places(model, count, torch.Generator().manual_seed(seed)):
        flips.append(reach.flip(name, place))
        bytes_seen += seen_by_bytes(source, name, place)
        gap = native_gap(model, name, place, parts, extra_inputs, native)
        bits_seen += gap > 0
        beyond_noise += gap > noise
    seen = [flip for flip in flips if not flip.reason]
    return {
        "model": source.name, "dtype": loaded.dtype, "parameters": model.num_parameters(), "places": count,
        "tensors": len({flip.name for flip in flips}), "tokens": sum(part.tokens for part in parts),
        "floor": setting.floor.height, "threshold": setting.floor.threshold,
        "seen_by_bytes": bytes_seen, "seen_in_outputs": len(seen), "smallest_in_outputs": min((f.outputs for f in seen), default=None),
        "largest_in_outputs": max((f.outputs for f in seen), default=None),
        "seen_in_some_module": sum(flip.inside > setting.floor.threshold for flip in flips),
        "smallest_in_some_module": min((f.inside for f in flips if f.inside > setting.floor.threshold), default=None),
        "native_any_bit": bits_seen, "native_beyond_noise": beyond_noise, "native_noise": noise,
        "not_in_outputs": Counter(flip.reason for flip in flips if flip.reason),
        "places_not_in_outputs": [[flip.name, *flip.place, flip.outputs, flip.reason] for flip in flips if flip.reason],
        "seconds": round(time.perf_counter() - start, 1),
    }  # fmt: skip


def apart(part: Probe, old: dict, new: dict) -> float:
    """The largest difference of any logit where there is no padding."""
    largest = 0.0
    for name, value in old.items():
        if "logits" in name and name in new:
            gap = (value.double() - new[name].double()).abs()
            largest = max(largest, float((gap[part.mask.bool()] if gap.shape[:2] == part.mask.shape else gap).max()))
    return largest


def native_gap(
    model: Any, name: str, place: tuple[int, ...], parts: list[Probe], extra_inputs: frozenset, native: list
) -> float:
    """The largest difference of any logit that a flip makes in the checkpoint's own dtype."""
    parameter = model.get_parameter(name)
    bits = parameter.data.view(BITS[parameter.element_size()])
    bits[place] += 1
    gap = max(apart(part, old, run(model, part, extra_inputs)) for part, old in zip(parts, native, strict=True))
    bits[place] -= 1
    return gap


def seen_by_bytes(source: Path, name: str, place: tuple[int, ...]) -> bool:
    """Whether `graftkit diff` names exactly the tensor that was changed in a copy of the file."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "flipped"
        shutil.copytree(source, target)
        tensors = load_file(target / "model.safetensors")
        tensors[name].view(BITS[tensors[name].element_size()])[place] += 1
        save_file(tensors, target / "model.safetensors", {"format": "pt"})
        return [(t.name, t.rows) for t in graftkit.diff(str(source), str(target)).tensors] == [(name, 1)]


def table(found: dict) -> str:
    """The figures as lines of text."""
    reasons = [f"  {count:4d}  {reason}" for reason, count in found["not_in_outputs"].most_common()]
    count = found["places"]
    return "\n".join((
        f"{found['dtype']}, {found['parameters']:,} parameters: {count} places in {found['tensors']} tensors, {found['tokens']:,} tokens",
        f"floor {found['floor']:.1e}, threshold {found['threshold']:.1e} of the RMS",
        f"bytes                  {found['seen_by_bytes']} of {count}",
        f"lens, outputs          {found['seen_in_outputs']} of {count}, {found['smallest_in_outputs']:.2g} to {found['largest_in_outputs']:.2g}",
        f"lens, any module       {found['seen_in_some_module']} of {count}, from {found['smallest_in_some_module']:.2g}",
        f"own dtype, any bit     {found['native_any_bit']} of {count}",
        f"own dtype, above noise {found['native_beyond_noise']} of {count} (noise {found['native_noise']:.2g})",
        f"not in the outputs     {sum(found['not_in_outputs'].values())}", *reasons, f"{found['seconds']} s",
    ))  # fmt: skip


if __name__ == "__main__":
    main()
