"""The ids that config and generation config name, as another tokenizer has them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from graftkit.architecture.skeleton import build_config
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.tokenizer import TokenizerFiles
from graftkit.checkpoint.tokenizer.id_places import CONFIG, GENERATION, IDS, SINGLE_IDS, IdPlace, id_places, with_value
from graftkit.checkpoint.tokenizer.roles import CONFIG_ROLES
from graftkit.checkpoint.tokenizer.shared import ROLES
from graftkit.errors import InputRejected, plural, printable


class MovedIds:
    """Moves ids from the tokenizer ``before`` to ``after``; ``places`` gives for each shared id its new one.

    ``notes`` are sentences on what was dropped.
    """

    def __init__(self, before: TokenizerFiles, after: TokenizerFiles, places: Mapping[int, int]) -> None:
        self._before, self._after, self._places = before, after, places
        self.notes: list[str] = []

    def documents(self, checkpoint: Checkpoint, rows: int) -> dict[str, Any]:
        """The configs with all ids moved, those too that only the class of a config names; ``rows`` are those of the base's tables.

        Raises:
            InputRejected: one names an id that has no counterpart, and whose name no role of a tokenizer explains.
        """
        found = {name: checkpoint.documents[name] for name in (CONFIG, GENERATION) if name in checkpoint.documents}
        for place in id_places(dict(found), rows):
            found[place.document] = with_value(found[place.document], place.path, self._value(place))
        roles = {f"{role}_id": index for role in CONFIG_ROLES if (index := self._of_role(role)) is not None}
        for name, values in found.items():
            unset = {key: index for key, index in roles.items() if values.get(key) is None}
            found[name] = {**values, **unset}
        for place in self._left_to_the_class(checkpoint.config, rows):
            found[CONFIG] = with_value(found[CONFIG], place.path, self._value(place))
        return found

    def _left_to_the_class(self, config: Mapping[str, Any], rows: int) -> Iterator[IdPlace]:
        """Yield roles that config.json does not name, so that they are the class's defaults."""
        named = {place.path for place in id_places({CONFIG: config}, rows)}
        for place in id_places({CONFIG: build_config(config).to_dict()}, rows):
            role = _role(place)
            given = self._of_role(role)
            unnamed = place.path not in named and (len(place.path) == 1 or _holds(config, place.path[:-1]))
            set_already = len(place.path) == 1 and role in CONFIG_ROLES and given is not None
            if unnamed and role in ROLES and given not in place.ids and not set_already:
                yield place

    def _of_role(self, role: str) -> int | None:
        """The new tokenizer's id of a role; None where it has none."""
        return self._after.ids.get(self._after.special.get(role, ""))

    def _value(self, place: IdPlace) -> Any:
        role, lost = _role(place), [index for index in place.ids if index not in self._places]
        given = self._of_role(role)
        if place.form is IDS and isinstance(place.value, list):
            first = [] if given is None else [given]
            return list(dict.fromkeys((*first, *self._kept(place, lost))))
        if place.form is SINGLE_IDS:
            return self._kept(place, lost)
        if place.form is IDS and given is not None:
            return given
        if not lost:
            return place.moved(self._places.get)
        token = self._before.token_of(lost[0])
        named = f"id {lost[0]}" if token is None else f"id {lost[0]} ({printable(token)!r})"
        if place.form is not IDS or role not in {*ROLES, *self._before.special}:
            raise InputRejected(
                f"{place}: names {named}, which the donor's tokenizer does not have; set it to a shared token first, or take it out"
            )
        self.notes.append(f"{place}: was {named}, which the donor's tokenizer does not have: now it is not set")
        return None

    def _kept(self, place: IdPlace, lost: list[int]) -> list[int]:
        """The ids of a list that are shared, as they are now."""
        if lost:
            self.notes.append(f"{place}: {plural(len(lost), 'id')} left out, which the donor's tokenizer does not have")
        return [self._places[index] for index in place.ids if index in self._places]


def _role(place: IdPlace) -> str:
    return re.sub(r"_(id|index|ids|indices)$", "", str(place.path[-1]))


def _holds(config: Mapping[str, Any], path: tuple[str | int, ...]) -> bool:
    value: Any = config
    for step in path:
        value = value.get(step) if isinstance(value, dict) else None
    return isinstance(value, dict)
