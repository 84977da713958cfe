"""The names and regular expressions of rank_pattern and alpha_pattern, held against the targets as peft does."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from graftkit.errors import printable


def unmatched(patterns: Mapping[str, Any], names: Collection[str]) -> Iterator[str]:
    """Yield a sentence for each name or regular expression that peft finds in none of ``names``, those of the targets."""
    for key in patterns:
        if not any(re.match(rf"(.*\.)?({key})$", name) for name in names):
            close = difflib.get_close_matches(key, [name.rpartition(".")[2] for name in names], n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            yield f"{printable(key)!r} matches no target{hint}"
