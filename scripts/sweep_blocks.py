"""Insert, copy, reorder and drop blocks of every class that transformers can build small, and check each result without graftkit's help.

    python scripts/sweep_blocks.py --jobs 2 --out docs/sweep_blocks.md
    python scripts/sweep_blocks.py --match '^Llama'

Each class is built with random weights. Each result is reloaded with plain transformers: with new blocks that are the identity its
outputs must be the source's bit for bit, and otherwise each of its blocks must be the one that was named. Exits 1 when a result
is wrong.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sweep_blocks_check import Wrong, check_blocks, check_outputs
from sweep_pool import sweep
from sweep_vocab_check import LIVE, ROWS, one_line

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="critical", TOKENIZERS_PARALLELISM="false")
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

KINDS = ("causal_lm", "masked_lm", "seq2seq_lm")

#: What is tried, by the name of its column; ``last`` is the number of the last block.
OPERATIONS = {
    "identity": lambda last: {"op": "insert_blocks", "after": sorted({0, last})},
    "copy": lambda last: {"op": "insert_blocks", "after": [last], "init": "copy"},
    "reversed": lambda last: {"op": "arrange_blocks", "blocks": list(range(last, -1, -1))},
    "drop last": lambda last: {"op": "drop_blocks", "blocks": [last]},
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one class: for each operation ``works``, ``refused``, ``wrong``; and the reasons of those that do not work."""

    class_name: str
    found: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    not_built: str = ""


def main() -> int:
    """Sweep, print, write the table."""
    arguments = _arguments()
    from support.tiny import classes

    kinds = [arguments.kind] if arguments.kind else list(KINDS)
    names = list(dict.fromkeys(n for kind in kinds for n in classes(kind) if re.search(arguments.match, n)))
    started, verdicts = time.monotonic(), []
    command = shlex.join(["python", "scripts/sweep_blocks.py", *sys.argv[1:]])
    for name, found, why, seconds in sweep(names, arguments.jobs, arguments.limit, judge):
        verdict = found or Verdict(name, dict.fromkeys(OPERATIONS, "wrong"), dict.fromkeys(OPERATIONS, why))
        verdicts.append(verdict)
        print(f"{name:46} {verdict.found or verdict.not_built} ({seconds:.1f} s)", flush=True)
        if arguments.out:  # as it goes, so that what was found is there if it is stopped
            arguments.out.write_text(markdown(verdicts, command), encoding="utf-8")
    counts = {column: Counter(v.found[column] for v in verdicts if v.found) for column in OPERATIONS}
    print(
        f"{len(names)} classes in {time.monotonic() - started:.0f} s:", {c: dict(found) for c, found in counts.items()}
    )
    return 1 if any(found["wrong"] for found in counts.values()) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=KINDS, help="only this kind of classes")
    parser.add_argument("--match", default="", help="only classes whose name this regular expression finds")
    parser.add_argument("--jobs", type=int, default=2, help="worker processes (default 2)")
    parser.add_argument("--limit", type=float, default=180, help="seconds that one class may take (default 180)")
    parser.add_argument("--out", type=Path, help="write the table to this Markdown file")
    return parser.parse_args()


def judge(name: str, place: Path) -> Verdict:
    """Try every operation on a small checkpoint of one class."""
    from support.tiny import build

    source = place / "source"
    try:
        build(name, source, vocab_size=ROWS, tokenizer_size=LIVE)
    except Exception as error:  # noqa: BLE001 - a class that cannot be built may fail in any way
        return Verdict(name, not_built=one_line(error))
    found, reasons = {}, {}
    for column in OPERATIONS:
        found[column], reason = try_operation(source, place / column, column)
        if reason:
            reasons[column] = reason
    return Verdict(name, found, reasons)


def try_operation(source: Path, output: Path, column: str) -> tuple[str, str]:
    """``(verdict, reason)`` of one operation on one checkpoint."""
    import graftkit
    from graftkit.checkpoint.checkpoint import Checkpoint
    from graftkit.errors import InputRejected, RecipeError, VerificationFailed
    from graftkit.operations.blocks.stack import find_stack

    recipe: dict[str, Any] = {"version": 1, "base_model": str(source), "output": str(output)}
    try:
        layers = find_stack(Checkpoint.open(str(source))).layers
        recipe["operations"] = [OPERATIONS[column](layers.count - 1)]
        try:
            report = graftkit.apply(recipe)
        except VerificationFailed as error:
            if "needs other inputs" not in str(error):
                raise
            report = graftkit.apply({**recipe, "verify": {"outputs": False}})
        (figures,) = report.figures.values()
        check_blocks(
            source, output, layers.path, figures["blocks"], figures["new_blocks"] if column == "identity" else ()
        )
        return ("works" if column != "identity" or check_outputs(source, output) else "works, outputs not run"), ""
    except (InputRejected, RecipeError) as error:
        return "refused", one_line(error).replace(str(source), "source")
    except Exception as error:  # noqa: BLE001 - anything else is what the sweep looks for
        kind = "" if isinstance(error, Wrong | VerificationFailed) else f"{type(error).__name__}: "
        return "wrong", kind + one_line(error)


def markdown(verdicts: list[Verdict], command: str) -> str:
    """The table as a page: how to repeat it, counts, what does not simply work with its reason, then every class."""
    import torch
    import transformers

    words = ("works", "works, outputs not run", "refused", "wrong")
    built = [verdict for verdict in verdicts if verdict.found]
    lines = [
        "# Blocks, class by class", "",
        f"Measured with transformers {transformers.__version__} and torch {torch.__version__}; to repeat it: `{command}`.", "",
        "Each class is built small with random weights. *identity*: `insert_blocks` behind the first and the last block, whose",
        "outputs must be the source's bit for bit; *copy*: the last block twice; *reversed*: `arrange_blocks`; *drop last*: `drop_blocks`.",
        "graftkit verifies each result; then it is reloaded with plain transformers, and code that is not graftkit's compares outputs, and",
        "each block with the one that was named.", "",
        f"{len(verdicts)} classes, {len(verdicts) - len(built)} not built.", "",
        "| operation | " + " | ".join(words) + " |", "|---|" + "---:|" * len(words),
    ]  # fmt: skip
    for column in OPERATIONS:
        counts = Counter(verdict.found[column] for verdict in built)
        lines.append(f"| {column} | " + " | ".join(str(counts[word]) for word in words) + " |")
    lines += ["", "## Not all of it works", "", "| class | operations | reason |", "|---|---|---|"]
    for verdict in verdicts:
        reasons: dict[str, list[str]] = {}
        for column, reason in verdict.reasons.items():
            reasons.setdefault(f"{verdict.found[column]}: {reason}", []).append(column)
        reasons |= {f"not built: {verdict.not_built}": ["all"]} if verdict.not_built else {}
        lines += [f"| {verdict.class_name} | {', '.join(c)} | {_cell(reason)} |" for reason, c in reasons.items()]
    lines += [
        "",
        "## Every class",
        "",
        "| class | " + " | ".join(OPERATIONS) + " |",
        "|---|" + "---|" * len(OPERATIONS),
    ]
    lines += [f"| {v.class_name} | " + " | ".join(v.found[c] for c in OPERATIONS) + " |" for v in built]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    raise SystemExit(main())
