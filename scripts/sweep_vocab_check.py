"""The sweep's own comparison of a checkpoint that was given tokens with its source, by plain transformers alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROWS, LIVE = 331, 323
SPECIAL, PLAIN = ("<|tool_call|>", "<|tool_result|>", "<|think|>"), "ketoglutarate"

#: How far logits may move where a kernel picks another path for another width, as a share of the largest.
ROUNDING = 2e-6


class Wrong(Exception):
    """A check failed; the message says which."""


def check(source: Path, output: Path, tokens: int, multiple: int | None) -> float | None:
    """Reload both with plain transformers and compare. Returns how far an old logit moved, None when nothing could be run.

    Raises:
        Wrong: the result does not load as its source does, or differs where it must not, or its new rows are empty.
    """
    import torch
    import transformers

    (old, old_info), (new, new_info) = load_plain(source), load_plain(output)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if set(map(str, new_info[kind])) - set(map(str, old_info[kind])):
            raise Wrong(f"{kind}: {sorted(map(str, new_info[kind]))[:3]}")
    size = max(ROWS, tokens + 4)
    size = -(-size // (multiple or 1)) * (multiple or 1)
    head = new.get_output_embeddings()
    for table in (input_table(new), *([] if head is None else [head.weight])):
        if table.shape[0] != size or new.config.get_text_config().vocab_size != size:
            raise Wrong(f"{table.shape[0]} rows, vocab_size {new.config.get_text_config().vocab_size}, wanted {size}")
        made = table[tokens : tokens + 4]
        if not (made.isfinite().all() and made.abs().sum(-1).all()):
            raise Wrong("a new row is zero or not finite")
    if not torch.equal(input_table(new)[:tokens], input_table(old)[:tokens]):
        raise Wrong("old input rows changed")
    tokenizer = transformers.AutoTokenizer.from_pretrained(output)
    ids = tokenizer(f"a{''.join(SPECIAL)} {PLAIN}", add_special_tokens=False)["input_ids"]
    if not set(range(tokens, tokens + 4)) <= set(ids):
        raise Wrong(f"the tokenizer gives {ids}")
    return _compare(old, new, tokens)


def load_plain(directory: Path) -> tuple[Any, Any]:
    """The model that the config names by plain transformers, and what its loader says."""
    import transformers

    name = json.loads((directory / "config.json").read_text(encoding="utf-8"))["architectures"][0]
    model, info = getattr(transformers, name).from_pretrained(directory, output_loading_info=True)
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()  # mapped tensors are aligned as their file is, and kernels look at that
    return model.eval(), info


def input_table(model: Any) -> Any:
    """The table of the input embedding. *Shape:* ``(rows, d)``."""
    try:
        return model.get_input_embeddings().weight
    except NotImplementedError:
        return model.get_decoder().embed_tokens.weight


def _compare(old: Any, new: Any, tokens: int) -> float | None:
    import torch
    from support.tiny import forward

    ids = torch.randint(4, LIVE - 16, (2, 24), generator=torch.Generator().manual_seed(7))
    torch.manual_seed(0)  # some classes hash at random
    try:
        before = forward(old, ids)
    except Exception:  # noqa: BLE001 - the class wants inputs that are not made up here
        return None
    torch.manual_seed(0)
    after = forward(new, ids)
    name = "logits" if getattr(before, "logits", None) is not None else next(iter(before))
    before, after = before[name], after[name]
    if (name == "logits" and after.shape[-1] != before.shape[-1]) or before.shape[-1] == ROWS:
        before, after = before[..., :tokens], after[..., :tokens]
    if not before.isfinite().all():
        raise Wrong("the source's own outputs are not finite")
    moved = float((after - before).abs().max())
    if moved > ROUNDING * float(before.abs().max()):
        raise Wrong(f"an old logit moved by {moved:.3g} of {float(before.abs().max()):.3g}")
    ids[:, 1:5] = torch.arange(tokens, tokens + 4)
    if forward(new, ids)[name].isnan().any():
        raise Wrong("new ids give NaN")
    return moved


def one_line(error: Exception) -> str:
    """Its message as one line, the name of its class where it has none."""
    return " ".join(str(error).split())[:300] or type(error).__name__
