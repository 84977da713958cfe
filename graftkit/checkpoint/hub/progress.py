"""What huggingface_hub would show as bars, given to a function."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

#: ``(bytes done, bytes in all)``; the second grows while files are being looked up.
Bytes = Callable[[float, float], None]


def bars_to(progress: Bytes) -> type[Any]:
    """A class of bars for huggingface_hub that prints nothing, and gives ``progress`` what was downloaded."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    class Told(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **given: Any) -> None:
            given.pop("name", None)  # of huggingface_hub's own class
            super().__init__(*args, **{**given, "file": io.StringIO(), "disable": False})

        def display(self, msg: str | None = None, pos: int | None = None) -> bool:
            """Hand over instead of printing."""
            del msg, pos
            if self.unit == "B" and self.total and str(self.desc).startswith("Download"):
                progress(self.n, self.total)
            return True

    return Told
