"""What a draft needs to know of a model: headers, config and tokenizer, no weights."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from graftkit.architecture.accounting import Structure, account
from graftkit.architecture.dimensions import Dimensions, dimensions_of
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.tokenizer import TokenizerFiles, find_tokenizer, read_tokenizer
from graftkit.checkpoint.tokenizer.template_notes import templates

#: How vocabularies call a token for padding, one for tool calls, and one that is kept in reserve.
PADDING = re.compile(r"(?<![a-z])pad(?:ding)?(?![a-z])", re.IGNORECASE)
TOOLS = re.compile(
    r"(?<![a-z])(?:tools?|function)(?:[ _-]?(?:calls?|results?|responses?|outputs?))?(?![a-z])", re.IGNORECASE
)
RESERVED = re.compile(r"(?<![a-z])(?:reserved|unused)(?![a-z])", re.IGNORECASE)

#: What a pad token is called where the vocabulary has none.
NEW_PAD = "<|pad|>"


@dataclass(frozen=True)
class Facts:
    """A checkpoint, accounted for, and its tokenizer, which is empty where there is none that can be read."""

    checkpoint: Checkpoint
    structure: Structure
    tokenizer: TokenizerFiles
    dimensions: Dimensions

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Facts:
        """Look at ``checkpoint``.

        Raises:
            InputRejected: a tensor is missing or does not fit the config.
        """
        structure = account(checkpoint)
        tokenizer = find_tokenizer(checkpoint.documents, carried=checkpoint.carried)
        return cls(checkpoint, structure, tokenizer, dimensions_of(structure.skeleton))

    @property
    def architecture(self) -> str:
        """The name of the class."""
        return self.structure.skeleton.architecture

    @property
    def generates(self) -> bool:
        """Whether the class writes text."""
        return bool(self.structure.skeleton.model.can_generate())

    @property
    def has_template(self) -> bool:
        """Whether the checkpoint has a chat template."""
        return bool(templates(self.checkpoint.documents))

    def require_tokenizer(self) -> None:
        """Refuse a checkpoint without a tokenizer that can be edited.

        Raises:
            InputRejected: it has none, and what to do.
        """
        read_tokenizer(self.checkpoint.documents, carried=self.checkpoint.carried)

    def special_tokens_like(self, pattern: re.Pattern[str]) -> Iterator[str]:
        """Yield the added special tokens whose names hold what ``pattern`` describes, in the order of their ids."""
        for entry in sorted(self.tokenizer.added, key=lambda entry: entry.index):
            if entry.special and pattern.search(entry.content):
                yield entry.content

    @property
    def pad(self) -> str | None:
        """The pad token; None where there is none with an id, and where it is the end token, which ends texts."""
        content = self.tokenizer.special.get("pad_token")
        usable = content is not None and content != self.tokenizer.special.get("eos_token")
        return content if usable and self.tokenizer.id_of(str(content)) is not None else None

    @property
    def configured_pad(self) -> int | None:
        """The id with which the model's config pads."""
        return getattr(self.structure.skeleton.model.config.get_text_config(), "pad_token_id", None)

    @property
    def wanted_pad(self) -> str:
        """The pad token to have: the present one, one of the vocabulary that is called so, or a new one."""
        if self.pad is not None:
            return self.pad
        taken = {content for role, content in self.tokenizer.special.items() if role != "pad_token"}
        return next((token for token in self.special_tokens_like(PADDING) if token not in taken), NEW_PAD)

    @property
    def pads(self) -> bool:
        """Whether tokenizer and config agree on a pad token that means nothing else."""
        return self.pad is not None and self.tokenizer.id_of(self.pad) == self.configured_pad
