"""The sweep's own comparison of a wider checkpoint with its source, by plain transformers alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sweep_vocab_check import LIVE, ROUNDING, load_plain

#: What plain transformers says of a load that was not whole.
LEFT = ("missing_keys", "mismatched_keys", "unexpected_keys")


class Wrong(Exception):
    """A check failed; the message says which."""


def check_wider(source: Path, output: Path) -> str:
    """How both compare: some tensors are larger, all others, but for biases that were halved with their matrix, and outputs the source's.

    Raises:
        Wrong: they are not, or the result does not load whole.
    """
    import torch

    (old, _), (new, info) = load_plain(source), load_plain(output)
    if left := {kind: found for kind in LEFT if (found := info[kind])}:
        raise Wrong(f"does not load whole: {left}")
    before, after = old.state_dict(), new.state_dict()
    larger = [name for name, value in after.items() if value.numel() > before[name].numel()]
    if not larger:
        raise Wrong("no tensor is larger")
    for name, value in after.items():
        halved = name.endswith("bias") and torch.equal(2 * value, before[name])
        if name not in larger and not halved and not torch.equal(value, before[name]):
            raise Wrong(f"{name} is not the source's")
    return compare_models(old, new)


def compare_outputs(source: Path, output: Path) -> str:
    """How the outputs of two checkpoints compare, which may be of different classes.

    Raises:
        Wrong: they are not the same, or the result does not load whole.
    """
    (old, _), (new, info) = load_plain(source), load_plain(output)
    if left := {kind: found for kind in LEFT if (found := info[kind])}:
        raise Wrong(f"does not load whole: {left}")
    return compare_models(old, new)


def compare_models(old: Any, new: Any) -> str:
    """``works``, and whether bitwise or not run.

    Raises:
        Wrong: an output is another.
    """
    import torch
    from support.tiny import forward

    ids = torch.randint(4, LIVE - 16, (2, 24), generator=torch.Generator().manual_seed(7))
    found: list[Any] = []
    for model in (old, new):
        torch.manual_seed(0)
        try:
            found.append(forward(model, ids))
        except Exception:
            if model is old:
                return "works, outputs not run"
            raise
    name = "logits" if getattr(found[0], "logits", None) is not None else next(iter(found[0]))
    one, other = found[0][name], found[1][name]
    if torch.equal(one, other):
        return "works, bitwise"
    apart, most = float((one - other).abs().max()), float(one.abs().max())
    if not apart <= ROUNDING * most:
        raise Wrong(f"{name} moved by {apart:.3g} of {most:.3g}")
    return "works"
