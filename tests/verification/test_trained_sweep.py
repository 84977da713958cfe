"""Every kind of trained adapter, on bases of every dtype, at rates from 1e-5 to 1e-3 and 1 to 200 steps, by both trainers."""

import json

import pytest
from support.command import here
from support.merges import check_merge
from support.recipes import applied, apply_by_command
from support.trained import Training, other_tensors, train

LLAMA = "LlamaForCausalLM"
ALL = {"target_modules": "all-linear"}

#: Kinds of adapters on a small Llama, all of which both trainers can train.
KINDS = {
    "lora": {},
    "rslora": {**ALL, "use_rslora": True},
    "dora": {"use_dora": True},
    "patterns": {**ALL, "rank_pattern": {"q_proj": 6, "layers.1.mlp.down_proj": 2}, "alpha_pattern": {"k_proj": 3}},
    "rows": {"trainable_token_indices": [5, 6, 40]},
    "heads": {"modules_to_save": ["lm_head"]},
    "table": {"target_modules": ["embed_tokens", "q_proj"]},
}
RATES = [(1e-5, 1), (1e-5, 200), (1e-4, 20), (1e-3, 1), (1e-3, 200)]

#: Other classes, each with what is particular to it.
OTHERS = {
    "BertForSequenceClassification": {"bias": "lora_only"},
    "BertForMaskedLM": {**ALL, "bias": "all"},
    "GPT2LMHeadModel": {"target_modules": ["c_attn", "c_fc", "c_proj"], "fan_in_fan_out": True},
    "T5ForConditionalGeneration": {"use_dora": True},
    "MixtralForCausalLM": {"target_modules": ["q_proj"], "target_parameters": ["gate_up_proj", "down_proj"]},
}
DTYPES = ["float32", "bfloat16", "float16"]


def crossed():
    for kind, config in KINDS.items():
        for place, dtype in enumerate(DTYPES):
            for index, (rate, steps) in enumerate(RATES):
                trainer = ("Trainer", "SFTTrainer")[(place + index) % 2]
                yield pytest.param(
                    Training(LLAMA, dtype, config, rate, steps, trainer),
                    id=f"{kind}-{dtype}-{rate:g}-{steps}-{trainer}",
                )
    for class_name, config in OTHERS.items():
        for dtype in DTYPES:
            for rate, steps in RATES[2:]:
                yield pytest.param(
                    Training(class_name, dtype, config, rate, steps), id=f"{class_name}-{dtype}-{rate:g}-{steps}"
                )
    for dtype in DTYPES[1:]:
        for rate, steps in RATES:
            yield pytest.param(
                Training(LLAMA, dtype, ALL, rate, steps, narrow=True, epsilon=1e-4),
                id=f"narrow-{dtype}-{rate:g}-{steps}",
            )


@pytest.mark.slow
@pytest.mark.parametrize("training", list(crossed()))
def test_merge_resize_extract_and_verify_are_right(tmp_path, training):
    made = train(training, tmp_path)
    adapter = {"adapter": str(made.adapter)}
    merged, _ = applied(made.base, tmp_path / "merged", {"op": "merge_adapter", **adapter})
    check_merge(made.base, made.adapter, made.class_name, merged)
    for rank in (1, 9):
        output, report = applied(made.base, tmp_path / f"r{rank}", {"op": "resize_adapter", **adapter, "r": rank})
        products = report["checks"]["resized against old adapter"]["products"]
        assert {(product["exact"], product["shrunk"]) for product in products} == {(rank == 9, rank == 1)}
        assert here("verify", made.base, "--adapter", output / "adapter").returncode == 0
    done = here("verify", made.base, "--adapter", made.adapter)
    assert (done.returncode, "trained: it moves the outputs" in done.stdout) == (0, True), done.stdout
    extract = {"op": "extract_lora", "fine_tuned": str(merged), "r": 4}
    done, output = apply_by_command(made.base, tmp_path / "extracted", extract)
    if (
        done.returncode
    ):  # changes outside linear layers are for the recipe to settle; that nothing changed is the input's
        assert (done.returncode, len(done.stderr.splitlines())) == (2 if "allow_lost" in done.stderr else 3, 1)
        assert "linear" in done.stderr
    else:
        check = json.loads((output / "graft_report.json").read_text())["checks"]["extracted adapter against fine-tuned"]
        assert all(lost <= check["allowed"][name] for name, lost in check["lost"].items())


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("trainer", ["Trainer", "SFTTrainer"])
@pytest.mark.parametrize(("rate", "steps"), RATES)
def test_a_whole_model_is_extracted(tmp_path, dtype, trainer, rate, steps):
    made = train(Training(LLAMA, dtype, {}, rate, steps, trainer, whole=True, epsilon=1e-4), tmp_path)
    operation = {"op": "extract_lora", "fine_tuned": str(made.adapter), "energy": 0.9, "allow_lost": ["model.norm"]}
    done, _ = apply_by_command(made.base, tmp_path / "refused", operation)
    assert done.returncode in (2, 3)
    others = other_tensors(made)
    _, report = applied(made.base, tmp_path, {**operation, "allow_lost": others})
    check = report["checks"]["extracted adapter against fine-tuned"]
    assert all(lost <= check["allowed"][name] for name, lost in check["lost"].items())
    assert max(check["lost"].values()) <= 0.1


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_demo_model_trained_by_trl_merges(tmp_path, dtype):
    made = train(Training(dtype=dtype, trainer="SFTTrainer"), tmp_path)
    output, report = applied(made.base, tmp_path / "merged", {"op": "merge_adapter", "adapter": str(made.adapter)})
    check_merge(made.base, made.adapter, made.class_name, output)
    if dtype == "bfloat16":
        assert min(weight["kept"] for weight in report["checks"]["merged against adapted"]["weights"]) < 1
    assert here("verify", made.base, "--adapter", made.adapter).returncode == 0
