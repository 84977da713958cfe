"""A converted checkpoint beside its source: every tensor as torch unpickles it, every id as the source's tokenizer gives it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.documents import TOKENIZER
from graftkit.checkpoint.reading import read_tensor
from graftkit.checkpoint.tensors import LazyTensor
from graftkit.checkpoint.tokenizer.bounds import tokenizers_faults
from graftkit.errors import plural, printable
from graftkit.running.loaded_tokenizer import LoadedTokenizer
from graftkit.running.place import folder_of, open_place
from graftkit.running.probe_texts import PROBE_TEXTS
from graftkit.verification.checks import Report, Row
from graftkit.verification.weights.unpickled import Unpickled, unpickled

if TYPE_CHECKING:
    from graftkit.verification.subject import Subject


@dataclass(frozen=True, slots=True)
class ConvertedReport(Report):
    """How many ``tensors`` of pickles were compared, and how many ``tokens`` and ``texts`` of a tokenizer."""

    tensors: int
    tokens: int
    texts: int
    failures: tuple[str, ...]
    name: str = "converted"

    def rows(self) -> Iterator[Row]:
        """The lines that a table shows of it."""
        verdict = "failed" if self.failures else "bitwise"
        if self.tensors:
            yield Row("converted weights", verdict, f"{plural(self.tensors, 'tensor')} as torch unpickles them")
        if self.tokens:
            figure = f"{plural(self.tokens, 'token')}, {plural(self.texts, 'text')}: the ids of the source's files"
            yield Row("converted tokenizer", "failed" if self.failures else "equal", figure)


@dataclass(frozen=True, slots=True)
class ConvertCheck:
    """The written weights beside the ``pickles`` of ``before``, and its tokenizer where ``tokenizer`` says that one was made.

    ``prefix`` is what the recipe says of the names in what a sharded training left.
    """

    before: Checkpoint
    after: Checkpoint
    pickles: tuple[str, ...]
    tokenizer: bool
    prefix: str | None = None
    name: str = "converted"

    def applies(self, subject: Subject) -> bool:
        """Wherever something was written."""
        return subject.base_changed

    def run(self, subject: Subject) -> ConvertedReport:
        """Compare what is written; what a later operation changed is compared as it was planned."""
        written = open_place(subject.result).tensors
        later = subject.changed_later
        found = {
            name: tensor for name, tensor in {**self.after.tensors, **written}.items() if name in self.after.tensors
        }
        found |= {name: self.after.tensors[name] for name in later if name in self.after.tensors}
        folder = None if subject.tokens else folder_of(subject.result)
        return self.compare(found, folder)

    def compare(self, found: Mapping[str, LazyTensor], folder: Path | None) -> ConvertedReport:
        """Compare the tensors that were ``found``, and the tokenizer in ``folder``."""
        held = (one for pickle in self.pickles for one in unpickled(self.before, pickle, self.prefix))
        count, failures = _unlike(held, found)
        if not self.tokenizer or folder is None:
            return ConvertedReport(count, 0, 0, tuple(failures))
        old, new = LoadedTokenizer.of(self.before.directory), LoadedTokenizer.of(folder)
        texts = (*PROBE_TEXTS, *new.ids)
        failures += _other_ids(old, new, texts, _listed(self.before.directory))
        return ConvertedReport(count, len(new.ids), len(texts), tuple(failures))


def _unlike(held: Iterable[Unpickled], found: Mapping[str, LazyTensor]) -> tuple[int, list[str]]:
    """How many tensors were compared, and a sentence for each that is not there; one may stand for all that share its memory."""
    count, failures = 0, list[str]()
    places, missing = set[object](), list[tuple[str, object]]()
    for name, value, place in held:
        count += 1
        tensor = found.get(name)
        if tensor is None:
            missing.append((name, place))
            continue
        places.add(place)
        here = read_tensor(tensor)
        if (value.dtype, value.shape) != (here.dtype, here.shape):
            failures.append(
                f"converted: tensor {printable(name)!r} is {here.dtype} {list(here.shape)}, not {value.dtype} {list(value.shape)}"
            )
        elif not _as_bytes(value).equal(_as_bytes(here)):
            failures.append(f"converted: tensor {printable(name)!r} does not hold the values that torch unpickles")
    return count, failures + [
        f"converted: tensor {printable(name)!r} is missing" for name, at in missing if at not in places
    ]


def _as_bytes(value: Any) -> Any:
    import torch

    return value.detach().resolve_neg().contiguous().view(-1).view(torch.uint8)


def _listed(directory: Path) -> Mapping[str, int]:
    """The id of each token as the files of the slow tokenizer themselves say: the line of vocab.txt, the value in vocab.json."""
    lines, values = directory / "vocab.txt", directory / "vocab.json"
    if lines.is_file():
        tokens = lines.read_text(encoding="utf-8").split("\n")
        return {token.rstrip("\r"): index for index, token in enumerate(tokens[: -1 if tokens[-1] == "" else None])}
    found = json.loads(values.read_text(encoding="utf-8")) if values.is_file() else {}
    return found if isinstance(found, dict) else {}


def _other_ids(
    old: LoadedTokenizer, new: LoadedTokenizer, texts: tuple[str, ...], listed: Mapping[str, int]
) -> Iterator[str]:
    """Yield a sentence for a token with another id than the files give it, and for a text that is split otherwise."""
    wrong = [token for token, index in listed.items() if new.ids.get(token) != index]
    if wrong:
        yield f"converted: {plural(len(wrong), 'token')} with another id than in the source's files: {printable(wrong[0])!r}"
    if old.ids != new.ids:
        yield "converted: the tokens are not those of the source"
    if old.special != new.special:
        yield "converted: the special tokens are not those of the source"
    for framed in (False, True):
        wanted = old.encode(texts, framed=framed)
        ways = {
            "by AutoTokenizer": new.encode(texts, framed=framed),
            "by tokenizer.json alone": _by_file(new, texts, framed=framed),
        }
        for way, found in ways.items():
            if different := [text for text, a, b in zip(texts, wanted, found, strict=True) if a != b]:
                shown = printable(different[0][:60])
                yield f"converted: {plural(len(different), 'text')} with other ids {way} than in the source: {shown!r}"


def _by_file(new: LoadedTokenizer, texts: tuple[str, ...], *, framed: bool) -> list[list[int]]:
    """The ids that the tokenizers library gives by the file, as other programs read it; transformers' classes rebuild parts of it."""
    from tokenizers import Tokenizer

    with tokenizers_faults():
        backend = Tokenizer.from_file(str(new.directory / TOKENIZER))
        return [encoded.ids for encoded in backend.encode_batch(list(texts), add_special_tokens=framed)]
