"""A vocabulary with new ids behind the old ones: padding rows are taken first, then every table grows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from graftkit.architecture.correspondence import Correspondence
from graftkit.architecture.skeleton import with_values
from graftkit.architecture.vocabulary import Vocabulary
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.tokenizer import TokenizerFiles
from graftkit.checkpoint.tokenizer.id_places import CONFIG, GENERATION, id_places
from graftkit.errors import InputRejected, plural, printable
from graftkit.operations.base import Context
from graftkit.operations.vocabulary.distillation import Distillation
from graftkit.operations.vocabulary.new_row import NewRow
from graftkit.operations.vocabulary.rows import RowMaker
from graftkit.operations.vocabulary.tables import OTHER_KERNEL, with_rows
from graftkit.recipe import Mean, Scheme
from graftkit.recipe.schemes import Distill, InputScheme
from graftkit.verification.checks import Check
from graftkit.verification.promises import Promise, PromiseClass


@dataclass(frozen=True, slots=True)
class GrowthSettings:
    """How rows are made of old tokens that have an id past the table, and of what number the result's rows are a multiple."""

    init: InputScheme
    output_init: Scheme | None
    multiple: int | None


@dataclass(frozen=True, slots=True)
class Grown:
    """A checkpoint with rows for new ids; ``given_rows`` are the old tokens that had no row, with their ids."""

    checkpoint: Checkpoint
    maker: RowMaker
    correspondence: Correspondence
    promise: Promise
    notes: tuple[str, ...]
    given_rows: Mapping[str, int]

    @property
    def checks(self) -> tuple[Check, ...]:
        """Checks of how the rows were made."""
        return self.maker.checks

    @property
    def prepare(self) -> Callable[[Callable[[float], None]], None] | None:
        """What makes the rows before anything is written; None where that does not take long."""
        return self.maker.prepare if self.maker.distillation else None


def grow(
    checkpoint: Checkpoint,
    vocabulary: Vocabulary,
    tokenizer: TokenizerFiles,
    documents: Mapping[str, Any],
    new: Iterable[NewRow],
    settings: GrowthSettings,
    context: Context,
) -> Grown:
    """Put ``documents`` and the rows of ``new`` into the checkpoint; the table never shrinks.

    ``tokenizer`` is the old one; a token that it has past the table gets its row, and rows that pad the table are means.
    """
    rows = list(new)
    live = min(tokenizer.size, vocabulary.rows)
    needed = max([vocabulary.rows, tokenizer.size, *(row.index + 1 for row in rows)])
    multiple = settings.multiple or 1
    size = -(-needed // multiple) * multiple
    taken = sum(row.index < vocabulary.rows for row in rows)
    past = {index: tokenizer.token_of(index) for index in range(vocabulary.rows, tokenizer.size)}
    others = {**past, **dict.fromkeys(range(needed, size))}
    rows += _other_rows(others, settings, tokenizer.within(vocabulary.rows))
    changed = dict(documents)
    if size != vocabulary.rows:
        config = changed.get("config.json", checkpoint.config)
        changed["config.json"] = with_values(config, vocabulary.config_paths, size)
    seed, after = (context.seed, context.place), checkpoint.with_documents(changed)
    distillation = None
    if isinstance(settings.init, Distill) and any(isinstance(row.input.scheme, Distill) for row in rows):
        distillation = Distillation(settings.init, checkpoint, after, vocabulary, lambda index: index, seed)
    maker = RowMaker(checkpoint, vocabulary, live, tuple(rows), seed, distillation=distillation)
    given = {token: index for index, token in past.items() if token is not None}
    return Grown(
        after.with_tensors(dict(with_rows(vocabulary, maker, size))),
        maker,
        Correspondence.of_ids(vocabulary.rows, size, live, maker.ids),
        _promise(vocabulary, grows=size > vocabulary.rows),
        (*_notes(vocabulary, live, size, taken), *_late_notes(given, vocabulary.rows)),
        given,
    )


def _other_rows(
    others: Mapping[int, str | None], settings: GrowthSettings, tokenizer: TokenizerFiles
) -> Iterator[NewRow]:
    """The rows of old tokens past the table, made as the settings say, and of padding, made as the mean."""
    for index, old in others.items():
        scheme, output = (Mean(), None) if old is None else (settings.init, settings.output_init)
        yield NewRow.resolve(index, old, scheme, output or Mean(), tokenizer)


def check_named_ids(checkpoint: Checkpoint, roles: Mapping[str, str], ids: Mapping[str, int], rows: int) -> None:
    """A padding row that a config names as somebody's token id is not free to be taken."""
    by_id = {index: content for content, index in ids.items()}
    for place in id_places(checkpoint.documents, rows):
        role = str(place.path[-1]).removesuffix("_id") if place.path else ""
        for index in place.ids if place.document in (CONFIG, GENERATION) and place.form.needed else ():
            if index in by_id and roles.get(role) != by_id[index]:
                raise InputRejected(
                    f"{place} names id {index}, which no token has and {by_id[index]!r} would take; give that id its token first"
                    f" (roles: {{{role}: ...}})"
                )


def _promise(vocabulary: Vocabulary, *, grows: bool) -> Promise:
    domain = "sequences of old token ids"
    if not vocabulary.has_output:
        return Promise(PromiseClass.BITWISE, "hidden states", domain)
    return Promise(
        PromiseClass.BITWISE, "hidden states and logits over the old ids", domain, (OTHER_KERNEL,) if grows else ()
    )


def _late_notes(given_rows: Mapping[str, int], rows: int) -> Iterator[str]:
    if given_rows:
        first = ", ".join(f"{printable(token)!r} ({index})" for token, index in list(given_rows.items())[:4])
        more = ", …" if len(given_rows) > 4 else ""
        get = "gets its row" if len(given_rows) == 1 else "get their rows"
        count = plural(len(given_rows), "token")
        yield f"{count} that the tokenizer had past the table's {rows} rows {get}: {first}{more}"


def _notes(vocabulary: Vocabulary, live: int, size: int, taken: int) -> Iterator[str]:
    spare = vocabulary.rows - live
    if spare:
        used = f"; {taken} used for new tokens" if taken else ""
        yield f"{plural(spare, 'padding row')} behind the tokenizer's {live} ids{used}"
    if size > vocabulary.rows:
        yield f"the table grows from {vocabulary.rows} to {size} rows"
    if vocabulary.has_output:
        yield "input and output rows are tied: one row does both jobs" if vocabulary.tied else "untied output table"
