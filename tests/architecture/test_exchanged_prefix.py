"""An adapter of the same modules under another prefix: the refusal names the exchange, and no other refusal does."""

import copy

import pytest
from support.adapters import edit_adapter, make_adapter
from support.families import build

from graftkit import engine
from graftkit.architecture.peft.adapter_edits import check_fit
from graftkit.architecture.skeleton import build_skeleton
from graftkit.checkpoint.adapter import open_adapter
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.errors import InputRejected

LLAMA, LLAVA, BACKBONE = "LlamaForCausalLM", "LlavaForConditionalGeneration", "LlamaModel"
LORA = {"target_modules": ["q_proj", "down_proj"]}
INNER = {"target_modules": r".*language_model.*(q_proj|down_proj)"}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """A text model, its wrapper with a vision tower, and two BERTs in one class."""
    import transformers

    root = tmp_path_factory.mktemp("bases")
    for family in ("llama", "llava", "bert_base"):
        build(family, root / family)
    bert = transformers.BertModel.from_pretrained(root / "bert_base").config
    both = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(bert, copy.deepcopy(bert))
    transformers.EncoderDecoderModel(both).save_pretrained(root / "two_berts")
    return root


@pytest.fixture(scope="module")
def adapter_of(bases, tmp_path_factory):
    made = {}

    def of(family, class_name, **config):
        key = (family, class_name, repr(config))
        if key not in made:
            folder = tmp_path_factory.mktemp("adapter")
            _, made[key] = make_adapter(folder, class_name, base=bases / family, **copy.deepcopy(config))
        return made[key]

    return of


def plan(base, adapter, output):
    merge = {"op": "merge_adapter", "adapter": str(adapter), "base": "accept"}
    return engine.plan({"version": 1, "base_model": str(base), "operations": [merge], "output": str(output)})


EXCHANGED = {
    "text model's over the wrapper": ("llama", LLAMA, LORA, "llava", "model.layers", "model.language_model.layers", 4),
    "wrapper's over the text model": ("llava", LLAVA, INNER, "llama", "model.language_model.layers", "model.layers", 4),
    "backbone's over the head": ("llama", BACKBONE, LORA, "llama", "layers", "model.layers", 4),
    "backbone's over the wrapper": ("llama", BACKBONE, LORA, "llava", "layers", "model.language_model.layers", 4),
    "with a table": (
        "llama",
        LLAMA,
        {**LORA, "modules_to_save": ["embed_tokens"]},
        "llava",
        "model.embed_tokens",
        "model.language_model.embed_tokens",
        5,
    ),
    "with rows of tokens": (
        "llama",
        LLAMA,
        {**LORA, "trainable_token_indices": {"embed_tokens": [5, 7]}},
        "llava",
        "model.embed_tokens",
        "model.language_model.embed_tokens",
        5,
    ),
    "with the head that both have": (
        "llama", LLAMA, {"target_modules": ["down_proj", "lm_head"]}, "llava", "model.layers", "model.language_model.layers", 2,
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("family", "class_name", "config", "base", "theirs", "ours", "count"), EXCHANGED.values(), ids=EXCHANGED
)
def test_the_refusal_names_the_exchange(
    bases, adapter_of, tmp_path, family, class_name, config, base, theirs, ours, count
):
    adapter = adapter_of(family, class_name, **config)
    with pytest.raises(InputRejected) as caught:
        plan(bases / base, adapter, tmp_path / "out")
    said = str(caught.value)
    assert "names its modules otherwise" in said
    assert f"the adapter's {theirs!r} is the base's {ours!r}, by which {count} modules would find a place" in said
    assert "retarget_adapter writes it with the base's names, or give the model" in said
    assert "\n" not in said


def test_an_adapter_is_verified_with_the_same_words(bases, adapter_of):
    adapter = adapter_of("llama", LLAMA, **LORA)
    skeleton = build_skeleton(Checkpoint.open(str(bases / "llava")).config)
    with pytest.raises(
        InputRejected, match=r"^it: .* the adapter's 'model.layers' is the base's 'model.language_model"
    ):
        check_fit(skeleton, open_adapter(str(adapter)), "it")


def wider(tensors):
    """One factor with another number of inputs than any weight has."""
    import torch

    name = next(name for name in tensors if "layers.1" in name and "lora_A" in name)
    return {**tensors, name: torch.zeros(4, 77)}


def stranger(tensors):
    """A module that the base has nowhere."""
    name, value = next(iter(tensors.items()))
    return {**tensors, name.replace("layers.0", "layers.9"): value.clone()}


@pytest.mark.parametrize("spoilt", [wider, stranger])
def test_where_one_module_finds_no_place_no_exchange_is_named(bases, adapter_of, tmp_path, spoilt):
    adapter = edit_adapter(adapter_of("llama", LLAMA, **LORA), tmp_path / "spoilt", spoilt)
    with pytest.raises(InputRejected, match="Llava") as caught:
        plan(bases / "llava", adapter, tmp_path / "out")
    assert "is the base's" not in str(caught.value)


def test_where_two_places_fit_none_is_named(bases, adapter_of, tmp_path):
    adapter = adapter_of("bert_base", "BertModel", target_modules=["query"])
    with pytest.raises(InputRejected, match="EncoderDecoderModel") as caught:
        plan(bases / "two_berts", adapter, tmp_path / "out")
    assert "is the base's" not in str(caught.value)


def test_names_that_fit_with_shapes_that_do_not_are_refused_by_the_shapes(bases, adapter_of, tmp_path):
    adapter = edit_adapter(adapter_of("llama", LLAMA, **LORA), tmp_path / "wide", wider)
    with pytest.raises(InputRejected, match="size mismatch"):
        plan(bases / "llama", adapter, tmp_path / "out")


def older(tensors):
    """The names that wrappers had once, which transformers renames and peft with it."""
    return {name.replace("model.language_model.", "language_model.model."): value for name, value in tensors.items()}


def test_older_names_are_no_other_prefix(bases, adapter_of, tmp_path):
    adapter = edit_adapter(adapter_of("llava", LLAVA, **INNER), tmp_path / "older", older)
    planned = plan(bases / "llava", adapter, tmp_path / "out")
    assert any(note.startswith("4 weights get a product") for note in planned.outcomes[0].notes)
    broken = edit_adapter(adapter, tmp_path / "broken", r=8)
    with pytest.raises(InputRejected, match="size mismatch"):
        plan(bases / "llava", broken, tmp_path / "out")
