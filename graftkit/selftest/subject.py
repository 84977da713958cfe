"""The model that the faults are planted into, and the places in it that they ask for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from graftkit.architecture.accounting import Structure, account
from graftkit.architecture.skeleton import build_config
from graftkit.architecture.vocabulary import Vocabulary, find_vocabulary, takes_ids
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.reading import read_range, read_rows, torch_dtype
from graftkit.checkpoint.tensors import FLOATING, Stored
from graftkit.checkpoint.tokenizer import TokenizerFiles, read_tokenizer
from graftkit.errors import InputRejected, printable
from graftkit.operations.base import check_plain_weights
from graftkit.running.probe_texts import PROBE_TEXTS

#: Names of key projections, fused ones too.
KEYS = re.compile(r"(^|[._])(k_proj|key|k_lin|query_key_value|c_attn|qkv_proj|Wqkv|in_proj|k)\.(weight|bias)$")
NORMS = re.compile(r"(norm\w*|ln_\w+)\.weight$", re.IGNORECASE)


class NotApplicable(Exception):
    """A fault cannot exist in this model; the message says why."""


def first(found: Iterable[Any], why_not: str) -> Any:
    """The first of many places.

    Raises:
        NotApplicable: there is none.
    """
    for item in found:
        return item
    raise NotApplicable(why_not)


@dataclass(frozen=True)
class Subject:
    """An opened checkpoint with what faults ask of it. Places are names on disk, or dotted places of a document."""

    checkpoint: Checkpoint
    structure: Structure
    vocabulary: Vocabulary
    tokenizer: TokenizerFiles

    @classmethod
    def open(cls, model: str) -> Subject:
        """Open ``model``, a folder or a hub id.

        Raises:
            InputRejected: it cannot be opened or accounted for, takes no token ids, or is quantized.
        """
        checkpoint = Checkpoint.open(model)
        check_plain_weights(checkpoint, "selftest")
        structure = account(checkpoint)
        if not takes_ids(structure.skeleton.model):
            taken = structure.skeleton.model.main_input_name
            raise InputRejected(
                f"{printable(model)}: takes {taken} and no token ids; selftest plants faults into vocabulary and tokenizer, so give it"
                " a model of text"
            )
        return cls(checkpoint, structure, find_vocabulary(checkpoint, structure), read_tokenizer(checkpoint.documents))

    def values(self, name: str) -> Any:
        """The values of a stored tensor, in its own dtype and shape."""
        import torch

        stored = self._stored(name)
        raw = torch.from_numpy(read_range(stored.path, stored.offset, stored.nbytes))
        return raw.view(torch_dtype(stored.dtype)).view(stored.shape)

    def _stored(self, name: str) -> Stored:
        tensor = self.checkpoint.tensors[name]
        if not isinstance(tensor, Stored):
            raise TypeError(f"{name} is not stored")
        return tensor

    def used(self) -> Iterator[tuple[str, str]]:
        """``(name on disk, name in memory)`` of the floating tensors that the class uses as they are stored, less tables."""
        tables = {item.name for item in self.vocabulary.tensors}
        for disk, (key, converted) in self.structure.memory.items():
            known = key in self.structure.skeleton.shapes and not converted and disk not in tables
            if known and self.checkpoint.tensors[disk].dtype in FLOATING:
                yield disk, key

    def weights(self) -> list[str]:
        """The weights of linear modules."""
        import torch
        from transformers.pytorch_utils import Conv1D

        modules = self.structure.skeleton.model.named_modules()
        linear = {f"{name}.weight" for name, module in modules if isinstance(module, torch.nn.Linear | Conv1D)}
        return [disk for disk, key in self.used() if key in linear]

    def weight(self) -> str:
        """The last weight of a linear module."""
        return str(first(reversed(self.weights()), "no linear module"))

    def square_weight(self) -> str:
        """The first square weight that is not symmetric."""
        square = (name for name in self.weights() if len(set(self.checkpoint.tensors[name].shape)) == 1)
        return str(first((n for n in square if not self.values(n).equal(self.values(n).T)), "no square weight"))

    def twin_weights(self) -> str:
        """Two different weights of one shape, joined by ``and``."""
        seen: dict[tuple[int, ...], str] = {}
        for name in self.weights():
            other = seen.setdefault(self.checkpoint.tensors[name].shape, name)
            if other != name and not self.values(other).equal(self.values(name)):
                return f"{other} and {name}"
        raise NotApplicable("no two weights of one shape")

    def key_weight(self) -> str:
        """The weight of a key projection."""
        return str(first((name for name in self.weights() if KEYS.search(name)), "no key projection by its name"))

    def bias(self) -> str:
        """A bias that is not zero, and no key's, which the softmax would cancel."""
        names = (disk for disk, key in self.used() if key.endswith(".bias") and not KEYS.search(key))
        return str(first((name for name in names if self.values(name).any()), "no tensor is a bias"))

    def norm(self) -> str:
        """The weight of a normalization."""
        return str(first((disk for disk, key in self.used() if NORMS.search(key)), "no norm has a weight"))

    def table(self) -> str:
        """The input table."""
        return str(first((item.name for item in self.vocabulary.of_role("input")), "no input table"))

    def head(self) -> str:
        """An output table of its own."""
        why_not = "input and output rows are tied" if self.vocabulary.has_output else "no output table"
        return str(first((item.name for item in self.vocabulary.of_role("output")), why_not))

    def probed_rows(self, name: str) -> tuple[int, int]:
        """Two ids of a probe text whose rows of the table ``name`` differ."""
        stored = self._stored(name)
        axis = next(item.axis for item in self.vocabulary.tensors if item.name == name)
        ids = [index for index in dict.fromkeys(self.tokenizer.encode(PROBE_TEXTS[0])) if index < self.vocabulary.rows]
        rows = {index: read_rows(stored, axis, index, index + 1) for index in ids}
        one = first(rows, "no id of the probe text has a row")
        return one, first((index for index in rows if not rows[index].equal(rows[one])), "all rows are equal")

    def settings(self) -> dict[str, Any]:
        """Every value of the config as transformers loads it, by dotted place."""
        return dict(_leaves(build_config(self.checkpoint.config).to_dict(), ""))

    def setting(self, pattern: str, kind: type, why_not: str) -> str:
        """The place of the first value of ``kind`` in the loaded config whose place matches ``pattern``."""
        found = self.settings().items()
        return str(
            first((place for place, value in found if re.search(pattern, place) and type(value) is kind), why_not)
        )

    def document(self, name: str) -> dict[str, Any]:
        """A fresh copy of a JSON document.

        Raises:
            NotApplicable: there is none.
        """
        if not isinstance(self.checkpoint.documents.get(name), dict):
            raise NotApplicable(f"no {name}")
        copied: dict[str, Any] = json.loads(json.dumps(self.checkpoint.documents[name]))
        return copied


def _leaves(value: Mapping[Any, Any], place: str) -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        below = f"{place}.{key}" if place else str(key)
        if isinstance(item, dict):
            yield from _leaves(item, below)
        else:
            yield below, item
