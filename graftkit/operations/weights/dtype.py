"""What config.json says of a model's dtype."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graftkit.verification.subject import DTYPE_FIELDS


def config_in_dtype(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """The config with ``dtype`` wherever it names one, under the name that it has there; outermost where it names none."""
    found = _in_dtype(config, dtype)
    return found if any(key in found for key in DTYPE_FIELDS) else {**found, DTYPE_FIELDS[0]: dtype}


def _in_dtype(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    return {
        key: _in_dtype(value, dtype) if isinstance(value, dict) else dtype if key in DTYPE_FIELDS else value
        for key, value in config.items()
    }
