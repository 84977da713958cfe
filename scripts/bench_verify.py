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

from graftkit.architecture.correspondence import IDENTITY
from graftkit.running.float64 import float64
from graftkit.running.forward import can_cache, load, run, undisturbed
from graftkit.running.probes import Probe, split
from graftkit.running.reference import plan_probes
from graftkit.verification.lens.lens import OPERATIONS, compare_lens
from graftkit.verification.lens.setting import prepare
from graftkit.verification.outputs import compare_outputs
from graftkit.verification.subject import Subject

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
    """Print each part, and its ratio to two loads and two forwards of the probes that it runs."""
    loaded = load(model)
    tokens = max(int(OPERATIONS / (2 * loaded.model.num_parameters())), 64)
    setting = prepare(model, loaded, loaded, IDENTITY, 0, tokens, backbone=False)
    probes, budget, _, _ = plan_probes(loaded.model, model, None, 0, None)
    cached = can_cache(loaded.model, setting.extra_inputs) is None
    parts = [part for probe in probes if cached or not probe.steps for part in split(probe, budget.forward)]

    def forward(parts: list[Probe]) -> None:
        for part in parts:
            run(loaded.model, part, setting.extra_inputs)

    def wide() -> None:
        with float64(loaded.model):
            forward(setting.parts)

    def report(what: str, time_: float, base: float) -> None:
        print(f"{what:22} {time_:.3f} s  {time_ / base:.2f} times {base:.3f} s for two loads and two forwards")

    load_time = seconds(lambda: load(model), repeat)
    plain = seconds(lambda: compare_outputs(Subject(model, model)), repeat)
    report("plain verification", plain, 2 * load_time + 2 * seconds(lambda: forward(parts), repeat))
    native, float64_time = seconds(lambda: forward(setting.parts), repeat), seconds(wide, repeat)
    lens = seconds(lambda: compare_lens(Subject(model, model)), repeat)
    report("float64 and noise", lens, 2 * load_time + 2 * native)
    print(
        f"load {load_time:.3f} s; lens: {sum(part.tokens for part in setting.parts):,} tokens, float64 forward"
        f" {float64_time / native:.1f} native ones"
    )


if __name__ == "__main__":
    main()
