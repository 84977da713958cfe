"""Clean copies: other files that hold the same checkpoint. A check that flags one of them cries wolf."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.selftest.copies import parts, set_value, write_shards

#: Into how many shards; None leaves the files as they are.
SHARDS = (None, 1, 2, 3, 1_000_000)
ORDERS = ("as stored", "reversed", "shuffled")
#: Longer headers move every tensor to another alignment in its file.
PADS = (0, 8, 24)
#: How the JSON documents are written.
SPELLINGS = ("as they are", "sorted keys", "one line", "other history")


@dataclass(frozen=True, slots=True)
class CleanCopy:
    """One way to write the same checkpoint."""

    shards: int | None
    order: str
    pad: int
    spelling: str
    seed: int

    @property
    def name(self) -> str:
        """What it is called in the report."""
        if self.shards is None:
            files = "same files"
        else:
            size = "one file" if self.shards == 1 else f"{self.shards} shards" if self.shards < 100 else "a shard each"
            files = f"{size}, {self.order}, header + {self.pad}"
        return f"{files}; JSON {self.spelling}"

    def make(self, directory: Path) -> None:
        """Write a plain copy in ``directory`` anew in this way."""
        _spell(directory, self.spelling)
        if self.shards is None:
            return
        (whole,) = parts(directory, 1)
        names = list(whole)
        if self.order == "reversed":
            names.reverse()
        elif self.order == "shuffled":
            random.Random(self.seed).shuffle(names)  # noqa: S311 - an order, no secret
        step = -(-len(names) // min(self.shards, len(names)))
        shards = [{n: whole[n] for n in names[i : i + step]} for i in range(0, len(names), step)]
        write_shards(directory, shards, pad=self.pad)


def clean_copies(count: int) -> Iterator[CleanCopy]:
    """The first ``count`` of all combinations, in an order that is always the same and mixes them well."""
    plain = CleanCopy(None, ORDERS[0], 0, SPELLINGS[0], 0)
    mixed = list(itertools.product(SHARDS[1:], ORDERS, PADS, SPELLINGS))
    random.Random(0).shuffle(mixed)  # noqa: S311 - an order, no secret
    others = (
        CleanCopy(shards, order, pad, spelling, seed)
        for seed, (shards, order, pad, spelling) in enumerate(itertools.cycle(mixed))
    )
    return itertools.islice(itertools.chain([plain], others), count)


def _spell(directory: Path, spelling: str) -> None:
    if spelling == SPELLINGS[0]:
        return
    for name in Checkpoint.open(str(directory)).documents:
        path = directory / name
        if not name.endswith(".json"):
            continue
        value = json.loads(path.read_text(encoding="utf-8"))
        if spelling == "other history" and name == "config.json":
            set_value(directory, name, "transformers_version", "5.0.0")
            set_value(directory, name, "_name_or_path", "elsewhere")
        elif spelling == "one line":
            path.write_text(json.dumps(value), encoding="utf-8")
        elif spelling == "sorted keys" and name != "tokenizer.json":
            path.write_text(json.dumps(value, indent=4, sort_keys=True), encoding="utf-8")
