"""Make a mixture of experts of every dense class, with every sparse class that has all the rest of its tensors, and check each result.

    python scripts/sweep_upcycle.py --jobs 2 --done upcycle.jsonl --out docs/sweep_upcycle.md   # goes on where it was stopped
    python scripts/sweep_upcycle.py --match '^Llama'

Each dense class is built small with random weights. A sparse class makes a pair with it where both are for the same task and the sparse
one, of the dense one's config, has each tensor of the dense class in its shape, but for matrices of the feed-forward layer. Each result
is reloaded with plain transformers, and its outputs must be the source's. Exits 1 when a result is wrong.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sweep_done import add_done, note_done, read_done
from sweep_pool import sweep
from sweep_vocab_check import LIVE, ROWS, one_line
from sweep_widen_check import Wrong, compare_outputs

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="critical", TOKENIZERS_PARALLELISM="false")
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

#: Kinds of classes among which sparse ones are.
KINDS = ("causal_lm", "masked_lm", "seq2seq_lm")

#: Experts, and those that a token is sent to.
EXPERTS, CHOSEN = 4, 2

WORDS = ("works", "works, bitwise", "works, outputs not run", "refused", "wrong")


@dataclass(frozen=True, slots=True)
class Pairs:
    """What became of one dense class with each sparse class that has its rest: a word, and the reason where it does not work."""

    dense: str
    found: dict[str, tuple[str, str]] = field(default_factory=dict)
    why_none: str = ""


def judge(name: str, place: Path) -> Pairs:
    """Try every sparse class with a small checkpoint of one dense class."""
    from support.tiny import build

    from graftkit.architecture.skeleton import build_skeleton
    from graftkit.checkpoint.checkpoint import Checkpoint
    from graftkit.operations.experts.sparse_config import candidates, is_sparse

    try:
        build(name, place / "source", vocab_size=ROWS, tokenizer_size=LIVE)
        config = Checkpoint.open(str(place / "source")).config
        skeleton = build_skeleton(config)
    except Exception as error:  # noqa: BLE001 - a class that cannot be built may fail in any way
        return Pairs(name, why_none=f"not built: {one_line(error)}")
    if is_sparse(skeleton):
        return Pairs(name, why_none="sparse")
    fitting = [sparse for sparse in candidates(config, name) if has_rest(config, skeleton, sparse)]
    found = {sparse: try_pair(place / "source", place / "out", sparse) for sparse in fitting}
    return Pairs(name, found, "" if found else "no pair")


def has_rest(config: Any, dense: Any, sparse: str) -> bool:
    """Whether a sparse class has all of a dense one but its feed-forward layer."""
    from graftkit.operations.experts.sparse_config import check_that_rest_is_there

    try:
        check_that_rest_is_there(config, dense, sparse)
    except Exception:  # noqa: BLE001 - a config class may refuse what another one's says in any way
        return False
    return True


def try_pair(source: Path, output: Path, sparse: str) -> tuple[str, str]:
    """``(verdict, reason)`` of one sparse class."""
    import graftkit
    from graftkit.errors import InputRejected, RecipeError, VerificationFailed

    shutil.rmtree(output, ignore_errors=True)
    operation = {
        "op": "upcycle_moe",
        "num_experts": EXPERTS,
        "num_experts_per_tok": CHOSEN,
        "architecture": sparse,
    }
    try:
        graftkit.apply({
            "version": 1, "base_model": str(source), "output": str(output), "operations": [operation], "verify": {"outputs": False},
        })  # fmt: skip
        return compare_outputs(source, output), ""
    except (InputRejected, RecipeError) as error:
        return "refused", one_line(error).replace(str(source), "source")
    except Exception as error:  # noqa: BLE001 - anything else is what the sweep looks for
        kind = "" if isinstance(error, Wrong | VerificationFailed) else f"{type(error).__name__}: "
        return "wrong", kind + one_line(error)


def markdown(found: list[Pairs], names: int, command: str) -> str:
    """The pairs of the classes so far, of so many, as a page."""
    import torch
    import transformers

    counts = Counter(word for pairs in found for word, _ in pairs.found.values())
    dense = [pairs for pairs in found if pairs.why_none != "sparse" and not pairs.why_none.startswith("not built")]
    lines = [
        "# Upcycling, pair by pair", "",
        f"Measured with transformers {transformers.__version__} and torch {torch.__version__}; to repeat it: `{command}`.", "",
        *([f"Run so far over {len(found)} of {names} classes."] if len(found) < names else []), "",
        "A pair is a dense class and a sparse one for the same task that, of the dense one's config, has each of its tensors in its shape",
        "but for matrices of the feed-forward layer: so the attention is the same as far as its tensors tell. The dense class is built small",
        f"with random weights and made a mixture of {EXPERTS} experts, {CHOSEN} of them for each token; the result is reloaded with plain",
        "transformers, and code that is not graftkit's compares logits: equal, or within 2e-6 of the largest of them.", "",
        f"{len(found)} classes: {sum(p.why_none == 'sparse' for p in found)} are sparse, {len(dense)} dense, of which"
        f" {sum(bool(p.found) for p in dense)} have a sparse class with their rest.", "",
        "| " + " | ".join(WORDS) + " |", "|" + "---:|" * len(WORDS), "| " + " | ".join(str(counts[word]) for word in WORDS) + " |", "",
        "## Every pair", "", "| dense | sparse | verdict | reason |", "|---|---|---|---|",
    ]  # fmt: skip
    for pairs in found:
        for sparse, (word, why) in pairs.found.items():
            reason = why.partition(" does: ")[2] or why
            lines.append(f"| {pairs.dense} | {sparse} | {word} | {reason.replace('|', chr(92) + '|')} |")
    lines += ["", "## Dense classes without a pair", ""]
    lines.append(", ".join(pairs.dense for pairs in dense if not pairs.found) or "None.")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Sweep, print, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--match", default="", help="only dense classes whose name this regular expression finds")
    parser.add_argument("--jobs", type=int, default=2, help="worker processes (default 2)")
    parser.add_argument("--limit", type=float, default=600, help="seconds that one class may take (default 600)")
    parser.add_argument("--out", type=Path, help="write the page to this Markdown file")
    add_done(parser)
    arguments = parser.parse_args()
    from support.tiny import classes

    names = list(dict.fromkeys(n for kind in KINDS for n in classes(kind) if re.search(arguments.match, n)))
    chosen = ["--match", arguments.match] if arguments.match else []
    command, started = shlex.join(["python", "scripts/sweep_upcycle.py", *chosen]), time.monotonic()
    of_class = {pairs.dense: pairs for pairs in read_done(arguments.done, Pairs)}

    def write() -> list[Pairs]:
        """What was found so far in the order of the classes, and the page of it."""
        found = [of_class[name] for name in names if name in of_class]
        if arguments.out:
            arguments.out.write_text(markdown(found, len(names), command), encoding="utf-8")
        return found

    left = [name for name in names if name not in of_class]
    for name, tried, why, seconds in sweep(left, arguments.jobs, arguments.limit, judge):
        pairs = tried or Pairs(name, {"every sparse class": ("wrong", why)})
        of_class[name] = pairs
        note_done(arguments.done, pairs)
        print(f"{name:46} {pairs.found or pairs.why_none} ({seconds:.1f} s)", flush=True)
        write()
    found = write()
    counts = Counter(word for pairs in found for word, _ in pairs.found.values())
    print(f"{len(names)} classes in {time.monotonic() - started:.0f} s:", dict(counts))
    return 1 if counts["wrong"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
