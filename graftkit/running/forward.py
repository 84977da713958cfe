"""Load a checkpoint as a user would, and run probes through it."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftkit.architecture.capabilities import CACHES, declares_cache, returned_cache, takes
from graftkit.architecture.quantizer import loading_options
from graftkit.architecture.skeleton import architecture_of, one_line, quiet
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.weights_on_hub import download_weights
from graftkit.errors import InputRejected, NotAsStored, StorageFault, VerificationFailed, few, printable
from graftkit.running.inputs import feed
from graftkit.running.live.model import LiveModel, aligned_weights, fresh_weights
from graftkit.running.place import Place, folder_of
from graftkit.running.probes import Probe
from graftkit.running.seen_config import read_config

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from graftkit.running.paging.pager import Pager

#: Outputs that are state for a next call, or attention weights, which few kernels return: not results.
STATE = ("past_key_values", "cache_params", "mems", "attentions", "rope_deltas", "loss")

#: Ids that are fed to find out whether a forward takes its cache back.
CACHE_TRIAL = 3

#: Just below the largest block that glibc raises its bounds after.
FREED_BLOCK = (32 << 20) - (1 << 16)


class NoCache(LookupError):
    """The forward returns no cache, or does not take it back."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model in eval mode, and the loader's words about it: names in memory. ``pager`` reads its parameters, if they are paged in."""

    model: PreTrainedModel
    missing: frozenset[str]
    unexpected: frozenset[str]
    mismatched: frozenset[str]
    pager: Pager | None = None

    @property
    def dtype(self) -> str:
        """The dtype of the model, such as ``bfloat16``."""
        return str(self.model.dtype).removeprefix("torch.")

    def backbone(self, part: str = "") -> Loaded:
        """The base model inside it, without its head, or the module ``part``; of what the loader missed, only its own."""
        module: Any = dict(self.model.named_modules()).get(part) if part else None
        inner = self.model.base_model if module is None else module
        name = self.model.base_model_prefix if module is None else part
        prefix = "" if inner is self.model else f"{name}."
        return replace(self, model=inner, missing=frozenset(n for n in self.missing if n.startswith(prefix)))


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Nothing reaches the terminal, and the random generator, default dtype and log levels are left as they were."""
    import torch

    with quiet(), warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        yield


def load(place: Place, *, paged: bool = False, lent: bool = False, dtype: str | None = None) -> Loaded:
    """Load the class that config.json names with a plain `from_pretrained`, under :func:`undisturbed`.

    Quantized weights are unpacked on the way where transformers can.

    A ``paged`` model's parameters stay in their files and are read as its forward asks for them. Of a model in memory this is a copy;
    where it is ``lent``, one that lies in the same memory, whose parameters are not to be changed. It is loaded in the dtype that
    config.json says, or in ``dtype``.

    float32 tensors are copied into fresh aligned memory: mapped ones start anywhere in their file, and float32
    matrix-vector kernels take another path at 4- or 8-byte alignment. Other dtypes were found not to.

    Raises:
        InputRejected: config.json names no class of transformers, or one that is to be ``paged`` changes what it loads.
        StorageFault: transformers does not see config.json.
        VerificationFailed: the loader refuses the directory; tensors whose shapes do not fit are named.
    """
    import torch

    if isinstance(place, LiveModel):
        second = aligned_weights(place.model) if lent and dtype is None else fresh_weights(place.model)
        second = second if dtype is None else second.to(getattr(torch, dtype))
        return Loaded(second.eval(), frozenset(), frozenset(), frozenset())
    if isinstance(place, Checkpoint):
        download_weights(place)
    directory = folder_of(place)
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    model_class = _class_of(config, directory)
    options: dict[str, Any] = {} if dtype is None else {"dtype": getattr(torch, dtype)}
    try:
        model, info, pager = _from_pretrained(place, directory, model_class, config, options, paged=paged)
    except (StorageFault, NotAsStored):
        raise
    except Exception as error:  # whatever loading runs into is the finding
        shapes = _misfits(model_class, directory)
        why = f"shapes that do not fit: {shapes}" if shapes else one_line(error)
        raise VerificationFailed(f"outputs: {directory.name} does not load: {why}") from error
    model.eval()
    for tensor in () if paged else (*model.parameters(), *model.buffers()):
        if tensor.dtype == torch.float32:
            tensor.data = tensor.data.clone()
    missing, unexpected, mismatched = (_names(info[f"{key}_keys"]) for key in ("missing", "unexpected", "mismatched"))
    return Loaded(model, missing, unexpected, mismatched, pager)


def _class_of(config: Mapping[str, Any], directory: Path) -> Any:
    """The class that a config names.

    Raises:
        InputRejected: it is none of transformers.
    """
    import transformers

    name = architecture_of(config)
    found: Any = getattr(transformers, name, None)
    if not hasattr(found, "from_pretrained"):
        raise InputRejected(
            f"{directory.name}/config.json: architectures: {printable(name)!r} is not a class of transformers"
        )
    return found


def _from_pretrained(
    place: Place,
    directory: Path,
    model_class: Any,
    config: Mapping[str, Any],
    options: Mapping[str, Any],
    *,
    paged: bool,
) -> tuple[Any, Mapping[str, Any], Any]:
    """The model, what transformers says of its names, and what pages its parameters in, if they are ``paged``."""
    if paged:
        from graftkit.running.paging.skeleton import load_paged

        return load_paged(model_class, directory, **options)
    if isinstance(place, Checkpoint) and not place.loads_from_files:
        from graftkit.running.assembled import assemble

        return (*assemble(place, **options), None)
    options = {**options, "config": read_config(model_class.config_class, directory), **loading_options(config)}
    return (*model_class.from_pretrained(directory, output_loading_info=True, **options), None)


def keep_freed_memory(loaded: Loaded) -> None:
    """Let what one forward frees be there for the next, but where parameters are paged in, since memory is short there.

    glibc gives back what is free beyond twice the largest block that it mapped and freed, and raises this bound up to blocks of
    32 MB by itself: one block that is freed untouched raises it at once (mallopt(3), M_MMAP_THRESHOLD).
    """
    import torch

    if loaded.pager is None:
        torch.empty(FREED_BLOCK, dtype=torch.uint8)


def release(model: PreTrainedModel) -> None:
    """Let the parameters and buffers of a model go at once, without waiting for Python's collector of cycles."""
    for module in model.modules():
        module._parameters, module._buffers = {}, {}  # noqa: SLF001 - whatever they are, paged or in memory


def _misfits(model_class: Any, directory: Path) -> str:
    """Ask the loader once more which shapes do not fit; empty where that was not the trouble."""
    try:
        _, info = model_class.from_pretrained(directory, output_loading_info=True, ignore_mismatched_sizes=True)
    except Exception:  # noqa: BLE001 - the first error stands
        return ""
    return few(_names(info["mismatched_keys"]))


def _names(entries: Collection[Any]) -> frozenset[str]:
    return frozenset(str(entry[0] if isinstance(entry, tuple) else entry) for entry in entries)


def largest_position(model: PreTrainedModel) -> int | None:
    """The number of positions that the config names, less a few that some models keep for offsets."""
    names = (
        "max_position_embeddings",
        "n_positions",
        "max_seq_len",
        "max_sequence_length",
        "max_encoder_position_embeddings",
    )
    for source in (model.config.get_text_config(), model.config):
        for name in names:
            value = getattr(source, name, None)
            if isinstance(value, int) and value > 0:
                return max(value - 4, 1)
    return None


def run(model: PreTrainedModel, probe: Probe, extra_inputs: frozenset[str] = frozenset()) -> dict[str, Any]:
    """One forward, or cached decoding. Returns each floating output by name, such as ``logits`` or ``hidden_states.3``.

    ``extra_inputs`` names the inputs beside token ids. A forward that draws random numbers draws the same each time.
    """
    import torch

    with torch.inference_mode():
        return outputs_of(model, probe, extra_inputs)


def outputs_of(model: PreTrainedModel, probe: Probe, extra_inputs: frozenset[str] = frozenset()) -> dict[str, Tensor]:
    """As :func:`run`, in whichever grad mode the caller is."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return _decode(model, probe) if probe.steps else flatten(model(**feed(model, probe, extra_inputs)))


def generates(model: PreTrainedModel) -> bool:
    """Whether the class generates, so that it is decoded with a cache."""
    return bool(model.can_generate())


def can_cache(model: PreTrainedModel, extra_inputs: Collection[str]) -> str | None:
    """None when cached decoding can be probed, else the reason why not. A forward that declares no cache is tried."""
    if not generates(model):
        return "the class does not generate"
    if extra_inputs:
        return f"the forward needs {', '.join(sorted(extra_inputs))}"
    if declares_cache(model):
        return None
    import torch

    ids = torch.arange(CACHE_TRIAL, device=next(model.parameters()).device)[None]
    try:
        run(model, Probe("a cache", ids, torch.ones_like(ids), steps=1))
    except Exception as error:  # noqa: BLE001 - whatever the forward raises is the reason
        return refusal(error)
    return None


def refusal(error: Exception) -> str:
    """Why a forward was not decoded with a cache, in one line."""
    return str(error) if isinstance(error, NoCache) else one_line(error)


def _decode(model: PreTrainedModel, probe: Probe) -> dict[str, Tensor]:
    """Feed all but the last ids at once, then those one at a time with the cache; to the decoder where there is one.

    Raises:
        NoCache: the forward returns no cache, or gives the same with its cache as without.
    """
    two_sided = bool(model.config.is_encoder_decoder)
    first = probe.ids.shape[1] - probe.steps
    ids = "decoder_input_ids" if two_sided else "input_ids"
    constant: dict[str, Any] = {"use_cache": True, "return_dict": True}
    if not two_sided and takes(model.forward, "decoder_input_ids"):
        constant["decoder_input_ids"] = probe.ids[:, :first]  # left out, some forwards draw them from the vocabulary
    output = model(**{"input_ids": probe.ids, ids: probe.ids[:, :first]}, **constant)
    found = {f"step 0 {name}": value for name, value in flatten(output).items()}
    cache = returned_cache(output)
    if cache is None:
        raise NoCache("the forward returns no cache")
    if two_sided:
        from transformers.modeling_outputs import BaseModelOutput

        constant["encoder_outputs"] = BaseModelOutput(last_hidden_state=output.encoder_last_hidden_state)
    for step in range(probe.steps):
        next_id = {ids: probe.ids[:, first + step : first + step + 1]}
        output = model(**next_id, **{cache: output[cache]}, **constant)
        if not step and not takes(model.forward, cache):
            _refuse_equal(flatten(output), flatten(model(**next_id, **constant)))
        found |= {f"step {step + 1} {name}": value for name, value in flatten(output).items()}
    return found


def _refuse_equal(cached: Mapping[str, Tensor], alone: Mapping[str, Tensor]) -> None:
    """Raise where a forward that declares no cache ignored the one that it was given."""
    if all(name in alone and value.equal(alone[name]) for name, value in cached.items()):
        raise NoCache("the forward does not take its cache back")


def flatten(output: Mapping[str, Any]) -> dict[str, Tensor]:
    """Every floating tensor of a model's output by name; tuples are numbered; caches and attentions are left out."""
    import torch

    found: dict[str, Tensor] = {}
    for name, value in output.items():
        if name.endswith(STATE) or name in CACHES:
            continue
        items = enumerate(value) if isinstance(value, tuple | list) else [(None, value)]
        for index, item in items:
            if isinstance(item, torch.Tensor) and item.is_floating_point() and item.ndim:
                found[name if index is None else f"{name}.{index}"] = item
    return found
