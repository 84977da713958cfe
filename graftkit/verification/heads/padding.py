"""Whether a text gets the logits in a padded batch that it gets alone: measured in float64, with a random projection.

A head that looks for the wrong pad token reads its logits off the padding; zeros would hide that, so the label projection
is random here. Where the backbone's own hidden states change with padding (convolutions, absolute positions under left
padding), the head cannot be judged beyond them, and that is said.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from graftkit.architecture.capabilities import takes
from graftkit.architecture.skeleton import one_line
from graftkit.running.float64 import float64
from graftkit.running.forward import flatten
from graftkit.running.inputs import feed, find_inputs
from graftkit.running.probes import Probe, encoded_texts
from graftkit.verification.lens.floor import measure_floor
from graftkit.verification.lens.gap import gap

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

Side = Literal["right", "left"]

#: Lengths of the texts of the batch, in tokens: all different, so that all but one are padded.
LENGTHS = (5, 9, 14, 20)

#: The outputs of a head that are compared; beams and other choices over positions have no rows to compare.
LOGITS = ("logits", "start_logits", "end_logits")


@dataclass(frozen=True, slots=True)
class Padding:
    """One side of padding. ``difference`` is the largest difference of logits, ``backbone`` that of hidden states, both relative.

    ``threshold`` is the smallest difference that is called one: 100 times what two runs of the backbone that are equal over the
    real numbers differ by. ``backbone`` is None where there are no such states, or positions are merged in them. ``beyond`` says
    that the class reads one position behind the last token where there is padding (T5Gemma), so that the longest text of a batch
    is read otherwise.
    """

    side: Side
    difference: float
    backbone: float | None
    threshold: float
    error: str = ""
    beyond: bool = False

    @property
    def failed(self) -> bool:
        """Whether the head gives other logits in the batch though the backbone does not."""
        if self.beyond:
            return False
        sound = self.backbone is not None and self.backbone <= self.threshold
        return bool(self.error) or (self.difference > self.threshold and sound)


def texts_for(directory: Path, rows: int, pad: int, eos: int | None) -> list[list[int]]:
    """Four short texts without pad and eos inside, each ended by ``eos`` where the head looks for it."""
    import torch

    found = encoded_texts(directory, range(rows))
    generator = torch.Generator().manual_seed(0)
    while len(found) < len(LENGTHS):
        found.append(torch.randint(rows, (32,), generator=generator).tolist())
    texts = [[i for i in text if i not in (pad, eos)] for text in found]
    long = [text for text in texts if len(text) >= max(LENGTHS)] or texts
    end = [] if eos is None else [eos]
    return [long[k % len(long)][: length - len(end)] + end for k, length in enumerate(LENGTHS)]


def compare_paddings(
    model: PreTrainedModel, texts: Sequence[Sequence[int]], pad: int, sides: Sequence[Side], projection: Sequence[str], *, choices: bool
) -> tuple[Padding, ...]:  # fmt: skip
    """Run each text alone and all in one batch, padded with ``pad`` on each of ``sides``.

    ``projection`` names the parameters that are made random, in place. ``choices`` adds the axis of a multiple choice.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name in projection:
            parameter = model.get_parameter(name)
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    with float64(model):
        probe = _batch(texts[:1], pad, "right")
        extra_inputs, _ = find_inputs(model, lambda tried: _run(model, probe, tried, choices=choices)[0])
    shortest = min(map(len, texts))
    threshold = measure_floor(
        model.base_model, _batch([text[:shortest] for text in texts], pad, "right"), extra_inputs
    ).threshold
    with float64(model):
        alone = [_run(model, _batch([text], pad, "right"), extra_inputs, choices=choices) for text in texts]
        batches = [(side, _batch(texts, pad, side)) for side in sides]
        found = [
            _padded(model, alone, batch, extra_inputs, side, threshold, choices=choices) for side, batch in batches
        ]
        return tuple(
            replace(one, beyond=_reads_beyond(model, texts, pad, one, extra_inputs, choices=choices)) for one in found
        )


def _reads_beyond(
    model: PreTrainedModel, texts: Sequence[Sequence[int]], pad: int, found: Padding, extra_inputs: frozenset[str], *, choices: bool
) -> bool:  # fmt: skip
    """Whether logits that differ are the same once every text is padded. A wrong pad id reads further with each padding."""
    if found.error or not found.failed:
        return False
    together, _ = _run(model, _batch(texts, pad, found.side, 1), extra_inputs, choices=choices)
    alone = [_run(model, _batch([text], pad, found.side, 1), extra_inputs, choices=choices)[0] for text in texts]
    pairs = [(one[name][0], together[name][index]) for index, one in enumerate(alone) for name in one]
    return all(a.shape == b.shape and gap(a, b) <= found.threshold for a, b in pairs)


def _padded(
    model: PreTrainedModel, single: Sequence[tuple[dict[str, Tensor], Tensor | None]], batch: Probe, extra_inputs: frozenset[str],
    side: Side,
    threshold: float, *, choices: bool,
) -> Padding:  # fmt: skip
    try:
        together, hidden = _run(model, batch, extra_inputs, choices=choices)
    except Exception as error:  # noqa: BLE001 - a head that cannot take a batch raises anything
        return Padding(side, 0.0, 0.0, threshold, one_line(error))
    difference: float = 0.0
    backbone: float | None = 0.0
    lengths = int(batch.mask[0].sum()), batch.ids.shape[1]
    by_token = {n for n, v in single[0][0].items() if (v.shape[1], together[n].shape[1]) == lengths}
    for index, (outputs, states) in enumerate(single):
        real = batch.mask[index].bool()
        for name, value in outputs.items():
            row = together[name][index]
            difference = max(difference, gap(value[0], row[real] if name in by_token else row))
        if hidden is None or states is None or hidden.shape[:2] != batch.ids.shape:
            backbone = None
        elif backbone is not None:
            backbone = max(backbone, gap(states[0], hidden[index][real]))
    return Padding(side, difference, backbone, threshold)


def _run(
    model: PreTrainedModel, probe: Probe, extra_inputs: frozenset[str], *, choices: bool
) -> tuple[dict[str, Tensor], Tensor | None]:
    """The logits, and the last hidden states of the base model where it is another module."""
    inputs = dict(_inputs(model, probe, extra_inputs))
    if choices:
        inputs = {name: value[:, None] if hasattr(value, "shape") else value for name, value in inputs.items()}
    seen: list[Tensor] = []
    inner = model.base_model

    def note(module: nn.Module, arguments: object, output: Any) -> None:
        del module, arguments
        seen.append(output[0] if isinstance(output, tuple) else next(iter(output.values())))

    handle = inner.register_forward_hook(note) if inner is not model else None
    try:
        outputs = flatten(model(**inputs))
    finally:
        if handle is not None:
            handle.remove()
    logits = {name: outputs[name] for name in LOGITS if name in outputs}
    if not logits:
        raise LookupError("the forward returns no logits")
    return logits, seen[-1] if seen else None


def _inputs(model: PreTrainedModel, probe: Probe, extra_inputs: frozenset[str]) -> Iterator[tuple[str, Any]]:
    """What the forward is fed: no decoder ids, which a head makes itself, and positions that count real tokens."""
    fed: Mapping[str, Any] = feed(model, probe, extra_inputs)
    yield from ((k, v) for k, v in fed.items() if not k.startswith("decoder_") and k != "output_hidden_states")
    if takes(model.forward, "position_ids") and probe.mask[:, 0].min() == 0:
        yield "position_ids", (probe.mask.cumsum(-1) - 1).clamp(min=0)


def _batch(texts: Sequence[Sequence[int]], pad: int, side: Side, more: int = 0) -> Probe:
    """The texts padded to the longest of them, and ``more``."""
    import torch

    length = max(len(text) for text in texts) + more
    ids = torch.full((len(texts), length), pad)
    mask = torch.zeros_like(ids)
    for index, text in enumerate(texts):
        place = slice(length - len(text), length) if side == "left" else slice(0, len(text))
        ids[index, place] = torch.tensor(text)
        mask[index, place] = 1
    return Probe(f"{side} padding", ids, mask)
