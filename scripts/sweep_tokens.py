"""Rename tokens, make rows anew and trim on every class that transformers can build small, and check each without graftkit's help.

    python scripts/sweep_tokens.py --jobs 2 --done sweep.jsonl --out docs/sweep_tokens.md   # goes on where it was stopped
    python scripts/sweep_tokens.py --kind vision_language --match '^Llava'

Each class is built with random weights. `rename_tokens` gives a token another name, once with its row kept and once with the
mean; `reinit_rows` makes the rows of four ids anew; `trim_vocab` drops most pieces. Each result is verified by graftkit, then reloaded with plain transformers
and compared with its source: other rows and outputs to the last bit. Exits 1 when a result is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from sweep_pool import sweep
from sweep_trim_check import PIECES, check_trimmed
from sweep_vocab_check import LIVE, ROWS, Wrong, input_table, load_plain, one_line
from sweep_vocab_page import VERDICTS, Verdict

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="critical", TOKENIZERS_PARALLELISM="false")
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

KINDS = ("causal_lm", "masked_lm", "seq2seq_lm", "vision_language")

#: What graftkit says of a class whose inputs it cannot make.
CANNOT_RUN = ("needs other inputs", "which cannot be made")

OLD, NEW, INDEX = "<unk>", "<|tool_call|>", 3
CHOSEN = (INDEX, 40, 41, 42)
KEPT = {"op": "rename_tokens", "names": {OLD: NEW}}
TRIM = {"op": "trim_vocab", "keep": {"tokens": list(PIECES)}}
VARIANTS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "renamed": (KEPT, ()),
    "renamed, with a new row": ({**KEPT, "init": "mean"}, (INDEX,)),
    "new rows": ({"op": "reinit_rows", "tokens": [OLD, {"first": 40, "last": 42}]}, CHOSEN),
    "trimmed": (TRIM, ()),
}


def main() -> int:
    """Sweep, print, write the table."""
    arguments = _arguments()
    from support.tiny import classes

    kinds = [arguments.kind] if arguments.kind else list(KINDS)
    names = list(dict.fromkeys(n for kind in kinds for n in classes(kind) if re.search(arguments.match, n)))
    started = time.monotonic()
    verdicts = {verdict.class_name: verdict for verdict in _read(arguments.done) if verdict.class_name in names}
    left = [] if arguments.page_only else [name for name in names if name not in verdicts]
    for name, found, why, seconds in sweep(left, arguments.jobs, arguments.limit, judge):
        verdict = verdicts[name] = replace(found or Verdict(name, "wrong", why), seconds=seconds)
        if arguments.done:
            with arguments.done.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(verdict)) + "\n")
        if verdict.verdict != "works" or arguments.verbose:
            print(f"{verdict.class_name:46} {verdict.verdict}: {verdict.reason} ({verdict.seconds:.1f} s)", flush=True)
    counts = Counter(verdict.verdict for verdict in verdicts.values())
    print(f"{len(verdicts)} of {len(names)} classes in {time.monotonic() - started:.0f} s:", dict(counts))
    if arguments.out:
        found = [verdicts[name] for name in names if name in verdicts]
        arguments.out.write_text(_markdown(found, len(names)), encoding="utf-8")
    return 1 if counts["wrong"] else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=KINDS, help="only this kind of classes")
    parser.add_argument("--match", default="", help="only classes whose name this regular expression finds")
    parser.add_argument("--jobs", type=int, default=2, help="worker processes (default 2)")
    parser.add_argument("--limit", type=float, default=120, help="seconds that one class may take (default 120)")
    parser.add_argument(
        "--done", type=Path, help="file of verdicts: those in it are not made again, new ones go into it"
    )
    parser.add_argument("--out", type=Path, help="write the table to this Markdown file")
    parser.add_argument("--page-only", action="store_true", help="sweep nothing, write the page of what --done has")
    parser.add_argument("--verbose", action="store_true", help="print the classes that work, too")
    return parser.parse_args()


def _read(done: Path | None) -> list[Verdict]:
    if done is None or not done.exists():
        return []
    return [Verdict(**json.loads(line)) for line in done.read_text(encoding="utf-8").splitlines()]


def judge(name: str, place: Path) -> Verdict:
    """The verdict over the variants: the first that is wrong, else what was refused, else that it works."""
    from support.tiny import build

    source = place / "source"
    try:
        build(name, source, vocab_size=ROWS, tokenizer_size=LIVE)
    except Exception as error:  # noqa: BLE001 - a class that cannot be built may fail in any way
        return Verdict(name, "not built", one_line(error))
    found = [_variant(name, source, place / f"out-{number}", what) for number, what in enumerate(VARIANTS)]
    worst = max(found, key=lambda verdict: VERDICTS.index(verdict.verdict))
    refused = [what for what, verdict in zip(VARIANTS, found, strict=True) if verdict.verdict == "refused"]
    return replace(worst, reason=f"{'; '.join(refused)}: {worst.reason}") if worst.verdict == "refused" else worst


def _variant(name: str, source: Path, output: Path, what: str) -> Verdict:
    """Run graftkit on one checkpoint, and judge what it wrote."""
    import graftkit
    from graftkit.errors import InputRejected, RecipeError, VerificationFailed

    operation, fresh = VARIANTS[what]
    recipe: dict[str, Any] = {
        "version": 1, "base_model": str(source), "operations": [operation], "output": str(output),
    }  # fmt: skip
    verdict, reason = "works", ""
    try:
        try:
            graftkit.apply(recipe)
        except VerificationFailed as error:
            if not any(why in str(error) for why in CANNOT_RUN):
                raise
            verdict, reason = "works, outputs not run", one_line(error).split(";")[0]
            graftkit.apply({**recipe, "verify": {"outputs": False}})
        if operation is TRIM:
            check_trimmed(source, output)
        else:
            check(source, output, fresh, renamed=operation["op"] == "rename_tokens")
        return Verdict(name, verdict, reason)
    except (InputRejected, RecipeError) as error:
        return Verdict(name, "refused", one_line(error).replace(str(source), "source"))
    except Exception as error:  # noqa: BLE001 - anything else is what the sweep looks for
        kind = "" if isinstance(error, Wrong | VerificationFailed) else f"{type(error).__name__}: "
        return Verdict(name, "wrong", f"{what}: {kind}{one_line(error)}")


def check(source: Path, output: Path, fresh: tuple[int, ...], *, renamed: bool) -> None:
    """Reload both with plain transformers and compare.

    Raises:
        Wrong: the result does not load as its source does, or anything but the rows ``fresh`` and the name differs.
    """
    import torch
    import transformers

    (old, old_info), (new, new_info) = load_plain(source), load_plain(output)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if set(map(str, new_info[kind])) - set(map(str, old_info[kind])):
            raise Wrong(f"{kind}: {sorted(map(str, new_info[kind]))[:3]}")
    kept = [index for index in range(ROWS) if index not in fresh]
    before, after = old.state_dict(), new.state_dict()
    for key, value in before.items():
        if torch.equal(value, after[key]):
            continue
        axis = next((axis for axis, size in enumerate(value.shape) if size == ROWS), None)
        index = torch.tensor(kept)
        if axis is None or not torch.equal(value.index_select(axis, index), after[key].index_select(axis, index)):
            raise Wrong(f"{key} differs")
    if fresh:
        made = input_table(new)[list(fresh)]
        if not made.isfinite().all() or torch.equal(made, input_table(old)[list(fresh)]):
            raise Wrong("the new input rows are not finite, or the old ones")
    tokenizer = transformers.AutoTokenizer.from_pretrained(output)
    name = NEW if renamed else OLD
    ids = tokenizer(f"a{name}b", add_special_tokens=False)["input_ids"]
    if ids.count(INDEX) != 1 or tokenizer.get_vocab().get(OLD) != (None if renamed else INDEX):
        raise Wrong(f"the tokenizer gives {ids}")
    _compare(old, new, fresh)


def _compare(old: Any, new: Any, fresh: tuple[int, ...]) -> None:
    import torch
    from support.tiny import forward

    ids = torch.randint(50, LIVE - 16, (2, 24), generator=torch.Generator().manual_seed(7))
    outputs = []
    for model in (old, new):
        torch.manual_seed(0)  # some classes hash at random
        try:
            outputs.append(forward(model, ids))
        except Exception:
            if outputs:
                raise
            return
    name = "logits" if getattr(outputs[0], "logits", None) is not None else next(iter(outputs[0]))
    before, after = (found[name] for found in outputs)
    if before.shape[-1] == ROWS:
        kept = [index for index in range(ROWS) if index not in fresh]
        before, after = before[..., kept], after[..., kept]
    if not torch.equal(before, after):
        raise Wrong(f"{name} moved by {float((after - before).abs().max()):.3g}")


def _markdown(verdicts: list[Verdict], total: int) -> str:
    """The page: how to repeat it, counts, how many of ``total`` classes were swept, and what does not simply work."""
    import torch
    import transformers

    counts = Counter(item.verdict for item in verdicts)
    command = "python scripts/sweep_tokens.py --jobs 2 --limit 1200 --done sweep.jsonl --out docs/sweep_tokens.md"
    left = (
        f" So far {len(verdicts)} of {total} classes were swept, in the order of the kinds."
        if len(verdicts) < total
        else ""
    )
    lines = [
        "# rename_tokens, reinit_rows and trim_vocab over every class", "",
        f"Measured with transformers {transformers.__version__} and torch {torch.__version__}; to repeat it: `{command}`.{left}", "",
        "Each class is built small with random weights. A token gets another name, once with its row kept and once with the mean of the",
        "others; four ids get new rows; and most pieces are dropped, so that ids move. graftkit verifies each result; then it is reloaded",
        "with plain transformers and compared with its source by code that is not graftkit's: every other row, and every output over other",
        "ids, is equal to the last bit, but for logits of a narrower table, which a kernel may round otherwise.", "",
        "| " + " | ".join(("classes", *VERDICTS)) + " |", "|---:|" + "---:|" * len(VERDICTS),
        "| " + " | ".join(map(str, (len(verdicts), *(counts[verdict] for verdict in VERDICTS)))) + " |",
    ]  # fmt: skip
    for verdict in VERDICTS[1:]:
        rows = [
            f"| {item.class_name} | {item.reason.replace('|', chr(92) + '|')} |"
            for item in verdicts
            if item.verdict == verdict
        ]
        lines += [
            "",
            f"## {verdict}: {len(rows)}",
            "",
            *(["| class | reason |", "|---|---|", *rows] if rows else ["none"]),
        ]
    return "\n".join(
        [*lines, "", "## works", "", ", ".join(i.class_name for i in verdicts if i.verdict == "works"), ""]
    )


if __name__ == "__main__":
    raise SystemExit(main())
