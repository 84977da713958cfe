"""Write which class of model covers what when its outputs are compared: the table that tests hold every version against.

    scripts/coverage_table.py

Run it when coverage was gained, and read the difference: what is gone from the table is no longer looked for.
"""

import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from support.coverage import CLASSES, TABLE, measured  # noqa: E402 - the path comes first


def main() -> None:
    """Measure every class, and write the table."""
    table = {}
    for name in CLASSES:
        with tempfile.TemporaryDirectory() as directory:
            table[name] = list(measured(name, Path(directory) / "model").covered)
        print(f"{name:32} {', '.join(table[name])}", flush=True)
    lines = (f" {json.dumps(name)}: {json.dumps(covered)}" for name, covered in table.items())
    TABLE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
