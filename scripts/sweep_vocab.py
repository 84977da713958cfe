"""Extend the vocabulary of every class that transformers can build small, and check each result without graftkit's help.

    python scripts/sweep_vocab.py --jobs 2 --out docs/sweep_vocab.md
    python scripts/sweep_vocab.py --kind vision_language --match '^Llava'

Each class is built with random weights, twice given three special tokens and a plain one (once where the table must grow,
once with rows to spare and a padded size), reloaded with plain transformers, and compared with its source. Exits 1 when
a result is wrong.
"""

from __future__ import annotations

import argparse
import functools
import os
import re
import shlex
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from sweep_pool import sweep
from sweep_vocab_check import LIVE, PLAIN, ROWS, SPECIAL, Wrong, check, one_line
from sweep_vocab_page import Verdict, markdown

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="critical", TOKENIZERS_PARALLELISM="false")
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

KINDS = ("causal_lm", "masked_lm", "seq2seq_lm", "vision_language")


def main() -> int:
    """Sweep, print, write the table."""
    arguments = _arguments()
    from support.tiny import classes

    kinds = [arguments.kind] if arguments.kind else list(KINDS)
    chosen = {kind: [n for n in classes(kind) if re.search(arguments.match, n)] for kind in kinds}
    names = list(dict.fromkeys(name for listed in chosen.values() for name in listed))
    started = time.monotonic()
    verdicts = {}
    judge = functools.partial(_judge, build_only=arguments.build_only)
    for name, found, why, seconds in sweep(names, arguments.jobs, arguments.limit, judge):
        verdict = verdicts[name] = replace(found or Verdict(name, "wrong", why), seconds=seconds)
        if verdict.verdict != "works" or arguments.verbose:
            print(f"{verdict.class_name:46} {verdict.verdict}: {verdict.reason} ({verdict.seconds:.1f} s)", flush=True)
    counts = Counter(verdict.verdict for verdict in verdicts.values())
    print(f"{len(names)} classes in {time.monotonic() - started:.0f} s:", dict(counts))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(markdown(chosen, verdicts, _command()), encoding="utf-8")
    return 1 if counts["wrong"] else 0


def _command() -> str:
    return shlex.join(["python", "scripts/sweep_vocab.py", *sys.argv[1:]])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=KINDS, help="only this kind of classes")
    parser.add_argument("--match", default="", help="only classes whose name this regular expression finds")
    parser.add_argument("--jobs", type=int, default=2, help="worker processes (default 2)")
    parser.add_argument("--limit", type=float, default=90, help="seconds that one class may take (default 90)")
    parser.add_argument("--out", type=Path, help="write the table to this Markdown file")
    parser.add_argument("--build-only", action="store_true", help="only build the checkpoints")
    parser.add_argument("--verbose", action="store_true", help="print the classes that work, too")
    return parser.parse_args()


def _judge(name: str, place: Path, *, build_only: bool) -> Verdict:
    """The verdict over three variants: the table grows, spare rows are taken, and every sub-config has a size of its own."""
    from support.families import write_tokenizer
    from support.tiny import build

    source = place / "source"
    try:
        built = build(name, source, vocab_size=ROWS, tokenizer_size=LIVE)
    except Exception as error:  # noqa: BLE001 - a class that cannot be built may fail in any way
        return Verdict(name, "not built", one_line(error))
    if build_only:
        return Verdict(name, "works", built.forward_error or "")
    found = []
    for tokens, multiple in ((ROWS, None), (LIVE, 8)):
        write_tokenizer(source, tokens)
        found.append(extend(name, source, place / f"out-{tokens}", tokens, multiple))
        if found[-1].verdict in ("refused", "wrong"):
            return found[-1]
    apart = _apart(name, source, place / "apart")
    if apart and apart.verdict == "wrong":
        return apart
    worst = next((item for item in found if item.verdict != "works"), found[0])
    figures = [item.moved for item in found if item.moved is not None]
    promise = max((item.promise for item in found), key=len)
    return replace(worst, moved=max(figures, default=None), promise=promise, apart=apart.verdict if apart else "")


def _apart(name: str, together: Path, place: Path) -> Verdict | None:
    """The same with a vocabulary size of its own for each sub-config; None where that changes nothing or cannot be built."""
    from support.tiny import build

    source = place / "source"
    try:
        build(name, source, vocab_size=ROWS, tokenizer_size=ROWS, distinct=True)
    except Exception:  # noqa: BLE001 - many classes want two sub-configs to agree
        return None
    if (source / "config.json").read_text() == (together / "config.json").read_text():
        return None
    found = extend(name, source, place / "out", ROWS, None)
    return replace(found, reason=f"with a size for each sub-config: {found.reason}")


def extend(name: str, source: Path, output: Path, tokens: int, multiple: int | None) -> Verdict:
    """Run graftkit on one checkpoint, and judge what it wrote."""
    import graftkit
    from graftkit.errors import InputRejected, RecipeError, VerificationFailed

    operation: dict[str, Any] = {"op": "extend_vocab", "special_tokens": list(SPECIAL), "tokens": [PLAIN]}
    if multiple:
        operation["pad_to_multiple_of"] = multiple
    recipe: dict[str, Any] = {
        "version": 1, "base_model": str(source), "operations": [operation], "output": str(output),
    }  # fmt: skip
    apply: Any = graftkit.apply
    verdict, reason = "works", ""
    try:
        try:
            report = apply(recipe)
        except VerificationFailed as error:
            if "needs other inputs" not in str(error):
                raise
            verdict, reason = "works, outputs not run", one_line(error).split(";")[0]
            report = apply({**recipe, "verify": {"outputs": False}})
        return Verdict(name, verdict, reason, check(source, output, tokens, multiple), _measured(report.outputs))
    except (InputRejected, RecipeError) as error:
        return Verdict(name, "refused", one_line(error).replace(str(source), "source"))
    except Exception as error:  # noqa: BLE001 - anything else is what the sweep looks for
        kind = "" if isinstance(error, Wrong | VerificationFailed) else f"{type(error).__name__}: "
        return Verdict(name, "wrong", kind + one_line(error))


def _measured(outputs: Any) -> str:
    """What graftkit's own report says of the old outputs."""
    if outputs is None:
        return "not run"
    moved = [item for item in outputs.comparisons if not item.bitwise]
    share = f"{len(moved)} of {len(outputs.comparisons)} outputs"
    text = f"{share} within {max(item.largest for item in moved):.1e}, the others bitwise" if moved else "bitwise"
    return text + (f"; made: {', '.join(outputs.inputs)}" if outputs.inputs else "")


if __name__ == "__main__":
    raise SystemExit(main())
