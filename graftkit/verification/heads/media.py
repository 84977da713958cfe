"""The backbone of a model that takes images or sound, or ids without a table: its hidden states, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graftkit.architecture.correspondence import IDENTITY, Correspondence
from graftkit.architecture.skeleton import one_line
from graftkit.running.forward import flatten, load
from graftkit.running.place import Place
from graftkit.verification.comparison import Comparison
from graftkit.verification.outputs import hidden_states

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

#: Sides of an image and samples of a sound where the config names none, and characters of a text.
SIDE, SAMPLES, TOKENS = 64, 16_000, 32


@dataclass(frozen=True, slots=True)
class Backbone:
    """``input`` is what was fed; ``equal`` counts hidden states with equal bits; ``reason`` why nothing was compared."""

    input: str
    equal: int
    differing: tuple[str, ...]
    reason: str = ""


def takes_text(model: PreTrainedModel) -> bool:
    """Whether the model is fed token ids that it looks up in a table; CANINE, for one, hashes characters."""
    if model.main_input_name != "input_ids":
        return False
    try:
        return getattr(model.base_model.get_input_embeddings(), "weight", None) is not None
    except (NotImplementedError, AttributeError):
        return False


def main_inputs(model: PreTrainedModel, batch: int = 2) -> Iterator[dict[str, Tensor]]:
    """Inputs to try, in order, made from the config: noise, the same each time. *Shapes:* lead with ``batch``."""
    import torch

    config, name = model.config, model.main_input_name
    if name == "input_ids":
        yield {name: torch.arange(batch * TOKENS).view(batch, TOKENS) + 40}
        return
    for shape in _shapes(config, name):
        generator = torch.Generator().manual_seed(0)
        yield {name: torch.randn((batch, *shape), generator=generator).to(model.dtype)}


def _shapes(config: Any, name: str) -> Iterator[tuple[int, ...]]:
    if name == "pixel_values":
        size = getattr(config, "image_size", None) or SIDE
        height, width = size if isinstance(size, list | tuple) else (size, size)
        yield (getattr(config, "num_channels", None) or 3, height, width)
        yield (3, SIDE, SIDE)
    bins = getattr(config, "num_mel_bins", None) or getattr(config, "feature_projection_input_dim", None)
    if bins:
        yield (getattr(config, "max_length", None) or 100, bins)
        yield (bins, 2 * (getattr(config, "max_source_positions", None) or 50))
        yield (100, bins)
    if name == "input_values":
        yield (SAMPLES,)


def compare_backbones(source: Place, result: Place, correspondence: Correspondence = IDENTITY) -> Backbone:
    """Run the base models of both on the same noise, one in memory at a time, and compare every hidden state."""
    old = load(source).backbone().model
    fed: dict[str, Tensor] = {}
    why = f"it takes {old.main_input_name}, which cannot be made from its config"
    before: dict[str, Tensor] = {}
    for tried in main_inputs(old):
        try:
            before = _hidden(old, tried)
        except Exception as error:  # noqa: BLE001 - a forward that is fed the wrong shape raises anything
            why = one_line(error)
            continue
        fed = tried
        break
    del old
    if not fed:
        return Backbone("", 0, (), why)
    new = load(result)
    after = _hidden(new.backbone().model, fed)
    if new.model.base_model is new.model:  # PPLCNet calls its logits a hidden state
        after = {name: value for name, value in after.items() if value.shape[-1] != new.model.config.num_labels}
    found = Comparison()
    for name, other in hidden_states(before, after, correspondence).items():
        found.compare(name, before[name], after[other])
    differing = tuple(sorted(name for name, one in found.outputs.items() if not one.bitwise))
    shapes = ", ".join(f"{name} {'x'.join(map(str, value.shape))}" for name, value in fed.items())
    return Backbone(shapes, len(found.outputs) - len(differing), differing)


def _hidden(model: PreTrainedModel, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The hidden states; a model that was loaded in inference mode takes other kernels, so only its forward runs in it."""
    import torch

    with torch.inference_mode():
        found = flatten(model(**inputs, output_hidden_states=True, return_dict=True))
    return {name: value for name, value in found.items() if "hidden" in name}
