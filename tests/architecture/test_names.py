"""Names on disk and in memory: there and back over every class, by what transformers itself saves and loads."""

import copy

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support.families import build
from support.shrink import HINTS, SCALES, tiny_config
from support.tiny import KINDS, classes
from transformers.core_model_loading import revert_weight_conversion

from graftkit.architecture.names import MemoryName, tensor_names
from graftkit.architecture.skeleton import build_skeleton, quiet
from graftkit.checkpoint.checkpoint import Checkpoint

#: Plain names, other names, experts that are stacked and joined, projections that are split, joined and split, turned.
FORMS = (
    "LlamaForCausalLM", "T5ForConditionalGeneration", "LlavaForConditionalGeneration", "MixtralForCausalLM",
    "OlmoHybridForCausalLM", "HrmTextForCausalLM", "LaraMiniForCausalLM", "GteForMaskedLM", "Kimi_K25ForConditionalGeneration",
    "Molmo2ForConditionalGeneration", "InklingForConditionalGeneration", "Qwen3VLMoeForConditionalGeneration",
    "Inkling2LoopModel",
)  # fmt: skip

EXPERT = "model.layers.1.block_sparse_moe.experts.{}.{}.weight"
FUSED = "model.layers.1.mlp.experts.gate_up_proj"


def on_meta(class_name):
    """A small model on the meta device, and what it is saved as; None where this machine or no small config makes one."""
    model_class = getattr(transformers, class_name, None)  # some are in a list and nowhere else
    for scale in SCALES if model_class else ():
        try:
            hints = HINTS.get(class_name)
            config = tiny_config(model_class.config_class, vocab_size=331, live=323, scale=scale, hints=hints)
            with quiet(), torch.device("meta"):
                model = model_class(config)
                return model, revert_weight_conversion(model, dict(model.state_dict()))
        except ImportError:
            return None
        except Exception:  # noqa: BLE001, S112 - a config that a class cannot live with fails in any way
            continue
    return None


def disagreements(model, stored):
    """Yield the names of a model, then each thing in which they and transformers' own saving and loading disagree."""
    state = model.state_dict()
    names = tensor_names(model, stored)
    yield names
    yield from (f"{name} comes from nowhere" for name in state if not names.on_disk(name))
    yield from (f"{name} is not the model's" for name in names.disk if name not in state)
    yield from (
        f"{disk} is not on the way back" for disk, found in names.items() if disk not in names.on_disk(found.name)
    )
    for first, conversion in names.conversions.items():
        converter = copy.deepcopy(conversion.converter)
        for disk, pattern in conversion.patterns.items():
            converter.add_tensor(first, disk, pattern, lambda disk=disk: stored[disk])
        made = set(converter.convert(first, model=model, config=model.config))
        back = {name for name in names.disk if set(names.on_disk(name)) & set(conversion.patterns)}
        if made != back:
            yield f"{sorted(conversion.patterns)} become {sorted(made)}, not {sorted(back)}"


@pytest.mark.parametrize("class_name", FORMS)
def test_names_of_each_form_go_there_and_back(class_name):
    if not hasattr(transformers, class_name):
        pytest.skip("this release of transformers has no such class")
    names, *wrong = disagreements(*on_meta(class_name))
    assert not wrong
    assert len(names.disk) > 5


@pytest.mark.slow
def test_names_of_every_class_go_there_and_back():
    wrong, converted, seen = {}, set(), 0
    for class_name in dict.fromkeys(name for kind in KINDS for name in classes(kind)):
        small = on_meta(class_name)
        if small is None:
            continue
        names, *found = disagreements(*small)
        seen += 1
        if found:
            wrong[class_name] = found
        if any(name.converted for name in names.values()):
            converted.add(class_name)
    assert not wrong
    assert seen > 1000
    assert len(converted) > 100


def test_many_become_one_and_the_way_back_gives_them_all(sources):
    checkpoint = Checkpoint.open(str(sources("mixtral")))
    names = build_skeleton(checkpoint.config).memory_names(checkpoint.tensors)
    assert names[EXPERT.format(3, "w1")] == MemoryName(FUSED, converted=True) == (FUSED, True)
    parts = [EXPERT.format(expert, part) for expert in range(4) for part in ("w1", "w3")]
    assert sorted(names.on_disk(FUSED)) == parts
    assert names.stored_as(FUSED) is None
    without = build_skeleton(checkpoint.config).memory_names(disk for disk in names if disk != parts[2])
    assert sorted(without.on_disk(FUSED)) == [*parts[:2], *parts[3:]]


def test_one_becomes_many_and_each_of_them_leads_back():
    names, *_ = disagreements(*on_meta("GteForMaskedLM"))
    disk = next(
        disk
        for disk, found in names.items()
        if found.converted and len(names.conversions[found.name].converter.target_patterns) == 3
    )
    made = [name for name in names.disk if names.on_disk(name) == (disk,)]
    assert [name.rsplit(".", 2)[1] for name in made] == ["q_proj", "k_proj", "v_proj"]
    assert {names.stored_as(name) for name in made} == {None}


def test_of_two_under_one_name_the_first_is_what_is_loaded(tmp_path):
    """As the real loader decides."""
    path = build("llama", tmp_path) / "model.safetensors"
    tensors = load_file(path)
    one, other = "model.norm.weight", "norm.weight"
    save_file({**tensors, other: tensors[one] + 1}, path, {"format": "pt"})
    checkpoint = Checkpoint.open(str(tmp_path))
    names = build_skeleton(checkpoint.config).memory_names(reversed(checkpoint.tensors))
    assert names.on_disk(one) == (one, other)
    assert names.stored_as(one) == names.first_on_disk(one) == one
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).get_parameter(one)
    assert loaded.equal(tensors[one])


def test_a_name_that_is_not_stored_has_no_way_back(sources):
    checkpoint = Checkpoint.open(str(sources("llama_tied")))
    names = build_skeleton(checkpoint.config).memory_names(checkpoint.tensors)
    assert names.on_disk("lm_head.weight") == ()
    assert names.first_on_disk("lm_head.weight") is names.stored_as("lm_head.weight") is None
    assert list(names) == list(checkpoint.tensors)
