"""Note what a test tried against the command, for the table of docs/reliability.md."""

import contextlib
import sys
import time
from collections import Counter
from pathlib import Path


@contextlib.contextmanager
def tried(name):
    """Count exit codes; they are noted in out/reliability when the block ends without an error, which would be a fault."""
    codes, start = Counter(), time.perf_counter()
    yield codes
    scripts = str(Path(__file__).parents[2] / "scripts")
    sys.path.insert(0, scripts)
    try:
        from reliability_page import as_text, note
    finally:
        sys.path.remove(scripts)
    note(name, codes.total(), 0, time.perf_counter() - start, as_text(codes))
