"""The inits that start from examples, beside what peft makes of the same texts, seed and model."""

import json

import pytest
import torch
from safetensors.torch import load_file
from support import recipes

from graftkit.engine import apply, plan
from graftkit.errors import RecipeError
from graftkit.initializers.seeding import seed_of

TEXTS = [
    f"the {a} of {b} is not the {b} of {a}, since {a} and {b} differ" for a in "xyz" for b in ("one", "two", "three")
]
TARGETS = ["q_proj", "v_proj", "down_proj"]


@pytest.fixture
def base(sources):
    return sources


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    (folder / "texts.txt").write_text("\n\n".join(TEXTS) + "\n", encoding="utf-8")
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), encoding="utf-8")
    (folder / "short.txt").write_text("a b\n", encoding="utf-8")
    (folder / "empty.txt").write_text("\n \n", encoding="utf-8")
    (folder / "other.jsonl").write_text('{"text": "a b c"}\n{"txt": "a"}\n', encoding="utf-8")
    return folder


def recipe(source, output, **fields):
    operation = {"op": "add_lora", "r": 4, "lora_alpha": 8, "target_modules": TARGETS, **fields}
    return recipes.recipe(source, output, operation)


def batches(source):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source)
    return [tokenizer(text, return_tensors="pt", truncation=True, max_length=64) for text in TEXTS]


def peft_s(kind, source):
    """The model that peft's own recipe for the kind ends with."""
    from peft import LoraConfig, get_peft_model, initialize_lora_eva_weights
    from peft.tuners.lora.config import CordaConfig, EvaConfig, LoraGAConfig
    from peft.tuners.lora.corda import preprocess_corda
    from peft.tuners.lora.loraga import preprocess_loraga
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(source).eval()
    settings = {"eva": EvaConfig(rho=1.0), "corda": CordaConfig(), "lora_ga": LoraGAConfig()}[kind]
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules=TARGETS, init_lora_weights=kind, **{f"{kind}_config": settings}
    )
    torch.manual_seed(seed_of(0, 0, kind))
    with torch.random.fork_rng():
        if kind == "eva":
            adapted = get_peft_model(model, config)
            data = [{name: one[name] for name in ("input_ids", "attention_mask")} for one in batches(source)]
            initialize_lora_eva_weights(adapted, data, show_progress_bar=False)
            return adapted
        ids = [one["input_ids"] for one in batches(source)]
        if kind == "corda":
            preprocess_corda(model, config, lambda: [model(one) for one in ids])
        else:
            preprocess_loraga(model, config, lambda: [model(one, labels=one).loss.backward() for one in ids])
        return get_peft_model(model, config)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["eva", "corda", "lora_ga"])
def test_the_factors_are_peft_s_and_the_promise_holds(base, texts, kind, dtype, tmp_path):
    source = base("llama", dtype)
    report = apply(recipe(source, tmp_path / "out", init_lora_weights=kind, examples=str(texts / "texts.txt")))
    check = report.checks[0]
    assert (check.strength, check.gap.bitwise) == (("bitwise", True) if kind == "eva" else ("rounded", False))
    assert check.gradients.failures == ()
    ours = load_file(tmp_path / "out/adapter/adapter_model.safetensors")
    theirs = {name.replace(".default", ""): value for name, value in peft_s(kind, source).state_dict().items()}
    assert all(value.equal(theirs[name].float()) for name, value in ours.items())
    assert any(name.endswith("lora_B.weight") and value.any() for name, value in ours.items()) == (kind != "eva")
    config = json.loads((tmp_path / "out/adapter/adapter_config.json").read_text())
    assert "init_lora_weights" not in config  # peft would ask for the examples again
    assert report.plan.writes_base == (kind != "eva")
    if kind != "eva":
        written = load_file(tmp_path / "out/model.safetensors")
        for name in (name for name in written if name.removesuffix(".weight").endswith(tuple(TARGETS))):
            other = theirs[f"base_model.model.{name.removesuffix('.weight')}.base_layer.weight"]
            allowed = 1e-2 if dtype == "bfloat16" else 1e-6  # peft rounds more than once
            assert (written[name].float() - other.float()).norm() < allowed * other.float().norm()


@pytest.mark.parametrize("kind", ["corda", "lora_ga"])
def test_the_offset_form_leaves_the_base_alone(base, texts, kind, tmp_path):
    fields = {"init_lora_weights": kind, "examples": str(texts / "texts.jsonl"), "exact": True}
    report = apply(recipe(base("llama"), tmp_path / "out", **fields))
    assert report.checks[0].strength == "exact"
    assert not report.plan.writes_base
    assert json.loads((tmp_path / "out/adapter/adapter_config.json").read_text())["r"] == 8


def test_planning_runs_no_text(base, texts, tmp_path, monkeypatch):
    from graftkit.operations.adapters.data_factors import DataFactors

    monkeypatch.setattr(DataFactors, "run", None)
    planned = plan(
        recipe(base("llama"), tmp_path / "out", init_lora_weights="corda", examples=str(texts / "texts.txt"))
    )
    assert len(planned.adapter.tensors) == 12


@pytest.mark.parametrize(
    ("family", "fields", "message"),
    [
        ("llama", {"init_lora_weights": "eva", "examples": "none.txt"}, "none.txt: cannot be read"),
        ("llama", {"init_lora_weights": "eva", "examples": "empty.txt"}, "holds no text"),
        ("llama", {"init_lora_weights": "eva", "examples": "texts.csv"}, "texts.csv: cannot be read"),
        ("llama", {"init_lora_weights": "eva", "examples": "texts.doc"}, "is none of .txt, .jsonl, .csv, .parquet"),
        ("llama", {"init_lora_weights": "corda", "examples": "other.jsonl"}, "other.jsonl:2: has no field 'text'"),
        ("llama", {"init_lora_weights": "eva", "examples": "short.txt"}, "has 3 tokens, and 8 are needed"),
        ("llama", {"init_lora_weights": "lora_ga", "r": 20}, "is 32 x 32, smaller than twice the rank, 40"),
        ("llama", {"init_lora_weights": "eva", "config": {"eva_config": {"rho": 2}}}, "rho deals out ranks"),
        ("llama", {"init_lora_weights": "corda", "config": {"corda_config": {"cache_file": "x"}}}, "would be a pickle"),
        (
            "llama",
            {"init_lora_weights": "corda", "config": {"corda_config": {"methd": "x"}}},
            "peft refuses: TypeError",
        ),
        (
            "llama",
            {"init_lora_weights": "eva", "rank_pattern": {"q_proj": 2}},
            "which takes one rank; drop rank_pattern",
        ),
        (
            "bert_base",
            {"init_lora_weights": "corda", "target_modules": "all-linear"},
            "pooler.dense is not given one vector",
        ),
        (
            "llava",
            {"init_lora_weights": "eva", "target_modules": ["vision_tower.*q_proj"]},
            "texts do not run model.vision",
        ),
        ("t5", {"init_lora_weights": "eva", "target_modules": ["q"]}, "this is an encoder-decoder"),
        (
            "bert",
            {"init_lora_weights": "lora_ga", "target_modules": ["query"]},
            "needs the loss of a causal language model",
        ),
    ],
)
def test_what_cannot_start_from_examples_is_refused_with_the_reason(base, texts, family, fields, message, tmp_path):
    fields = {**fields, "examples": str(texts / fields.get("examples", "texts.txt"))}
    with pytest.raises(RecipeError, match=message):
        apply(recipe(base(family), tmp_path / "out", **fields))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"init_lora_weights": "eva"}, "eva starts from what texts give; name their file"),
        ({"init_lora_weights": "pissa", "examples": "texts.txt"}, "has no effect: only eva, corda, lora_ga"),
        ({"config": {"eva_config": {}}}, "has no effect: init_lora_weights is not eva"),
    ],
)
def test_examples_and_inits_that_do_not_belong_together_are_refused(fields, message, tmp_path):
    with pytest.raises(RecipeError, match=message):
        plan(recipe(tmp_path, tmp_path / "out", **fields))
