"""The sweep's own comparison of a checkpoint with other blocks with its source, by plain transformers alone."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from sweep_vocab_check import LIVE, load_plain


class Wrong(Exception):
    """A check failed; the message says which."""


def check_blocks(source: Path, output: Path, stack: str, order: Sequence[int], silent: Collection[str]) -> None:
    """Each block of the result holds what the named one of the source holds, and all else is as it was.

    In the ``silent`` blocks some parameters are zero, and not all of them.

    Raises:
        Wrong: one does not, or the result does not load whole.
    """
    import torch

    (old, _), (new, info) = load_plain(source), load_plain(output)
    left = {kind: found for kind in ("missing_keys", "mismatched_keys") if (found := info[kind])}
    if left:
        raise Wrong(f"does not load whole: {left}")
    if len(new.get_submodule(stack)) != len(order):
        raise Wrong(f"{len(new.get_submodule(stack))} blocks, wanted {len(order)}")
    before, after = old.state_dict(), new.state_dict()
    zeros: dict[str, int] = {}
    for name, value in after.items():
        block, origin = _origin(name, stack, order)
        if torch.equal(value, before[origin]):
            continue
        if block not in silent or bool(value.any()):
            raise Wrong(f"{name} is not {origin} of the source")
        zeros[block] = zeros.get(block, 0) + 1
    if unlike := [block for block in silent if block not in zeros]:
        raise Wrong(f"nothing is zero in {unlike[0]}")


def _origin(name: str, stack: str, order: Sequence[int]) -> tuple[str, str]:
    """``(name of the block, name of the parameter in the source)``; the first is empty outside of blocks."""
    if not name.startswith(f"{stack}."):
        return "", name
    number, _, rest = name.removeprefix(f"{stack}.").partition(".")
    return f"{stack}.{number}", f"{stack}.{order[int(number)]}.{rest}"


def check_outputs(source: Path, output: Path) -> bool:
    """Whether both could be run; their logits, or first outputs, are then equal bit for bit.

    Raises:
        Wrong: they are not.
    """
    import torch
    from support.tiny import forward

    (old, _), (new, _) = load_plain(source), load_plain(output)
    ids = torch.randint(4, LIVE - 16, (2, 24), generator=torch.Generator().manual_seed(7))
    found: list[Any] = []
    for model in (old, new):
        torch.manual_seed(0)
        try:
            found.append(forward(model, ids))
        except Exception:
            if model is old:
                return False
            raise
    name = "logits" if getattr(found[0], "logits", None) is not None else next(iter(found[0]))
    if not torch.equal(found[0][name], found[1][name]):
        raise Wrong(f"{name} moved by {float((found[0][name] - found[1][name]).abs().max()):.3g}")
    return True
