"""What a chat template, a processor or the class itself still needs of a vocabulary that is trimmed."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from graftkit.architecture.accounting import Structure, account
from graftkit.architecture.skeleton import build_skeleton
from graftkit.architecture.vocabulary import Vocabulary
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.tokenizer import TokenizerFiles
from graftkit.checkpoint.tokenizer.special import content_of
from graftkit.checkpoint.tokenizer.template_literals import literals_of
from graftkit.checkpoint.tokenizer.template_notes import templates
from graftkit.errors import InputRejected, RecipeError, printable
from graftkit.operations.vocabulary.kept import Encode
from graftkit.recipe_file.wording import shown

#: Documents of a processor, which puts tokens into a text by their names.
PROCESSORS = ("processor_config.json", "preprocessor_config.json")


def check_still_needed(
    documents: Mapping[str, Any], tokenizer: TokenizerFiles, kept: Collection[int], encode: Encode
) -> None:
    """Refuse to drop a token that a template writes or a processor names.

    Raises:
        RecipeError: each such token by name, with who needs it.
    """
    staying, lost = frozenset(kept), dict[str, str]()
    for token, who in (*_by_templates(documents, tokenizer, encode), *_by_processors(documents)):
        index = tokenizer.id_of(token)
        if index is not None and index not in staying:
            lost.setdefault(token, who)
    if lost:
        problems = [f"the token {shown(printable(token))} would go, and {who}" for token, who in lost.items()]
        names = ", ".join(shown(printable(token)) for token in lost)
        remedy = f"; tokens: [{names}] keeps {'it' if len(lost) == 1 else 'them'}"
        raise RecipeError([problems[0] + remedy, *problems[1:]], field=["keep"] * len(problems))


def _by_templates(documents: Mapping[str, Any], tokenizer: TokenizerFiles, encode: Encode) -> Iterator[tuple[str, str]]:
    for name, text in templates(documents).items():
        which = f"the chat template {printable(name)!r}" if name else "the chat template"
        literals = list(literals_of(text))
        for literal, ids in zip(literals, encode(literals), strict=True):
            yield from ((tokenizer.tokens[index], f"{which} writes {_short(literal)} with it") for index in ids)


def _short(text: str) -> str:
    return repr(printable(text if len(text) <= 40 else f"{text[:37]}..."))


def _by_processors(documents: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for document in PROCESSORS:
        for place, token in _named(documents.get(document), ""):
            yield token, f"{document}: {place} names it"


def _named(value: Any, place: str) -> Iterator[tuple[str, str]]:
    for key, item in value.items() if isinstance(value, dict) else ():
        below = f"{place}.{key}" if place else str(key)
        content = content_of(item)
        if str(key).endswith("_token") and content is not None:
            yield below, content
        else:
            yield from _named(item, below)


def check_positions(
    checkpoint: Checkpoint, vocabulary: Vocabulary, config: Mapping[str, Any], remedy: str = ""
) -> None:
    """Refuse a pad token with another id where positions are counted from it.

    ``config`` is the new config.json, ``remedy`` what the error tells to do. Tables that the vocabulary indexes, and what is tied to
    them, may have a padding row.

    Raises:
        InputRejected: a module beside these, with tensors of its own, has the pad id built in.
    """
    structure = account(checkpoint)
    old, tables = structure.skeleton, _tables(structure, vocabulary)
    new = dict(build_skeleton(config, old.architecture).model.named_modules())
    for name, module in old.model.named_modules():
        before, after = (getattr(one, "padding_idx", None) for one in (module, new.get(name)))
        holds = any(True for _ in (*module.parameters(recurse=False), *module.buffers(recurse=False)))
        if before != after and holds and f"{name}.weight" not in tables:
            raise InputRejected(
                f"{old.architecture}: {printable(name)} counts positions from the pad token's id, which would become {after} and was"
                f" {before}: every position would be another one; {remedy or f'keep the tokens with ids below {before}'}"
            )


def _tables(structure: Structure, vocabulary: Vocabulary) -> frozenset[str]:
    """Names in memory of the tensors that the vocabulary indexes, and of those that are tied to one."""
    stored = {structure.memory[item.name].name for item in vocabulary.tensors if item.name in structure.memory}
    tied = structure.skeleton.tied
    first = {tied.get(name, name) for name in stored}
    return frozenset({*stored, *first, *(name for name, origin in tied.items() if origin in first)})
