"""Which of how many processes this is, from what torchrun or srun left in the environment."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from graftkit.errors import RecipeError, printable

#: Where the ranks meet when srun starts them, which names no port: from here on, by the number of the job.
FIRST_PORT, PORTS = 20_000, 20_000

#: The first host of Slurm's short form of a list, ``node[003-007,9],other``.
_FIRST_HOST = re.compile(r"([^,\[]+)(?:\[([^\],-]+)[^\]]*\])?([^,]*)")


@dataclass(frozen=True, slots=True)
class RankPlace:
    """Rank number ``rank`` of ``count``; the ranks meet at ``host`` and ``port``.

    ``hosts`` says whether this rank opens the port, which torchrun has opened itself. ``attempt`` counts torchrun's restarts.
    """

    rank: int
    count: int
    host: str
    port: int
    hosts: bool
    attempt: str = "0"


def rank_place(environment: Mapping[str, str]) -> RankPlace | None:
    """The place among several processes that share one command; None where there is one alone.

    torchrun sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT; srun sets SLURM_PROCID and the number of tasks of its step. A batch
    script itself has no such step, so that a plain ``graftkit apply`` in one stays alone.

    Raises:
        RecipeError: the variables are there and cannot be right.
    """
    if int_of(environment, "WORLD_SIZE", 1) > 1:
        rank, count = int_of(environment, "RANK", -1), int_of(environment, "WORLD_SIZE", 1)
    elif int_of(environment, "SLURM_STEP_NUM_TASKS", 1) > 1 and "SLURM_PROCID" in environment:
        rank, count = int_of(environment, "SLURM_PROCID", -1), int_of(environment, "SLURM_STEP_NUM_TASKS", 1)
    else:
        return None
    if not 0 <= rank < count:
        raise RecipeError(
            f"{count} processes share this command, but RANK or SLURM_PROCID is not from 0 to {count - 1}"
        )
    host = environment.get("MASTER_ADDR") or _first_host(environment.get("SLURM_STEP_NODELIST", "localhost"))
    port = int_of(environment, "MASTER_PORT", FIRST_PORT + int_of(environment, "SLURM_JOB_ID", 0) % PORTS)
    open_already = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    attempt = environment.get("TORCHELASTIC_RESTART_COUNT", "0")
    return RankPlace(rank, count, host, port, hosts=rank == 0 and not open_already, attempt=attempt)


def int_of(environment: Mapping[str, str], name: str, otherwise: int) -> int:
    """The number in a variable, ``otherwise`` where there is none.

    Raises:
        RecipeError: it is no number.
    """
    text = environment.get(name, "").strip() or str(otherwise)
    try:
        return int(text)
    except ValueError as error:
        raise RecipeError(f"{name}: {printable(text)!r} in the environment is no number") from error


def _first_host(nodes: str) -> str:
    found = _FIRST_HOST.match(nodes)
    return "localhost" if found is None else f"{found[1]}{found[2] or ''}{found[3] if found[2] else ''}"
