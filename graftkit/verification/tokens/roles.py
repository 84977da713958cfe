"""Tokenizer, config and generation config have to name the same ids for pad, bos, eos and the other roles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graftkit.errors import printable
from graftkit.running.loaded_tokenizer import ROLES

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from graftkit.running.loaded_tokenizer import LoadedTokenizer

#: The roles that transformers looks up in every config, so that a missing id is no less wrong than another one.
LOOKED_UP = ROLES[:3]


def check_roles(
    before: LoadedTokenizer,
    after: LoadedTokenizer,
    *,
    eos_may_pad: bool = False,
    gone: Collection[str] = (),
    alone: bool = False,
) -> tuple[list[str], tuple[str, ...]]:
    """Return the disagreements that are new, and as notes the changed roles and the source's own disagreements.

    ``eos_may_pad`` says that an operation was asked to pad with the eos token; ``gone`` are places that it took away. Where ``before``
    stands ``alone``, what lies beside it is another model's.
    """
    failures: list[str] = []
    notes: list[str] = []
    old_places, new_places = {} if alone else _places(before), _places(after)
    failures += [f"{place}: is missing" for place in old_places if place not in (*new_places, *gone)]
    if _pads_with_eos(after):
        (notes if eos_may_pad or _pads_with_eos(before) else failures).append(
            f"pad_token is {printable(after.roles['eos_token'])!r}, the eos_token too: a trainer leaves padding out of the loss, and"
            " would leave out every end with it; give pad_token a token of its own (roles: {pad_token: <|pad|>})"
        )
    for role in dict.fromkeys((*before.roles, *after.roles)):
        old, now = before.roles.get(role), after.roles.get(role)
        if now is None:
            failures.append(f"{role} was {printable(old)!r}, now there is none")
            continue
        if old != now:
            notes.append(
                f"{role} was {'not set' if old is None else repr(printable(old))}, now it is {printable(now)!r}"
            )
        for place, values in new_places.items():
            wrong = _disagreement(values, role, after.ids.get(now), place)
            if wrong is None:
                continue
            source = _disagreement(old_places.get(place), role, before.ids.get(old) if old else None, place)
            (notes if old == now and source == wrong else failures).append(wrong)
    return failures, tuple(notes)


def _pads_with_eos(loaded: LoadedTokenizer) -> bool:
    return "eos_token" in loaded.roles and loaded.roles.get("pad_token") == loaded.roles["eos_token"]


def _places(loaded: LoadedTokenizer) -> dict[str, Mapping[str, Any]]:
    return dict(_found_places(loaded))


def _found_places(loaded: LoadedTokenizer) -> Iterator[tuple[str, Mapping[str, Any]]]:
    config = loaded.document("config.json")
    generation = loaded.document("generation_config.json")
    if isinstance(config, dict):
        yield "config.json", config
        if isinstance(config.get("text_config"), dict):
            yield "config.json: text_config", config["text_config"]
    if isinstance(generation, dict):
        yield "generation_config.json", generation


def _disagreement(values: Mapping[str, Any] | None, role: str, index: int | None, place: str) -> str | None:
    """Return how ``place`` disagrees with the tokenizer about ``role``, or None. Any id of a list may be the one."""
    key = f"{role}_id"
    found = None if values is None else values.get(key)
    if index is None or (found is None and role not in LOOKED_UP):
        return None
    if index in (found if isinstance(found, list) else [found]):
        return None
    shown = "not set" if found is None else printable(found)
    return f"{place}: {key} is {shown}, the tokenizer's {role} is id {index}"
