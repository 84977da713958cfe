"""What sweeps over classes have in common: their command line, one verdict for each class and column, and the page of them."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sweep_done import add_done, note_done, read_done
from sweep_pool import Judge, sweep


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one class: for each column a word, such as ``works`` or ``wrong``; and the reasons where it does not work."""

    class_name: str
    found: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    not_built: str = ""


def run_sweep(
    columns: Collection[str],
    kinds: Sequence[str],
    judge: Judge,
    markdown: Callable[[list[Verdict], str], str],
    about: str,
) -> int:
    """Judge every class of these kinds that the command line chooses, print, write the page; 1 where something is wrong."""
    arguments = _arguments(kinds, about)
    from support.tiny import classes

    chosen = [arguments.kind] if arguments.kind else list(kinds)
    names = list(dict.fromkeys(n for kind in chosen for n in classes(kind) if re.search(arguments.match, n)))
    started, command = time.monotonic(), _command(arguments)
    of_class = {verdict.class_name: verdict for verdict in read_done(arguments.done, Verdict)}

    def write() -> list[Verdict]:
        """The verdicts so far in the order of the classes, and the page of them."""
        verdicts = [of_class[name] for name in names if name in of_class]
        if arguments.out:  # as it goes, so that what was found is there if it is stopped
            arguments.out.write_text(markdown(verdicts, command), encoding="utf-8")
        return verdicts

    left = [name for name in names if name not in of_class]
    for name, found, why, seconds in sweep(left, arguments.jobs, arguments.limit, judge):
        verdict = found or Verdict(name, dict.fromkeys(columns, "wrong"), dict.fromkeys(columns, why))
        of_class[name] = verdict
        note_done(arguments.done, verdict)
        print(f"{name:46} {verdict.found or verdict.not_built} ({seconds:.1f} s)", flush=True)
        write()
    verdicts = write()
    counts = {column: Counter(v.found[column] for v in verdicts if v.found) for column in columns}
    print(
        f"{len(names)} classes in {time.monotonic() - started:.0f} s:", {c: dict(found) for c, found in counts.items()}
    )
    return 1 if any(found["wrong"] for found in counts.values()) else 0


def _command(arguments: argparse.Namespace) -> str:
    """What repeats the sweep: its choice of classes and its limit."""
    chosen = [
        word for name in ("kind", "match") if (value := getattr(arguments, name)) for word in (f"--{name}", value)
    ]
    limit = f"--limit {arguments.limit:g}"
    return f"{shlex.join(['python', f'scripts/{Path(sys.argv[0]).name}', *chosen])} {limit}"


def _arguments(kinds: Sequence[str], about: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=kinds, help="only this kind of classes")
    parser.add_argument("--match", default="", help="only classes whose name this regular expression finds")
    parser.add_argument("--jobs", type=int, default=2, help="worker processes (default 2)")
    parser.add_argument("--limit", type=float, default=180, help="seconds that one class may take (default 180)")
    parser.add_argument("--out", type=Path, help="write the table to this Markdown file")
    add_done(parser)
    return parser.parse_args()


def page(
    title: str,
    intro: Sequence[str],
    columns: Sequence[str],
    words: Sequence[str],
    verdicts: list[Verdict],
    command: str,
) -> str:
    """The table as a page: how to repeat it, counts of ``words``, what does not simply work with its reason, then every class."""
    import torch
    import transformers

    built = [verdict for verdict in verdicts if verdict.found]
    lines = [
        f"# {title}", "",
        f"Measured with transformers {transformers.__version__} and torch {torch.__version__}; to repeat it: `{command}`.", "",
        *intro, "",
        f"{len(verdicts)} classes, {len(verdicts) - len(built)} not built.", "",
        "| operation | " + " | ".join(words) + " |", "|---|" + "---:|" * len(words),
    ]  # fmt: skip
    for column in columns:
        counts = Counter(verdict.found[column] for verdict in built)
        lines.append(f"| {column} | " + " | ".join(str(counts[word]) for word in words) + " |")
    lines += ["", "## Not all of it works", "", "| class | operations | reason |", "|---|---|---|"]
    for verdict in verdicts:
        reasons: dict[str, list[str]] = {}
        for column, reason in verdict.reasons.items():
            reasons.setdefault(f"{verdict.found[column]}: {reason}", []).append(column)
        reasons |= {f"not built: {verdict.not_built}": ["all"]} if verdict.not_built else {}
        lines += [f"| {verdict.class_name} | {', '.join(c)} | {_cell(reason)} |" for reason, c in reasons.items()]
    lines += ["", "## Every class", "", "| class | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    lines += [f"| {v.class_name} | " + " | ".join(v.found[c] for c in columns) + " |" for v in built]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
