"""A tokenizer as a user gets it from a directory, with the few questions that the checks ask of it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from graftkit.architecture.token_ids import renumbered
from graftkit.checkpoint.tokenizer import read_tokenizer
from graftkit.checkpoint.tokenizer.bounds import tokenizers_faults
from graftkit.checkpoint.tokenizer.chat_template import COPIES
from graftkit.checkpoint.tokenizer.id_places import DOCUMENTS
from graftkit.checkpoint.tokenizer.renamed_places import TEMPLATE, in_templates, in_text, in_tokenizer
from graftkit.checkpoint.tokenizer.renumbering import renumbered_model
from graftkit.errors import printable
from graftkit.running.texts import load_tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from graftkit.architecture.index_map import IndexMap

#: Roles whose ids config.json may name; generation_config.json names the first three.
ROLES = ("pad_token", "bos_token", "eos_token", "sep_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class LoadedTokenizer:
    """What ``AutoTokenizer.from_pretrained(directory)`` returns, loaded once.

    ``names`` are other names, by the old ones, under which it tells of its tokens; text is read and written by the old ones.
    ``moved`` says which of its ids are which elsewhere: it tells of its tokens by these, of those alone that have one, and a text
    with another token in it has a negative id there, which :meth:`pieces` knows.
    """

    directory: Path
    tokenizer: Any
    names: Mapping[str, str] = field(default_factory=dict)
    moved: IndexMap | None = None

    @classmethod
    def of(
        cls, directory: Path, names: Mapping[str, str] | None = None, moved: IndexMap | None = None
    ) -> LoadedTokenizer:
        """Load the tokenizer of ``directory`` without running code from it.

        Raises:
            InputRejected: transformers cannot load it.

        """
        return cls(
            directory, load_tokenizer(directory), names or {}, None if moved is None or moved.in_place else moved
        )

    def name(self, token: str) -> str:
        """The name of a token, which may be another than the files have."""
        return self.names.get(token, token)

    @cached_property
    def _places(self) -> Mapping[int, int] | None:
        return None if self.moved is None else dict(zip(self.moved.kept, self.moved.places, strict=True))

    def place(self, index: int) -> int:
        """The id elsewhere of the token that has ``index`` here; negative where it has none."""
        return index if self._places is None else self._places.get(index, -1 - index)

    @cached_property
    def ids(self) -> dict[str, int]:
        """The id of each token, added ones too, in the order of the ids."""
        found = sorted(self.tokenizer.get_vocab().items(), key=lambda item: item[1])
        return {self.name(token): place for token, index in found if (place := self.place(index)) >= 0}

    @cached_property
    def tokens(self) -> dict[int, str]:
        """The token of each id."""
        return {index: token for token, index in self.ids.items()}

    @cached_property
    def added(self) -> Mapping[int, Any]:
        """The added tokens by id, each a ``tokenizers.AddedToken``."""
        found = {self.place(index): token for index, token in self.tokenizer.added_tokens_decoder.items()}
        return {index: token for index, token in found.items() if index >= 0}

    @cached_property
    def roles(self) -> dict[str, str]:
        """The content of each named special token."""
        return {role: self.name(content) for role, content in self.tokenizer.special_tokens_map.items()}

    @cached_property
    def special(self) -> tuple[str, ...]:
        """The names of all special tokens."""
        return tuple(name for token in self.tokenizer.all_special_tokens if (name := self.name(token)) in self.ids)

    @property
    def unknown(self) -> int | None:
        """The id of the token that stands for what the tokenizer does not know; None where it has none."""
        token = self.tokenizer.unk_token
        return None if token is None else self.ids.get(self.name(token))

    @cached_property
    def chat_template(self) -> Any:
        """The chat template, a text or texts by name, with the tokens under their names."""
        return self.under_names(self.tokenizer.chat_template)

    def under_names(self, template: Any) -> Any:
        """A chat template in any of its forms, with the tokens under their names."""
        return in_templates(template, self.names, self.tokenizer.get_vocab()) if self.names else template

    def text_under_names(self, text: str) -> str:
        """A text in which the added tokens that are found as they are spelled stand under their names."""
        tokens = self.added.values() if self.names else ()
        plain = {str(token.content) for token in tokens if not (token.normalized or token.single_word)}
        names = {old: new for old, new in self.names.items() if old in plain}
        return in_text(text, names, self.tokenizer.get_vocab()) if names else text

    def templates(self) -> Iterator[tuple[str, Any]]:
        """Yield each file that holds a chat template, and what it holds."""
        path = self.directory / TEMPLATE
        if path.is_file():
            yield TEMPLATE, path.read_text(encoding="utf-8")
        for name in COPIES:
            template = (self.document(name) or {}).get("chat_template")
            if template is not None:
                yield name, template

    @cached_property
    def tokenizer_json(self) -> dict[str, Any]:
        """The value of tokenizer.json, empty if there is none; its parts have the tokens under their names."""
        return self._under_names(dict(self.document("tokenizer.json") or {}))

    @cached_property
    def _as_loaded(self) -> dict[str, Any]:
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            return self.tokenizer_json
        loaded = self._under_names(dict(json.loads(backend.to_str())))
        return {**loaded, "model": renumbered_model(loaded["model"], self._move)} if self.moved else loaded

    def _under_names(self, document: dict[str, Any]) -> dict[str, Any]:
        return in_tokenizer(document, self.names, self.ids) if self.names and document else document

    def _move(self, index: int) -> int | None:
        place = self.place(index)
        return None if place < 0 else place

    def part_as_loaded(self, part: str) -> Any:
        """Return a part of tokenizer.json in the one spelling of the installed library; files have several."""
        return self._as_loaded.get(part)

    @cached_property
    def file_ids(self) -> Mapping[str, int]:
        """The id of each token as tokenizer.json has it, tokens under their names; empty where there is no such file."""
        document = self.document("tokenizer.json")
        found = read_tokenizer({"tokenizer.json": document}).ids if document else {}
        return {self.name(token): index for token, index in found.items()}

    @cached_property
    def _renumbered(self) -> Mapping[str, Any]:
        """The documents that name tokens by ids, under the ids that they have elsewhere."""
        if self.moved is None:
            return {}
        documents = {name: value for name in DOCUMENTS if (value := self._read(name)) is not None}
        return renumbered(documents, self.moved)

    def document(self, name: str) -> Any:
        """Return the parsed JSON file ``name``, or None if there is none."""
        return self._renumbered[name] if name in self._renumbered else self._read(name)

    def _read(self, name: str) -> Any:
        if name not in self._values:
            path = self.directory / name
            self._values[name] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        return self._values[name]

    @cached_property
    def _values(self) -> dict[str, Any]:
        """The JSON files that were read so far: of a large vocabulary one takes a quarter of a second to parse."""
        return {}

    def encode(self, texts: Sequence[str], *, framed: bool = False) -> list[list[int]]:
        """Split each text into ids, with the special tokens around it only if ``framed``."""
        if not texts:
            return []
        with tokenizers_faults(f"{printable(self.directory)}: tokenizer files"):
            found = self.tokenizer(list(texts), add_special_tokens=framed, verbose=False)["input_ids"]
        return [list(ids) if self.moved is None else list(map(self.place, ids)) for ids in found]

    def loses(self, ids: Sequence[int]) -> bool:
        """Whether a text of these ids has none elsewhere: a token of it is not there, or it was not all known, and may be less so."""
        return self.moved is not None and (self.unknown in ids or any(index < 0 for index in ids))

    def pieces(self, ids: Sequence[int]) -> tuple[str, ...]:
        """The tokens of ``ids``, those too that have none elsewhere."""
        return tuple(map(str, self.tokenizer.convert_ids_to_tokens(self._own(ids))))

    def _own(self, ids: Sequence[int]) -> list[int]:
        """Ids elsewhere as those that the tokenizer itself has."""
        own = {} if self.moved is None else dict(zip(self.moved.places, self.moved.kept, strict=True))
        return [-1 - index if index < 0 else own.get(index, index) for index in ids]

    def encode_with_ends(self, text: str, *, framed: bool = False) -> list[tuple[int, int]]:
        """Split ``text`` into ids, each with the place in the text at which it ends, without special tokens around it.

        Those come too if ``framed``, with the end 0.
        """
        with tokenizers_faults(f"{printable(self.directory)}: tokenizer files"):
            found = self.tokenizer(text, add_special_tokens=framed, return_offsets_mapping=True, verbose=False)
        frame = found.sequence_ids()
        ends = (0 if part is None else end for part, (_, end) in zip(frame, found["offset_mapping"], strict=True))
        return list(zip(found["input_ids"], ends, strict=True))

    def pieces_of(self, word: str) -> list[int]:
        """The ids that the model alone splits ``word`` into, a text as the pre-tokenizer leaves it."""
        with tokenizers_faults(f"{printable(self.directory)}: tokenizer files"):
            return [self.place(piece.id) for piece in self.tokenizer.backend_tokenizer.model.tokenize(word)]

    def written_as(self, index: int) -> str:
        """Return the added token ``index`` as it is decoded: a normalized one as the normalizer leaves it."""
        token = self.added.get(index)
        if token is None:
            return ""
        normalizer = getattr(getattr(self.tokenizer, "backend_tokenizer", None), "normalizer", None)
        return str(normalizer.normalize_str(token.content) if normalizer and token.normalized else token.content)

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """Return the text of ``ids``, without the clean-up of spaces that some tokenizers do."""
        with tokenizers_faults(f"{printable(self.directory)}: tokenizer files"):
            text: str = self.tokenizer.decode(
                self._own(ids), skip_special_tokens=skip_special, clean_up_tokenization_spaces=False
            )
        return text
