"""Print the lowest versions that pyproject.toml admits, as constraints for pip: its floors, and nothing kept beside them.

    scripts/floors.py [NAME==VERSION ...]

What is given replaces the floor of that name, such as torch==2.13.0 where the floor is to be had for accelerators alone.
"""

import re
import sys
import tomllib
from pathlib import Path

FLOOR = re.compile(r"(?P<name>[A-Za-z0-9._-]+)>=(?P<version>[0-9.]+)(?P<marker>\s*;.*)?")


def floors(pyproject: Path) -> dict[str, str]:
    """``name -> name==version`` with its marker for each dependency of an installation, with the extras for use."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    found: dict[str, str] = {}
    for line in [*project["dependencies"], *project["optional-dependencies"]["parquet"]]:
        floor = FLOOR.fullmatch(line)
        if floor is None:
            raise SystemExit(f"pyproject.toml: {line!r} has no floor; write it as NAME>=VERSION")
        key = floor["name"] + (floor["marker"] or "")
        found[key] = f"{floor['name']}=={floor['version']}{floor['marker'] or ''}"
    return found


def main() -> None:
    """Print the constraints, with what is given in the place of the floors of the same names."""
    given = {text.partition("==")[0]: text for text in sys.argv[1:]}
    for key, line in floors(Path(__file__).parent.parent / "pyproject.toml").items():
        if key.partition(";")[0].strip() not in given:
            print(line)
    print(*given.values(), sep="\n")


if __name__ == "__main__":
    main()
