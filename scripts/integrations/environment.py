"""An environment for each tool: it sees the torch of the environment that runs this, and pip installs the rest into it."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from tool import Tool

#: pip's words name the host of a registry, which is nobody's business.
ADDRESS = re.compile(r"\S+://\S+")


class NotInstalled(Exception):
    """The tool does not install; the message is the reason, in one line."""


def linked_torch(place: Path) -> Path:
    """A folder with links to torch and what it needs, and to nothing else of the environment that runs this."""
    place.mkdir(parents=True, exist_ok=True)
    for distribution in _needed_by("torch"):
        for name in {path.parts[0] for path in distribution.files or () if path.parts[0] not in {"..", "__pycache__"}}:
            link, target = place / name, Path(str(distribution.locate_file(name)))
            if target.exists() and not link.is_symlink():
                link.symlink_to(target)
    return place


def _needed_by(name: str) -> Iterator[importlib.metadata.Distribution]:
    """Yield the distribution and those that it needs here, each once."""
    seen, waiting = set(), [name]
    while waiting:
        distribution = importlib.metadata.distribution(waiting.pop())
        if distribution.name in seen:
            continue
        seen.add(distribution.name)
        yield distribution
        for line in distribution.requires or ():
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                waiting.append(needed.name)


def environment_of(name: str, tool: Tool, cache: Path, seconds: float) -> Path:
    """The interpreter of the tool's environment below ``cache``, made and filled where it is not yet; NotInstalled otherwise."""
    home = cache / name
    python, stamp = home / "bin" / "python", home / "installed.txt"
    wanted = "\n".join([*tool.requirements, *tool.bare, *(f"not {name}" for name in tool.unfit)])
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted and python.exists():
        return python
    venv.create(home, clear=True)
    site = next((home / "lib").glob("python*")) / "site-packages"
    (site / "torch_of_graftkit.pth").write_text(f"{linked_torch(cache / 'torch')}\n", encoding="utf-8")
    torch = importlib.metadata.version("torch").partition("+")[0]
    pinned = home / "constraints.txt"
    pinned.write_text(f"torch=={torch}\n", encoding="utf-8")
    for packages, more in ((tool.requirements, ("--constraint", str(pinned))), (tool.bare, ("--no-deps",))):
        if packages:
            _install(python, [*more, *packages], seconds)
    for path in [path for pattern in tool.unfit for path in site.glob(pattern)]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    stamp.write_text(wanted, encoding="utf-8")
    return python


def _install(python: Path, arguments: list[str], seconds: float) -> None:
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check", "--no-input"]
    command = [*pip, "install", "--quiet", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise NotInstalled(f"pip was not done after {seconds:.0f} s") from None
    if done.returncode != 0:
        raise NotInstalled(reason_of(done.stderr))


def reason_of(words: str) -> str:
    """Pip's reason in one line, without addresses: its lines of a conflict where it names one, else its first error."""
    lines = [ADDRESS.sub("", line).strip() for line in words.splitlines()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    conflict = [line for line in lines if " depends on " in line or line.startswith("The user requested")]
    chosen = "; ".join(conflict[:3]) or (errors or lines[-1:] or ["pip said nothing"])[0]
    return chosen if len(chosen) <= 200 else f"{chosen[:199]}…"


def versions(python: Path, names: tuple[str, ...]) -> dict[str, str]:
    """The versions of distributions in an environment."""
    code = "import importlib.metadata as m, sys; print(*[m.version(name) for name in sys.argv[1:]], sep='\\n')"
    done = subprocess.run([python, "-c", code, *names], capture_output=True, text=True, check=True)
    return dict(zip(names, done.stdout.split(), strict=True))


if __name__ == "__main__":
    from tool import TOOLS

    for each in sys.argv[2:]:
        try:
            print(each, environment_of(each, TOOLS[each], Path(sys.argv[1]), 3000), flush=True)
        except NotInstalled as error:
            print(each, "skipped:", error, flush=True)
