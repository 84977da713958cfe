"""How much memory this process may still take, and whether models fit into it."""

from __future__ import annotations

import json
import math
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.tensors import FLOATING, ITEM_BYTES
from graftkit.checkpoint.weights import read_weights
from graftkit.errors import RecipeError

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")

#: Item bytes by the name that a config gives its dtype.
DTYPES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}


def paged(directories: tuple[Path, ...], beside: int, *, wanted: bool | None) -> bool:
    """Whether models that must be in memory together are to be paged in: as ``wanted``, else where they do not fit.

    ``beside`` is what else is needed, in bytes.

    Raises:
        RecipeError: it is wanted for a quantized model, whose layers the loader makes of its tensors itself.
    """
    quantized = next((d for d in directories if _config(d).get("quantization_config")), None)
    if quantized is not None:
        if wanted:
            raise RecipeError(f"verify.paged: {quantized.name} is quantized and cannot be paged in; leave the option out")
        return False
    if wanted is not None:
        return wanted
    return sum(map(loaded_nbytes, directories)) + beside > available()


def loaded_nbytes(directory: Path) -> int:
    """Bytes of the weights in the dtype that the config says they are loaded in."""
    config = _config(directory)
    return tensors_nbytes(config, read_weights(directory, config).tensors.values())


def checkpoint_nbytes(checkpoint: Checkpoint) -> int:
    """As :func:`loaded_nbytes`, of a checkpoint that need not be written yet."""
    return tensors_nbytes(checkpoint.config, checkpoint.tensors.values())


def tensors_nbytes(config: dict[str, Any], tensors: Any) -> int:
    """Bytes of floating tensors in the dtype of the config, of others in their own."""
    item = DTYPES.get(str(config.get("dtype", config.get("torch_dtype"))))
    return sum(
        tensor.nbytes if item is None or tensor.dtype not in FLOATING else tensor.nbytes // ITEM_BYTES[tensor.dtype] * item
        for tensor in tensors
    )


def available() -> float:
    """Bytes that this process may still take: the least that machine, control groups and resource limits leave."""
    return min((_machine(), *_control_groups(), *_limits()))


def _config(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    return found


def _fields(path: Path) -> dict[str, int]:
    """Bytes by name from a file of lines such as ``VmData:  100 kB`` or ``inactive_file 100``."""
    found = {}
    for line in path.read_text().splitlines():
        words = line.replace(":", " ").split()
        if len(words) > 1 and words[1].isdigit():
            found[words[0]] = int(words[1]) * (1024 if words[-1] == "kB" else 1)
    return found


def _machine() -> float:
    try:
        return _fields(PROC / "meminfo").get("MemAvailable", math.inf)
    except OSError:
        return math.inf


def _limits() -> Iterator[float]:
    try:
        used = _fields(PROC / "self" / "status")
    except OSError:
        return
    for limit, name in ((resource.RLIMIT_DATA, "VmData"), (resource.RLIMIT_AS, "VmSize")):
        most = resource.getrlimit(limit)[0]
        if most != resource.RLIM_INFINITY:
            yield most - used.get(name, 0)


def _control_groups() -> Iterator[float]:
    """What each control group from this process' own upwards leaves; pages of files that it may drop count as free."""
    try:
        lines = (PROC / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = CGROUPS / "memory" if controllers else CGROUPS
        most, used = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        place = root / path.lstrip("/")
        for group in (place, *place.parents):
            if not group.is_relative_to(root):
                break
            try:
                limit = (group / most).read_text().strip()
                if limit.isdigit():
                    free = _fields(group / "memory.stat")
                    droppable = free.get("inactive_file", 0) + free.get("active_file", 0)
                    yield int(limit) - int((group / used).read_text()) + droppable
            except OSError:
                continue
