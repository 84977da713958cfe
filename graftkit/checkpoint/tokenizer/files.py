"""Reading a tokenizer from its files: which token has which id, which are special, and how text is split today."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from graftkit.checkpoint.tokenizer.bounds import check_bounds, tokenizers_faults
from graftkit.checkpoint.tokenizer.special import named_roles
from graftkit.checkpoint.tokenizer.vocabulary import AddedEntry, added_entries, object_of, vocabulary_of
from graftkit.errors import InputRejected, printable, spelled

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from tokenizers import Tokenizer

#: Files that hold a tokenizer for which transformers would build a tokenizer.json at load.
SLOW_FILES = ("vocab.txt", "vocab.json", "merges.txt", "tekken.json")
SLOW_ENDINGS = (".model", ".tiktoken", ".bpe")

#: So many texts are split at a time.
BATCH = 256


@dataclass(frozen=True)
class TokenizerFiles:
    """A tokenizer as its files describe it.

    Attributes:
        ids: id of each token, of the model's vocabulary and of the added tokens.
        tokens: token of each id.
        model_size: number of entries of the model's own vocabulary.
        added: the entries of ``added_tokens``, in the order of the file.
        special: content of each named role, such as ``eos_token``, as transformers would read it.
        document: the value of tokenizer.json.

    """

    ids: Mapping[str, int] = field(repr=False)
    tokens: Mapping[int, str] = field(repr=False)
    model_size: int
    added: tuple[AddedEntry, ...]
    special: Mapping[str, str]
    document: Mapping[str, Any] = field(repr=False)

    @cached_property
    def size(self) -> int:
        """One more than the largest id of any token."""
        return max(self.tokens, default=-1) + 1

    @cached_property
    def gaps(self) -> tuple[int, ...]:
        """Ids below :attr:`size` that no token has."""
        return tuple(index for index in range(self.size) if index not in self.tokens)

    def within(self, rows: int) -> TokenizerFiles:
        """The tokenizer without the tokens that have no row in a table of ``rows`` rows: it splits them as any text."""
        return self.without(range(rows, self.size))

    def without(self, ids: Collection[int]) -> TokenizerFiles:
        """The tokenizer without the tokens of ``ids``: it splits those that it has beside the model's own pieces as any text."""
        if not ids:
            return self
        document = self.document
        listed = [entry for entry in document.get("added_tokens") or [] if entry["id"] not in ids]
        return replace(
            self,
            ids=MappingProxyType({token: index for token, index in self.ids.items() if index not in ids}),
            tokens=MappingProxyType({index: token for index, token in self.tokens.items() if index not in ids}),
            added=tuple(entry for entry in self.added if entry.index not in ids),
            document=MappingProxyType({**document, "added_tokens": listed}),
        )

    def id_of(self, token: str) -> int | None:
        """Return the id of ``token``, or None."""
        return self.ids.get(token)

    def token_of(self, index: int) -> str | None:
        """Return the token of id ``index``, or None."""
        return self.tokens.get(index)

    def encode(self, text: str) -> list[int]:
        """Split ``text`` as the files say, without a post-processor, truncation, padding or dropout.

        Raises:
            InputRejected: the tokenizers library cannot read tokenizer.json.

        """
        backend = self._backend
        with tokenizers_faults():
            ids: list[int] = backend.encode(text, add_special_tokens=False).ids
        return ids

    def encode_words(self, texts: Iterable[str]) -> Iterator[tuple[list[int], list[int | None]]]:
        """Yield for each text its ids as :meth:`encode` gives them, and for each id which part of the pre-tokenizer it is from.

        Raises:
            InputRejected: the tokenizers library cannot read tokenizer.json.

        """
        backend, left = self._backend, iter(texts)
        while batch := list(islice(left, BATCH)):
            with tokenizers_faults():
                encodings = backend.encode_batch(batch, add_special_tokens=False)
            yield from ((encoding.ids, encoding.word_ids) for encoding in encodings)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids``, as the files say."""
        backend = self._backend
        with tokenizers_faults():
            text: str = backend.decode(list(ids), skip_special_tokens=False)
        return text

    def words_of(self, text: str) -> list[str]:
        """What the model is given of ``text``, by normalizer and pre-tokenizer, where no added token is found in it."""
        backend = self._backend
        with tokenizers_faults():
            whole = backend.normalizer.normalize_str(text) if backend.normalizer else text
            return (
                [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(whole)]
                if backend.pre_tokenizer
                else [whole]
            )

    def pieces_of(self, word: str) -> list[int]:
        """The ids that the model alone splits ``word`` into, a text as the pre-tokenizer leaves it."""
        backend = self._backend
        with tokenizers_faults():
            return [piece.id for piece in backend.model.tokenize(word)]

    @cached_property
    def model_type(self) -> str:
        """What the tokenizers library calls the model: BPE, WordPiece, Unigram or WordLevel."""
        return type(self._backend.model).__name__

    @cached_property
    def _backend(self) -> Tokenizer:
        model = {**self.document["model"]}
        if model.get("dropout"):
            model["dropout"] = None
        return backend_of({**self.document, "model": model, "truncation": None, "padding": None})


#: The tokenizer of a checkpoint that has none.
NO_TOKENIZER = TokenizerFiles(
    MappingProxyType({}), MappingProxyType({}), 0, (), MappingProxyType({}), MappingProxyType({})
)


def read_tokenizer(documents: Mapping[str, Any], *, carried: Collection[str] = ()) -> TokenizerFiles:
    """Read a tokenizer from the documents of a checkpoint. ``carried`` names its other files.

    Raises:
        InputRejected: there is no tokenizer.json, or a tokenizer file is malformed or contradicts itself.

    """
    if "tokenizer.json" not in documents:
        raise InputRejected(_no_fast_tokenizer([*documents, *carried]))
    document = object_of(documents, "tokenizer.json")
    config = object_of(documents, "tokenizer_config.json")
    if any(name != "tokenizer.json" for name in config.get("fast_tokenizer_files") or ()):
        raise InputRejected(
            "tokenizer_config.json: fast_tokenizer_files: names further tokenizer files, of which each version of"
            " transformers picks one; keep one tokenizer.json and remove the key"
        )
    length = config.get("model_max_length")
    if length is not None and (isinstance(length, bool) or not isinstance(length, int | float) or not length >= 1):
        raise InputRejected(f"tokenizer_config.json: model_max_length: {spelled(length)} is not a number from 1 on")
    tokens, ids = vocabulary_of(document)
    model_size = len(tokens)
    added = added_entries(document)
    for entry in added:
        _enter(entry, ids, tokens)
    special = named_roles(config, object_of(documents, "special_tokens_map.json"))
    return TokenizerFiles(
        MappingProxyType(ids), MappingProxyType(tokens), model_size, added, MappingProxyType(special), document
    )


def find_tokenizer(documents: Mapping[str, Any], *, carried: Collection[str] = ()) -> TokenizerFiles:
    """The result of :func:`read_tokenizer`; :data:`NO_TOKENIZER` where there is none that can be read."""
    try:
        return read_tokenizer(documents, carried=carried)
    except InputRejected:
        return NO_TOKENIZER


def backend_of(document: Mapping[str, Any]) -> Tokenizer:
    """Build the tokenizer of the tokenizers library from a tokenizer.json.

    Raises:
        InputRejected: the library refuses it.

    """
    from tokenizers import Tokenizer

    check_bounds(document)
    with tokenizers_faults(cannot="read"):
        return Tokenizer.from_str(json.dumps(document))


def is_slow(name: str) -> bool:
    """Whether a file is one of those that a slow tokenizer is read from."""
    return name in SLOW_FILES or name.endswith(SLOW_ENDINGS)


def _enter(entry: AddedEntry, ids: dict[str, int], tokens: dict[int, str]) -> None:
    shown = printable(entry.content)
    known = ids.setdefault(entry.content, entry.index)
    if known != entry.index:
        raise InputRejected(f"tokenizer.json: token {shown!r} has two ids, {known} and {entry.index}")
    holder = tokens.setdefault(entry.index, entry.content)
    if holder != entry.content:
        raise InputRejected(
            f"tokenizer.json: added_tokens: id {entry.index} is given to {shown!r}, but {printable(holder)!r} has it"
        )


def _no_fast_tokenizer(names: Collection[str]) -> str:
    slow = sorted(filter(is_slow, names))
    if not slow:
        return "tokenizer.json: not found; tokens cannot be added to a checkpoint without a tokenizer"
    return (
        f"tokenizer.json: not found, only {', '.join(map(printable, slow))}, which cannot be kept in step with new"
        " tokens; convert it first: AutoTokenizer.from_pretrained(<model>).save_pretrained(<model>)"
    )
