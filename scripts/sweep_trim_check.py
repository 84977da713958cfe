"""The sweep's own comparison of a trimmed checkpoint with its source, by plain transformers alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sweep_vocab_check import LIVE, ROUNDING, ROWS, Wrong, input_table, load_plain

#: Pieces of two letters that stay, beside bytes and special tokens; their neighbours go, so that ids move.
PIECES = ("ea", "et", "ot", "se")


def check_trimmed(source: Path, output: Path) -> None:
    """Reload both with plain transformers and compare, by the tokens that the two tokenizers share.

    Raises:
        Wrong: the result does not load as its source does, or a kept row, a tensor or an output differs.
    """
    import torch
    import transformers

    (old, old_info), (new, new_info) = load_plain(source), load_plain(output)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if set(map(str, new_info[kind])) - set(map(str, old_info[kind])):
            raise Wrong(f"{kind}: {sorted(map(str, new_info[kind]))[:3]}")
    before, after = (transformers.AutoTokenizer.from_pretrained(folder).get_vocab() for folder in (source, output))
    kept = torch.tensor([before[token] for token in sorted(after, key=after.__getitem__)])
    if not set(PIECES) <= after.keys() or len(input_table(new)) != len(kept) or len(kept) >= LIVE:
        raise Wrong(f"{len(input_table(new))} rows for {len(kept)} tokens")
    made = new.state_dict()
    for key, value in old.state_dict().items():
        axis = next((axis for axis, size in enumerate(value.shape) if size == ROWS), None)
        wanted = value if axis is None else value.index_select(axis, kept)
        if not torch.equal(wanted, made[key]):
            raise Wrong(f"{key} differs")
    _compare_trimmed(old, new, kept)


def _compare_trimmed(old: Any, new: Any, kept: Any) -> None:
    """Outputs on the same tokens: bit for bit, or as far as a kernel rounds a table of another shape otherwise."""
    import torch
    from support.tiny import forward

    ids = torch.randint(4, len(kept) - 1, (2, 24), generator=torch.Generator().manual_seed(7))
    outputs = []
    for model, given in ((old, kept[ids]), (new, ids)):
        torch.manual_seed(0)  # some classes hash at random
        try:
            outputs.append(forward(model, given))
        except Exception:
            if outputs:
                raise
            return
    name = "logits" if getattr(outputs[0], "logits", None) is not None else next(iter(outputs[0]))
    before, after = (found[name] for found in outputs)
    before = before[..., kept] if before.shape[-1] == ROWS else before
    if before.shape != after.shape or float((before - after).abs().max()) > ROUNDING * float(before.abs().max()):
        raise Wrong(f"{name} moved")
