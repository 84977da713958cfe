"""extract_submodel: a part with its own config and files, whose hidden states are the whole's to the last bit."""

import importlib
import json
import shutil

import pytest
import torch
from support.command import ROOT, assert_one_line, here
from support.recipes import applied, apply_by_command, config_of, load, recipe

import graftkit
from graftkit.architecture.skeleton import build_skeleton
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.reading import equal_bytes
from graftkit.errors import InputRejected, RecipeError, VerificationFailed

#: The file: the name in its package is the function.
operation = importlib.import_module("graftkit.operations.extract_submodel")


def extract(architecture, **fields):
    return {"op": "extract_submodel", "architecture": architecture, **fields}


#: Family and class of the part -> whether the logits are compared too.
PARTS = {
    ("llava", "LlamaForCausalLM"): True,
    ("llava", "LlamaModel"): False,
    ("t5", "T5EncoderModel"): False,
    ("bert_base_with_head", "BertForMaskedLM"): False,
    ("llama", "LlamaModel"): False,
}
SLOW = {("bart", "BartForCausalLM"): False, ("bart", "BartModel"): False, ("llava", "CLIPVisionModel"): False}


@pytest.mark.numerical
@pytest.mark.parametrize(
    ("family", "architecture"), [*PARTS, *(pytest.param(*pair, marks=pytest.mark.slow) for pair in SLOW)]
)
def test_hidden_states_and_logits_are_those_of_the_whole_bit_for_bit(family, architecture, sources, tmp_path):
    report = graftkit.apply(recipe(sources(family), tmp_path / "out", extract(architecture)))
    outputs = report.outputs
    assert outputs.passed
    assert all(item.bitwise for item in outputs.comparisons)
    assert any("logits" in item.name for item in outputs.comparisons) is (PARTS | SLOW)[family, architecture]
    model, info = load(tmp_path / "out")
    assert type(model).__name__ == architecture
    assert not any(info[f"{kind}_keys"] for kind in ("missing", "unexpected", "mismatched"))
    if report.outputs.unit == "tokens":
        assert graftkit.verify(str(sources(family)), str(tmp_path / "out"), outputs=False).failures == ()


def test_an_encoder_is_compared_by_its_own_blocks_where_the_decoder_lost_one(sources, tmp_path):
    drop, encoder = {"op": "drop_blocks", "blocks": [1]}, extract("T5EncoderModel")
    report = graftkit.apply(recipe(sources("t5"), tmp_path / "encoder", drop, encoder))
    assert {item.name: item.bitwise for item in report.outputs.comparisons} == dict.fromkeys(
        ("last_hidden_state", "hidden_states.0", "hidden_states.1", "hidden_states.2"), True
    )


@pytest.mark.numerical
def test_the_text_model_of_a_wrapper_gives_the_logits_that_the_wrapper_gives(sources, tmp_path):
    """Without graftkit's help: both loaded by transformers and run on ids."""
    applied(sources("llava"), tmp_path, extract("LlamaForCausalLM"))
    (whole, _), (part, _) = load(sources("llava")), load(tmp_path / "out")
    ids = torch.arange(4, 44).view(2, 20)
    with torch.inference_mode():
        assert torch.equal(whole(input_ids=ids).logits, part(input_ids=ids).logits)


@pytest.fixture
def wrapper(sources, tmp_path):
    """A LLaVA with the files that a processor has, and its template in one of them."""
    source = tmp_path / "wrapper"
    shutil.copytree(sources("llava"), source)
    template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    (source / "processor_config.json").write_text(json.dumps({"processor_class": "LlavaProcessor"}))
    (source / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    (source / "video_preprocessor_config.json").write_text("{}")
    settings = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(json.dumps({**settings, "processor_class": "LlavaProcessor"}))
    return source


def test_a_text_model_keeps_tokenizer_and_template_and_what_it_leaves_is_named(wrapper, tmp_path):
    from transformers import AutoTokenizer

    output, report = applied(wrapper, tmp_path, extract("LlamaForCausalLM"))
    tokenizer = AutoTokenizer.from_pretrained(output)
    text = tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False)
    assert text == "hello"
    assert (output / "tokenizer.json").read_bytes() == (wrapper / "tokenizer.json").read_bytes()
    gone = ("processor_config.json", "chat_template.json", "video_preprocessor_config.json")
    assert not any((output / name).exists() for name in gone)
    assert "processor_class" not in json.loads((output / "tokenizer_config.json").read_text())
    notes = " ".join(report["notes"])
    assert all(name in notes for name in ("model.vision_tower", "model.multi_modal_projector", *gone))
    lost = {change["document"] for change in report["changes"]["values"] if change["new"] is None}
    assert {*gone} <= lost
    assert graftkit.verify(str(wrapper), str(output), outputs=False).failures == ()


def test_tokens_grow_on_the_part_and_are_checked_against_the_whole(wrapper, tmp_path):
    report = graftkit.apply(
        recipe(
            wrapper, tmp_path / "out", extract("LlamaForCausalLM"), {"op": "extend_vocab", "special_tokens": ["<|a|>"]}
        )
    )
    assert report.outputs.passed
    assert report.outputs.mass_max is not None
    assert config_of(tmp_path / "out")["architectures"] == ["LlamaForCausalLM"]


@pytest.mark.numerical
def test_a_head_on_the_part_is_compared_by_the_module_that_both_have(sources, tmp_path):
    head = {"op": "replace_head", "task": "sequence_classification", "labels": ["a", "b"], "pad_token": "<pad>"}
    report = graftkit.apply(recipe(sources("llava"), tmp_path / "out", extract("LlamaModel"), head))
    assert all(item.bitwise for item in report.outputs.comparisons)
    assert config_of(tmp_path / "out")["architectures"] == ["LlamaForSequenceClassification"]


@pytest.mark.slow
@pytest.mark.numerical
def test_lens_signal_and_first_step_look_through_the_names(sources, tmp_path):
    looks = {"lens": True, "signal": True, "first_step": True}
    for architecture in ("LlamaForCausalLM", "LlamaModel"):
        report = graftkit.apply(
            recipe(sources("llava"), tmp_path / "out", extract(architecture), verify=looks), overwrite=True
        )
        found = {finding.name: finding for finding in report.findings}
        assert {"lens", "signal", "first_step"} <= found.keys()
        assert not any(finding.failures for finding in found.values())
        assert any("layers.1" in str(module) for module in found["lens"].to_json()["modules"])
        assert found["signal"].figures


@pytest.mark.parametrize(("outside", "inside"), [(False, True), (True, False), (True, True)])
def test_the_output_table_is_tied_in_the_part_where_it_is_in_the_whole(outside, inside, sources, tmp_path):
    """Whichever of the two configs it is that transformers asks."""
    source = tmp_path / "source"
    shutil.copytree(sources("llava"), source)
    config = config_of(source)
    config["tie_word_embeddings"], config["text_config"]["tie_word_embeddings"] = outside, inside
    (source / "config.json").write_text(json.dumps(config))
    graftkit.apply(recipe(source, tmp_path / "out", extract("LlamaForCausalLM"), verify={"outputs": False}))
    whole, part = (build_skeleton(config_of(folder)) for folder in (source, tmp_path / "out"))
    assert bool(whole.tied) is bool(part.tied)
    old, new = Checkpoint.open(str(source)), Checkpoint.open(str(tmp_path / "out"))
    (head,) = (name for name in old.tensors if name.endswith("lm_head.weight"))
    assert equal_bytes(old.tensors[head], new.tensors["lm_head.weight"])


def _swapped(names):
    """Two layers of the part have each other's weights."""
    return {
        disk: name.replace("layers.0.", "layers.X.").replace("layers.1.", "layers.0.").replace("layers.X.", "layers.1.")
        for disk, name in names.items()
    }


def _another_epsilon(config):
    return {**config, "rms_norm_eps": 1e-3}


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "LlamaModel"])
@pytest.mark.parametrize(("function", "fault"), [("disk_names", _swapped), ("part_document", _another_epsilon)])
def test_planted_faults_are_caught(function, fault, architecture, sources, tmp_path, monkeypatch):
    right = getattr(operation, function)
    monkeypatch.setattr(operation, function, lambda *arguments: fault(right(*arguments)))
    with pytest.raises(VerificationFailed, match=r"outputs: hidden_states\.1 of probe .* differs"):
        graftkit.apply(recipe(sources("llava"), tmp_path / "out", extract(architecture)))
    assert not (tmp_path / "out").exists()


def test_a_head_of_other_values_is_caught_by_the_logits(sources, tmp_path, monkeypatch):
    """Both tables have one shape: with the input table in the head's place the hidden states say nothing."""
    right = Checkpoint.with_names

    def wrong(checkpoint, names):
        found = right(checkpoint, names)
        return found.with_tensors({"lm_head.weight": found.tensors["model.embed_tokens.weight"]})

    monkeypatch.setattr(Checkpoint, "with_names", wrong)
    with pytest.raises(VerificationFailed, match=r"outputs: logits of probe .* differs"):
        graftkit.apply(recipe(sources("llava"), tmp_path / "out", extract("LlamaForCausalLM")))


@pytest.mark.parametrize(
    ("family", "architecture", "error", "words"),
    [
        ("llama", "LlamaForCausalLM", RecipeError, "the checkpoint is a LlamaForCausalLM already"),
        ("llama", "LlamaModell", RecipeError, "is no class of transformers; did you mean 'LlamaModel'"),
        ("llama", "T5EncoderModel", InputRejected, "T5"),
        (
            "llama",
            "LlamaForSequenceClassification",
            InputRejected,
            r"1 tensor that its part of .* lacks: score\.weight",
        ),
        (
            "llama",
            "LlavaForConditionalGeneration",
            InputRejected,
            r"tensors that its part of LlamaForCausalLM lacks: model\.",
        ),
    ],
)
def test_what_is_no_part_is_refused_in_one_line(family, architecture, error, words, sources, tmp_path):
    with pytest.raises(error, match=words) as caught:
        graftkit.plan(recipe(sources(family), tmp_path / "out", extract(architecture)))
    assert "\n" not in str(caught.value)


def test_the_command_line_refuses_and_runs(sources, tmp_path):
    done, output = apply_by_command(sources("llama"), tmp_path, extract("BertModel"))
    assert_one_line(done, 3, "BertModel")
    assert not output.exists()
    done = here("apply", ROOT / "recipes/extract_submodel.yaml", "--output", tmp_path / "demo")
    assert done.returncode == 0, done.stderr
    assert "left out: lm_head" in done.stdout
    assert config_of(tmp_path / "demo")["architectures"] == ["LlamaModel"]
    assert here("verify", ROOT / "recipes/models/demo-lm", tmp_path / "demo").returncode == 0
