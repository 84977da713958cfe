"""Signal propagation, before and after: what each block does to the residual stream, and what comes back as gradient."""

from graftkit.verify.signal.compare import compare_signal
from graftkit.verify.signal.report import SignalFigure, SignalReport

__all__ = ["SignalFigure", "SignalReport", "compare_signal"]
