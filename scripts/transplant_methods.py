"""The schemes of transplant_tokenizer and the methods of mergekit's tokensurgeon, each run as a command on one pair of models."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "docs/tokens.md"

OURS: dict[str, Any] = {
    "fvt": "fvt", "mean": "mean", "copy_shared": "copy_shared",
    **{f"omp, k = {k}": {"scheme": "omp", "k": k} for k in (8, 16, 32, 64)},
    "distill": {"scheme": "distill"}, "distill, 4 epochs": {"scheme": "distill", "epochs": 4},
}  # fmt: skip
METHODS = (
    "omp",
    "subword",
    "mean",
    "zero",
    "randn",
    "john_hewitt",
    "common_interpolation",
    "landmark_pca",
    "stb",
    "mp_rope",
)
#: Arguments by name; byte match finds tokens that are spelled otherwise, and is off where it is not asked for.
THEIRS = {name: ("-a", name) for name in METHODS} | {
    f"{name}, byte match": ("-a", name, "-bm", "yes") for name in ("omp", "subword", "zero", "landmark_pca")
}

#: Runs a command and prints its exit code, its peak memory in MB and the last line of its errors.
MEASURED = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace")
lines = [line for line in done.stderr.splitlines() if line.strip()] or [""]
print(done.returncode, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024, lines[-1].strip())
"""


@dataclass(frozen=True, slots=True)
class Transplanted:
    """What one method wrote, with the seconds and the peak MB of its command; ``error`` is its last line where it wrote nothing."""

    program: str
    method: str
    folder: Path
    seconds: float
    peak: int
    error: str = ""

    @property
    def name(self) -> str:
        """As it stands in a table."""
        method, comma, how = self.method.partition(",")
        return f"{self.program} `{method}`{comma}{how}"


def transplant(
    base: Path, donor: Path, texts: Sequence[str], place: Path, mergekit: str | None, only: str = ""
) -> Iterator[Transplanted]:
    """Give the base the donor's tokenizer by each method whose name ``only`` finds, in folders of ``place``.

    ``texts`` are what `distill` is fitted to, ``mergekit`` is the interpreter of an environment that has it.
    """
    (place / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    for name, given in OURS.items():
        output = place / f"ours {name}"
        init = {**given, "texts": str(place / "texts.jsonl")} if name.startswith("distill") else given
        operation = {"op": "transplant_tokenizer", "donor": str(donor), "init": init}
        recipe = {"version": 1, "base_model": str(base), "operations": [operation], "output": str(output)}
        (place / "recipe.yaml").write_text(json.dumps({**recipe, "verify": {"outputs": False}}), encoding="utf-8")
        if re.search(only, f"graftkit {name}"):
            command = (sys.executable, "-m", "graftkit", "apply", str(place / "recipe.yaml"))
            yield _measure("graftkit", name, output, command)
    for name, arguments in THEIRS.items() if mergekit else ():
        output = place / f"theirs {name}"
        command = (str(mergekit), "-m", "mergekit.scripts.tokensurgeon", str(base), str(donor), str(output))
        if re.search(only, f"mergekit {name}"):
            yield _measure("mergekit", name, output, (*command, *arguments, "--quiet"))


def _measure(program: str, method: str, output: Path, command: Sequence[str]) -> Transplanted:
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", MEASURED, *command], capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - start
    code, peak, line = done.stdout.splitlines()[-1].split(" ", 2)
    line = line.replace(f"{output.parent}/", "")
    wrote = int(code) == 0 and (output / "config.json").is_file()
    return Transplanted(program, method, output, seconds, int(peak), "" if wrote else line or f"ended with {code}")


def failed(found: Sequence[Transplanted]) -> list[str]:
    """One line for each kind of error of each program, with the methods that ended with it."""
    by_error: dict[tuple[str, str], list[str]] = {}
    for one in found:
        if one.error:
            by_error.setdefault((one.program, one.error), []).append(one.name.removeprefix(f"{one.program} "))
    return [f"{program} wrote nothing with {', '.join(names)}: {error}" for (program, error), names in by_error.items()]


def write_between(marks: tuple[str, str], lines: Sequence[str]) -> None:
    """Put the lines between the two marks of docs/tokens.md."""
    page = PAGE.read_text(encoding="utf-8")
    begin, end = page.index(marks[0]) + len(marks[0]), page.index(marks[1])
    PAGE.write_text(page[:begin] + "\n" + "\n".join(lines) + "\n" + page[end:], encoding="utf-8")
