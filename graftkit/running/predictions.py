"""What a model predicts at each token of given texts: the texts as inputs, their loss, and how far two predictions are apart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from graftkit.architecture.embeddings import INPUT, embedding_of
from graftkit.running.forward import largest_position
from graftkit.running.loss import Columns, observe
from graftkit.running.probes import FORWARD_TOKENS, LOGIT_BYTES, POSITIONS, Probe

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from graftkit.running.loaded_tokenizer import LoadedTokenizer

#: Fewest tokens of a piece, however wide the vocabulary is.
FEWEST_TOKENS = 16

#: Elements of logits that are widened to float64 at a time.
CHUNK = 4 << 20


def text_probes(
    model: PreTrainedModel, tokenizer: LoadedTokenizer, texts: Iterable[str], tokens: int
) -> Iterator[Probe]:
    """Yield the texts as inputs, with the tokenizer's special tokens around each, until there are ``tokens`` of them.

    A text that is longer than the model's positions, or than one forward may be, goes in pieces; a piece of one token is left out.
    """
    import torch

    longest, left = _longest(model), tokens
    for text in texts:
        (ids,) = tokenizer.encode([text], framed=True)
        for start in range(0, len(ids), longest):
            piece = ids[start : start + longest][:left]
            if len(piece) > 1:
                yield Probe("text", torch.tensor([piece]), torch.ones(1, len(piece), dtype=torch.int64))
                left -= len(piece)
            if left <= 1:
                return


def _longest(model: PreTrainedModel) -> int:
    """Tokens of one forward: no more than there are positions, nor than logits fit into memory."""
    table = embedding_of(model, INPUT)
    rows = 1 if table is None else table.weight.shape[0]
    return min(largest_position(model) or POSITIONS, FORWARD_TOKENS, max(LOGIT_BYTES // (4 * rows), FEWEST_TOKENS))


def predicts_next(model: PreTrainedModel) -> bool:
    """Whether a model predicts the next token of a text, so that the loss of a text is its perplexity's logarithm."""
    return bool(model.can_generate()) and not model.config.is_encoder_decoder


def predictions(outputs: dict[str, Any], probe: Probe, ids: Columns = None) -> Tensor | None:
    """Logits ``(tokens, ids)`` of a probe's outputs; None where there are none over token ids. ``ids`` are the columns that count."""
    seen = observe(outputs, probe)
    return seen.values(outputs, probe, ids) if seen.kind == "ids" else None


def divergences(old: Tensor, new: Tensor) -> Tensor:
    """KL(old ‖ new) in nats of each pair of distributions, in float64; a mask of minus infinity on both sides counts for nothing.

    *Shapes:* ``(..., ids)`` logits; the result ``(...)``.
    """
    import torch

    width = old.shape[-1]
    pairs = zip(_rows(old, width), _rows(new, width), strict=True)
    return torch.cat([_divergence(before, after) for before, after in pairs]).reshape(old.shape[:-1])


def _rows(values: Tensor, width: int) -> tuple[Tensor, ...]:
    import torch

    return torch.split(values.reshape(-1, width), max(CHUNK // width, 1))


def _divergence(old: Tensor, new: Tensor) -> Tensor:
    before, after = old.double().log_softmax(-1), new.double().log_softmax(-1)
    terms = before.exp() * (before - after)
    return terms.nan_to_num(nan=0.0).sum(-1).clamp(min=0)


def losses_of_tokens(logits: Tensor, probe: Probe) -> Tensor:
    """What each token of a piece but the first costs in nats, in float64. *Shapes:* ``(tokens, ids)``; ``(tokens - 1,)``."""
    import torch

    wanted = probe.ids[0][1 : len(logits)]
    parts = zip(
        _rows(logits[:-1], logits.shape[-1]), torch.split(wanted, max(CHUNK // logits.shape[-1], 1)), strict=True
    )
    return torch.cat([torch.nn.functional.cross_entropy(a.double(), b, reduction="none") for a, b in parts])
