"""The same text split by two tokenizers: the ids of both, and the places in them at which both splits end."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graftkit.running.loaded_tokenizer import LoadedTokenizer

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

#: The end of a word that another one follows.
WORD_END = re.compile(r"(?<=\S)(?=\s)")


@dataclass(frozen=True, slots=True)
class Aligned:
    """The ids of a text by an ``old`` and a ``new`` tokenizer, with the special tokens that each puts around it.

    ``places`` are pairs of a place in the old ids and one in the new: behind both the same text has been read.
    """

    old: tuple[int, ...]
    new: tuple[int, ...]
    places: tuple[tuple[int, int], ...]


def align(
    old: LoadedTokenizer, new: LoadedTokenizer, text: str, fresh: Collection[int], origins: Callable[[int], int | None]
) -> Aligned | None:
    """Split ``text`` by both. None where there is no place that says anything of the ``fresh`` new ids.

    Places count from the first fresh id on, and there a fresh id stands, or that of the token that stands there in the old split:
    ``origins`` gives its old id. Another shared token behind other tokens would say what no fresh row can change.
    """
    before, after = (tokenizer.encode_with_ends(text, framed=True) for tokenizer in (old, new))
    first = next((place for place, (index, _) in enumerate(after) if index in fresh), None)
    if first is None:
        return None
    ends = {end: place for place, (_, end) in enumerate(before) if end}
    here = {end: place for place, (_, end) in enumerate(after) if end and place >= first}
    places = tuple(
        (ends[end], place)
        for end, place in here.items()
        if end in ends and (after[place][0] in fresh or origins(after[place][0]) == before[ends[end]][0])
    )
    return Aligned(tuple(i for i, _ in before), tuple(i for i, _ in after), places) if places else None


def cut_texts(tokenizer: LoadedTokenizer, texts: Iterable[str], length: int) -> Iterator[str]:
    """Yield each text in parts of about ``length`` tokens, cut at the end of a word where one is near."""
    for text in texts:
        ends = [end for _, end in tokenizer.encode_with_ends(text)]
        start = 0
        while start < len(text):
            last = bisect_right(ends, start) + length - 1
            end = len(text) if last >= len(ends) - 1 else ends[last]
            word = WORD_END.search(text, end, end + length)
            end = end if word is None or end == len(text) else word.start()
            if text[start:end].strip():
                yield text[start:end]
            start = max(end, start + 1)


def states_of_ids(model: PreTrainedModel, ids: Iterable[int]) -> Tensor:
    """What stands behind the last block and the last norm, for one text. *Shape:* ``(ids, d)``."""
    import torch

    with torch.inference_mode():
        return last_states(model.base_model(input_ids=torch.tensor([[*ids]])))[0]


def last_states(outputs: object) -> Tensor:
    """The last hidden states among the outputs of a model without its head. *Shape:* ``(texts, places, d)``."""
    found: Tensor = outputs["last_hidden_state"] if "last_hidden_state" in outputs else outputs[0]  # type: ignore[operator, index]
    return found


def relative_distance(pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    """The root mean square distance of vectors from those beside them, as a share of the size of the latter.

    *Shapes:* each pair ``(n, d)``.
    """
    apart = size = 0.0
    for found, wanted in pairs:
        apart += float((found.double() - wanted.double()).square().sum())
        size += float(wanted.double().square().sum())
    return (apart / size) ** 0.5 if size else 0.0
