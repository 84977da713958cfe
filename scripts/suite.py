"""Run tests and the self test under one setting after another, and note what came of each in out/verdict.

    scripts/suite.py --machines [VARIABLE=VALUE]... | --cross-section | --newest | --lowest [PYTEST ARGUMENTS]

--machines runs every setting, or those that are named. The versions are those of the environment that runs it; scripts/test makes the environments. Exit code 1 where a test failed, a
fault was missed or a clean copy flagged under any setting.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parent.parent
RUNS = ROOT / "out" / "verdict"
LIBRARIES = ("torch", "transformers", "peft", "numpy")

#: The kind that .ci/run runs: without the self test, which the whole suite has.
SECTION = "cross-section"

#: What changes the kernels or the order of sums; each setting starts without the others' values.
VARIABLES = ("ATEN_CPU_CAPABILITY", "OMP_NUM_THREADS", "MKL_CBWR", "ONEDNN_MAX_CPU_ISA")

#: The values of ATEN_CPU_CAPABILITY from the least to the most; a processor that has one has those before it.
CAPABILITIES = ("default", "avx2", "avx512")


@dataclass(frozen=True, slots=True)
class Setting:
    """Environment variables under which everything is run."""

    name: str
    variables: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one setting: counts of tests, the self test's faults and clean copies, and the versions that ran."""

    kind: str
    setting: str
    passed: int
    failed: int
    skipped: int
    faults: int
    caught: int
    clean: int
    flagged: int
    seconds: int
    python: str
    libraries: dict[str, str]
    processor: str
    failures: tuple[str, ...]

    @property
    def green(self) -> bool:
        """Whether tests passed, every fault was caught and no clean copy flagged."""
        tested = bool(self.passed and (self.faults or self.kind == SECTION)) and not self.failed
        return tested and self.caught == self.faults and not self.flagged


def of(name: str, value: str) -> Setting:
    """The setting of one variable."""
    return Setting(f"{name}={value}", {name: value})


def machines(capability: str) -> list[Setting]:
    """Every setting of a processor with this capability."""
    lesser = CAPABILITIES[: CAPABILITIES.index(capability)]
    plain = {"ATEN_CPU_CAPABILITY": capability, "OMP_NUM_THREADS": "1"}  # what runs where nothing is set
    return [
        *(of("ATEN_CPU_CAPABILITY", value) for value in lesser),
        Setting(" ".join(f"{name}={value}" for name, value in plain.items()), plain),
        *(of("OMP_NUM_THREADS", value) for value in ("2", "3")),
        of("MKL_CBWR", "COMPATIBLE"),
        *(of("ONEDNN_MAX_CPU_ISA", value) for value in ("SSE41", "AVX2")),
    ]


def cross_section() -> list[Setting]:
    """Two settings that between them change every kernel and the number of threads."""
    plain = {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "SSE41"}
    return [Setting("plainest kernels", plain), Setting("three threads", {"OMP_NUM_THREADS": "3"})]


def capability() -> str:
    """The most that torch would use on this processor: one of :data:`CAPABILITIES`, the first where it is of another kind."""
    code = "import torch; print(torch.backends.cpu.get_cpu_capability())"
    found = subprocess.run(
        [sys.executable, "-c", code], env=_environment({}), capture_output=True, text=True, check=True
    )
    word = found.stdout.strip().lower()
    return word if word in CAPABILITIES else CAPABILITIES[0]


def _environment(variables: dict[str, str]) -> dict[str, str]:
    """The environment with one thread where nothing else is said, and threads that sleep while they wait.

    Where more threads than cores spin instead, as they do unless told otherwise, tests with three threads take five times as long.
    """
    kept = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    return {**kept, "OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1", **variables}


def run(kind: str, setting: Setting, arguments: list[str], best: str) -> Outcome:
    """Run tests and the self test under one setting, side by side."""
    environment, start = _environment(setting.variables), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        junit = Path(folder) / "junit.xml"
        pytest = ["-m", "pytest", "-q", "-n", "2", "--dist", "loadfile", "-o", "junit_family=xunit1"]
        command = [sys.executable, *pytest, f"--junitxml={junit}", *arguments]
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            tests = pool.submit(subprocess.run, command, cwd=ROOT, env=environment, check=False)
            planted, clean = ([], []) if kind == SECTION else self_test(environment)
            tests.result()
        passed, skipped, failures = counts(junit)
    return Outcome(
        kind, setting.name, passed, len(failures), skipped,
        len(planted), sum(planted), len(clean), sum(clean), round(time.monotonic() - start),
        platform.python_version(), {name: metadata.version(name) for name in LIBRARIES},
        f"{platform.machine()}, {best}, {os.cpu_count()} cores", tuple(failures),
    )  # fmt: skip


def counts(junit: Path) -> tuple[int, int, list[str]]:
    """How many passed and were skipped, and the names of those that did not; one failure where there is no file at all."""
    if not junit.exists():
        return 0, 0, ["the tests did not run"]
    passed, skipped, failures = 0, 0, []
    for case in ET.parse(junit).iter("testcase"):  # noqa: S314 - pytest wrote it just now
        kinds = {child.tag for child in case}
        if kinds & {"failure", "error"}:
            failures.append(f"{case.get('file') or case.get('classname')}::{case.get('name')}")
        elif "skipped" in kinds:
            skipped += 1
        else:
            passed += 1
    return passed, skipped, failures


def self_test(environment: dict[str, str]) -> tuple[list[bool], list[bool]]:
    """What :func:`judged` says of a self test of the model that ships."""
    command = [sys.executable, "-m", "graftkit", "selftest", "--json"]
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False, stdout=subprocess.PIPE, text=True)
    return judged(done.stdout)


def judged(text: str) -> tuple[list[bool], list[bool]]:
    """Of each planted fault whether every check that has to see it did, of each clean copy whether it was flagged."""
    try:
        found = json.loads(text)
    except ValueError:
        return [], []
    planted = [
        bool(fault["seen_by"]) and not fault["missed_by"] for fault in found["faults"] if not fault["not_applicable"]
    ]
    return planted, [bool(copy["flagged"]) for copy in found["clean"]]


def note(outcome: Outcome) -> None:
    """Write an outcome where the page's script finds it; what ran before under the same setting and Python is replaced."""
    RUNS.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^A-Za-z0-9.]+", "-", f"{outcome.kind} {outcome.setting} {outcome.python}").strip("-")
    text = json.dumps(dataclasses.asdict(outcome), indent=1)
    (RUNS / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def table(outcomes: list[Outcome]) -> str:
    """Settings and counts, one line each."""
    lines = [
        f"{'setting':32} {'passed':>7} {'failed':>7} {'skipped':>8} {'faults caught':>14} {'clean flagged':>14} {'seconds':>8}"
    ]
    for item in outcomes:
        caught, flagged = f"{item.caught} of {item.faults}", f"{item.flagged} of {item.clean}"
        lines.append(
            f"{item.setting:32} {item.passed:7} {item.failed:7} {item.skipped:8} {caught:>14} {flagged:>14} {item.seconds:8}"
        )
    return "\n".join(lines)


def main() -> None:
    """Run what the first argument names."""
    kind, arguments = sys.argv[1].removeprefix("--"), sys.argv[2:]
    best = capability()
    if kind in ("newest", "lowest"):
        settings = [Setting(f"{kind} versions")]
    else:
        settings = machines(best) if kind == "machines" else cross_section()
        marker = "numerical and not slow" if kind == "machines" else "cross_section"
        named = {text for text in arguments if text.partition("=")[0] in VARIABLES}
        settings = [setting for setting in settings if not named or named & set(setting.name.split())]
        arguments = ["-m", marker, *(text for text in arguments if text not in named)]
    outcomes = []
    for setting in settings:
        print(f"== {setting.name}", flush=True)
        outcomes.append(run(kind, setting, arguments, best))
        note(outcomes[-1])
    print(table(outcomes))
    for outcome in outcomes:
        for failure in outcome.failures:
            print(f"{outcome.setting}: failed: {failure}")
    sys.exit(0 if all(outcome.green for outcome in outcomes) else 1)


if __name__ == "__main__":
    main()
