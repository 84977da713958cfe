"""What a forward takes beside token ids: boxes, pixels, patches, made from its signature and its config.

No architecture is named here. A forward that refuses token ids alone says what it misses, and what it names is made.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from graftkit.architecture.capabilities import parameters_of, takes
from graftkit.architecture.skeleton import one_line
from graftkit.errors import VerificationFailed
from graftkit.running.probes import Probe

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

#: Tokens that are fed to the decoder of an encoder-decoder.
DECODER_TOKENS = 16

#: Not an input, but a switch that some forwards need off when they are run without generation.
NO_CACHE = "use_cache=False"

#: Not an input either: pixels get an axis of frames behind that of the batch.
FRAMES = "a frame axis"

#: Not inputs either: a head that reads the place of the end-of-text token wants a decoder as long as the encoder, and one
#: such token in each row.
WHOLE_DECODER = "a decoder input of the whole length"
ONE_END = "one end-of-text token a row"

#: Side of an image, where the config names none.
SIDE = 64


def feed(model: PreTrainedModel, probe: Probe, extra_inputs: frozenset[str]) -> dict[str, Any]:
    """The keyword arguments of one forward: ids and mask as far as the signature takes them, and the inputs of ``extra_inputs``."""
    parameters = parameters_of(model)
    ids, mask = probe.ids, probe.mask
    if ONE_END in extra_inputs:
        ids = _with_one_end(model, ids, mask)
    wanted: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    if "input_ids" not in parameters:  # then an attention_mask is that of the encoder's own input
        wanted = {"decoder_input_ids": ids, "decoder_attention_mask": mask}
    elif "decoder_input_ids" in parameters:
        wanted["decoder_input_ids"] = ids if WHOLE_DECODER in extra_inputs else ids[:, :DECODER_TOKENS]
    found = {name: value for name, value in wanted.items() if name in parameters}
    if probe.hidden_only and "logits_to_keep" in parameters:
        found["logits_to_keep"] = 1
    if NO_CACHE in extra_inputs:
        found["use_cache"] = False
    found |= {name: MAKERS[name](model, ids).to(ids.device) for name in extra_inputs if name in MAKERS}
    if FRAMES in extra_inputs and "pixel_values" in found:
        found["pixel_values"] = found["pixel_values"].unsqueeze(1)
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return found | {name: True for name in ("output_hidden_states", "return_dict") if open_ended or name in parameters}


def takes_images(model: PreTrainedModel) -> bool:
    """Whether images are all that the model is fed."""
    return model.main_input_name == "pixel_values" and not takes(model.forward, "input_ids")


def find_inputs(
    model: PreTrainedModel, attempt: Callable[[frozenset[str]], dict[str, Any]]
) -> tuple[frozenset[str], dict[str, Any]]:
    """Names of the inputs with which ``attempt`` succeeds, and what it returns. Token ids alone are tried first.

    Raises:
        VerificationFailed: the forward still refuses; the message says what it asks for.
    """
    first: Exception | None = None
    waiting, tried = [frozenset[str]()], set()
    while waiting:
        extra_inputs = waiting.pop(0)
        if extra_inputs in tried:
            continue
        tried.add(extra_inputs)
        try:
            return extra_inputs, attempt(extra_inputs)
        except Exception as error:  # noqa: BLE001 - a forward that lacks an input raises anything
            first = first or error
            waiting += _next(model, extra_inputs, str(error))
    raise VerificationFailed(
        f"outputs: {type(model).__name__} needs other inputs than token ids ({one_line(first or ValueError())});"
        " verify: {outputs: false} leaves the forward out"
    )


def _next(model: PreTrainedModel, extra_inputs: frozenset[str], message: str) -> Iterator[frozenset[str]]:
    """What to try after a refusal: the inputs that its message names; at first also every input that can be made."""
    parameters = parameters_of(model)
    words = {word.lower() for word in re.findall(r"\w+", message)}
    can = frozenset(name for name in MAKERS if name in parameters and _makeable(name, model))
    named = can & words - extra_inputs
    if named:
        yield extra_inputs | named
    if not extra_inputs:
        yield frozenset({NO_CACHE})
        yield can
        if "decoder_input_ids" in parameters and not model.can_generate():
            yield frozenset({WHOLE_DECODER})
            if isinstance(getattr(model.config, "eos_token_id", None), int):
                yield frozenset({WHOLE_DECODER, ONE_END})
    if "pixel_values" in extra_inputs and "image_attention_mask" in can - extra_inputs:
        yield extra_inputs | {"image_attention_mask"}
    if "pixel_values" in extra_inputs and "expected 5, got 4" in message:
        yield extra_inputs | {FRAMES}


def _makeable(name: str, model: PreTrainedModel) -> bool:
    if name == "pixel_values":
        return _vision(model) is not None or takes_images(model)
    if name == "encoder_inputs_embeds":
        return hasattr(model.config, "downsample_factor") and hasattr(model.config, "audio_config")
    return name != "flattened_patches" or hasattr(
        getattr(model.config, "vision_config", None), "patch_embed_hidden_size"
    )


def _with_one_end(model: PreTrainedModel, ids: Tensor, mask: Tensor) -> Tensor:
    """``ids`` with the end-of-text token at the last unmasked place of each row and nowhere else."""
    end = model.config.eos_token_id
    found = ids.masked_fill(ids == end, end - 1 if end else 1)
    places = mask.shape[1] - 1 - mask.flip(1).argmax(1)
    found[range(len(found)), places] = end
    return found


def _boxes(model: PreTrainedModel, ids: Tensor) -> Tensor:
    del model
    return ids.new_zeros(*ids.shape, 4)


def _vision(model: PreTrainedModel) -> Any:
    """The first config, its own or a sub-config's, that gives an image size."""
    configs = [model.config, *(getattr(model.config, name) for name in model.config.sub_configs)]
    sized = (config for config in configs if isinstance(getattr(config, "image_size", None), int | list | tuple))
    return next(sized, None)


def _pixels(model: PreTrainedModel, ids: Tensor) -> Tensor:
    import torch

    vision = _vision(model)
    size = getattr(vision, "image_size", SIDE)
    height, width = (size, size) if isinstance(size, int) else size
    shape: tuple[int, ...] = (getattr(vision or model.config, "num_channels", 3), height, width)
    if takes_images(model):
        return torch.stack([_image(int(row[0]), shape) for row in ids]).to(model.dtype)
    if takes(model.forward, "image_attention_mask"):
        shape = (1, *shape)  # a sequence of images for each row
    values = torch.linspace(-1, 1, math.prod(shape), dtype=torch.float32).view(1, *shape)
    return values.to(model.dtype).expand(len(ids), *shape)


def _image(number: int, shape: tuple[int, ...]) -> Tensor:
    """Noise, another for each number and the same each time, also under a mode that widens what torch makes."""
    import numpy as np
    import torch

    return torch.from_numpy(np.random.default_rng(number).standard_normal(shape, dtype=np.float32))


def patches_of(model: PreTrainedModel) -> int:
    """Into how many patches an image is cut, where the config says; else as for patches of 16."""
    vision = _vision(model) or model.config
    size, patch = (
        getattr(vision, name, None) or default for name, default in (("image_size", SIDE), ("patch_size", 16))
    )
    (height, width), (tall, wide) = ((v, v) if isinstance(v, int) else tuple(v)[:2] for v in (size, patch))
    return max(int(height) // int(tall), 1) * max(int(width) // int(wide), 1)


def _patches(model: PreTrainedModel, ids: Tensor) -> Tensor:
    import torch

    width = model.config.vision_config.patch_embed_hidden_size
    rows, columns = torch.meshgrid(torch.arange(1.0, 5), torch.arange(1.0, 5), indexing="ij")
    places = torch.stack((rows.flatten(), columns.flatten()), 1)
    values = torch.linspace(-1, 1, 16 * width).view(16, width)
    return torch.cat((places, values), 1).to(model.dtype).expand(len(ids), 16, width + 2)


def _image_mask(model: PreTrainedModel, ids: Tensor) -> Tensor:
    del model
    return ids.new_ones(*ids.shape, 1)


def _no_image(model: PreTrainedModel, ids: Tensor) -> Tensor:
    table: Tensor = model.get_input_embeddings().weight
    return table.new_zeros(len(ids), 0, table.shape[1])


def _nowhere(model: PreTrainedModel, ids: Tensor) -> Tensor:
    del model
    return ids.new_zeros(ids.shape)


def _sound(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """As many frames as the tokens that they are added to ask for."""
    import torch

    frames, width = ids.shape[1] * model.config.downsample_factor, model.config.audio_config.hidden_size
    values = torch.linspace(-1, 1, frames * width).view(1, frames, width)
    return values.to(model.dtype).expand(len(ids), frames, width)


def _same_ids(model: PreTrainedModel, ids: Tensor) -> Tensor:
    del model
    return ids


#: Input -> ``maker(model, ids)``; *shapes:* ``ids`` ``(batch, length)``, what is made leads with the batch.
MAKERS: dict[str, Callable[[PreTrainedModel, Tensor], Tensor]] = {
    "bbox": _boxes,
    "pixel_values": _pixels,
    "flattened_patches": _patches,
    "image_attention_mask": _image_mask,
    "image_embeds": _no_image,
    "image_embeds_position_mask": _nowhere,
    "encoder_inputs_embeds": _sound,
    "qformer_input_ids": _same_ids,
}
