"""``python -m graftkit`` and the ``graftkit`` command."""

from __future__ import annotations

import sys

from graftkit import ELSEWHERE


def main() -> None:
    """Run the command line and exit with its code."""
    if sys.platform == "win32":
        sys.stderr.write(f"{ELSEWHERE}\n")
        sys.exit(5)
    try:
        from graftkit.cli import main as command_line

        code = command_line(sys.argv[1:])
    except KeyboardInterrupt:  # while importing
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    # `python -m` puts the working directory first, and what lies in a checkpoint's folder must not be imported.
    sys.path[:] = [entry for entry in sys.path[not sys.flags.safe_path :] if entry]
    main()
