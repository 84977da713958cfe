"""Run the tools that come after graftkit on what it writes, each in an environment of its own, and make docs/integration.md.

    scripts/integration [TOOL ...] [--list] [--cache FOLDER] [--seconds 1800] [--page]

Environments and material are kept in the cache folder between runs; --page writes what was found into docs/. Ends with 1 where a
tool found something other than it should.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import material
import page
from environment import NotInstalled, environment_of, versions
from tool import TOOLS, Tool

HERE = Path(__file__).parent
RECORD, PAGE = material.ROOT / "docs" / "integration.json", material.ROOT / "docs" / "integration.md"

#: No tool looks for a hub, draws bars, reports home or looks for another device.
QUIET = {
    "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false", "WANDB_DISABLED": "true",
    "DO_NOT_TRACK": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "CUDA_VISIBLE_DEVICES": "",
}  # fmt: skip


def references(place: Path) -> None:
    """Make the material, and what graftkit's environment computes of it."""
    material.make(place)
    (place / "base.source").write_text(str(material.DEMO), encoding="utf-8")
    source = material.sentence_model()
    if source is not None:
        (place / "sentences.source").write_text(str(source), encoding="utf-8")
    if not (place / "references.npz").exists():
        command = [sys.executable, HERE / "inside" / "write_references.py", place]
        done = subprocess.run(command, env=os.environ | QUIET, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"no references: {done.stderr.strip()}")


def found_by(name: str, tool: Tool, cache: Path, seconds: float) -> dict[str, Any]:
    """The rows of a tool, its versions, or why it was skipped."""
    place = cache / "material"
    missing = [part for part in tool.needs if not (place / part).is_dir()]
    if missing:
        return {"versions": {}, "rows": [], "skipped": f"no {missing[0]} to try: their source is not installed"}
    try:
        python = environment_of(name, tool, cache, seconds)
    except NotInstalled as error:
        return {"versions": {}, "rows": [], "skipped": f"does not install: {error}"}
    scratch, out, log = cache / "scratch" / name, cache / f"{name}.json", cache / f"{name}.log"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    out.unlink(missing_ok=True)
    command = [python, HERE / "inside" / tool.script, place, scratch, out]
    path = f"{python.parent}{os.pathsep}{os.environ.get('PATH', '')}"
    with log.open("w", encoding="utf-8") as words:
        try:
            subprocess.run(
                command,
                env=os.environ | QUIET | {"PATH": path},
                stdout=words,
                stderr=words,
                check=False,
                timeout=seconds,
            )
        except subprocess.TimeoutExpired:
            return {"versions": versions(python, tool.shown), "rows": [], "skipped": f"not done after {seconds:.0f} s"}
    if not out.exists():
        rows = [
            {"what": "ran to the end", "outcome": "failed", "figure": f"the process ended; see {log.name} in the cache"}
        ]
        return {"versions": versions(python, tool.shown), "rows": rows, "skipped": ""}
    return {"versions": versions(python, tool.shown), **json.loads(out.read_text(encoding="utf-8"))}


def main() -> int:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tools", nargs="*", metavar="TOOL", help="all where none is named")
    parser.add_argument("--list", action="store_true", help="print the tools with what pip installs, and run none")
    parser.add_argument(
        "--cache", type=Path, default=Path(tempfile.gettempdir()) / "graftkit-integration",
        help="where environments and material are kept (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--seconds", type=float, default=1800, help="the longest that an install or a run takes")
    parser.add_argument("--page", action="store_true", help="write what was found into docs/integration.md")
    given = parser.parse_args()
    unknown = [name for name in given.tools if name not in TOOLS]
    if unknown:
        parser.error(f"no tool {unknown[0]!r}; there are {', '.join(TOOLS)}")
    chosen = {name: TOOLS[name] for name in given.tools or TOOLS}
    if given.list:
        for name, tool in chosen.items():
            print(f"{name:<28}{' '.join([*tool.requirements, *tool.bare])}")
        return 0
    return run(chosen, given.cache.resolve(), given.seconds, given.page)


def run(chosen: dict[str, Tool], cache: Path, seconds: float, write: bool) -> int:
    """Run tools one after the other, print what came of each, and write the page where asked to."""
    references(cache / "material")
    found = page.load(RECORD)
    wrong = False
    for name, tool in chosen.items():
        found[name] = found_by(name, tool, cache, seconds)
        said = page.verdict(found[name])
        wrong |= said.startswith("wrong")
        print(f"{name}: {said}", flush=True)
        if write:
            found = {each: found[each] for each in TOOLS if each in found}
            RECORD.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            PAGE.write_text(page.markdown(found, tuple(TOOLS)), encoding="utf-8")
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
