"""How a model that was changed on purpose predicts given texts: KL of the next token and perplexity, before and after."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graftkit.architecture.correspondence import Correspondence
from graftkit.errors import plural
from graftkit.running.forward import load, release, run, undisturbed
from graftkit.running.inputs import find_inputs
from graftkit.running.loaded_tokenizer import LoadedTokenizer
from graftkit.running.paging.room import paged as paged_in
from graftkit.running.place import folder_of
from graftkit.running.predictions import divergences, losses_of_tokens, predictions, predicts_next, text_probes
from graftkit.running.probes import LOGIT_BYTES, MOST_TOKENS, OPERATIONS, Probe, in_result
from graftkit.verification.checks import Report, Row
from graftkit.verification.promises import Scope

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from graftkit.verification.subject import Subject

#: Characters of texts that are read, at most; and fewest tokens that are run, however large the model is.
MOST_CHARACTERS, FEWEST_TOKENS = 1 << 18, 64


@dataclass(frozen=True, slots=True)
class GivenTextsReport(Report):
    """KL(old ‖ new) in nats over ``tokens`` of the texts, and the perplexity of the texts under both.

    Perplexities are None where the model predicts no next token; ``not_run`` says why nothing was measured, empty where it was.
    """

    tokens: int
    kl_mean: float | None
    kl_max: float | None
    perplexity_before: float | None
    perplexity_after: float | None
    not_run: str
    failures: tuple[str, ...]
    name: str = "given texts"

    def rows(self) -> Iterator[Row]:
        """The lines that a table shows of it."""
        if self.failures or self.not_run:
            yield Row(self.name, "failed" if self.failures else "not run", self.not_run)
        if self.kl_mean is not None:
            figure = f"mean {self.kl_mean:.3g}, max {self.kl_max:.3g}, over {plural(self.tokens, 'token')}"
            yield Row("KL(old, new) of given texts", "measured", figure)
        if self.perplexity_before is not None:
            figure = f"{self.perplexity_before:.4g} before, {self.perplexity_after:.4g} after"
            yield Row("perplexity of given texts", "measured", figure)


@dataclass(frozen=True, slots=True)
class GivenTextsCheck:
    """Measures on ``texts``; it fails where what comes out is no number."""

    texts: tuple[str, ...]
    name: str = "given texts"

    def applies(self, subject: Subject) -> bool:
        """Where the source is what the result is compared with, its head too."""
        return not (subject.scope & (Scope.NOTHING | Scope.BACKBONE))

    def run(self, subject: Subject) -> GivenTextsReport:
        """Run source and result side by side on the same tokens, each under the ids that it has for them."""
        if subject.not_run:
            return GivenTextsReport(0, None, None, None, None, subject.not_run, ())
        places = (subject.source, subject.result)
        paged = paged_in(places, 4 * LOGIT_BYTES, wanted=subject.paged)
        tokenizer = LoadedTokenizer.of(folder_of(subject.source))
        with undisturbed():
            old, new = (load(place, paged=paged, lent=True).model for place in places)
            tokens = min(max(int(OPERATIONS / (2 * old.num_parameters())), FEWEST_TOKENS), MOST_TOKENS)
            probes = list(text_probes(old, tokenizer, self.texts, tokens))
            found = compare_predictions(old, new, probes, subject.correspondence)
            release(old)
            release(new)
        return found


def compare_predictions(
    old: PreTrainedModel, new: PreTrainedModel, probes: Sequence[Probe], correspondence: Correspondence
) -> GivenTextsReport:
    """Run both on each probe whose every id the result has too."""
    kept = [probe for probe in probes if _is_kept(probe, correspondence)]
    if not kept:
        return GivenTextsReport(0, None, None, None, None, "no text of two tokens that both have", ())
    extra_inputs, _ = find_inputs(old, lambda tried: run(old, kept[0], tried))
    kl, losses = list[float](), (list[float](), list[float]())
    for probe in kept:
        pair = _pair(old, new, probe, correspondence, extra_inputs)
        if pair is None:
            why = f"{type(old).__name__} gives no logits over token ids"
            return GivenTextsReport(0, None, None, None, None, why, ())
        if bool(pair[1].isnan().any()):
            return GivenTextsReport(0, None, None, None, None, "", ("given texts: the result's logits hold NaN",))
        kl += divergences(*correspondence.columns(*pair)).tolist()
        for side, logits, seen in zip(losses, pair, (probe, in_result(probe, correspondence)), strict=True):
            side.extend(losses_of_tokens(logits, seen).tolist())
    generates = predicts_next(old) and predicts_next(new)
    before, after = (_perplexity(side) if generates else None for side in losses)
    tokens = sum(probe.tokens for probe in kept)
    return GivenTextsReport(tokens, math.fsum(kl) / len(kl), max(kl), before, after, "", ())


def _perplexity(losses: Sequence[float]) -> float:
    mean = math.fsum(losses) / len(losses)
    return math.exp(mean) if mean < math.log(1e300) else math.inf


def _is_kept(probe: Probe, correspondence: Correspondence) -> bool:
    ids = correspondence.ids
    return ids is None or not {*ids.dropped}.intersection(probe.ids.flatten().tolist())


def _pair(
    old: PreTrainedModel, new: PreTrainedModel, probe: Probe, correspondence: Correspondence, extra: frozenset[str]
) -> tuple[Tensor, Tensor] | None:
    """Logits ``(tokens, ids)`` of both, each over its own ids; None where one gives none."""
    before = predictions(run(old, probe, extra), probe)
    shifted = in_result(probe, correspondence)
    after = predictions(run(new, shifted, extra), shifted)
    return None if before is None or after is None else (before, after)
