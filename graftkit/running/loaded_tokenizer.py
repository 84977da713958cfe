"""A tokenizer as a user gets it from a directory, with the few questions that the checks ask of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from graftkit.checkpoint.tokenizer import read_tokenizer
from graftkit.checkpoint.tokenizer.bounds import tokenizers_faults
from graftkit.errors import printable
from graftkit.running.texts import load_tokenizer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

#: Roles whose ids config.json may name; generation_config.json names the first three.
ROLES = ("pad_token", "bos_token", "eos_token", "sep_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class LoadedTokenizer:
    """What ``AutoTokenizer.from_pretrained(directory)`` returns, loaded once."""

    directory: Path
    tokenizer: Any

    @classmethod
    def of(cls, directory: Path) -> LoadedTokenizer:
        """Load the tokenizer of ``directory`` without running code from it.

        Raises:
            InputRejected: transformers cannot load it.

        """
        return cls(directory, load_tokenizer(directory))

    @cached_property
    def ids(self) -> dict[str, int]:
        """The id of each token, added ones too, in the order of the ids."""
        return dict(sorted(self.tokenizer.get_vocab().items(), key=lambda item: item[1]))

    @cached_property
    def tokens(self) -> dict[int, str]:
        """The token of each id."""
        return {index: token for token, index in self.ids.items()}

    @cached_property
    def added(self) -> Mapping[int, Any]:
        """The added tokens by id, each a ``tokenizers.AddedToken``."""
        return dict(self.tokenizer.added_tokens_decoder)

    @cached_property
    def roles(self) -> dict[str, str]:
        """The content of each named special token."""
        return dict(self.tokenizer.special_tokens_map)

    @cached_property
    def tokenizer_json(self) -> dict[str, Any]:
        """The value of tokenizer.json, empty if there is none."""
        return dict(self.document("tokenizer.json") or {})

    @cached_property
    def _as_loaded(self) -> dict[str, Any]:
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        return dict(json.loads(backend.to_str())) if backend is not None else self.tokenizer_json

    def part_as_loaded(self, part: str) -> Any:
        """Return a part of tokenizer.json in the one spelling of the installed library; files have several."""
        return self._as_loaded.get(part)

    @cached_property
    def file_ids(self) -> Mapping[str, int]:
        """The id of each token as tokenizer.json has it."""
        return read_tokenizer({"tokenizer.json": self.tokenizer_json}).ids

    def document(self, name: str) -> Any:
        """Return the parsed JSON file ``name``, or None if there is none."""
        path = self.directory / name
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def encode(self, texts: Sequence[str], *, framed: bool = False) -> list[list[int]]:
        """Split each text into ids, with the special tokens around it only if ``framed``."""
        if not texts:
            return []
        with tokenizers_faults(f"{printable(self.directory)}: tokenizer files"):
            found = self.tokenizer(list(texts), add_special_tokens=framed, verbose=False)["input_ids"]
        return [list(ids) for ids in found]

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
                list(ids), skip_special_tokens=skip_special, clean_up_tokenization_spaces=False
            )
        return text
