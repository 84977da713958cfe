"""extend_vocab: new tokens, roles and a chat template, with well-initialised rows for every new id."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from graftkit.architecture.correspondence import Correspondence
from graftkit.architecture.skeleton import with_values
from graftkit.architecture.vocabulary import Vocabulary
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.documents import MAX_DOCUMENT_BYTES
from graftkit.checkpoint.files import open_given
from graftkit.checkpoint.tokenizer import (
    NewToken,
    TokenizerFiles,
    add_tokens,
    read_tokenizer,
    set_chat_template,
    template_notes,
    tokenizer_notes,
)
from graftkit.checkpoint.tokenizer.id_places import CONFIG, GENERATION, id_places
from graftkit.errors import InputRejected, RecipeError, plural, printable
from graftkit.operations.base import Context, Outcome, VocabularyOutcome
from graftkit.operations.vocabulary.figures import row_figures
from graftkit.operations.vocabulary.listed import Listed, listed_tokens, new_ones
from graftkit.operations.vocabulary.rows import NewRow, RowMaker
from graftkit.operations.vocabulary.tables import OTHER_KERNEL, check_output_init, one_vocabulary, with_rows
from graftkit.recipe import ChatTemplateFile, ExtendVocab, Mean
from graftkit.recipe.chat_template import NO_JINJA, holds_jinja
from graftkit.recipe.extend_vocab import PAD_IS_EOS
from graftkit.verification.promises import Promise, PromiseClass


def extend_vocab(spec: ExtendVocab, checkpoint: Checkpoint, context: Context) -> Outcome:
    """Add tokens to the tokenizer and rows to every tensor that is indexed by the vocabulary.

    Padding rows are taken first and initialised; the table never shrinks. A token that has an id past the table gets its row.

    Raises:
        InputRejected: the checkpoint's vocabulary cannot be extended, and why.
        RecipeError: the recipe asks for something that this checkpoint has no place for.
    """
    vocabulary = one_vocabulary(checkpoint)
    tokenizer = read_tokenizer(checkpoint.documents, carried=checkpoint.carried)
    live = min(tokenizer.size, vocabulary.rows)
    listed, skipped = new_ones(spec, listed_tokens(spec), tokenizer)
    check_output_init(vocabulary, given=spec.output_init is not None or any(token.spec.output_init for token in listed))
    wanted = [*(token.as_new(spec) for token in listed), *_role_tokens(spec, listed, tokenizer)]
    documents, ids = _new_documents(spec, checkpoint, tokenizer, wanted)
    needed = max([vocabulary.rows, tokenizer.size, *(index + 1 for index in ids.values())])
    multiple = spec.pad_to_multiple_of or 1
    size = -(-needed // multiple) * multiple
    _check_named_ids(checkpoint, spec, ids, vocabulary.rows)
    past = {index: tokenizer.token_of(index) for index in range(vocabulary.rows, tokenizer.size)}
    others = {**past, **dict.fromkeys(range(needed, size))}
    rows = _new_rows(spec, ids, listed, others, tokenizer.within(vocabulary.rows))
    if size != vocabulary.rows:
        documents["config.json"] = with_values(
            documents.get("config.json", checkpoint.config), vocabulary.config_paths, size
        )
    maker = RowMaker(checkpoint, vocabulary, live, tuple(rows), (context.seed, context.place))
    result = checkpoint.with_documents(documents).with_tensors(dict(with_rows(vocabulary, maker, size)))
    correspondence = Correspondence.of_ids(vocabulary.rows, size, live, maker.ids)
    outcome = VocabularyOutcome(
        ids,
        frozenset(token.content for token in wanted if token.special),
        spec.chat_template is not None,
        maker.kl_promise,
        spec.allow_pad_is_eos,
        {token: index for index, token in past.items() if token is not None},
    )
    notes = (
        *vocabulary.notes,
        *skipped,
        *_notes(vocabulary, live, size, ids),
        *_late_notes(outcome.given_rows, vocabulary.rows),
        *tokenizer_notes(checkpoint.documents, _roles(spec), carried=checkpoint.carried),
        *(_template_notes({**checkpoint.documents, **documents}) if spec.chat_template is not None else ()),
    )
    return Outcome(
        result,
        _promise(vocabulary, grows=size > vocabulary.rows),
        notes,
        correspondence,
        outcome,
        figures=lambda: row_figures(maker, tokenizer.token_of),
    )


def _roles(spec: ExtendVocab) -> dict[str, str]:
    return {str(role): content for role, content in spec.roles.items()}


def _new_documents(
    spec: ExtendVocab, checkpoint: Checkpoint, tokenizer: TokenizerFiles, wanted: list[NewToken]
) -> tuple[dict[str, Any], Mapping[str, int]]:
    """The documents that change with tokens, roles and template, and the ids of the new tokens."""
    _check_padding(spec, tokenizer)
    documents, ids = add_tokens(checkpoint.documents, wanted, _roles(spec))
    if spec.chat_template is not None:
        text = _template_text(spec.chat_template)
        documents = documents | set_chat_template({**checkpoint.documents, **documents}, text)
    return documents, ids


def _template_notes(documents: Mapping[str, Any]) -> Iterator[str]:
    return template_notes(documents, read_tokenizer(documents))


def _role_tokens(spec: ExtendVocab, listed: Sequence[Listed], tokenizer: TokenizerFiles) -> Iterator[NewToken]:
    """The tokens that only a role names, which come behind the listed ones."""
    named = {token.spec.content for token in listed}
    for content in dict.fromkeys(spec.roles.values()):
        if content not in named and tokenizer.id_of(content) is None:
            yield NewToken(content, special=True)


def _template_text(template: str | ChatTemplateFile) -> str:
    if isinstance(template, str):
        return template
    try:
        with open_given(Path(template.file)) as file:
            raw = file.read(MAX_DOCUMENT_BYTES + 1)
        if len(raw) > MAX_DOCUMENT_BYTES:
            raise RecipeError(f"chat_template: {printable(template.file)}: is larger than {MAX_DOCUMENT_BYTES} bytes")
        text = io.TextIOWrapper(io.BytesIO(raw), encoding="utf-8").read()
    except OSError as error:
        raise RecipeError(
            f"chat_template: {printable(template.file)}: {error.strerror} (the path starts in the working directory)"
        ) from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"chat_template: {printable(template.file)}: is not UTF-8 text") from error
    if not holds_jinja(text):
        raise RecipeError(f"chat_template: {printable(template.file)}: {NO_JINJA}")
    return text


def _check_padding(spec: ExtendVocab, tokenizer: TokenizerFiles) -> None:
    """Refuse roles that make the pad token the end-of-sequence token, where the source's is another one."""
    now = {**tokenizer.special, **_roles(spec)}
    pads = now.get("pad_token") is not None and now["pad_token"] == now.get("eos_token")
    if pads and now != dict(tokenizer.special) and not spec.allow_pad_is_eos:
        raise RecipeError(PAD_IS_EOS, field="roles.pad_token")


def _check_named_ids(checkpoint: Checkpoint, spec: ExtendVocab, ids: Mapping[str, int], rows: int) -> None:
    """A padding row that a config names as somebody's token id is not free to be taken."""
    by_id = {index: content for content, index in ids.items()}
    for place in id_places(checkpoint.documents, rows):
        role = str(place.path[-1]).removesuffix("_id") if place.path else ""
        for index in place.ids if place.document in (CONFIG, GENERATION) and place.form.needed else ():
            if index in by_id and spec.roles.get(role) != by_id[index]:  # type: ignore[call-overload]
                raise InputRejected(
                    f"{place} names id {index}, which no token has and {by_id[index]!r} would take; give that id its token first"
                    f" (roles: {{{role}: ...}})"
                )


def _new_rows(
    spec: ExtendVocab,
    ids: Mapping[str, int],
    listed: Sequence[Listed],
    others: Mapping[int, str | None],
    tokenizer: TokenizerFiles,
) -> Iterator[NewRow]:
    """The rows of new tokens, and of ``others``: old tokens past the table as the recipe makes rows, padding as the mean."""
    specs = {token.spec.content: token.spec for token in listed}
    for content, index in ids.items():
        token = specs.get(content)
        scheme = (token.init if token else None) or spec.init
        output = (token.output_init if token else None) or spec.output_init
        yield NewRow.resolve(index, content, scheme, output or Mean(), tokenizer)
    for index, old in others.items():
        scheme, output = (Mean(), None) if old is None else (spec.init, spec.output_init)
        yield NewRow.resolve(index, old, scheme, output or Mean(), tokenizer)


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


def _notes(vocabulary: Vocabulary, live: int, size: int, ids: Mapping[str, int]) -> Iterator[str]:
    taken = sum(index < vocabulary.rows for index in ids.values())
    spare = vocabulary.rows - live
    if spare:
        yield f"{plural(spare, 'padding row')} behind the tokenizer's {live} ids; {taken} used for new tokens"
    if size > vocabulary.rows:
        yield f"the table grows from {vocabulary.rows} to {size} rows"
    if vocabulary.has_output:
        yield "input and output rows are tied: one row does both jobs" if vocabulary.tied else "untied output table"
