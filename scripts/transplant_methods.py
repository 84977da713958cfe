"""The schemes of transplant_tokenizer and the methods of mergekit's tokensurgeon, each run as a command on one pair of models."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
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

#: Runs a command and prints its exit code, the seconds that the processor spent on it, its peak memory in MB and the last line of its
#: errors. Seconds of the processor, not of the clock: what else the machine does meanwhile does not count.
MEASURED = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace")
lines = [line for line in done.stderr.splitlines() if line.strip()] or [""]
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(done.returncode, used.ru_utime + used.ru_stime, used.ru_maxrss // 1024, lines[-1].strip())
"""


@dataclass(frozen=True, slots=True)
class Transplanted:
    """What one method wrote, with the processor's seconds and the peak MB of its command; ``error`` is its last line where it wrote nothing."""

    program: str
    method: str
    folder: Path
    seconds: float
    peak: int
    error: str = ""

    @property
    def name(self) -> str:
        """As it stands in a table."""
        return named(self.program, self.method)


def named(program: str, method: str) -> str:
    """A method as it stands in a table."""
    method, comma, how = method.partition(",")
    return f"{program} `{method}`{comma}{how}"


def transplant(
    base: Path,
    donor: Path,
    texts: Sequence[str],
    place: Path,
    mergekit: str | None,
    only: str = "",
    *,
    base_of_mergekit: Path | None = None,
    done: Collection[str] = (),
) -> Iterator[Transplanted]:
    """Give the base the donor's tokenizer by each method whose name ``only`` finds and that is not ``done``, in folders of ``place``.

    ``texts`` are what `distill` is fitted to, ``mergekit`` is the interpreter of an environment that has it. Where mergekit cannot read the
    base, ``base_of_mergekit`` is the same model in a form that it can; the base itself is then given to it once, for its error.
    """
    (place / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    for name, scheme in OURS.items():
        output = place / f"ours {name}"
        init = {**scheme, "texts": str(place / "texts.jsonl")} if name.startswith("distill") else scheme
        operation = {"op": "transplant_tokenizer", "donor": str(donor), "init": init}
        recipe = {"version": 1, "base_model": str(base), "operations": [operation], "output": str(output)}
        (place / "recipe.yaml").write_text(json.dumps({**recipe, "verify": {"outputs": False}}), encoding="utf-8")
        if re.search(only, f"graftkit {name}") and named("graftkit", name) not in done:
            command = (sys.executable, "-m", "graftkit", "apply", str(place / "recipe.yaml"))
            yield _measure("graftkit", name, output, command)
    given = {name: (base_of_mergekit or base, arguments) for name, arguments in THEIRS.items()}
    if base_of_mergekit:
        given = {"omp, the model as it is": (base, THEIRS["omp"]), **given}
    for name, (model, arguments) in given.items() if mergekit else ():
        output = place / f"theirs {name}"
        command = (str(mergekit), "-m", "mergekit.scripts.tokensurgeon", str(model), str(donor), str(output))
        if re.search(only, f"mergekit {name}") and named("mergekit", name) not in done:
            yield _measure("mergekit", name, output, (*command, *arguments, "--quiet"))


def _measure(program: str, method: str, output: Path, command: Sequence[str]) -> Transplanted:
    done = subprocess.run([sys.executable, "-c", MEASURED, *command], capture_output=True, text=True, check=True)
    code, seconds, peak, line = done.stdout.splitlines()[-1].split(" ", 3)
    line = line.replace(f"{output.parent}/", "")
    wrote = int(code) == 0 and (output / "config.json").is_file()
    return Transplanted(
        program, method, output, float(seconds), int(peak), "" if wrote else line or f"ended with {code}"
    )


def failed(errors: Mapping[str, str]) -> list[str]:
    """One line for each kind of error of each program, with the methods that ended with it. ``errors`` has one for each name, or ""."""
    alike: dict[tuple[str, str], list[str]] = {}
    for name, error in errors.items():
        program, _, method = name.partition(" ")
        if error:
            alike.setdefault((program, error), []).append(method)
    return [
        f"{program} wrote nothing with {', '.join(methods)}: {error}" for (program, error), methods in alike.items()
    ]


def not_measured(found: Collection[str]) -> list[str]:
    """A line that names the methods which are not in ``found``, where there are any."""
    every = [named("graftkit", name) for name in OURS] + [named("mergekit", name) for name in THEIRS]
    left = [name for name in every if name not in found]
    return ["", f"Not measured yet: {', '.join(left)}."] if left else []


def write_between(marks: tuple[str, str], lines: Sequence[str]) -> None:
    """Put the lines between the two marks of docs/tokens.md."""
    page = PAGE.read_text(encoding="utf-8")
    begin, end = page.index(marks[0]) + len(marks[0]), page.index(marks[1])
    PAGE.write_text(page[:begin] + "\n" + "\n".join(lines) + "\n" + page[end:], encoding="utf-8")
