"""Small random checkpoints of any transformers class, as directories that `from_pretrained` loads.

    build("LlamaForCausalLM", directory)

The shape comes from :mod:`support.shrink`; every parameter is noise around what the class's own initialisation gives it, so
that gains stay near one, decays stay decays, and no row, bias or gate is zero or a twin of another.
"""

import re
from contextlib import contextmanager
from dataclasses import dataclass

from support.families import write_tokenizer
from support.shrink import HINTS, SCALES, tiny_config

#: Kinds of classes, by the mappings of `transformers.models.auto.modeling_auto` that list them.
KINDS = {
    "causal_lm": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "masked_lm": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "seq2seq_lm": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "vision_language": "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
    "sequence_classification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "token_classification": "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
    "base": "MODEL_MAPPING_NAMES",
}

#: More parameters than this is not small: the scale is given up.
MOST_PARAMETERS = 6_000_000

#: Standard deviation of the noise on every parameter.
NOISE = 0.05

#: What a forward says that wants more than token ids; no other scale will change its mind.
WANTS_MORE = re.compile(r"pixel_values|bbox|Bbox|image_embeds|input_features|flattened_patches|missing \d+ required")


class NotBuilt(Exception):
    """No small checkpoint of this class can be made; the message says why."""


@dataclass(frozen=True)
class Built:
    """``forward_error`` is None when the class runs on token ids alone, or with the inputs that :func:`forward` makes up."""

    class_name: str
    parameters: int
    forward_error: str | None


def classes(kind):
    """Names of the classes of one kind of :data:`KINDS`, in the order of transformers, each once."""
    from transformers.models.auto import modeling_auto

    named = getattr(modeling_auto, KINDS[kind]).values()
    return list(dict.fromkeys(name for names in named for name in ((names,) if isinstance(names, str) else names)))


def build(class_name, directory, *, vocab_size=331, tokenizer_size=None, dtype="float32", seed=0, tie=None,
          max_shard_size=None, config_overrides=None, distinct=False):  # fmt: skip
    """Write a small checkpoint of ``class_name`` with a tokenizer of ``tokenizer_size`` ids (default 8 under the vocabulary).

    ``distinct`` gives each sub-config a vocabulary size of its own, also where the defaults are equal.

    Raises:
        NotBuilt: with the reason of the first scale that came closest.
    """
    import torch
    import transformers

    live = tokenizer_size or vocab_size - 8
    try:
        model_class = getattr(transformers, class_name)
        with _quiet(), _reproducible(seed):
            model = _first_that_runs(model_class, vocab_size, live, tie, config_overrides, distinct)
            _add_noise(model, seed)
            model.to(getattr(torch, dtype))
            model.save_pretrained(directory, **({"max_shard_size": max_shard_size} if max_shard_size else {}))
    except ImportError as missing:
        raise NotBuilt(_one_line(missing).split(". ")[0]) from missing
    write_tokenizer(directory, live)
    error = _check_reload(model_class, directory)
    return Built(class_name, sum(p.numel() for p in model.parameters()), error)


def _first_that_runs(model_class, vocab_size, live, tie, overrides, distinct):
    """The model of the first scale that runs on token ids alone, else of the first that can be made."""
    import torch

    failures, fallback = [], None
    for scale in SCALES:
        try:
            config = tiny_config(model_class.config_class, vocab_size=vocab_size, live=live, scale=scale,
                                 hints=HINTS.get(model_class.__name__), overrides=overrides, distinct=distinct)  # fmt: skip
            if tie is not None:
                config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = tie
            with torch.device("meta"):
                size = sum(parameter.numel() for parameter in model_class(config).parameters())
            if size > MOST_PARAMETERS:
                raise NotBuilt(f"{size / 1e6:.0f} M parameters at its smallest")
            model = model_class(config).eval()
        except ImportError:
            raise
        except Exception as error:  # noqa: BLE001 - a config that a class cannot live with fails in any way
            failures.append(_one_line(error))
            continue
        _make_whole(model)
        try:
            forward(model, _probe())
        except Exception as error:  # noqa: BLE001 - as above
            fallback = fallback or model
            if WANTS_MORE.search(str(error)):
                break
        else:
            return model
    if fallback is None:
        raise NotBuilt(failures[0])
    return fallback


def forward(model, ids):
    """Run ``model`` on token ids of shape (batch, length) and return what it returns; other inputs are made as verification does."""
    import torch

    from graftkit.running.inputs import feed, find_inputs
    from graftkit.running.probes import Probe

    probe = Probe("forward", ids, torch.ones_like(ids))
    with torch.no_grad():
        return find_inputs(model, lambda extra_inputs: model(**feed(model, probe, extra_inputs)))[1]


def _probe():
    import torch

    return torch.arange(8, 24)[None]


def _make_whole(model):
    """Give values to what a class allocates and leaves for a checkpoint to fill."""
    import torch

    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.data[~tensor.isfinite() | (tensor.abs() > 1e6)] = 0.0
        elif tensor.dtype == torch.int64 and tensor.numel() and tensor.max() > 1 << 40:
            tensor.data.copy_((torch.arange(tensor.numel()) % 4).view_as(tensor))


def _add_noise(model, seed):
    import torch

    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * NOISE)
        for name, buffer in model.named_buffers():
            if name.endswith("final_logits_bias"):
                buffer.copy_(torch.randn(buffer.shape, generator=generator))


def _check_reload(model_class, directory):
    """Load what was written; return what the forward says, or None when it runs."""
    with _quiet():
        try:
            model, info = model_class.from_pretrained(directory, output_loading_info=True)
        except Exception as error:
            raise NotBuilt(f"what save_pretrained wrote does not load: {_one_line(error)}") from error
    left = {
        kind: sorted(map(str, info[kind]))[:3]
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
        if info[kind]
    }
    if left:
        raise NotBuilt(f"what save_pretrained wrote does not load whole: {left}")
    try:
        output = forward(model.eval(), _probe())
    except Exception as error:  # noqa: BLE001 - a forward that lacks an input raises anything
        return _one_line(error)
    if not all(value.isfinite().all() for value in output.values() if hasattr(value, "isfinite")):
        raise NotBuilt("the outputs are not finite")
    return None


@contextmanager
def _reproducible(seed):
    """A seed for everything inside, and NaN in what is allocated and never filled, so that nothing depends on old memory."""
    import torch

    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@contextmanager
def _quiet():
    import warnings

    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity(50)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.set_verbosity(level)


def _one_line(error):
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) < 240 else text[:236] + " ..."
