"""What a language model makes of texts, in terms that tokenizers share: bits for each byte, and what it expects behind a word."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from graftkit.checkpoint.tokenizer.spelling import Spelling
from graftkit.running.forward import largest_position
from graftkit.running.loaded_tokenizer import LoadedTokenizer
from graftkit.running.probes import POSITIONS

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

#: Bytes of a piece of text that is fed at once, at most: no tokenizer makes more tokens than bytes of it, but for one or two in front.
PIECE = 2048


@dataclass(slots=True)
class Score:
    """What a model made of one piece of text.

    ``ends`` gives for each token the place in the text at which it ends, ``bits`` what it cost, and ``expected`` the id that the model
    thought likeliest behind it. ``unknown`` counts tokens that stand for text which the tokenizer does not have.
    """

    ends: list[int] = field(default_factory=list)
    bits: list[float] = field(default_factory=list)
    expected: list[int] = field(default_factory=list)
    unknown: int = 0


def split_texts(texts: Sequence[str], positions: int | None, limit: int) -> Iterator[str]:
    """Yield pieces of the texts that any tokenizer splits into no more tokens than there are ``positions``, ``limit`` bytes in all."""
    size = min(max((positions or POSITIONS) - 2, 16), PIECE)
    spent = 0
    for text in texts:
        start = 0
        while start < len(text) and spent < limit:
            piece = text[start : start + size].encode("utf-8", "surrogatepass")[:size].decode("utf-8", "ignore")
            yield piece
            start, spent = start + max(len(piece), 1), spent + len(piece.encode("utf-8"))


def positions_of(model: PreTrainedModel) -> int | None:
    """How many positions a model has, where its config says."""
    return largest_position(model)


def score_texts(
    model: PreTrainedModel, tokenizer: LoadedTokenizer, texts: Sequence[str], *, begin: bool
) -> list[Score]:
    """Run each text alone; ``begin`` puts the token for a text's beginning before it, which the first token is predicted from.

    Without it the first token costs nothing.
    """
    first = tokenizer.ids.get(tokenizer.roles.get("bos_token", "")) if begin else None
    unknown = tokenizer.ids.get(tokenizer.roles.get("unk_token", ""))
    return [_score(model, tokenizer, text, [] if first is None else [first], unknown) for text in texts]


def _score(
    model: PreTrainedModel, tokenizer: LoadedTokenizer, text: str, first: list[int], unknown: int | None
) -> Score:
    import torch

    encoded = tokenizer.encode_with_ends(text)
    ids = torch.tensor([[*first, *(index for index, _ in encoded)]])
    if not encoded or ids.shape[1] < 2:
        return Score()
    with torch.inference_mode():
        logits = model(input_ids=ids).logits[0].double()
    costs = _bits(logits, ids[0])
    return Score(
        [end for _, end in encoded],
        ([] if first else [0.0]) + costs,
        logits.argmax(-1).tolist()[len(first) :],
        sum(index == unknown for index, _ in encoded),
    )


def _bits(logits: Tensor, ids: Tensor) -> list[float]:
    """Bits of each id but the first, given those before it. *Shapes:* ``logits`` ``(n, ids)``, ``ids`` ``(n,)``."""
    import torch

    costs = torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="none") / math.log(2)
    found: list[float] = costs.tolist()
    return found


def spelled(tokenizer: LoadedTokenizer) -> Spelling:
    """What the tokens of a tokenizer spell."""
    from graftkit.checkpoint.tokenizer import read_tokenizer

    names = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
    documents: dict[str, Any] = {name: found for name in names if (found := tokenizer.document(name)) is not None}
    return Spelling(read_tokenizer(documents))
