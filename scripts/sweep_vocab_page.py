"""What became of each class in the sweep of vocabularies, and the page that shows it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

VERDICTS = ("works", "works, outputs not run", "refused", "wrong", "not built")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one class, or of one of its variants.

    ``moved`` is the largest change of an old output as the sweep itself measures it, 0.0 for bitwise and None where it could
    not run the class; ``promise`` is what graftkit's report measured, with the inputs that were made beside token ids.
    """

    class_name: str
    verdict: str
    reason: str = ""
    moved: float | None = None
    promise: str = ""
    apart: str = ""
    seconds: float = 0.0


def markdown(chosen: dict[str, list[str]], verdicts: dict[str, Verdict], command: str) -> str:
    """The table as a page: how to repeat it, counts by kind, what does not simply work, then every class."""
    import torch
    import transformers

    apart = Counter(item.apart for item in verdicts.values() if item.apart)
    lines = [
        "# extend_vocab over every class", "",
        f"Measured with transformers {transformers.__version__} and torch {torch.__version__}; to repeat it: `{command}`.", "",
        "Each class is built small with random weights and given three special tokens and a plain one: once where the table must",
        "grow, once with spare rows and `pad_to_multiple_of: 8`, and, where it can be built so, once with a vocabulary size of its own",
        f"for each sub-config ({sum(apart.values())} classes: {_counted(apart)}). graftkit verifies each result; then it is reloaded with plain",
        "transformers and compared with its source by code that is not graftkit's. The last column is the largest change of an old",
        "output found there; *bitwise* and *within* before it are what graftkit's own report measured over its probes, with the inputs",
        "that it made beside token ids.", "",
        "| kind | classes | " + " | ".join(VERDICTS) + " |", "|---|---:|" + "---:|" * len(VERDICTS),
    ]  # fmt: skip
    for kind, names in [*chosen.items(), ("all, each once", list(verdicts))]:
        counts = Counter(verdicts[name].verdict for name in names)
        figures = " | ".join(str(counts[verdict]) for verdict in VERDICTS)
        lines.append(f"| {kind} | {len(names)} | {figures} |")
    for verdict in reversed(VERDICTS[1:]):
        found = [item for item in verdicts.values() if item.verdict == verdict]
        rows = [f"| {item.class_name} | {_cell(item.reason)} |" for item in found]
        lines += [
            "",
            f"## {verdict}: {len(found)}",
            "",
            *(["| class | reason |", "|---|---|", *rows] if rows else ["none"]),
        ]
    for kind, names in chosen.items():
        lines += [
            "",
            f"## {kind}",
            "",
            "| class | verdict | measured by graftkit | measured again |",
            "|---|---|---|---|",
        ]
        lines += [_row(verdicts[name]) for name in names]
    return "\n".join(lines) + "\n"


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{number} {verdict}" for verdict, number in counts.most_common()) or "none"


def _row(item: Verdict) -> str:
    again = "" if item.moved is None else "bitwise" if item.moved == 0 else f"{item.moved:.1e}"
    return f"| {item.class_name} | {item.verdict} | {_cell(item.promise)} | {again} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
