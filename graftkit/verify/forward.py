"""Load a checkpoint as a user would, and run probes through it."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftkit.architecture.skeleton import architecture_of, one_line, quiet
from graftkit.errors import VerificationFailed
from graftkit.verify.probes import Probe

#: Outputs that are state for a next call, not results.
STATE = ("past_key_values", "cache_params", "attentions", "cross_attentions", "rope_deltas", "loss")

#: Tokens that are fed one at a time in cached decoding.
DECODED = 4


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model in eval mode, the loader's words about it, and what its forward takes beside token ids."""

    model: Any
    missing: frozenset[str]
    unexpected: frozenset[str]
    mismatched: frozenset[str]
    extra: Mapping[str, Any]


def load(directory: Path) -> Loaded:
    """Load the class that config.json names with a plain `from_pretrained`.

    Parameters and buffers of float32 models are copied into fresh aligned memory: mapped tensors start anywhere in
    their file, and float32 kernels take another path at 8-byte than at 16-byte alignment.
    """
    import torch
    import transformers

    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    model_class = getattr(transformers, architecture_of(config))
    with quiet():
        try:
            model, info = model_class.from_pretrained(directory, output_loading_info=True)
        except Exception as error:  # whatever loading runs into is the finding
            raise VerificationFailed(f"outputs: {directory.name} does not load: {one_line(error)}") from error
    model.eval()
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dtype == torch.float32:
            tensor.data = tensor.data.clone()
    mismatched = frozenset(str(entry[0] if isinstance(entry, tuple) else entry) for entry in info["mismatched_keys"])
    missing, unexpected = frozenset(info["missing_keys"]), frozenset(info["unexpected_keys"])
    return Loaded(model, missing, unexpected, mismatched, {})


def largest_position(model: Any) -> int | None:
    """The number of positions that the config names, less a few that some models keep for offsets."""
    config = model.config.get_text_config()
    for source in (config, model.config):
        for name in ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length"):
            value = getattr(source, name, None)
            if isinstance(value, int) and value > 0:
                return max(value - 4, 1)
    return None


def run(model: Any, probe: Probe, extra: Mapping[str, Any]) -> dict[str, Any]:
    """One forward. Returns each floating output by name, such as ``logits`` or ``hidden_states.3``."""
    import torch

    inputs = {"input_ids": probe.ids, "attention_mask": probe.mask, **_for_batch(extra, len(probe.ids))}
    parameters = inspect.signature(model.forward).parameters
    if "decoder_input_ids" in parameters:
        inputs["decoder_input_ids"] = probe.ids[:, :16]
    if "attention_mask" not in parameters:
        del inputs["attention_mask"]
    with torch.inference_mode():
        if probe.cached:
            return _decode(model, probe)
        return flatten(model(**inputs, output_hidden_states=True, return_dict=True))


def _for_batch(extra: Mapping[str, Any], batch: int) -> dict[str, Any]:
    return {name: value.expand(batch, *value.shape[1:]) for name, value in extra.items()}


def can_cache(model: Any) -> str | None:
    """None when cached decoding can be probed, else the reason why not."""
    if model.config.is_encoder_decoder:
        return "encoder-decoder"
    if not model.can_generate():
        return "the class does not generate"
    parameters = inspect.signature(model.forward).parameters
    return None if "past_key_values" in parameters else "the forward takes no past_key_values"


def _decode(model: Any, probe: Probe) -> dict[str, Any]:
    """Run all but the last tokens at once, then feed those one at a time with the cache."""
    steps = min(DECODED, probe.ids.shape[1] - 1)
    output = model(input_ids=probe.ids[:, :-steps], use_cache=True, return_dict=True)
    found = {f"step 0 {name}": value for name, value in flatten(output).items()}
    for step in range(steps):
        place = probe.ids.shape[1] - steps + step
        output = model(
            input_ids=probe.ids[:, place : place + 1], past_key_values=output.past_key_values, use_cache=True,
            return_dict=True,
        )  # fmt: skip
        found |= {f"step {step + 1} {name}": value for name, value in flatten(output).items()}
    return found


def flatten(output: Mapping[str, Any]) -> dict[str, Any]:
    """Every floating tensor of a model's output by name; tuples are numbered; caches and attentions are left out."""
    import torch

    found: dict[str, Any] = {}
    for name, value in output.items():
        if name in STATE or name.endswith("attentions"):
            continue
        items = enumerate(value) if isinstance(value, tuple | list) else [(None, value)]
        for index, item in items:
            if isinstance(item, torch.Tensor) and item.is_floating_point() and item.ndim:
                found[name if index is None else f"{name}.{index}"] = item.clone()
    return found


def extra_inputs(model: Any, probe: Probe, seed: int) -> dict[str, Any]:
    """What the forward needs beside token ids: nothing, or boxes and pixels made from the signature and the config.

    *Shapes:* each has a leading batch dimension of 1.

    Raises:
        VerificationFailed: the forward still refuses; the message names what it asks for.
    """
    first: Exception | None = None
    for extra in _candidates(model, probe, seed):
        try:
            run(model, probe, extra)
        except Exception as error:  # noqa: BLE001 - a forward that lacks an input raises anything
            first = first or error
        else:
            return extra
    raise VerificationFailed(
        f"outputs: {type(model).__name__} needs other inputs than token ids ({one_line(first or ValueError())});"
        " verify: {outputs: false} leaves the forward out"
    )


def _candidates(model: Any, probe: Probe, seed: int) -> list[dict[str, Any]]:
    import torch

    parameters = inspect.signature(model.forward).parameters
    made: dict[str, Any] = {}
    candidates: list[dict[str, Any]] = [{}]
    if "bbox" in parameters:
        made["bbox"] = torch.zeros(1, probe.ids.shape[1], 4, dtype=torch.int64)
        candidates.append(dict(made))
    vision = getattr(model.config, "vision_config", model.config)
    size, channels = getattr(vision, "image_size", None), getattr(vision, "num_channels", 3)
    if "pixel_values" in parameters and isinstance(size, int):
        generator = torch.Generator().manual_seed(seed)
        made["pixel_values"] = torch.randn(1, channels, size, size, generator=generator).to(model.dtype)
        candidates += [{"pixel_values": made["pixel_values"]}, dict(made)]
    return candidates
