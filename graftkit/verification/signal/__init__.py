"""Signal propagation, before and after: what each block does to the residual stream, and what comes back as gradient."""

from graftkit.verification.signal.compare import compare_signal
from graftkit.verification.signal.report import SignalFigure, SignalReport

__all__ = ["SignalFigure", "SignalReport", "compare_signal"]
