"""The sections of the page, in their order: one file each."""

from __future__ import annotations

from graftkit.report.page.section import Render
from graftkit.report.page.sections.changes import changes
from graftkit.report.page.sections.checks import checks
from graftkit.report.page.sections.different_tensors import different_tensors
from graftkit.report.page.sections.distribution import distribution
from graftkit.report.page.sections.float64 import float64
from graftkit.report.page.sections.layers import layers
from graftkit.report.page.sections.ledger import ledger
from graftkit.report.page.sections.new_rows import new_rows
from graftkit.report.page.sections.noise import noise
from graftkit.report.page.sections.signal import signal
from graftkit.report.page.sections.splits import splits

#: Title of each section with figures of its own -> its renderer.
SECTIONS: dict[str, Render] = {
    "Checks": checks,
    "Difference by layer": layers,
    "True float64": float64,
    "Noise of the arithmetic": noise,
    "Signal before and after": signal,
    "Next-token distribution": distribution,
    "New rows against old rows": new_rows,
    "Tokenization": splits,
    "Config and tokenizer": changes,
    "Tensors": ledger,
    "Tensors that differ": different_tensors,
}
