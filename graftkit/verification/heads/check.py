"""The check of a written head: reloaded as a user would, run alone and in a batch."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from graftkit.architecture.correspondence import IDENTITY, Correspondence
from graftkit.architecture.skeleton import one_line
from graftkit.errors import few, plural
from graftkit.running.forward import Loaded, load, undisturbed
from graftkit.running.place import Place, folder_of
from graftkit.verification.checks import LoadsModels, Report, Row
from graftkit.verification.distribution import UNIT_ROUNDOFF
from graftkit.verification.heads.media import Backbone, compare_backbones, main_inputs, takes_text
from graftkit.verification.heads.padding import Padding, Side, compare_paddings, texts_for
from graftkit.verification.subject import Subject

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

#: Roundings of a logit that only its bias makes: the bias is stored, and the logit is given, in the model's dtype.
ROUNDINGS = 2


@dataclass(frozen=True, slots=True)
class HeadPromise:
    """What is promised of a head.

    Attributes:
        projection: names in memory of the tensors that make the logits.
        sides: the paddings under which a text must get the logits that it gets alone; ``("right",)`` is the tokenizer's own.
        pools_at_eos: whether the head looks for the end-of-sequence token.
        choices: whether an input has an axis of choices behind the batch.
        prior: the probability of each label that the first logits say; empty where they say something else.
        multi_label: whether the labels are independent of one another.
    """

    projection: tuple[str, ...]
    sides: tuple[Side, ...]
    pools_at_eos: bool = False
    choices: bool = False
    prior: tuple[float, ...] = ()
    multi_label: bool = False


@dataclass(frozen=True, slots=True)
class HeadReport(Report):
    """What was found. ``first_loss`` and ``entropy`` are in nats; ``skipped`` says why something was not run."""

    architecture: str
    tensors: int
    missing: tuple[str, ...]
    same_bits: bool
    paddings: tuple[Padding, ...] = ()
    first_loss: float | None = None
    entropy: float | None = None
    slack: float = 0.0
    backbone: Backbone | None = None
    skipped: str = ""
    name: str = "replace_head"
    derived: ClassVar[tuple[str, ...]] = ("failures",)

    @property
    def failures(self) -> tuple[str, ...]:
        """A sentence for each promise that is not kept."""
        return tuple(self._failures())

    def _failures(self) -> Iterator[str]:
        if self.missing:
            yield f"head: the result's load reports missing tensors: {few(self.missing)}"
        if not self.same_bits:
            yield "head: two loads of the result give different bits"
        for side in self.paddings:
            if side.error:
                yield f"head: a batch with {side.side} padding fails: {side.error}"
            elif side.failed:
                yield (
                    f"head: a text gets other logits in a batch with {side.side} padding than alone: relative difference"
                    f" {side.difference:.3g}, its hidden states {side.backbone or 0:.3g}; does config.json name the tokenizer's pad"
                    " token, and does the tokenizer pad on the side that the class wants?"
                )
        if self.entropy is not None and not abs((self.first_loss or 0.0) - self.entropy) <= self.slack:
            yield f"head: the first loss is {self.first_loss:.6g}, the prior's entropy {self.entropy:.6g}"
        if self.backbone is not None and self.backbone.differing:
            yield f"head: hidden states of the backbone differ: {few(self.backbone.differing)}"

    def rows(self) -> Iterator[Row]:
        """The lines that a table shows of it."""
        yield Row(
            "head reloaded twice",
            "bitwise" if self.same_bits else "failed",
            f"{plural(self.tensors, 'tensor')}, none missing",
        )
        if self.backbone is not None:
            result = "failed" if self.backbone.differing else "bitwise" if self.backbone.equal else "not run"
            figure = self.backbone.reason or f"{self.backbone.equal} hidden states on {self.backbone.input}"
            yield Row("backbone", result, figure)
        for side in self.paddings:
            differs = "not judged" if side.backbone is None else "backbone differs itself"
            differs = "read behind the end, as its class does" if side.beyond else differs
            result = "failed" if side.failed else differs if side.difference > side.threshold else "equal"
            figure = f"{side.difference:.2g} relative, float64, differences count from {side.threshold:.1g}"
            yield Row(f"batch = single, {side.side} padding", result, figure)
        if self.entropy is not None:
            yield Row("first loss", "the prior's entropy", f"{self.first_loss:.6g} against {self.entropy:.6g}")
        if self.skipped:
            yield Row("head's forward", "not run", self.skipped)


@dataclass(frozen=True, slots=True)
class HeadCheck(LoadsModels):
    """The written head, reloaded and run alone and in a batch."""

    promise: HeadPromise
    name: str = "replace_head"

    def run(self, subject: Subject) -> HeadReport:
        """See :func:`check_head`."""
        return check_head(subject.source, subject.result, self.promise, subject.correspondence)


def check_head(
    source: Place, result: Place, promise: HeadPromise, correspondence: Correspondence = IDENTITY
) -> HeadReport:
    """Load ``result`` twice and run it; see :class:`HeadReport`.

    Raises:
        VerificationFailed: it does not load.
    """
    with undisturbed():
        first = load(result)
        digests = _digests(first.model)
        if not takes_text(first.model):
            del first
            backbone = compare_backbones(source, result, correspondence)
            second = load(result)
            report = _report(second, same_bits=_digests(second.model) == digests)
            found = _first_loss(second.model, _media(second.model), promise) if promise.prior else {}
            return dataclasses.replace(report, backbone=backbone, **found)
        del first
        second = load(result)
        report = _report(second, same_bits=_digests(second.model) == digests)
        return _run(second.model, folder_of(result), promise, report)


def _report(loaded: Loaded, *, same_bits: bool) -> HeadReport:
    missing = tuple(sorted(loaded.missing | loaded.mismatched))
    return HeadReport(type(loaded.model).__name__, len(loaded.model.state_dict()), missing, same_bits)


def _digests(model: nn.Module) -> dict[str, str]:
    import torch

    return {
        name: hashlib.sha256(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data).hexdigest()
        for name, value in model.state_dict().items()
    }


def _run(model: PreTrainedModel, directory: Path, promise: HeadPromise, report: HeadReport) -> HeadReport:
    import torch

    rows = int(model.get_input_embeddings().weight.shape[0])
    text = model.config.get_text_config()
    eos = text.eos_token_id if promise.pools_at_eos else None
    pad = pad_of_tokenizer(directory)
    pad = next((i for i in (pad, getattr(text, "pad_token_id", None)) if isinstance(i, int) and 0 <= i < rows), 0)
    texts = texts_for(directory, rows, pad, eos[0] if isinstance(eos, list) else eos)
    try:
        if promise.prior:
            ids = torch.tensor([texts[-1]])
            found = _first_loss(model, [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}], promise)
            report = dataclasses.replace(report, **found)
        sides = (side_of_tokenizer(directory),) if promise.sides == ("right",) else promise.sides
        paddings = compare_paddings(model, texts, pad, sides, promise.projection, choices=promise.choices)
        return dataclasses.replace(report, paddings=paddings)
    except Exception as error:  # noqa: BLE001 - inputs that cannot be made show in any way
        return dataclasses.replace(report, skipped=one_line(error))


def pad_of_tokenizer(directory: Path) -> int | None:
    """The id that the tokenizer in ``directory`` pads batches with, as its files say; None where they do not."""
    from graftkit.checkpoint.tokenizer import read_tokenizer

    names = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
    documents = {n: json.loads((directory / n).read_bytes()) for n in names if (directory / n).exists()}
    if "tokenizer.json" not in documents:
        return None
    tokenizer = read_tokenizer(documents)
    return tokenizer.id_of(tokenizer.special.get("pad_token", ""))


def side_of_tokenizer(directory: Path) -> Side:
    """The side that a user's tokenizer pads on: what its files say, else its class (XLNet's is left)."""
    from transformers import AutoTokenizer

    try:
        return "left" if AutoTokenizer.from_pretrained(directory).padding_side == "left" else "right"
    except Exception:  # noqa: BLE001 - a folder without a tokenizer fails in any way
        return "right"


def _media(model: PreTrainedModel) -> Sequence[dict[str, Tensor]]:
    return list(main_inputs(model))


def _first_loss(model: PreTrainedModel, tries: Sequence[dict[str, Tensor]], promise: HeadPromise) -> dict[str, Any]:
    """The loss of the first logits over labels drawn from the prior, and the prior's entropy, both in nats."""
    import torch

    prior = torch.tensor(promise.prior, dtype=torch.float64)
    why = "the inputs of its forward cannot be made"
    for inputs in tries:
        try:
            with torch.inference_mode():
                logits = model(**inputs).logits.double()
        except Exception as error:  # noqa: BLE001 - a forward that is fed the wrong shape raises anything
            why = one_line(error)
            continue
        logits = logits.reshape(-1, logits.shape[-1])
        if promise.multi_label:
            losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, prior.expand_as(logits))
            entropy = -(prior * prior.log() + (1 - prior) * (1 - prior).log()).mean()
        else:
            losses = -(logits.log_softmax(-1) * prior).sum(-1).mean()
            entropy = -(prior * prior.log()).sum()
        # a log loss moves by at most twice what its logits move by
        slack = 2 * ROUNDINGS * UNIT_ROUNDOFF[str(model.dtype)] * max(float(logits.abs().max()), 1.0)
        return {"first_loss": float(losses), "entropy": float(entropy), "slack": slack}
    return {"skipped": why}
