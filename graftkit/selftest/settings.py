"""Faults in config.json and generation_config.json: where each goes, and how it is planted at a dotted place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from graftkit.architecture.skeleton import build_config, build_skeleton, sibling_architectures
from graftkit.errors import InputRejected
from graftkit.selftest.copies import edit_json, set_value
from graftkit.selftest.subject import NotApplicable, Subject, first

CONFIG, GENERATION = "config.json", "generation_config.json"

Plant = Callable[[Path, Subject, str], None]

#: Keys that hold the number of layers, of heads, and the activation, over the config classes of transformers.
LAYERS = r"(^|\.)(num_hidden_layers|n_layers?|num_layers|encoder_layers)$"
HEADS = r"(^|\.)(num_attention_heads|n_heads?|num_heads|encoder_attention_heads)$"
ACTIVATION = r"(^|\.)(hidden_act|activation_function|hidden_activation)$"


def epsilon(subject: Subject) -> str:
    """The epsilon of the norms."""
    return subject.setting(r"(^|[._])(eps|epsilon)$", float, "the config holds no epsilon")


def rope_theta(subject: Subject) -> str:
    """The base of the rotary positions."""
    return subject.setting(r"rope_theta$", float, "the config holds no rope_theta")


def activation(subject: Subject) -> str:
    """The activation of the blocks."""
    return subject.setting(ACTIVATION, str, "the config names no activation")


def dropout(subject: Subject) -> str:
    """A dropout, which no forward in eval mode shows."""
    return subject.setting(r"(dropout|pdrop)\w*$", float, "the config holds no dropout")


def layers(subject: Subject) -> str:
    """The number of layers, where one can be missed."""
    place = subject.setting(LAYERS, int, "the config holds no number of layers")
    if subject.settings()[place] < 2:
        raise NotApplicable("it has one layer")
    return place


def layer_types(subject: Subject) -> str:
    """The list of layer types."""
    return subject.setting(r"(^|\.)layer_types$", list, "the config holds no layer_types")


def heads(subject: Subject) -> str:
    """The number of attention heads, where no shape depends on it."""
    place = subject.setting(HEADS, int, "the config holds no number of heads")
    count = subject.settings()[place]
    if count % 2:
        raise NotApplicable("an odd number of heads, so that no half of it would load")
    try:
        other = build_skeleton(_with(subject, place, count // 2))
    except InputRejected as refused:
        raise NotApplicable("the class refuses half the number of heads") from refused
    if other.shapes != subject.structure.skeleton.shapes:
        raise NotApplicable("shapes depend on the number of heads, so that it would not load")
    return place


def dtype(subject: Subject) -> str:
    """The dtype that is loaded."""
    config = subject.checkpoint.config
    return str(first((key for key in ("dtype", "torch_dtype") if config.get(key)), "the config names no dtype"))


def tie(subject: Subject) -> str:
    """The flag that ties input and output."""
    place = "tie_word_embeddings"
    if not subject.vocabulary.has_output:
        raise NotApplicable("no output table")
    turned = _with(subject, place, not subject.settings()[place])
    if build_config(turned).to_dict()[place] == subject.settings()[place]:
        raise NotApplicable("the config class sets the flag itself")
    return place


def other_class(subject: Subject) -> str:
    """Another class that the same tensors load into."""
    structure = subject.structure
    names = sibling_architectures(subject.checkpoint.config, structure.skeleton.architecture)
    for name in names:
        try:
            sibling = build_skeleton(subject.checkpoint.config, name)
        except InputRejected:
            continue
        if not sibling.loading(subject.checkpoint.tensors).missing:
            return f"architectures: {name}"
    raise NotApplicable("no other class loads from these tensors")


def pad_id(subject: Subject) -> str:
    """The id of the pad token."""
    del subject
    return "pad_token_id"


def generation(subject: Subject) -> str:
    """A setting of generation."""
    subject.document(GENERATION)
    return "temperature"


def generation_eos(subject: Subject) -> str:
    """The id that ends generation."""
    if subject.document(GENERATION).get("eos_token_id") is None:
        raise NotApplicable(f"{GENERATION} names no eos_token_id")
    return "eos_token_id"


def changed(value: Callable[[Any], Any]) -> Plant:
    """Plant ``value(old)`` at a place of config.json."""

    def plant(directory: Path, subject: Subject, place: str) -> None:
        set_config(directory, subject, place, value(subject.settings().get(place)))

    return plant


def set_config(directory: Path, subject: Subject, place: str, value: object) -> None:
    """Set a place of config.json that the loaded config has: where the file writes it, with what stands around it."""
    config = dict(subject.checkpoint.config)
    top, _, below = place.partition(".")
    last = place.rpartition(".")[2]
    if below and top not in config and last in config:
        place = last
    elif below and top not in config:
        set_value(directory, CONFIG, top, build_config(config).to_dict()[top])
    set_value(directory, CONFIG, place, value)


def set_class(directory: Path, _: Subject, place: str) -> None:
    """Name another class."""
    set_value(directory, CONFIG, "architectures", [place.removeprefix("architectures: ")])


def set_generation(directory: Path, _: Subject, place: str) -> None:
    """Sample at another temperature."""
    edit_json(directory, GENERATION, lambda values: values.update({place: 0.3, "do_sample": True}))


def set_generation_eos(directory: Path, subject: Subject, place: str) -> None:
    """End generation at the id after the right one, in generation_config.json alone."""
    old = subject.document(GENERATION)[place]
    index = (old[0] if isinstance(old, list) else old) + 1
    set_value(directory, GENERATION, place, [index] if isinstance(old, list) else index)


def _with(subject: Subject, place: str, value: object) -> dict[str, Any]:
    import copy

    config = copy.deepcopy(dict(subject.checkpoint.config))
    inner = config
    *path, last = place.split(".")
    for key in path:
        inner = inner.setdefault(key, {})
    inner[last] = value
    return config
