"""One forward and one backward: the figures of every block on every text of a probe."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from graftkit.architecture.embeddings import INPUT, embedding_of
from graftkit.architecture.skeleton import one_line
from graftkit.running.inputs import feed
from graftkit.running.loss import losses_of_texts
from graftkit.running.probes import Probe
from graftkit.verification.signal import statistics
from graftkit.verification.signal.blocks import stacks

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Keys of the figures that a block's own output gives, in the order in which they are shown.
RESIDUAL, RATIO, KURTOSIS, COSINE, GRADIENT, ENTROPY = "rms", "ratio", "kurtosis", "cosine", "gradient", "entropy"

#: Figures of one block: key -> a value for each text.
Block = dict[str, list[float]]


@dataclass(slots=True)
class Signal:
    """``blocks`` of each stack that ran, by its name; the ``loss`` that was differentiated; figures that are ``absent``."""

    blocks: dict[str, list[Block]] = field(default_factory=dict)
    loss: str = ""
    absent: dict[str, str] = field(default_factory=dict)


def measure(model: PreTrainedModel, probe: Probe, extra_inputs: frozenset[str]) -> Signal:
    """Run ``model`` on ``probe`` and measure every block of every stack that takes and gives a residual stream."""
    found = Signal()
    seen: dict[tuple[str, int], Block] = {}
    with _differentiable(model), contextlib.ExitStack() as hooks:
        for name, blocks in stacks(model).items():
            for index, block in enumerate(blocks):
                hook = block.register_forward_hook(_watch(seen, (name, index), probe), with_kwargs=True)
                hooks.callback(hook.remove)
        with torch.enable_grad():
            output = model(**feed(model, probe, extra_inputs))
            losses, found.loss = losses_of_texts(output, probe, generates=model.can_generate())
            loss = losses.sum()
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]
    for (name, index), figures in seen.items():
        if index == len(found.blocks.setdefault(name, [])):
            found.blocks[name].append(figures)
    if not loss.requires_grad:
        found.absent[GRADIENT] = "neither input embedding nor images take part in the forward"
    with torch.inference_mode():
        _entropies(model, probe, extra_inputs, found)
    return found


@contextlib.contextmanager
def _differentiable(model: PreTrainedModel) -> Iterator[None]:
    """Gradients flow from the input embedding's output on, or from images where those are all; no parameter gathers one."""
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for parameter, _ in wanted:
        parameter.requires_grad_(requires_grad=False)
    table = embedding_of(model, INPUT)
    # Encoder and decoder may have modules of their own around one table.
    readers = [
        m
        for m in model.modules()
        if table is not None and (m is table or (isinstance(m, torch.nn.Embedding) and _weight(m) is _weight(table)))
    ]
    # A copy, since some forwards add positions to it in place.
    hooks = [m.register_forward_hook(lambda _, __, out: out.detach().requires_grad_().clone()) for m in readers]
    if table is None:
        hooks.append(model.register_forward_pre_hook(_from_inputs, with_kwargs=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for parameter, flag in wanted:
            parameter.requires_grad_(flag)


def _weight(table: nn.Module) -> Any:
    """What it has of its table without reading it, which may lie elsewhere."""
    return table._parameters.get("weight")  # noqa: SLF001


def _from_inputs(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    floating = {k: v for k, v in kwargs.items() if isinstance(v, torch.Tensor) and v.is_floating_point()}
    return args, {**kwargs, **{name: value.detach().requires_grad_().clone() for name, value in floating.items()}}


def _watch(seen: dict[tuple[str, int], Block], key: tuple[str, int], probe: Probe) -> Any:
    def watch(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        came = _stream(args) if _stream(args) is not None else _stream((kwargs.get("hidden_states"),))
        went = _stream(output if isinstance(output, tuple | list) else (output,))
        if key in seen or came is None or went is None or came.shape != went.shape:
            return
        mask = _mask(probe, went)
        block = seen.setdefault(key, {RESIDUAL: [], RATIO: [], KURTOSIS: [], COSINE: []})
        for old, new in zip(_texts(came, mask), _texts(went, mask), strict=True):
            size = statistics.rms(old)
            block[RESIDUAL].append(statistics.rms(new))
            block[RATIO].append(statistics.rms(new - old) / size if size else 0.0)
            block[KURTOSIS].append(statistics.kurtosis(new))
            block[COSINE].append(statistics.token_cosine(new))
        if went.requires_grad:
            went.register_hook(lambda grad: _note_gradient(block, grad, mask))  # type: ignore[no-untyped-call]

    return watch


def _note_gradient(block: Block, grad: Tensor, mask: Tensor) -> None:
    block[GRADIENT] = [statistics.rms(text) for text in _texts(grad, mask)]


def _stream(values: Sequence[Any]) -> Tensor | None:
    """The first value, where it is a batch of sequences of vectors."""
    first = values[0] if len(values) else None
    return first if isinstance(first, torch.Tensor) and first.is_floating_point() and first.ndim == 3 else None


def _mask(probe: Probe, stream: Tensor) -> Tensor:
    """Which of its places are text; all of them where the stream has other places than the probe."""
    batch, length = stream.shape[:2]
    mask = probe.mask[:, :length].bool()
    return mask if mask.shape == (batch, length) else torch.ones(batch, length, dtype=torch.bool)


def _texts(stream: Tensor, mask: Tensor) -> Iterator[Tensor]:
    for row, places in zip(stream.detach(), mask, strict=True):
        yield row[places].double()


def _entropies(model: PreTrainedModel, probe: Probe, extra_inputs: frozenset[str], found: Signal) -> None:
    """Attention entropy, from a forward that gives its weights."""
    before = getattr(model.config, "_attn_implementation", None)
    try:
        model.set_attn_implementation("eager")
        output = model(**feed(model, probe, extra_inputs), output_attentions=True)
    except Exception as error:  # noqa: BLE001 - whatever the forward raises is the reason
        found.absent[ENTROPY] = one_line(error)
        return
    finally:
        with contextlib.suppress(Exception):
            model.set_attn_implementation(before)
    for name, blocks in found.blocks.items():
        side = next((side for side in ("encoder", "decoder") if side in name and f"{side}_attentions" in output), None)
        weights = output.get(f"{side}_attentions" if side else "attentions") or ()
        if len(weights) != len(blocks) or any(w is None or w.ndim != 4 for w in weights):
            found.absent[ENTROPY] = f"{len(weights)} of {len(blocks)} blocks give attention weights"
            continue
        for block, weight in zip(blocks, weights, strict=True):
            mask = _mask(probe, weight[:, 0])
            rows = zip(weight, mask, strict=True)
            block[ENTROPY] = [statistics.entropy(w[:, places].double()) for w, places in rows]
