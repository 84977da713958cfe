"""A merge that another program made: right ones pass whatever their dtype, and of a wrong one the cause is named."""

import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support.adapters import edit_adapter, load_adapted, make_adapter
from support.command import assert_one_line, here

LLAMA = "LlamaForCausalLM"
Q = "model.layers.0.self_attn.q_proj.weight"


def merge(base, adapter, output, class_name=LLAMA):
    """The merge as users make it: peft's, saved by transformers."""
    load_adapted(base, adapter, class_name).merge_and_unload().save_pretrained(output)
    for path in base.glob("tokenizer*"):
        shutil.copy(path, output)
    return output


def edit(output, change):
    path = output / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file({name: value.contiguous() for name, value in tensors.items()}, path, metadata={"format": "pt"})


def asked(base, merged, adapter, *flags):
    return here("verify", base, merged, "--adapter", adapter, *flags)


def failures_of(base, merged, adapter):
    done = asked(base, merged, adapter)
    assert (done.returncode, done.stderr) == (4, ""), done.stdout
    return " ".join(done.stdout.split())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A base in bfloat16, an adapter of two of its modules, and peft's merge of both; not to be changed."""
    place = tmp_path_factory.mktemp("made")
    base, adapter = make_adapter(place, LLAMA, dtype="bfloat16", target_modules=["q_proj", "down_proj"])
    return base, adapter, merge(base, adapter, place / "merged")


@pytest.fixture
def copied(made, tmp_path):
    """The same with a merge of one's own to change."""
    base, adapter, merged = made
    return base, adapter, shutil.copytree(merged, tmp_path / "merged")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": "all-linear"},
        {"target_modules": ["q_proj", "o_proj"], "use_dora": True},
        {"target_modules": ["q_proj"], "use_rslora": True, "trainable_token_indices": [3, 4]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    ],
    ids=["lora", "dora", "rows", "head"],
)
def test_what_peft_merges_is_right(tmp_path, dtype, config):
    base, adapter = make_adapter(tmp_path, LLAMA, dtype=dtype, tie=False, **config)
    done = asked(base, merge(base, adapter, tmp_path / "merged"), adapter)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "verified: B is A with the adapter merged into it" in " ".join(done.stdout.split())


def test_a_merge_in_another_dtype_is_right_too(made, tmp_path):
    base, adapter, _ = made
    model = load_adapted(base, adapter, LLAMA, torch.float32).merge_and_unload()
    model.to(torch.float16).save_pretrained(tmp_path / "merged")
    done = asked(base, tmp_path / "merged", adapter, "--json")
    assert done.returncode == 0, done.stdout
    assert json.loads(done.stdout)["verdict"].startswith("verified")


def test_merged_twice(made, tmp_path):
    base, adapter, merged = made
    again = merge(merged, adapter, tmp_path / "again")
    said = failures_of(base, again, adapter)
    assert f"{Q!r} is not base plus adapter" in said
    assert "it was added twice" in said


def test_another_scale(made, tmp_path):
    base, adapter, _ = made
    other = edit_adapter(adapter, tmp_path / "other", lora_alpha=12)
    assert "it was scaled by 1.5" in failures_of(base, merge(base, other, tmp_path / "merged"), adapter)


def test_a_module_left_out(copied):
    base, adapter, merged = copied
    edit(merged, lambda tensors: tensors.update({Q: load_file(base / "model.safetensors")[Q]}))
    said = failures_of(base, merged, adapter)
    assert f"{Q!r} is not base plus adapter" in said
    assert "0% of the adapter's update was made: it was left out" in said


def test_another_base(copied):
    base, adapter, merged = copied
    edit(merged, lambda tensors: tensors.update({n: v + 0.01 * torch.randn_like(v) for n, v in tensors.items()}))
    said = failures_of(base, merged, adapter)
    assert "another base, or one that was quantized on the way" in said
    assert "weights that the adapter leaves alone differ as well" in said


def test_a_quantized_base(copied):
    """Sixteen levels of each row's largest value, as a base in 4 bits gives its weights back."""
    base, adapter, merged = copied

    def quantize(tensors):
        largest = tensors[Q].abs().amax(dim=1, keepdim=True)
        tensors[Q] = (tensors[Q] / largest * 8).round() / 8 * largest

    edit(merged, quantize)
    assert "another base, or one that was quantized on the way" in failures_of(base, merged, adapter)


def test_one_value(copied):
    base, adapter, merged = copied

    def flip(tensors):
        tensors[Q][1, 2] += 1

    edit(merged, flip)
    said = failures_of(base, merged, adapter)
    assert "at 1 of" in said
    assert "quantized" not in said


def test_a_tied_side_forgotten(tmp_path):
    base, adapter = make_adapter(tmp_path, LLAMA, tie=True, target_modules=["lm_head"])
    said = failures_of(base, merge(base, adapter, tmp_path / "merged"), adapter)
    assert "the merge has to untie them" in said


def test_another_class_and_other_shapes(made, tmp_path):
    base, adapter, merged = made
    model = transformers.AutoModelForCausalLM.from_pretrained(merged)
    model.resize_token_embeddings(model.config.vocab_size + 8, mean_resizing=False)
    model.save_pretrained(tmp_path / "grown")
    assert "shapes: of A and B differ in" in failures_of(base, tmp_path / "grown", adapter)
    model.model.save_pretrained(tmp_path / "backbone")
    assert "shapes: B is a LlamaModel, A a LlamaForCausalLM" in failures_of(base, tmp_path / "backbone", adapter)


def test_options_that_say_nothing_here(made):
    base, adapter, merged = made
    assert_one_line(asked(base, merged, adapter, "--no-outputs"), 2, "a merge is replayed")
    assert_one_line(asked(base, merged, adapter, "--lens"), 2, "leave it out with --adapter")


def test_a_head_that_is_not_the_adapter_s_is_no_sign_of_another_base(tmp_path):
    config = {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}
    base, adapter = make_adapter(tmp_path, LLAMA, tie=False, **config)
    merged = merge(base, adapter, tmp_path / "merged")
    edit(merged, lambda tensors: tensors.update({"lm_head.weight": tensors["lm_head.weight"] + 1}))
    said = failures_of(base, merged, adapter)
    assert "'lm_head.weight' is not the adapter's" in said
    assert "leaves alone" not in said


def test_tensors_that_nothing_loads(copied):
    base, adapter, merged = copied
    edit(merged, lambda tensors: tensors.update({"left.lora_A.weight": torch.ones(2, 3)}))
    assert "B holds 1 tensor of no class of its config: left.lora_A.weight" in failures_of(base, merged, adapter)


def test_what_could_not_be_compared_stands_in_the_verdict(made, monkeypatch):
    base, adapter, merged = made
    monkeypatch.setattr("graftkit.verification.adapters.merged_weights.MODULE_BYTES", 0)
    done = asked(base, merged, adapter)
    assert done.returncode == 0, done.stdout
    assert "not compared: model.layers.0" in " ".join(done.stdout.split())
