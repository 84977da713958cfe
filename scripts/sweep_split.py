"""Run every class whole and split over ranks, and compare all that it gives bit by bit.

    scripts/sweep_split.py [--ranks 3] [--kinds causal_lm ...] [--dtype bfloat16]

The owners of blocks are in this process, and each message goes through bytes as between two. Printed are the classes whose outputs differ, those
that rank 0 runs alone with the reason, and how many of each there are.
"""

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support.direct_line import outputs_alone_and_split  # noqa: E402 - the path comes first
from support.tiny import KINDS, build, classes  # noqa: E402

from graftkit.errors import GraftkitError  # noqa: E402


def main() -> None:
    """Try every class and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=3)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    counts: Counter[str] = Counter()
    for name in dict.fromkeys(name for kind in options.kinds for name in classes(kind)):
        with tempfile.TemporaryDirectory() as place:
            result = tried(name, Path(place) / "model", options.ranks, options.dtype)
        counts[result.partition(":")[0]] += 1
        if not result.startswith(("equal", "not built")):
            print(f"{name}: {result}", flush=True)
    print(", ".join(f"{count} {what}" for what, count in counts.most_common()))


def tried(name: str, place: Path, ranks: int, dtype: str) -> str:
    """What came of one class, in a word before a colon."""
    try:
        if build(name, place, dtype=dtype).forward_error is not None:
            return "not built: no forward"
    except Exception as error:  # noqa: BLE001 - whatever a class that is made small runs into
        return f"not built: {error}"
    try:
        alone, split, crew = outputs_alone_and_split(place, ranks)
    except GraftkitError as error:
        return f"not run: {error}"
    if alone != split:
        names = [probe for probe in alone if alone[probe] != split.get(probe)]
        return f"DIFFERENT: {names or sorted(split.keys() - alone.keys())}"
    reason = crew.figures()["run_by_rank_0_alone"]
    return f"by rank 0 alone: {reason}" if reason else "equal"


if __name__ == "__main__":
    main()
