"""The written tokenizer still has to do what it did, and to know the new tokens.

Both directories are loaded as a user loads them. Old ids keep their tokens; each new token is one id, alone and inside
text; old text splits as before, except where a plain new token stands in it, which is shown; roles agree between
tokenizer, config and generation config; chat template and settings are the source's.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING

from graftkit.errors import InputRejected, plural, printable, require_sound_system
from graftkit.running.loaded_tokenizer import LoadedTokenizer
from graftkit.running.probe_texts import PROBE_TEXTS
from graftkit.verification.checks import Report, Row
from graftkit.verification.tokens.ids import check_named_ids
from graftkit.verification.tokens.learned_pieces import LearnedPieces
from graftkit.verification.tokens.names import check_renamed
from graftkit.verification.tokens.placement import PLACEMENTS, check_new_tokens
from graftkit.verification.tokens.roles import check_roles
from graftkit.verification.tokens.splits import SplitDifference, compare_splits, derived_texts, texts_of_kept
from graftkit.verification.tokens.templates import check_same_ids, check_templates, template_notes

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from graftkit.architecture.index_map import IndexMap
    from graftkit.verification.subject import NewTokens

__all__ = ["SplitDifference", "TokenizationReport", "check_tokenization"]

#: What a tokenizer is told at load and keeps: a change of one changes batches without changing a token.
LENGTH = "model_max_length"
SETTINGS = (
    LENGTH, "padding_side", "truncation_side", "clean_up_tokenization_spaces", "split_special_tokens",
    "model_input_names",
)  # fmt: skip

#: What else an added token is told, beside whether it is special.
FLAGS = ("normalized", "lstrip", "rstrip", "single_word")

#: The key under which texts are counted that a new token in them splits in another way.
DIFFERING = "texts_split_differently"

#: And texts with a token that is gone, which are split in another way.
WITHOUT = "texts_with_tokens_that_are_gone"


@dataclass(frozen=True, slots=True)
class TokenizationReport(Report):
    """What was found when two tokenizers were compared.

    Attributes:
        failures: one sentence for each check that did not hold.
        differences: old text that a new token in it splits in another way, at most 4 for a token and 100 in all.
        covered: how many of what were checked.
        notes: what changed on purpose, or disagrees in the source already.
        seconds: how long loading and checking took.

    """

    failures: tuple[str, ...]
    differences: tuple[SplitDifference, ...]
    covered: dict[str, int]
    notes: tuple[str, ...]
    seconds: float = 0.0
    name: str = "tokenizer"

    def rows(self) -> Iterator[Row]:
        """The lines that a table shows of it."""
        yield Row("tokenizer", "passed" if self.passed else "failed", self.figure())

    @property
    def passed(self) -> bool:
        """Whether every check held."""
        return not self.failures

    def figure(self) -> str:
        """What was covered, in one line."""
        counts = {name.replace("_", " ").removesuffix("s"): value for name, value in self.covered.items()}
        differing, without = (counts.pop(name.replace("_", " "), 0) for name in (DIFFERING, WITHOUT))
        text = ", ".join(plural(value, name) for name, value in counts.items() if value)
        text += f"; {differing} split by new words" if differing else ""
        return f"{text}; {without} hold tokens that are gone" if without else text


def check_tokenization(
    source: Path, result: Path, tokens: NewTokens, *, probes: Sequence[str] = PROBE_TEXTS, ids: IndexMap | None = None
) -> TokenizationReport:
    """Compare the tokenizer in ``result`` with the one in ``source``, which changed on purpose as ``tokens`` says.

    Old ids are compared with those that ``ids`` gives for them, and text with a token that has none may be split otherwise. Texts
    derived from the new tokens are added to ``probes``.

    Raises:
        InputRejected: the source's own tokenizer cannot be loaded.
        StorageFault: the result's cannot, since the system failed.

    """
    start = time.perf_counter()
    before = LoadedTokenizer.of(source, {old: now.content for old, now in tokens.renamed.items()}, ids)
    try:
        after = LoadedTokenizer.of(result)
    except InputRejected as error:
        require_sound_system(error)
        found = TokenizationReport((f"tokenizer: {error}",), (), {}, ())
    else:
        found = _compare(before, after, tokens, probes)
    return replace(found, seconds=time.perf_counter() - start)


def _compare(
    before: LoadedTokenizer, after: LoadedTokenizer, tokens: NewTokens, probes: Sequence[str]
) -> TokenizationReport:
    names = [now.content for now in tokens.renamed.values()]
    every_new = {**tokens.ids, **{name: before.ids[name] for name in names if name in before.ids}}
    every_special = {*tokens.special, *(content for content, index in every_new.items() if _is_special(after, index))}
    made_special = {
        now.content for now in tokens.renamed.values() if now.special and not _was_special(before, now.content)
    }
    learned = LearnedPieces(before, after, tokens.learned, frozenset(every_new.values()), tokens.entered)
    words = {word: index for index in tokens.learned.values() if (word := after.decode([index]).strip())}
    texts = [*probes, *derived_texts(before, {**every_new, **words}, every_special), *words, *texts_of_kept(before)]
    splits = compare_splits(before, after, texts, {**every_new, **tokens.learned}, every_special)
    alone = tokens.replaced is not None
    role_failures, notes = check_roles(before, after, eos_may_pad=tokens.eos_may_pad, gone=tokens.gone, alone=alone)
    failures = chain(
        _check_ids(before, after, {**tokens.ids, **tokens.learned}),
        check_new_tokens(after, every_new, {*tokens.special, *made_special}),
        check_renamed(before, after, tokens.renamed),
        learned.part_failures(),
        _check_kept(before, after, tokens),
        splits.failures,
        learned.failures(texts),
        role_failures,
        _check_frame(before, after, texts),
        check_named_ids(before, after),
        check_templates(before, after, changed=tokens.chat_template_changed),
        check_same_ids(before, after) if names else (),
    )
    covered = {
        "old_ids": len(before.ids),
        "new_tokens": len(tokens.ids),
        "learned_pieces": len(tokens.learned),
        "renamed_tokens": len(names),
        "placements": len(every_new) * len(PLACEMENTS),
        "probe_texts": len(texts),
        DIFFERING: splits.explained,
        WITHOUT: splits.without,
    }
    found = tuple(f"tokenizer: {failure}" for failure in failures)
    return TokenizationReport(found, splits.differences, covered, (*notes, *template_notes(before, after)))


def _is_special(after: LoadedTokenizer, index: int) -> bool:
    return index in after.added and bool(after.added[index].special)


def _was_special(before: LoadedTokenizer, content: str) -> bool:
    return _is_special(before, before.ids.get(content, -1))


def _check_ids(before: LoadedTokenizer, after: LoadedTokenizer, new: Mapping[str, int]) -> Iterator[str]:
    yield from _some(
        f"id {index} was {printable(token)!r}, now {_at(after, index)} stands there"
        for token, index in before.ids.items()
        if after.ids.get(token) != index
    )
    yield from _some(
        f"the new token {printable(token)!r} should have id {index}, it is loaded with {after.ids.get(token, 'none')}"
        for token, index in new.items()
        if after.ids.get(token) != index
    )
    yield from _some(
        f"token {printable(token)!r} has id {index} in tokenizer.json, it is loaded with {after.ids.get(token, 'none')}"
        for token, index in after.file_ids.items()
        if after.ids.get(token) != index and not _disagrees(before, token)
    )
    yield from _some(
        f"token {printable(token)!r} (id {index}) appears at load, and nobody asked for it"
        for token, index in after.ids.items()
        if token not in before.ids and token not in new
    )


def _disagrees(before: LoadedTokenizer, token: str) -> bool:
    """Whether the source's own file has another id for a token than it is loaded with."""
    return token in before.ids and before.file_ids.get(token) != before.ids[token]


def _at(after: LoadedTokenizer, index: int) -> str:
    return repr(printable(after.tokens[index])) if index in after.tokens else "nothing"


def _check_kept(before: LoadedTokenizer, after: LoadedTokenizer, tokens: NewTokens) -> Iterator[str]:
    """Yield what the old tokens and the tokenizer itself lost: flags, specialness, class, settings.

    Whether a renamed token is special was asked for, and so was another length, where the model takes one.
    """
    special = {now.content: now.special for now in tokens.renamed.values()}
    lost = [token for token in before.special if token not in after.special and special.get(token, True)]
    yield from _some(f"{printable(token)!r} is no longer a special token" for token in lost)
    yield from _some(_other_flags(before, after, special))
    names = [type(loaded.tokenizer).__name__ for loaded in (before, after)]
    if names[0] != names[1]:
        yield f"AutoTokenizer loads a {names[1]}, it was a {names[0]}"
    for name in SETTINGS:
        old, now = (getattr(loaded.tokenizer, name, None) for loaded in (before, after))
        if old != now and not (tokens.longer and name == LENGTH):
            yield f"{name} was {printable(old)}, now {printable(now)}"


def _other_flags(before: LoadedTokenizer, after: LoadedTokenizer, renamed: Collection[str]) -> Iterator[str]:
    for index, token in before.added.items():
        flags = FLAGS if before.name(token.content) in renamed else ("special", *FLAGS)
        was, now = (_flags(one, flags) for one in (token, after.added.get(index)))
        if was != now and not _was_given_a_role(after, index):
            yield f"the added token {printable(token.content)!r} was {was}, now it is {now}"


def _was_given_a_role(after: LoadedTokenizer, index: int) -> bool:
    return _is_special(after, index) and after.added[index].content in after.roles.values()


def _flags(token: object, names: Sequence[str]) -> str:
    if token is None:
        return "gone"
    return ", ".join(name for name in names if getattr(token, name, False)) or "without flags"


def _check_frame(before: LoadedTokenizer, after: LoadedTokenizer, texts: Sequence[str]) -> Iterator[str]:
    """Yield a sentence if other special tokens are put around the first text that is split as before, although no role changed."""
    texts = [text for text in (*texts, "") if before.encode([text]) == after.encode([text])][:1]
    old, now = before.encode(texts, framed=True), after.encode(texts, framed=True)
    if old == now or before.roles != after.roles:
        return
    around = [list(loaded.pieces([ids[0], ids[-1]])) if ids else [] for loaded, (ids,) in ((before, old), (after, now))]
    yield f"a text was framed by {printable(around[0])}, now by {printable(around[1])}"


def _some(failures: Iterable[str]) -> Iterator[str]:
    """Yield the first failure of a kind with the count of the others: a shifted table would yield 128,000."""
    found = list(failures)
    if found:
        yield found[0] + (f" (and {len(found) - 1} more)" if len(found) > 1 else "")
