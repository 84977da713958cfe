"""Which tokens two tokenizers share: by the bytes that they spell, and special ones by their role or their name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from graftkit.checkpoint.tokenizer.files import TokenizerFiles
from graftkit.checkpoint.tokenizer.spelling import Spelling

#: The order in which the roles of a token are asked for where it has several: what ends a text first.
ROLES = ("eos_token", "bos_token", "unk_token", "pad_token", "cls_token", "sep_token", "mask_token")


@dataclass(frozen=True, slots=True)
class SharedTokens:
    """Which token of a base each token of a donor is, by id.

    Attributes:
        origins: the base's id of each of the donor's that is shared; several may share one.
        by_role: which of them were found by role: ids of the donor, with the role.
    """

    origins: Mapping[int, int]
    by_role: Mapping[int, str]

    @property
    def places(self) -> dict[int, int]:
        """For each shared id of the base the one of the donor that corresponds: one found by role, else the first."""
        found: dict[int, int] = {}
        for index in (*self.by_role, *sorted(self.origins)):
            found.setdefault(self.origins[index], index)
        return found


def shared_tokens(base: Spelling, donor: Spelling) -> SharedTokens:
    """Find the tokens that both have.

    A special token is the base's of the same role, else its special token of the same name. Any other is the base's that spells
    the same bytes: of several the one of the same name, then one that is no stand-in for a byte, then the first. A stand-in of the
    donor for a byte that another of its tokens spells never stands in text, so that it is shared with a stand-in alone.
    """
    by_role = dict(_by_role(base.files, donor.files))
    origins = {index: origin for index, (origin, _) in by_role.items()}
    for index in sorted(donor.special - origins.keys()):
        origin = base.files.id_of(donor.files.tokens.get(index, ""))
        if origin in base.special:
            origins[index] = origin
    spelled: dict[bytes, list[int]] = {}
    for index, text in sorted(base.texts.items()):
        spelled.setdefault(text, []).append(index)
    for index, text in donor.texts.items():
        candidates = [other for other in spelled.get(text, ()) if other in base.one_byte or index not in donor.unused]
        if index not in origins and candidates:
            origins[index] = min(candidates, key=lambda other: _rank(base, donor, other, index))
    return SharedTokens(dict(sorted(origins.items())), {index: role for index, (_, role) in by_role.items()})


def _rank(base: Spelling, donor: Spelling, index: int, other: int) -> tuple[bool, bool, int]:
    renamed = base.files.tokens[index] != donor.files.tokens[other]
    return renamed, index in base.one_byte, index


def _by_role(base: TokenizerFiles, donor: TokenizerFiles) -> Iterator[tuple[int, tuple[int, str]]]:
    """Yield ids of the donor with the base's id of the same role."""
    taken: set[int] = set()
    for role in dict.fromkeys((*ROLES, *donor.special)):
        index = donor.ids.get(donor.special.get(role, ""))
        origin = base.ids.get(base.special.get(role, ""))
        if index is not None and origin is not None and index not in taken:
            taken.add(index)
            yield index, (origin, role)
