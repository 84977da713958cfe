"""The base that an adapter's config names, so that loading it resolves."""

from __future__ import annotations

from typing import Any

from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.operations.base import Context


def base_fields(checkpoint: Checkpoint, context: Context) -> dict[str, Any]:
    """``base_model_name_or_path`` and ``revision``: the written base where the recipe changes it, else the source."""
    source = context.source
    if checkpoint is not source:
        return {"base_model_name_or_path": str(context.output.absolute()), "revision": None}
    if source.revision is not None:
        return {"base_model_name_or_path": source.name, "revision": source.revision}
    return {"base_model_name_or_path": str(source.directory), "revision": None}
