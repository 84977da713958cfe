"""A grown output with its report, as the subject of faults: copies of the folder are damaged, and `verify` reads its report."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.compare import verify
from graftkit.engine import apply
from graftkit.errors import InputRejected, RecipeError
from graftkit.selftest.bench import Look, Seen, first_sentences, largest
from graftkit.selftest.clean import CleanCopy
from graftkit.selftest.copies import edit_tensor
from graftkit.selftest.fault import BYTES, LOADING, REPORT, Fault
from graftkit.selftest.growth import WILD
from graftkit.selftest.subject import NotApplicable, Subject

CARD, RECIPE, PAGE, MANIFEST = "README.md", "graft_recipe.yaml", "graft_report.html", "graft_report.json"


@dataclass(frozen=True, slots=True)
class GrownSubject:
    """What `extend_vocab` wrote from the model, with the report in its folder."""

    model: Subject
    output: Path
    checkpoint: Checkpoint

    @classmethod
    def make(cls, model: Subject, room: Path) -> GrownSubject:
        """Grow the model by eight tokens, in ``room``, without running it.

        Raises:
            NotApplicable: no token can be added to this model.
        """
        tokens = [f"<|graftkit selftest {index}|>" for index in range(8)]
        recipe = {
            "version": 1,
            "base_model": str(model.checkpoint.directory),
            "operations": [{"op": "extend_vocab", "special_tokens": tokens}],
            "verify": {"outputs": False},
            "output": str(room / "grown"),
        }
        try:
            apply(recipe)
        except (InputRejected, RecipeError) as refused:
            raise NotApplicable(f"no tokens for this model: {refused}") from refused
        return cls(model, room / "grown", Checkpoint.open(str(room / "grown")))


def look_at(subject: GrownSubject, room: Path, leave_out: Collection[str], *, outputs: bool) -> Look:
    """Look at changed copies of the output with `verify`, beside the model that it was made from."""

    def look(change: Callable[[Path], None]) -> Seen:
        target = room / "copy"
        shutil.copytree(subject.output, target)
        try:
            change(target)
            source = str(subject.model.checkpoint.directory)
            try:
                found = verify(source, str(target), outputs=outputs, leave_out=leave_out)
            except InputRejected as refused:
                return Seen({LOADING: str(refused).replace(str(target), "copy")})
        finally:
            shutil.rmtree(target)
        return Seen(first_sentences(found.found), largest(item.largest for item in found.difference.tensors))

    return look


def clean_copies() -> Iterator[CleanCopy]:
    """The output as it is, and its tensors in other files, beside a report that names the old ones."""
    for shards, order in ((None, "as stored"), (1, "reversed"), (2, "as stored"), (1_000_000, "shuffled")):
        yield CleanCopy(shards, order, 0, "as they are", 0)


def _at(name: str) -> Callable[[GrownSubject], str]:
    def place(subject: GrownSubject) -> str:
        if not (subject.output / name).is_file():
            raise NotApplicable(f"no {name}")
        return name

    return place


def _flip_a_bit(directory: Path, _: GrownSubject, name: str) -> None:
    raw = bytearray((directory / name).read_bytes())
    middle = next(index for index in range(len(raw) // 2, len(raw)) if chr(raw[index]).isalpha())
    raw[middle] ^= 1
    (directory / name).write_bytes(raw)


def _one_byte_more(directory: Path, _: GrownSubject, name: str) -> None:
    with (directory / name).open("ab") as file:
        file.write(b"\n")


def _add(directory: Path, _: GrownSubject, name: str) -> None:
    (directory / name).write_text("{}", encoding="utf-8")


def _metadata(subject: GrownSubject) -> str:
    shard, found = next(iter(subject.checkpoint.shard_metadata.items()))
    if not found:
        raise NotApplicable("the weight files have no __metadata__")
    return shard


def _other_metadata(directory: Path, subject: GrownSubject, shard: str) -> None:
    key = next(iter(subject.checkpoint.shard_metadata[shard])).encode()
    raw = (directory / shard).read_bytes()
    (directory / shard).write_bytes(raw.replace(b'"' + key + b'"', b'"' + key[:-1] + bytes([key[-1] ^ 1]) + b'"', 1))


def _table(subject: GrownSubject) -> str:
    vocabulary = subject.model.vocabulary
    return (vocabulary.of_role("output") or vocabulary.of_role("input"))[0].name


def _overwrite(directory: Path, subject: GrownSubject, name: str) -> None:
    axis = next(item.axis for item in subject.model.vocabulary.tensors if item.name == name)
    row = subject.model.tokenizer.size
    edit_tensor(directory, name, lambda values: values.select(axis, row).fill_(WILD))


def input_table(subject: GrownSubject) -> str:
    """The table of input rows."""
    return subject.model.vocabulary.of_role("input")[0].name


def _output_table(subject: GrownSubject) -> str:
    tables = subject.model.vocabulary.of_role("output")
    if not tables:
        raise NotApplicable("no output table of its own")
    return tables[0].name


def shift_rows(directory: Path, subject: GrownSubject, name: str) -> None:
    """Every row where the next one belongs."""
    axis = next(item.axis for item in subject.model.vocabulary.tensors if item.name == name)
    edit_tensor(directory, name, lambda values: values.copy_(values.roll(1, axis)))


def _others_report(directory: Path, subject: GrownSubject, name: str) -> None:
    """The report of this output beside the weights of another model, all of whose tensors are others."""
    del name
    for tensor in subject.checkpoint.tensors:
        edit_tensor(directory, tensor, lambda values: values.view(-1)[:1].add_(1))


GROWN_FAULTS: tuple[Fault[GrownSubject], ...] = (
    Fault("grown: new row overwritten", _table, _overwrite, (REPORT, BYTES)),
    Fault("grown: input rows shifted by one", input_table, shift_rows, (REPORT, BYTES)),
    Fault("grown: output rows shifted by one", _output_table, shift_rows, (REPORT, BYTES)),
    Fault("grown: one bit of the card", _at(CARD), _flip_a_bit, (REPORT,)),
    Fault("grown: one bit of the recipe", _at(RECIPE), _flip_a_bit, (REPORT,)),
    Fault("grown: one bit of the page", _at(PAGE), _flip_a_bit, (REPORT,)),
    Fault("grown: one bit of the report", _at(MANIFEST), _flip_a_bit, (REPORT,)),
    Fault("grown: tokenizer_config.json edited", _at("tokenizer_config.json"), _one_byte_more, (REPORT,)),
    Fault("grown: config.json edited", _at("config.json"), _one_byte_more, (REPORT,)),
    Fault("grown: one bit of __metadata__", _metadata, _other_metadata, (REPORT,)),
    Fault("grown: a file more", lambda _: "preprocessor_config.json", _add, (REPORT,)),
    Fault("grown: another folder's report", lambda _: MANIFEST, _others_report, (REPORT, BYTES)),
)
