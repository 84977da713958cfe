"""How much worse a model reads text under another tokenizer: figures that both tokenizers share, before and after."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graftkit.errors import plural
from graftkit.running.embedded_texts import embed_texts
from graftkit.running.forward import load, release, undisturbed
from graftkit.running.loaded_tokenizer import LoadedTokenizer
from graftkit.running.paging.room import paged as paged_in
from graftkit.running.place import folder_of
from graftkit.running.predictions import predicts_next
from graftkit.running.probe_texts import PROBE_TEXTS
from graftkit.running.probes import LOGIT_BYTES
from graftkit.running.scored_texts import Score, positions_of, score_texts, spelled, split_texts
from graftkit.verification.checks import LoadsModels, Report, Row
from graftkit.verification.promises import Scope

if TYPE_CHECKING:
    from torch import Tensor

    from graftkit.checkpoint.tokenizer.spelling import Spelling
    from graftkit.verification.subject import Subject

#: Bytes of text that are run, at most.
MOST_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class LanguageReport(Report):
    """Bits for each byte of the same ``bytes`` of text, and the share of ``ends`` of words behind which both expect the same text.

    ``unknown`` counts tokens of the result that stand for text which its tokenizer does not have; their bits are not those of the text.
    """

    texts: int
    bytes: int
    before: float
    after: float
    ends: int
    agreement: float
    tokens_before: int
    tokens_after: int
    unknown: int
    failures: tuple[str, ...]
    name: str = "texts"

    def rows(self) -> Iterator[Row]:
        """The lines that a table shows of it."""
        lost = f", {plural(self.unknown, 'token')} unknown to it" if self.unknown else ""
        figure = f"{self.before:.3f} before, {self.after:.3f} after, over {self.bytes:,} bytes of {plural(self.texts, 'text')}{lost}"
        yield Row("bits per byte", "failed" if self.failures else "measured", figure)
        if self.ends:
            yield Row("next word", "measured", f"the same behind {self.agreement:.1%} of {plural(self.ends, 'word')}")
        yield Row("tokens of the texts", "measured", f"{self.tokens_before:,} before, {self.tokens_after:,} after")


@dataclass(frozen=True, slots=True)
class EmbeddingReport(Report):
    """Cosines of each text's vector before with that after, and of different texts before: what no likeness at all is."""

    texts: int
    mean: float
    least: float
    others: float
    failures: tuple[str, ...]
    name: str = "texts"

    def rows(self) -> Iterator[Row]:
        """The lines that a table shows of it."""
        figure = f"mean {self.mean:.3f}, least {self.least:.3f} over {plural(self.texts, 'text')}; of different texts {self.others:.3f}"
        yield Row("cosine of texts, before and after", "failed" if self.failures else "measured", figure)


@dataclass(frozen=True, slots=True)
class TextCheck(LoadsModels):
    """Measures on ``texts``, or on built-in ones; it fails where what comes out is no number."""

    texts: tuple[str, ...] = ()
    name: str = "texts"

    def applies(self, subject: Subject) -> bool:
        """Where models may be loaded and the source is what the result is compared with."""
        return subject.runs and not (subject.later_scope & (Scope.NOTHING | Scope.BACKBONE))

    def run(self, subject: Subject) -> LanguageReport | EmbeddingReport:
        """Run source and result, each with its own tokenizer, on the same pieces of text."""
        texts = self.texts or PROBE_TEXTS
        places = (subject.source, subject.result)
        tokenizers = [LoadedTokenizer.of(folder_of(place)) for place in places]
        begin = all("bos_token" in tokenizer.roles for tokenizer in tokenizers)
        scores: list[list[Score]] = []
        vectors: list[Tensor] = []
        pieces: tuple[str, ...] = ()
        with undisturbed():
            for place, tokenizer in zip(places, tokenizers, strict=True):
                model = load(place, paged=paged_in((place,), LOGIT_BYTES, wanted=subject.paged), lent=True).model
                pieces = pieces or tuple(split_texts(texts, positions_of(model), MOST_BYTES))
                if predicts_next(model):
                    scores.append(score_texts(model, tokenizer, pieces, begin=begin))
                else:
                    vectors.append(embed_texts(model, tokenizer, pieces))
                release(model)
        if vectors:
            return compare_vectors(*vectors)
        return compare_scores(
            scores[0], scores[1], pieces, [spelled(tokenizer) for tokenizer in tokenizers], begin=begin
        )


def compare_scores(
    before: Sequence[Score], after: Sequence[Score], texts: Sequence[str], spellings: Sequence[Spelling], *, begin: bool
) -> LanguageReport:
    """Bits of both over the same bytes: all where both ``begin`` with a token for that, else from the first place at which both split.

    At the end of a word the texts of the two likeliest tokens are the same where one begins with the other.
    """
    sums, size, ends, same = [0.0, 0.0], 0, 0, 0
    for old, new, text in zip(before, after, texts, strict=True):
        both = sorted(set(old.ends) & set(new.ends))
        if not both:
            continue
        start = -1 if begin else both[0]
        size += len(text[max(start, 0) : both[-1]].encode("utf-8", "surrogatepass"))
        for side, score in enumerate((old, new)):
            sums[side] += sum(bits for bits, end in zip(score.bits, score.ends, strict=True) if start < end <= both[-1])
        for place in both:
            if _ends_word(text, place):
                expected = [
                    spelling.texts.get(_at(score, place), b"")
                    for score, spelling in zip((old, new), spellings, strict=True)
                ]
                ends += 1
                same += all(expected) and (expected[0].startswith(expected[1]) or expected[1].startswith(expected[0]))
    figures = [total / max(size, 1) for total in sums]
    bad = () if all(map(math.isfinite, figures)) else ("texts: the bits of the result's texts are not finite",)
    counts = [sum(len(score.ends) for score in side) for side in (before, after)]
    return LanguageReport(
        texts=len(texts), bytes=size, before=figures[0], after=figures[1], ends=ends, agreement=same / max(ends, 1),
        tokens_before=counts[0], tokens_after=counts[1], unknown=sum(score.unknown for score in after), failures=bad,
    )  # fmt: skip


def _at(score: Score, place: int) -> int:
    """What was expected behind the last token that ends at a place of the text."""
    return score.expected[len(score.ends) - 1 - score.ends[::-1].index(place)]


def _ends_word(text: str, place: int) -> bool:
    return place > 0 and text[place - 1].isalnum() and place < len(text) and not text[place].isalnum()


def compare_vectors(before: Tensor, after: Tensor) -> EmbeddingReport:
    """Cosines of the rows of both, and of different rows of the first. *Shapes:* ``(texts, d)``."""
    import torch

    old, new = (torch.nn.functional.normalize(side, dim=1) for side in (before, after))
    cosines, others = (old * new).sum(1), old @ old.T
    apart = others[~torch.eye(len(old), dtype=torch.bool)]
    bad = () if bool(new.isfinite().all()) else ("texts: vectors of the result's texts are not finite",)
    return EmbeddingReport(
        len(old), float(cosines.mean()), float(cosines.min()), float(apart.mean()) if len(apart) else math.nan, bad
    )
