"""An adapter made for the model, as the subject of faults: copies of it are damaged, and `verify --adapter` looks at them."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from graftkit.adapter_verification import verify_adapter
from graftkit.checkpoint.adapter import CONFIG, FOLDER, WEIGHTS, Adapter, open_adapter
from graftkit.checkpoint.tensors import LazyTensor
from graftkit.checkpoint.write import write_tensors
from graftkit.compare import diff
from graftkit.engine import apply
from graftkit.errors import InputRejected, RecipeError
from graftkit.selftest.bench import Look, Seen, first_sentences, largest
from graftkit.selftest.clean import CleanCopy
from graftkit.selftest.copies import copy_checkpoint
from graftkit.selftest.fault import ADAPTER, BASE, GRADIENTS, LOADING, OUTPUTS, PEFT
from graftkit.selftest.subject import NotApplicable, Subject, first
from graftkit.verification.tensors import tensor_difference

#: Where a fault may put a copy of the base, beside the adapter; without one it is verified on the model itself.
BASE_FOLDER = "base"

#: The checks of an adapter, beside that of its outputs.
CHECKS = (ADAPTER, BASE, PEFT, GRADIENTS)


@dataclass(frozen=True, slots=True)
class AdapterSubject:
    """An adapter with its report, as `add_lora` wrote both, on the model that it was made for."""

    model: Subject
    output: Path
    adapter: Adapter

    @classmethod
    def make(cls, model: Subject, room: Path) -> AdapterSubject:
        """Make an adapter of rank 4 on every linear module, in ``room``.

        Raises:
            NotApplicable: no adapter can be made for this model.
        """
        source = str(model.checkpoint.directory)
        operation = {"op": "add_lora", "r": 4, "lora_alpha": 8}
        try:
            apply({"version": 1, "base_model": source, "operations": [operation], "output": str(room / "made")})
        except (InputRejected, RecipeError) as refused:
            raise NotApplicable(f"no adapter for this model: {refused}") from refused
        return cls(model, room / "made", open_adapter(str(room / "made" / FOLDER)))

    def target(self) -> str:
        """The last target: what its tensors' names have in common."""
        ends = ".lora_B.weight"
        names = (name.removesuffix(ends) for name in reversed(list(self.adapter.tensors)) if name.endswith(ends))
        return str(
            first((name for name in names if f"{name}.lora_A.weight" in self.adapter.tensors), "no linear target")
        )


def look_at(subject: AdapterSubject, room: Path, leave_out: Collection[str], *, outputs: bool) -> Look:
    """Look at changed copies of the adapter with `verify_adapter`; what the checks in ``leave_out`` see is not counted."""
    source = subject.model.checkpoint.directory

    def look(change: Callable[[Path], None]) -> Seen:
        target = room / "copy"
        shutil.copytree(subject.output, target)
        try:
            change(target)
            base = target / BASE_FOLDER if (target / BASE_FOLDER).is_dir() else source
            try:
                found = verify_adapter(str(target / FOLDER), str(base), outputs=outputs and OUTPUTS not in leave_out)
                weights = _moved(subject, target, base)
            except InputRejected as refused:
                return Seen({LOADING: str(refused).replace(str(target), "copy")})
            by = {check: said for check, said in first_sentences(found.found).items() if check not in leave_out}
            return Seen(by, weights, found.check.gap.largest if found.check.gap else None)
        finally:
            shutil.rmtree(target)

    return look


def _moved(subject: AdapterSubject, copy: Path, base: Path) -> float | None:
    """Max |Δ| over the tensors of the adapter, and over those of the base where that is a copy."""
    new = open_adapter(str(copy / FOLDER)).tensors
    pairs = ((name, tensor_difference(name, old, new.get(name))) for name, old in subject.adapter.tensors.items())
    moved = [found.largest for _, found in pairs if found]
    if base != subject.model.checkpoint.directory:
        moved += [item.largest for item in diff(str(subject.model.checkpoint.directory), str(base)).tensors]
    return largest(moved)


def write_again(directory: Path, tensors: dict[str, LazyTensor], *, pad: int = 0) -> None:
    """Write the adapter's weights anew; the tensors may lie in the file that is replaced."""
    path = directory / FOLDER / WEIGHTS
    fresh = path.with_suffix(".fresh")
    write_tensors(tensors, fresh, {"format": "pt"} | ({"pad": " " * pad} if pad else {}))
    fresh.rename(path)


def spell_again(subject: AdapterSubject, copy: CleanCopy) -> Callable[[Path], None]:
    """How the clean ``copy`` is written for an adapter: its base in that way, and its own two files as another save does."""

    def make(directory: Path) -> None:
        copy.make(copy_checkpoint(subject.model.checkpoint, directory / BASE_FOLDER))
        names = list(subject.adapter.tensors)
        random.Random(copy.seed).shuffle(names)  # noqa: S311 - an order, no secret
        write_again(directory, {name: subject.adapter.tensors[name] for name in names}, pad=copy.pad)
        (directory / FOLDER / CONFIG).write_text(json.dumps(dict(subject.adapter.config)), encoding="utf-8")

    return make
