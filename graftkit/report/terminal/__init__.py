"""Plans, reports and differences as text: for a terminal, and as what Python shows of the values. One file for each kind of value."""

from graftkit.report.terminal.difference import print_difference
from graftkit.report.terminal.inspection import print_inspection
from graftkit.report.terminal.plan import plan_text, print_plan
from graftkit.report.terminal.progress import progress
from graftkit.report.terminal.report import print_report, report_text
from graftkit.report.terminal.selftest import print_selftest
from graftkit.report.terminal.verification import (
    print_adapter_verification,
    print_merge_verification,
    print_verification,
    verification_text,
)

__all__ = [
    "plan_text", "print_adapter_verification", "print_difference", "print_inspection", "print_merge_verification", "print_plan",
    "print_report", "print_selftest", "print_verification", "progress", "report_text", "verification_text",
]  # fmt: skip
