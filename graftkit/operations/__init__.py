"""The operations: one file each. A registry is a readable dict."""

from __future__ import annotations

from graftkit.operations.base import Context, Operation, Outcome, Written
from graftkit.operations.extend_vocab import extend_vocab

IMPLEMENTATIONS: dict[str, Operation] = {
    "extend_vocab": extend_vocab,
}

__all__ = ["IMPLEMENTATIONS", "Context", "Operation", "Outcome", "Written"]
