"""What trainers with a command line share: one step on one text, and the loss that they note of it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

#: How many decimals trainers keep of a loss that they note.
DECIMALS = 4


def run_command(command: list[Any], scratch: Path) -> None:
    """Run a command in ``scratch``; what it said last is the error where it fails."""
    done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False)
    (scratch / "said.txt").write_text(f"{done.stdout}\n{done.stderr}", encoding="utf-8")
    if done.returncode != 0:
        lines = (
            [line for line in done.stderr.splitlines() if "Error" in line]
            or done.stderr.strip().splitlines()
            or ["nothing said"]
        )
        raise RuntimeError(lines[-1].strip())


def first_loss(folder: Path) -> float:
    """The first loss that a Trainer noted below ``folder``."""
    states = sorted(folder.rglob("trainer_state.json"))
    if not states:
        raise RuntimeError("no trainer_state.json was written")
    history = json.loads(states[0].read_text(encoding="utf-8"))["log_history"]
    return float(next(each["loss"] for each in history if "loss" in each))
