"""How much memory this process may still take."""

from __future__ import annotations

import math
import os
import resource
from collections.abc import Iterator
from pathlib import Path

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def available() -> float:
    """Bytes that this process may still take: the least that machine, control groups and resource limits leave."""
    return min((_machine(), *_control_groups(), *_limits()))


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
        return _physical()


def _physical() -> float:
    """All of the machine's memory, where nothing says what others leave of it, as on macOS."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
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
        most, used = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        )
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
