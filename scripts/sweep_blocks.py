"""Insert, copy, reorder and drop blocks of every class that transformers can build small, and check each result without graftkit's help.

    python scripts/sweep_blocks.py --jobs 2 --out docs/sweep_blocks.md
    python scripts/sweep_blocks.py --match '^Llama'

Each class is built with random weights. Each result is reloaded with plain transformers: with new blocks that are the identity its
outputs must be the source's bit for bit, and otherwise each of its blocks must be the one that was named. Exits 1 when a result
is wrong.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from sweep_blocks_check import Wrong, check_blocks, check_outputs
from sweep_table import Verdict, page, run_sweep
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


def main() -> int:
    """Sweep, print, write the table."""
    return run_sweep(OPERATIONS, KINDS, judge, markdown, __doc__ or "")


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
            if "verify: {outputs: false}" not in str(
                error
            ):  # it says so where nothing is known that the class can be fed
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
    """The table as a page."""
    intro = (
        "Each class is built small with random weights. *identity*: `insert_blocks` behind the first and the last block, whose",
        "outputs must be the source's bit for bit; *copy*: the last block twice; *reversed*: `arrange_blocks`; *drop last*: `drop_blocks`.",
        "graftkit verifies each result; then it is reloaded with plain transformers, and code that is not graftkit's compares outputs, and",
        "each block with the one that was named.",
    )  # fmt: skip
    words = ("works", "works, outputs not run", "refused", "wrong")
    return page("Blocks, class by class", intro, tuple(OPERATIONS), words, verdicts, command)


if __name__ == "__main__":
    raise SystemExit(main())
