"""The tokenizer of a folder or a hub repository, without whatever weights lie there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftkit.checkpoint.documents import read_document
from graftkit.checkpoint.files import resolve_member
from graftkit.checkpoint.location import locate
from graftkit.checkpoint.tokenizer.files import SLOW_ENDINGS, SLOW_FILES, TokenizerFiles, read_tokenizer
from graftkit.errors import InputRejected, StorageFault, printable

#: The documents that are a tokenizer's alone.
DOCUMENTS = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
)  # fmt: skip

#: Where further templates lie.
TEMPLATES = "additional_chat_templates"


@dataclass(frozen=True, slots=True)
class TokenizerFolder:
    """A tokenizer where it lies.

    Attributes:
        name: what was asked for.
        directory: the folder.
        documents: the tokenizer's documents, by name.
        carried: its other files, such as vocab.json: relative paths.
        model_type: what config.json beside it says of the model, None where there is none.
        files: the tokenizer as its documents describe it.
    """

    name: str
    directory: Path
    documents: Mapping[str, Any]
    carried: tuple[str, ...]
    model_type: str | None
    files: TokenizerFiles

    @property
    def paths(self) -> tuple[str, ...]:
        """Relative paths of all its files."""
        return (*self.documents, *self.carried)

    @classmethod
    def open(cls, name: str) -> TokenizerFolder:
        """Read the tokenizer files of a local folder or a hub id.

        Raises:
            InputRejected: there is no such folder, or no tokenizer.json in it, or a tokenizer file is malformed.
            StorageFault: reading or downloading failed.
        """
        directory = locate(name).directory.resolve()
        try:
            return cls._open(name, directory)
        except InputRejected as error:
            raise InputRejected(f"{printable(name)}: {error}") from error
        except OSError as error:
            raise StorageFault(f"{printable(name)}: cannot be read: {error.strerror or error}") from error

    @classmethod
    def _open(cls, name: str, directory: Path) -> TokenizerFolder:
        documents = {one: read_document(directory, one) for one in DOCUMENTS if (directory / one).is_file()}
        carried = tuple(_carried(directory))
        files = read_tokenizer(documents, carried=carried)
        config = read_document(directory, "config.json") if (directory / "config.json").is_file() else {}
        model_type = config.get("model_type") if isinstance(config, dict) else None
        return cls(name, directory, documents, carried, model_type, files)


def is_tokenizer_file(path: str) -> bool:
    """Whether a file, by its relative path, is a tokenizer's alone."""
    folder, _, name = path.rpartition("/")
    return folder == TEMPLATES or (not folder and (name in SLOW_FILES or name.endswith(SLOW_ENDINGS)))


def _carried(directory: Path) -> Iterator[str]:
    """Yield the files beside the documents that are the tokenizer's; each is a regular file of this folder."""
    for place in sorted((*directory.iterdir(), *(directory / TEMPLATES).glob("*"))):
        path = str(place.relative_to(directory))
        if place.is_file() and not place.name.startswith(".") and is_tokenizer_file(path):
            resolve_member(directory, path)
            yield path
