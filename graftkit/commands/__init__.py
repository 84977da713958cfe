"""What each command does: call the library and print what it gives. Torch is imported late, by what needs it."""

from __future__ import annotations

from graftkit.commands.describing import completion, schema
from graftkit.commands.looking import diff, inspect, report
from graftkit.commands.recipes import init, validate
from graftkit.commands.shared import print_error, quiet_libraries, read_recipe
from graftkit.commands.verifying import selftest, verify
from graftkit.commands.writing import apply, plan

#: Commands that print values of their own with ``--json``.
PRINT_JSON = ("init", "validate", "plan", "apply", "inspect", "diff", "verify", "report", "selftest", "completion")

__all__ = [
    "PRINT_JSON", "apply", "completion", "diff", "init", "inspect", "plan", "print_error", "quiet_libraries", "read_recipe", "report",
    "schema", "selftest", "validate", "verify",
]  # fmt: skip
