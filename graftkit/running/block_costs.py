"""What dropping each block of a model costs, on texts: the cosine of what it is given and gives, and the model run without it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from graftkit.architecture.blocks.depth import rearranged
from graftkit.architecture.correspondence import Correspondence
from graftkit.architecture.index_map import IndexMap
from graftkit.architecture.layers import LayerList
from graftkit.architecture.skeleton import Skeleton, build_skeleton, one_line
from graftkit.errors import InputRejected, VerificationFailed
from graftkit.running.forward import run
from graftkit.running.inputs import find_inputs
from graftkit.running.lent import lend
from graftkit.running.predictions import divergences, losses_of_tokens, predictions, predicts_next

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from graftkit.running.probes import Probe


@dataclass(frozen=True, slots=True)
class BlockCost:
    """What dropping one block of a model costs.

    Attributes:
        block: its number, from 0.
        cosine: of what it is given and what it gives, mean over tokens; None where it gives no hidden state for each token.
        kl: KL(model ‖ model without it) of the predicted tokens in nats, mean over tokens; None where it was not measured.
        perplexity: of the texts without it; None where it was not measured.
        refused: why the model cannot do without this block; empty where it can.
    """

    block: int
    cosine: float | None
    kl: float | None
    perplexity: float | None
    refused: str = ""


@dataclass(frozen=True, slots=True)
class BlockCosts:
    """Every block of a model, the one that costs least first.

    Attributes:
        stack: the name in memory of the list of blocks.
        tokens: how many tokens of the texts were run.
        perplexity: of the texts, of the whole model; None where it predicts no next token.
        not_measured: why no KL, or no perplexity, was measured; empty where both were.
        blocks: by KL, or by cosine where there is none.
    """

    stack: str
    tokens: int
    perplexity: float | None
    not_measured: str
    blocks: tuple[BlockCost, ...]


def cost_of_blocks(
    model: PreTrainedModel, config: Mapping[str, Any], skeleton: Skeleton, layers: LayerList, probes: Sequence[Probe],
    progress: Callable[[float], None] = lambda _: None,
) -> BlockCosts:  # fmt: skip
    """Run ``model`` on ``probes``, then without each block in turn, as `drop_blocks` would leave it.

    ``config`` and ``skeleton`` are the model's, as :func:`~graftkit.architecture.accounting.account` gives them.

    Raises:
        VerificationFailed: the model wants other inputs than token ids, or its logits hold NaN.
    """
    extra_inputs, outputs = find_inputs(model, lambda tried: run(model, probes[0], tried))
    generates = predicts_next(model)
    logits = predictions(outputs, probes[0]) is not None
    tallies = [_Tally() for _ in range(layers.count)]
    without = dict(_without_each(model, config, skeleton, layers, tallies)) if logits else {}
    whole = _Tally()
    for done, probe in enumerate(probes):
        with _watched(model, layers, tallies, probe):
            before = predictions(run(model, probe, extra_inputs), probe)
        if before is not None and bool(before.isnan().any()):
            raise VerificationFailed("outputs: its logits hold NaN")
        if before is not None:
            whole.losses += losses_of_tokens(before, probe).tolist()
        for block, smaller in without.items():
            if before is not None and not tallies[block].refused:
                tallies[block].run(smaller, probe, extra_inputs, before)
            progress((done + (block + 1) / layers.count) / len(probes))
    name = skeleton.architecture
    why = "" if generates and logits else f"{name} predicts no next token: no perplexity"
    why = why if logits else f"{name} gives no logits over token ids: neither KL nor perplexity, ranked by cosine"
    found = [tally.cost(block, generates=generates) for block, tally in enumerate(tallies)]
    tokens = sum(probe.tokens for probe in probes)
    perplexity = whole.perplexity if generates and logits else None
    return BlockCosts(layers.path, tokens, perplexity, why, tuple(sorted(found, key=_rank)))


def _rank(cost: BlockCost) -> tuple[bool, float, float]:
    return cost.kl is None, cost.kl or 0.0, -(cost.cosine if cost.cosine is not None else -1.0)


@dataclass(slots=True)
class _Tally:
    """Sums over tokens so far."""

    cosines: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    refused: str = ""

    def run(self, model: PreTrainedModel, probe: Probe, extra_inputs: frozenset[str], before: Tensor) -> None:
        """Run the model without the block, whose whole gave the logits ``before``."""
        try:
            after = predictions(run(model, probe, extra_inputs), probe)
        except Exception as error:  # noqa: BLE001 - a forward that misses a block raises whatever it likes
            self.refused, self.kl, self.losses = f"does not run without it: {one_line(error)}", [], []
            return
        if after is not None and bool(after.isnan().any()):
            self.refused, self.kl, self.losses = "its logits hold NaN without it", [], []
        elif after is not None:
            self.kl += divergences(before, after).tolist()
            self.losses += losses_of_tokens(after, probe).tolist()

    @property
    def perplexity(self) -> float | None:
        return math.exp(min(_mean(self.losses), 700.0)) if self.losses else None

    def cost(self, block: int, *, generates: bool) -> BlockCost:
        return BlockCost(
            block,
            _mean(self.cosines) if self.cosines else None,
            _mean(self.kl) if self.kl else None,
            self.perplexity if generates else None,
            self.refused,
        )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _without_each(
    model: PreTrainedModel, config: Mapping[str, Any], skeleton: Skeleton, layers: LayerList, tallies: list[_Tally]
) -> Iterator[tuple[int, PreTrainedModel]]:
    """Yield each block with the model without it, and note in ``tallies`` why a block cannot be left out."""
    for block, tally in enumerate(tallies):
        try:
            yield block, without_block(model, config, skeleton, layers, block)
        except InputRejected as error:
            tally.refused = str(error)


def without_block(
    model: PreTrainedModel, config: Mapping[str, Any], skeleton: Skeleton, layers: LayerList, block: int
) -> PreTrainedModel:
    """The same model without one block, which shares its parameters.

    Raises:
        InputRejected: it is the only one, or the config cannot place those that stay.
    """
    order = [index for index in range(layers.count) if index != block]
    if not order:
        raise InputRejected(f"{layers.path} has no other block")
    changed, _, kept = rearranged(config, skeleton, layers, order)
    names = Correspondence(blocks=IndexMap.of_origins(layers.count, kept), stack=layers.path)
    return lend(model, build_skeleton(changed), names.module_in_source)


@contextlib.contextmanager
def _watched(model: PreTrainedModel, layers: LayerList, tallies: list[_Tally], probe: Probe) -> Iterator[None]:
    """Note the cosines of each block while the model runs."""

    def watch(tally: _Tally) -> Any:
        def note(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            given = _stream((*args, kwargs.get("hidden_states")))
            made = _stream(output if isinstance(output, tuple | list) else (output,))
            if given is not None and made is not None and given.shape == made.shape:
                tally.cosines += _cosines(given, made, probe)

        return note

    with contextlib.ExitStack() as hooks:
        for block, tally in enumerate(tallies):
            module = model.get_submodule(layers.prefix(block)[:-1])
            hooks.callback(module.register_forward_hook(watch(tally), with_kwargs=True).remove)
        yield


def _stream(values: Sequence[Any]) -> Tensor | None:
    """The first value that is a batch of sequences of vectors."""
    import torch

    return next((v for v in values if isinstance(v, torch.Tensor) and v.is_floating_point() and v.ndim == 3), None)


def _cosines(given: Tensor, made: Tensor, probe: Probe) -> list[float]:
    import torch

    found = torch.nn.functional.cosine_similarity(given.double(), made.double(), dim=-1)
    mask = probe.mask[:, : found.shape[1]].bool()
    chosen: list[float] = (found[mask] if mask.shape == found.shape else found).flatten().tolist()
    return chosen
