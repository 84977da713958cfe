"""Refuse a base that an adapter was not made for."""

from __future__ import annotations

from graftkit.errors import InputRejected
from graftkit.verification.adapters.origin import Origin


def refuse_other_base(origin: Origin, shown: str) -> None:
    """Raise InputRejected where ``origin`` tells of another base than the one of the adapter that errors call ``shown``."""
    if origin.different:
        more = f" (and {len(origin.different) - 1} more)" if len(origin.different) > 1 else ""
        raise InputRejected(
            f"{shown}: {origin.different[0]}{more}; give the base that it was made for as base_model, or set base: accept"
        )
