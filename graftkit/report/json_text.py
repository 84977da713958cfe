"""The JSON of every `--json` and of graft_report.json: any reader accepts it, since a number that is not finite is a string."""

from __future__ import annotations

import json

from graftkit.verification.checks import finite


def json_text(value: object, *, escape: bool = False) -> str:
    """``value`` as indented JSON; JSON has no NaN and no infinity, so they are ``"nan"``, ``"inf"`` and ``"-inf"``.

    ``escape`` writes what is not ASCII as JSON's escapes.
    """
    return json.dumps(finite(value), indent=2, ensure_ascii=escape, allow_nan=False, default=str)
