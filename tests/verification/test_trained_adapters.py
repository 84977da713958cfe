"""Adapters that were really trained: each merges as peft merges it, is resized and extracted to the bound, and verifies."""

import pytest
from support.command import here
from support.merges import check_merge
from support.recipes import applied, apply_by_command
from support.trained import Training, other_tensors

LLAMA, BERT, GPT2, T5 = (
    "LlamaForCausalLM", "BertForSequenceClassification", "GPT2LMHeadModel", "T5ForConditionalGeneration",
)  # fmt: skip
PATTERNS = {
    "target_modules": "all-linear",
    "rank_pattern": {"q_proj": 6, "layers.1.mlp.down_proj": 2},
    "alpha_pattern": {"k_proj": 3},
}

#: Kinds, dtypes, rates, numbers of steps and trainers; scripts/test --all crosses them in test_trained_sweep.py.
KINDS = {
    "lora": Training(LLAMA, rate=1e-4, trainer="SFTTrainer"),
    "one step": Training(LLAMA, rate=1e-5, steps=1),
    "rslora": Training(LLAMA, "float16", {"target_modules": "all-linear", "use_rslora": True}, 1e-3),
    "dora": Training(LLAMA, config={"use_dora": True}, rate=1e-3),
    "patterns": Training(LLAMA, "float32", PATTERNS, 1e-3, trainer="SFTTrainer"),
    "rows": Training(LLAMA, config={"trainable_token_indices": [5, 6, 40]}, rate=1e-3),
    "table": Training(LLAMA, "float32", {"target_modules": ["embed_tokens", "q_proj"]}, 1e-3),
    "heads": Training(LLAMA, config={"modules_to_save": ["lm_head"]}, rate=1e-3),
    "classifier, biases": Training(BERT, "float32", {"bias": "lora_only"}, 1e-3),
    "conv1d": Training(GPT2, config={"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}, rate=1e-3),
    "two sides": Training(T5, "float32", rate=1e-3),
    "bf16 factors": Training(LLAMA, rate=1e-3, narrow=True),
    "fp16 factors": Training(LLAMA, "float16", rate=1e-3, narrow=True, epsilon=1e-4),
}
every_kind = pytest.mark.parametrize("training", KINDS.values(), ids=KINDS)

#: What the sweep of trained adapters, behind --all, has as well.
SLOW = ("one step", "patterns", "table", "classifier, biases", "conv1d", "bf16 factors", "fp16 factors")


def some_kinds(*names):
    params = [pytest.param(KINDS[name], marks=[pytest.mark.slow] * (name in SLOW), id=name) for name in names]
    return pytest.mark.parametrize("training", params)


most_kinds = some_kinds(*KINDS)


def merge(adapter):
    return {"op": "merge_adapter", "adapter": str(adapter)}


def resize(adapter, rank):
    return {"op": "resize_adapter", "adapter": str(adapter), "r": rank}


@most_kinds
def test_merged_weights_are_peft_s_or_nearer_to_float64(trained, tmp_path, training):
    from safetensors.torch import load_file

    made = trained(training)
    output, report = applied(made.base, tmp_path, merge(made.adapter))
    ours = check_merge(made.base, made.adapter, made.class_name, output)
    before = load_file(made.base / "model.safetensors")
    assert any(not ours[name].equal(value) for name, value in before.items())
    check = report["checks"]["merged against adapted"]
    assert check["failures"] == []
    if training.steps == 1:
        assert 0 < min(weight["kept"] for weight in check["weights"]) < 0.1


@some_kinds("rslora", "dora", "patterns", "rows", "table", "classifier, biases", "two sides", "bf16 factors")
def test_a_larger_rank_keeps_every_product_to_the_bit(trained, tmp_path, training):
    from safetensors.torch import load_file

    made = trained(training)
    output, report = applied(made.base, tmp_path, resize(made.adapter, 9))
    check = report["checks"]["resized against old adapter"]
    assert all(product["exact"] and product["lost"] == 0 for product in check["products"])
    assert check["changed"] <= check["allowed"]
    old, new = (load_file(folder / "adapter_model.safetensors") for folder in (made.adapter, output / "adapter"))
    assert {name: value.dtype for name, value in old.items()} == {name: value.dtype for name, value in new.items()}
    for name, value in old.items():
        slices = tuple(slice(size) for size in value.shape)
        assert new[name][slices].equal(value)


@some_kinds("lora", "dora", "table", "classifier, biases", "bf16 factors", "fp16 factors")
def test_a_smaller_rank_loses_what_it_must_and_the_rounding_of_its_factors(trained, tmp_path, training):
    made = trained(training)
    _, report = applied(made.base, tmp_path, resize(made.adapter, 1))
    check = report["checks"]["resized against old adapter"]
    assert all(0 < product["least"] <= product["lost"] * (1 + 1e-12) < 1 for product in check["products"])


@every_kind
def test_a_trained_adapter_verifies(trained, training):
    made = trained(training)
    done = here("verify", made.base, "--adapter", made.adapter)
    assert done.returncode == 0, done.stdout
    assert "trained: it moves the outputs" in done.stdout.splitlines()[-1]


@some_kinds("dora", "patterns", "conv1d")
def test_the_difference_of_a_merged_model_comes_back(trained, tmp_path, training):
    made = trained(training)
    merged, _ = applied(made.base, tmp_path / "merged", merge(made.adapter))
    _, report = applied(made.base, tmp_path, {"op": "extract_lora", "fine_tuned": str(merged), "r": 400})
    check = report["checks"]["extracted adapter against fine-tuned"]
    assert all(lost <= check["allowed"][name] for name, lost in check["lost"].items())
    assert max(check["allowed"].values()) < 1e-9  # the whole difference, in float32
    assert check["missed"] < check["effect"]


WHOLE = {
    "bfloat16": Training(LLAMA, rate=1e-4, whole=True, trainer="SFTTrainer"),
    "float32": Training(LLAMA, "float32", rate=1e-5, whole=True),
    "gpt2": Training(GPT2, "float32", rate=1e-3, whole=True, steps=3),
}


@pytest.mark.parametrize("training", WHOLE.values(), ids=WHOLE)
def test_a_whole_fine_tuned_model_is_extracted(trained, tmp_path, training):
    made = trained(training)
    operation = {"op": "extract_lora", "fine_tuned": str(made.adapter), "energy": 0.9}
    done, _ = apply_by_command(made.base, tmp_path / "refused", operation)
    assert done.returncode == 2
    assert "changed outside linear layers" in done.stderr
    others = other_tensors(made)
    _, report = applied(made.base, tmp_path, operation | {"allow_lost": others})
    check = report["checks"]["extracted adapter against fine-tuned"]
    assert max(check["lost"].values()) <= 0.1
    assert check["missed"] < check["effect"]


DIVERGED = Training(LLAMA, "float16", rate=1e3, steps=3, narrow=True)


@pytest.mark.parametrize("rank", [2, 9])
def test_a_diverged_adapter_is_not_resized(trained, tmp_path, rank):
    made = trained(DIVERGED)
    done, output = apply_by_command(made.base, tmp_path, resize(made.adapter, rank))
    assert (done.returncode, len(done.stderr.splitlines()), output.exists()) == (3, 1, False)
    assert "not finite: the training diverged; take an earlier checkpoint" in done.stderr


def test_a_diverged_adapter_is_neither_merged_nor_verified(trained, tmp_path):
    made = trained(DIVERGED)
    done, output = apply_by_command(made.base, tmp_path, merge(made.adapter))
    assert done.returncode in (3, 4)
    assert (len(done.stderr.splitlines()), output.exists()) == (1, False)
    assert "finite" in done.stderr
    for options in ((), ("--no-outputs",)):
        done = here("verify", made.base, "--adapter", made.adapter, *options)
        assert done.returncode == 4
        assert "finite" in done.stdout or "holds NaN" in done.stdout


@pytest.mark.parametrize("choice", [{"r": 2}, {"energy": 0.9}], ids=["rank", "energy"])
def test_a_diverged_model_is_not_extracted(trained, tmp_path, choice):
    made = trained(Training(LLAMA, "float16", rate=1e3, steps=3, whole=True))
    operation = {"op": "extract_lora", "fine_tuned": str(made.adapter), **choice, "allow_lost": other_tensors(made)}
    done, output = apply_by_command(made.base, tmp_path, operation)
    assert (done.returncode, len(done.stderr.splitlines()), output.exists()) == (3, 1, False)
    assert "not finite" in done.stderr


def test_a_trained_adapter_is_merged_and_resized_beside_new_rows(trained, tmp_path):
    made = trained(KINDS["lora"])
    grow = {"op": "extend_vocab", "special_tokens": ["<|call|>"]}
    orders = {"merged": (grow, merge(made.adapter)), "merged first": (merge(made.adapter), grow)}
    for name, operations in {**orders, "resized": (grow, resize(made.adapter, 9))}.items():
        output, report = applied(made.base, tmp_path / name, *operations)
        assert report["verdict"].startswith("verified")
        assert "<|call|>" in (output / "tokenizer.json").read_text()
