"""What splits text is the source's, but for pieces that were learned: each of these is read, and old splits are only joined."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from graftkit.checkpoint.tokenizer.learning import words_with
from graftkit.checkpoint.tokenizer.pieces import gain
from graftkit.errors import few, plural, printable

if TYPE_CHECKING:
    from graftkit.running.loaded_tokenizer import LoadedTokenizer

#: The parts of tokenizer.json that split text and join it again.
PARTS = ("model", "normalizer", "pre_tokenizer", "decoder")


@dataclass(frozen=True)
class LearnedPieces:
    """The tokenizers before and after ``ids`` of new pieces came into the model, none where none did.

    ``others`` are the ids of other new tokens: text with one is split around it, whatever pieces there are. ``entered`` are those of
    them that stand in the model's vocabulary too, where pieces were given other names.
    """

    before: LoadedTokenizer
    after: LoadedTokenizer
    ids: Mapping[str, int]
    others: frozenset[int] = frozenset()
    entered: frozenset[str] = frozenset()

    def failures(self, texts: Sequence[str]) -> Iterator[str]:
        """Yield what does not hold of the new pieces, and of how ``texts`` are split with them."""
        if not self.ids:
            return
        yield from self._unread()
        yield from self._split(texts)

    def part_failures(self) -> Iterator[str]:
        """Yield the parts of tokenizer.json that changed, but for new pieces: no set of probes would notice each merge that is lost."""
        for part in PARTS:
            old, now = (loaded.tokenizer_json.get(part) for loaded in (self.before, self.after))
            if part == "model" and (self.ids or self.entered):
                yield from self._model_failures()
            elif old != now and self.before.part_as_loaded(part) != self.after.part_as_loaded(part):
                yield f"tokenizer.json: {part} is not the source's"

    def _model_failures(self) -> Iterator[str]:
        """Yield what of the model is neither the source's nor a new piece behind it."""
        old, now = (loaded.part_as_loaded("model") for loaded in (self.before, self.after))
        for key in dict.fromkeys([*old, *now]):
            if key not in ("vocab", "merges") and old.get(key) != now.get(key):
                yield f"tokenizer.json: model.{key} is not the source's"
        yield from self._merges(old.get("merges") or [], now.get("merges") or [])
        yield from self._vocabulary(old["vocab"], now["vocab"])

    def _vocabulary(self, old: Any, now: Any) -> Iterator[str]:
        """What of the vocabulary is neither old, nor a new piece, nor the entry of an added token under its id."""
        before, after = _mapping(old), _mapping(now)
        expected = {**before, **self.ids}
        added = {str(token.content): index for index, token in self.after.added.items()}
        if after != {**{content: added.get(content) for content in after}, **expected}:
            yield "tokenizer.json: model.vocab is not the source's with the new pieces behind it"
        elif isinstance(old, list) and now[: len(old)] != old:
            yield "tokenizer.json: model.vocab: the scores are not the source's"

    def _merges(self, old: list[Any], now: list[Any]) -> Iterator[str]:
        if now[: len(old)] != old:
            place = next((i for i, (a, b) in enumerate(zip(old, now, strict=False)) if a != b), len(now))
            shown = printable(now[place]) if place < len(now) else "nothing"
            yield f"tokenizer.json: model.merges: the source's come first no longer: at {place} stands {shown}"
            return
        prefix = self.before.part_as_loaded("model").get("continuing_subword_prefix") or ""
        made = [left + right.removeprefix(prefix) for left, right in now[len(old) :]]
        if odd := [content for content in made if content not in self.ids]:
            yield f"tokenizer.json: model.merges: new ones make {few(odd)}, no new piece"

    def _unread(self) -> Iterator[str]:
        prefix = self.after.part_as_loaded("model").get("continuing_subword_prefix") or ""
        letters = [token for token in self.before.ids if len(token) == 1] if prefix else []
        never = [
            content
            for content, index in self.ids.items()
            if not any(self.after.pieces_of(word)[-1:] == [index] for word in words_with(content, prefix, letters))
        ]
        if never:
            yield f"{plural(len(never), 'new piece')} never read: {few(never)}"

    def _split(self, texts: Sequence[str]) -> Iterator[str]:
        """Yield a sentence if a text becomes unknown, or is not the old split with some of its pieces joined."""
        unknown = self.before.unknown
        moved: list[str] = []
        same = [text for text in texts if self.before.text_under_names(text) == text]
        for text, old, now in zip(same, self.before.encode(same), self.after.encode(same), strict=True):
            if old == now or self.before.loses(old) or not self.others.isdisjoint(now):
                continue
            if unknown is not None and now.count(unknown) > old.count(unknown):
                yield f"{printable(text)!r} has unknown characters that it did not have"
                return
            if self._joins and not self._is_joined(old, now):
                moved.append(text)
        if moved:
            yield f"{plural(len(moved), 'text')} split at other places, not only with pieces joined: {printable(moved[0])!r}"

    @property
    def _joins(self) -> bool:
        """Whether new pieces join old ones alone: a WordPiece takes the longest from the left, and then splits on from there."""
        return bool(self.before.part_as_loaded("model")["type"] != "WordPiece")

    def _is_joined(self, old: Sequence[int], now: Sequence[int]) -> bool:
        """Whether ``now`` is ``old`` with pieces joined, or in a Unigram a way that float32 does not tell from it by its score."""
        joined = [part for index in now for part in self._parts.get(index, (index,))]
        if joined == old or not self._scores.keys() >= {*joined, *old}:
            return joined == old
        gap = sum(self._scores[index] for index in joined) - sum(self._scores[index] for index in old)
        return abs(gap) <= self._tolerance * len(joined)

    @cached_property
    def _parts(self) -> dict[int, list[int]]:
        return {index: self.before.pieces_of(content) for content, index in self.ids.items()}

    @cached_property
    def _scores(self) -> dict[int, float]:
        """The score of each old id, zero for added tokens; empty where the model has none."""
        vocab = self.before.part_as_loaded("model")["vocab"]
        scores = {index: score for index, (_, score) in enumerate(vocab)} if isinstance(vocab, list) else {}
        return {**dict.fromkeys(self.before.added, 0.0), **scores} if scores else {}

    @cached_property
    def _tolerance(self) -> float:
        added = {str(token.content) for token in self.after.added.values()}
        vocab = self.after.part_as_loaded("model")["vocab"]
        return gain([score for content, score in vocab if content not in added])


def _mapping(vocab: Any) -> dict[str, int]:
    return dict(vocab) if isinstance(vocab, Mapping) else {token: index for index, (token, _) in enumerate(vocab)}
