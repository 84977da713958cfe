"""Giving tokens other names in every file that names them; ids stay what they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from graftkit.checkpoint.tokenizer.closure import bytes_of, merges_of, symbols
from graftkit.checkpoint.tokenizer.files import TokenizerFiles, read_tokenizer
from graftkit.checkpoint.tokenizer.refusals import check_not_one_piece
from graftkit.checkpoint.tokenizer.renamed_places import (
    DECODER,
    NAMING,
    in_tokenizer,
    named_values,
    stop_strings,
    template_documents,
    without_special,
)
from graftkit.checkpoint.tokenizer.special import further_tokens, with_further_tokens
from graftkit.checkpoint.tokenizer.trial import Trial
from graftkit.checkpoint.tokenizer.vocabulary import AddedEntry, object_of
from graftkit.errors import RecipeError, printable
from graftkit.recipe_file.wording import did_you_mean, shown


@dataclass(frozen=True, slots=True)
class Renaming:
    """A token and its new name; ``special`` None leaves it as it is."""

    old: str
    content: str
    special: bool | None = None


@dataclass(frozen=True, slots=True)
class Renamed:
    """What a renamed token is called now, and whether it is special."""

    content: str
    special: bool


def rename_tokens(
    documents: Mapping[str, Any], wanted: Sequence[Renaming]
) -> tuple[dict[str, Any], dict[str, AddedEntry]]:
    """Return the documents that change when tokens get other names, and the entry of each by its old name.

    A token that was a piece of the model's vocabulary alone becomes an added token too, so that it is found in text.

    Raises:
        RecipeError: a token that is not there, a name that is taken, or a token that the model needs under its name.
        InputRejected: a new name would not be found in text or not be decoded as itself.
    """
    files = read_tokenizer(documents)
    _check(files, wanted)
    trial = Trial.build(files.document)
    entries = {one.old: _entry(files, one, trial) for one in wanted}
    names = {old: entry.content for old, entry in entries.items()}
    kept = [entry for entry in files.added if entry.content not in names]
    trial.check(kept, list(entries.values()))
    check_not_one_piece(files, [entry.content for entry in entries.values() if entry.normalized])
    result = {
        "tokenizer.json": _tokenizer(files, entries, names),
        **_naming_documents(documents, files, entries, names),
    }
    if "added_tokens.json" in documents:
        added = object_of(documents, "added_tokens.json")
        result["added_tokens.json"] = {names.get(token, token): index for token, index in added.items()}
    if "generation_config.json" in documents:
        result["generation_config.json"] = stop_strings(object_of(documents, "generation_config.json"), names)
    result |= template_documents({**documents, **result}, names, files.ids)
    return {name: value for name, value in result.items() if value != documents.get(name)}, entries


def _entry(files: TokenizerFiles, one: Renaming, trial: Trial) -> AddedEntry:
    known = next((entry for entry in files.added if entry.content == one.old), None)
    special = one.special if one.special is not None else known is not None and known.special
    if known is not None:
        return replace(known, content=one.content, special=special)
    normalized = not special and trial.finds_normalized(one.content)
    return AddedEntry(files.ids[one.old], one.content, special, normalized=normalized)


def _tokenizer(files: TokenizerFiles, entries: Mapping[str, AddedEntry], names: Mapping[str, str]) -> dict[str, Any]:
    ids = {entry.content: entry.index for entry in entries.values()}
    listed = list(files.document.get("added_tokens") or [])
    known = {entry.content for entry in files.added}
    renamed = [entries[item["content"]].for_tokenizer() if item["content"] in entries else item for item in listed]
    renamed += [entry.for_tokenizer() for old, entry in entries.items() if old not in known]
    was_sorted = all(a.index < b.index for a, b in zip(files.added, files.added[1:], strict=False))
    added = sorted(renamed, key=lambda item: item["id"]) if was_sorted else renamed
    return {**in_tokenizer(files.document, names, ids), "added_tokens": added}


def _naming_documents(
    documents: Mapping[str, Any], files: TokenizerFiles, entries: Mapping[str, AddedEntry], names: Mapping[str, str]
) -> dict[str, Any]:
    result = {name: named_values(object_of(documents, name), names) for name in NAMING if name in documents}
    was_special = {entry.content for entry in files.added if entry.special}
    roles = set(files.special.values())
    made = [e for old, e in entries.items() if e.special and old not in was_special and old not in roles]
    plain = [e.content for old, e in entries.items() if not e.special and old in was_special]
    if "tokenizer_config.json" in result:
        config = result["tokenizer_config.json"]
        if isinstance(config.get(DECODER), dict):
            config = {
                **config,
                DECODER: {**config[DECODER], **{str(e.index): e.for_config() for e in entries.values()}},
            }
        inherited = further_tokens(config, result.get("special_tokens_map.json", {}))
        result["tokenizer_config.json"] = without_special(with_further_tokens(config, made, inherited=inherited), plain)
    if "special_tokens_map.json" in result:
        special_map = result["special_tokens_map.json"]
        alone: list[str] | None = [] if "tokenizer_config.json" not in result else None
        result["special_tokens_map.json"] = without_special(
            with_further_tokens(special_map, made, inherited=alone), plain
        )
    return result


def _check(files: TokenizerFiles, wanted: Sequence[Renaming]) -> None:
    """Raise RecipeError with a problem for each token that cannot get its name."""
    needed = _needed_by_model(files)
    problems = [(one.old, why) for one in wanted for why in _problems(files, one, needed)]
    if problems:
        raise RecipeError([why for _, why in problems], field=[f"names.{old}" for old, _ in problems])


def _problems(files: TokenizerFiles, one: Renaming, needed: Mapping[str, str]) -> Iterator[str]:
    name = shown(printable(one.old))
    if files.id_of(one.old) is None:
        yield f"the tokenizer has no token {name}{_nearest(one.old, files)}"
        return
    if one.content in files.ids:
        yield f"the tokenizer has a token {shown(printable(one.content))} already, with id {files.ids[one.content]}"
    roles = [role for role, content in files.special.items() if content == one.old]
    if one.special is False and roles:
        yield f"{name} is the {roles[0]}, which is always special"
    if any(map(str.isspace, one.content)) and roles:
        yield f"{name} is the {roles[0]}, and a name with a space cannot stand in a template of the post-processor"
    if one.old in needed:
        yield f"{name} {needed[one.old]}: text that is made of it would no longer be read as it was"


def _nearest(name: str, files: TokenizerFiles) -> str:
    """The name that was probably meant: among the added tokens, else among all."""
    close = did_you_mean(name, [entry.content for entry in files.added]) or did_you_mean(name, files.ids)
    return f"; did you mean {shown(printable(close))}?" if close else ""


def _needed_by_model(files: TokenizerFiles) -> dict[str, str]:
    """The pieces that text is made of whatever it is: parts of merges, symbols, bytes; each with the reason."""
    model, found = files.document["model"], dict[str, str]()
    if model.get("byte_fallback"):
        found |= dict.fromkeys(bytes_of(files), "stands for a byte")
    if "merges" not in model:
        return found
    found |= dict.fromkeys(symbols(model), "is one of the symbols that every text begins as")
    for pair, made in merges_of(model):
        found |= dict.fromkeys((*pair, made), "is part of a merge")
    return found


def mentions(documents: Mapping[str, Any], names: Iterable[str]) -> Iterator[str]:
    """Yield a sentence for each part of tokenizer.json that rewrites or splits text and holds a name that is kept there."""
    document = object_of(documents, "tokenizer.json")
    for part in ("normalizer", "pre_tokenizer"):
        held = [name for name in names if name in _texts(document.get(part))]
        for name in held:
            yield f"tokenizer.json: {part} holds the text {shown(printable(name))}, which stays: it is about text, not about the token"


def _texts(value: object) -> set[str]:
    if isinstance(value, str):
        return {value}
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return set().union(*map(_texts, parts))
