"""extend_vocab: new tokens, roles and a chat template, with well-initialised rows for every new id."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

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
from graftkit.checkpoint.tokenizer.conversation import lost_messages, lost_tools, renders
from graftkit.errors import RecipeError, printable
from graftkit.operations.base import Context, Outcome, VocabularyOutcome
from graftkit.operations.vocabulary.figures import row_figures
from graftkit.operations.vocabulary.growth import GrowthSettings, check_named_ids, grow
from graftkit.operations.vocabulary.listed import Listed, listed_tokens, new_ones
from graftkit.operations.vocabulary.new_row import NewRow
from graftkit.operations.vocabulary.tables import check_output_init, one_vocabulary
from graftkit.recipe import ChatTemplateFile, ExtendVocab, Mean
from graftkit.recipe.chat_template import NO_JINJA, holds_jinja
from graftkit.recipe.extend_vocab import PAD_IS_EOS


def extend_vocab(spec: ExtendVocab, checkpoint: Checkpoint, context: Context) -> Outcome:
    """Add tokens to the tokenizer and rows to every tensor that is indexed by the vocabulary.

    Padding rows are taken first and initialised; the table never shrinks. A token that has an id past the table gets its row.

    Raises:
        InputRejected: the checkpoint's vocabulary cannot be extended, and why.
        RecipeError: the recipe asks for something that this checkpoint has no place for.
    """
    vocabulary = one_vocabulary(checkpoint)
    tokenizer = read_tokenizer(checkpoint.documents, carried=checkpoint.carried)
    listed, skipped = new_ones(spec, listed_tokens(spec), tokenizer)
    check_output_init(vocabulary, given=spec.output_init is not None or any(token.spec.output_init for token in listed))
    wanted = [*(token.as_new(spec) for token in listed), *_role_tokens(spec, listed, tokenizer)]
    documents, ids = _new_documents(spec, checkpoint, tokenizer, wanted)
    check_named_ids(checkpoint, _roles(spec), ids, vocabulary.rows)
    rows = _new_rows(spec, ids, listed, tokenizer.within(vocabulary.rows))
    settings = GrowthSettings(spec.init, spec.output_init, spec.pad_to_multiple_of)
    grown = grow(checkpoint, vocabulary, tokenizer, documents, rows, settings, context)
    outcome = VocabularyOutcome(
        ids,
        frozenset(token.content for token in wanted if token.special),
        spec.chat_template is not None,
        grown.maker.kl_promise,
        spec.allow_pad_is_eos,
        grown.given_rows,
    )
    notes = (
        *vocabulary.notes,
        *skipped,
        *grown.notes,
        *tokenizer_notes(checkpoint.documents, _roles(spec), carried=checkpoint.carried),
        *(_template_notes(spec.chat_template, {**checkpoint.documents, **documents}) if spec.chat_template else ()),
    )
    return Outcome(
        grown.checkpoint,
        grown.promise,
        notes,
        grown.correspondence,
        outcome,
        checks=grown.checks,
        prepare=grown.prepare,
        figures=lambda: row_figures(grown.maker, tokenizer.token_of),
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


def _template_notes(template: str | ChatTemplateFile, documents: Mapping[str, Any]) -> Iterator[str]:
    """Yield what to know of the new template, which is rendered with the special tokens that it may name.

    Raises:
        RecipeError: it loses the messages of a conversation.
    """
    text, tokenizer = _template_text(template), read_tokenizer(documents)
    render = renders(text, tokenizer.special)
    for how in lost_messages(render):
        raise RecipeError(how, field="chat_template")
    yield from (f"the chat template {how}" for how in lost_tools(render, text))
    yield from template_notes(documents, tokenizer)


def _role_tokens(spec: ExtendVocab, listed: Sequence[Listed], tokenizer: TokenizerFiles) -> Iterator[NewToken]:
    """The tokens that only a role names, which come behind the listed ones."""
    named = {token.spec.content for token in listed}
    for content in dict.fromkeys(spec.roles.values()):
        if content not in named and tokenizer.id_of(content) is None:
            yield NewToken(content, special=True)


def _template_text(template: str | ChatTemplateFile) -> str:
    if isinstance(template, str):
        return template
    name, field = printable(template.file), "chat_template"
    try:
        with open_given(Path(template.file)) as file:
            raw = file.read(MAX_DOCUMENT_BYTES + 1)
        if len(raw) > MAX_DOCUMENT_BYTES:
            raise RecipeError(f"{name}: is larger than {MAX_DOCUMENT_BYTES} bytes", field=field)
        text = io.TextIOWrapper(io.BytesIO(raw), encoding="utf-8").read()
    except OSError as error:
        raise RecipeError(f"{name}: {error.strerror}", field=field) from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{name}: is not UTF-8 text", field=field) from error
    if not holds_jinja(text):
        raise RecipeError(f"{name}: {NO_JINJA}", field=field)
    return text


def _check_padding(spec: ExtendVocab, tokenizer: TokenizerFiles) -> None:
    """Refuse roles that make the pad token the end-of-sequence token, where the source's is another one."""
    now = {**tokenizer.special, **_roles(spec)}
    pads = now.get("pad_token") is not None and now["pad_token"] == now.get("eos_token")
    if pads and now != dict(tokenizer.special) and not spec.allow_pad_is_eos:
        raise RecipeError(PAD_IS_EOS, field="roles.pad_token")


def _new_rows(
    spec: ExtendVocab, ids: Mapping[str, int], listed: Sequence[Listed], tokenizer: TokenizerFiles
) -> Iterator[NewRow]:
    specs = {token.spec.content: token.spec for token in listed}
    for content, index in ids.items():
        token = specs.get(content)
        scheme = (token.init if token else None) or spec.init
        output = (token.output_init if token else None) or spec.output_init
        yield NewRow.resolve(index, content, scheme, output or Mean(), tokenizer)
