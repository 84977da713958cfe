"""Time verification against the least that any comparison must do: two loads and two forwards of the same probes.

    scripts/bench_verify.py [MODEL] [--repeat 5]

Figures are CPU seconds of this process, which other processes disturb least, and ratios within one run; imports are apart.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from graftkit.verification.forward import load, run, undisturbed
from graftkit.verification.lens.float64 import float64
from graftkit.verification.lens.lens import OPERATIONS, compare_lens
from graftkit.verification.lens.setting import prepare
from graftkit.verification.outputs import compare_outputs

DEMO = Path(__file__).parent.parent / "recipes" / "models" / "demo-lm"


def seconds(work: Callable[[], object], repeat: int) -> float:
    """The median CPU seconds of ``work``."""
    found = []
    for _ in range(repeat):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return statistics.median(found)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", type=Path, default=DEMO)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    with undisturbed():
        measure(options.model, options.repeat)


def measure(model: Path, repeat: int) -> None:
    """Print each part, and its ratio to the baseline on the same probes."""
    loaded = load(model)
    tokens = max(int(OPERATIONS / (2 * loaded.model.num_parameters())), 64)
    setting = prepare(model, loaded, loaded, None, 0, tokens)

    def forward() -> None:
        for part in setting.parts:
            run(loaded.model, part, setting.made)

    def wide() -> None:
        with float64(loaded.model):
            forward()

    load_time, native, float64_time = (seconds(work, repeat) for work in (lambda: load(model), forward, wide))
    base = 2 * load_time + 2 * native
    plain = seconds(lambda: compare_outputs(model, model, vocabulary=None, kl=None), repeat)
    lens = seconds(lambda: compare_lens(model, model, vocabulary=None), repeat)
    print(f"{sum(part.tokens for part in setting.parts):,} tokens; load {load_time:.3f} s, forward {native:.3f} s")
    print(f"float64 forward        {float64_time:.3f} s  {float64_time / native:.1f} native ones")
    print(f"2 loads and 2 forwards {base:.3f} s")
    print(f"plain verification     {plain:.3f} s  {plain / base:.2f} of that")
    print(f"float64 and noise      {lens:.3f} s  {lens / base:.2f} of that")


if __name__ == "__main__":
    main()
