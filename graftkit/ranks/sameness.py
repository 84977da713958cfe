"""Whether ranks plan the same result: only then are the files that they write those of one process."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from graftkit.checkpoint.stamps import stamps_of
from graftkit.errors import StorageFault
from graftkit.planned import Plan
from graftkit.recipe import dump_recipe
from graftkit.report.versions import installed, kernels


def plan_marks(planned: Plan) -> dict[str, str]:
    """What a plan rests on, in words or by digest: equal on all ranks, or their files do not belong together."""
    result = planned.result
    tensors = {name: [tensor.dtype, list(tensor.shape)] for name, tensor in result.all_tensors.items()}
    return {
        "the lines of the recipe": _digest(dump_recipe(planned.recipe)),
        "the commits of the source": str(planned.source.revision),
        "the source's files": _digest(
            {name: size for name, (_, _, size, _) in sorted(stamps_of(planned.source.directory).items())}
        ),
        "the result's tensors": _digest([tensors, {file: list(names) for file, names in result.files.items()}]),
        "the installed versions": json.dumps(installed(), sort_keys=True),
        "the processor's kernels and threads": kernels(),
    }


def require_same(mine: Mapping[str, str], first: Mapping[str, str]) -> None:
    """Check that this rank's marks are those of rank 0.

    Raises:
        StorageFault: they are not; the message names what differs.
    """
    for what, mark in mine.items():
        if first.get(what) != mark:
            shown = "" if len(mark) == len(_digest("")) else f": {mark} here, {first.get(what)} on rank 0"
            raise StorageFault(f"{what} are not those of rank 0{shown}; nothing was written")


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
