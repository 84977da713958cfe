"""retarget_adapter: each factor lies on the weight that it was made for, under the names of another class, and does there what it did."""

import json

import pytest
import transformers
from safetensors.torch import load_file, save_file
from support.adapters import edit_adapter, load_adapted, make_adapter
from support.command import here
from support.families import build
from support.recipes import recipe
from support.tiny import build as tiny

from graftkit import engine
from graftkit.errors import InputRejected, RecipeError, VerificationFailed

LLAMA, BACKBONE, LLAVA = "LlamaForCausalLM", "LlamaModel", "LlavaForConditionalGeneration"
LORA = {"target_modules": ["q_proj", "down_proj"]}
INNER = {"target_modules": r".*language_model.*(q_proj|down_proj)"}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """A wrapper, and the text model inside it with the same values."""
    import torch
    import transformers

    root = tmp_path_factory.mktemp("bases")
    wrapper = transformers.LlavaForConditionalGeneration.from_pretrained(build("llava", root / "llava"))
    text = transformers.LlamaForCausalLM.from_pretrained(build("llama", root / "llama"))
    with torch.no_grad():
        text.model.load_state_dict(wrapper.model.language_model.state_dict())
        text.lm_head.load_state_dict(wrapper.lm_head.state_dict())
    text.save_pretrained(root / "llama")
    return root


@pytest.fixture(scope="module")
def adapter_of(bases, tmp_path_factory):
    made = {}

    def of(class_name, **config):
        key = (class_name, repr(config))
        if key not in made:
            base = bases / ("llava" if class_name == LLAVA else "llama")
            made[key] = make_adapter(tmp_path_factory.mktemp("adapter"), class_name, base=base, **config)[1]
        return made[key]

    return of


def retarget(base, adapter, output, **fields):
    return engine.apply(recipe(base, output, {"op": "retarget_adapter", "adapter": str(adapter), **fields}))


def config_of(folder):
    return json.loads((folder / "adapter/adapter_config.json").read_text())


def logits(model):
    import torch

    with torch.no_grad():
        return model(input_ids=torch.arange(4, 40)[None]).logits


PATTERNS = {**LORA, "task_type": "CAUSAL_LM", "rank_pattern": {"q_proj": 6}, "alpha_pattern": {r"layers\.1.*q_proj": 3}}
#: The class of the adapter, its config, and what the config says for the wrapper beside the targets.
TO_THE_WRAPPER = {
    "patterns": (LLAMA, PATTERNS, {
        "rank_pattern": {f"model.language_model.layers.{i}.self_attn.q_proj": 6 for i in range(2)},
        "alpha_pattern": {"model.language_model.layers.1.self_attn.q_proj": 3}, "task_type": "CAUSAL_LM",
    }),
    "layers, DoRA, rows": (LLAMA, {
        "target_modules": ["v_proj", "embed_tokens"], "exclude_modules": r".*layers\.0.*", "use_dora": True, "modules_to_save": ["lm_head"],
    }, {"modules_to_save": ["lm_head"]}),
    "one layer, tokens": (LLAMA, {
        "target_modules": ["down_proj"], "layers_to_transform": [1], "layers_pattern": "layers", "use_rslora": True,
        "trainable_token_indices": [5, 7],
    }, {"trainable_token_indices": {"model.language_model.embed_tokens": [5, 7]}}),
    "a backbone's": (BACKBONE, {"target_modules": r"layers\.\d\.mlp\.(up|down)_proj", "modules_to_save": ["embed_tokens"]}, {
        "modules_to_save": ["model.language_model.embed_tokens"], "task_type": None,
    }),
}  # fmt: skip


@pytest.mark.parametrize(("class_name", "config", "fields"), TO_THE_WRAPPER.values(), ids=TO_THE_WRAPPER)
def test_an_adapter_of_the_text_model_does_the_same_in_its_wrapper_and_comes_back(
    bases, adapter_of, tmp_path, class_name, config, fields
):
    adapter = adapter_of(class_name, **config)
    (check,) = retarget(bases / "llava", adapter, tmp_path / "out").checks
    assert check.outputs.source == class_name
    assert (check.outputs.changed, check.outputs.allowed) == (0, 0)
    assert check.outputs.effect > 1e-3
    assert check.outputs.ran == check.outputs.trained > 0
    written = config_of(tmp_path / "out")
    assert {name: written.get(name) for name in fields} == fields
    unset = ("layers_to_transform", "layers_pattern", "exclude_modules")
    assert not any(written.get(name) for name in unset)
    assert all(name.startswith(("model.language_model.", "lm_head")) for name in written["target_modules"])
    if class_name == LLAMA:  # plain transformers and peft, on two checkpoints with the same values
        one, other = (
            load_adapted(bases / base, folder, name)
            for base, folder, name in (("llama", adapter, LLAMA), ("llava", tmp_path / "out/adapter", LLAVA))
        )
        assert logits(one).equal(logits(other))
    retarget(bases / "llava", tmp_path / "out/adapter", tmp_path / "back", to=class_name)
    before, after = (load_file(path / "adapter_model.safetensors") for path in (adapter, tmp_path / "back/adapter"))
    assert before.keys() == after.keys()
    assert all(value.equal(after[name]) for name, value in before.items())


def test_an_adapter_of_the_wrapper_does_the_same_on_its_text_model(bases, adapter_of, tmp_path):
    adapter = adapter_of(LLAVA, **INNER)
    (check,) = retarget(bases / "llama", adapter, tmp_path / "out").checks
    assert (check.outputs.source, check.outputs.changed) == (LLAVA, 0)
    one, other = (
        load_adapted(bases / base, folder, name)
        for base, folder, name in (("llava", adapter, LLAVA), ("llama", tmp_path / "out/adapter", LLAMA))
    )
    assert logits(one).equal(logits(other))


def older(tensors):
    """The names that wrappers had in older releases of transformers."""
    return {name.replace("model.language_model.", "language_model.model."): value for name, value in tensors.items()}


@pytest.mark.parametrize("base", ["llava", "llama"])
def test_names_of_an_older_transformers_become_those_of_now(bases, adapter_of, tmp_path, base):
    adapter = adapter_of(LLAVA, target_modules=["up_proj", "down_proj"])  # the tower has none
    old = edit_adapter(adapter, tmp_path / "old", older)
    report = retarget(bases / base, old, tmp_path / "out")
    after = load_file(tmp_path / "out/adapter/adapter_model.safetensors")
    for name, value in load_file(adapter / "adapter_model.safetensors").items():
        now = name if base == "llava" else name.replace("model.language_model.", "model.")
        assert after[now].equal(value)
    if base == "llava":
        assert report.checks[0].outputs.source == LLAVA
        assert report.checks[0].outputs.changed == 0


@pytest.mark.parametrize(("base", "inner"), [("llava", "model.language_model."), ("llama", "model.")])
def test_tables_by_older_names_come_along(bases, adapter_of, tmp_path, base, inner):
    adapter = adapter_of(LLAVA, target_modules=["up_proj"], modules_to_save=["lm_head", "embed_tokens"])

    def old_names(tensors):
        return {name.replace(".lm_head.", ".language_model.lm_head."): value for name, value in older(tensors).items()}

    old = edit_adapter(adapter, tmp_path / "old", old_names)
    retarget(bases / base, old, tmp_path / "out")
    after = load_file(tmp_path / "out/adapter/adapter_model.safetensors")
    before = load_file(adapter / "adapter_model.safetensors")
    assert {name.replace("model.language_model.", inner) for name in before} == after.keys()
    assert all(after[name.replace("model.language_model.", inner)].equal(value) for name, value in before.items())
    assert config_of(tmp_path / "out")["modules_to_save"] == ["lm_head", f"{inner}embed_tokens"]


def test_rows_of_a_table_that_is_tied_under_the_head_are_the_head_s_too(tmp_path, sources):
    base = sources("llama_tied")
    config = {"target_modules": ["q_proj"], "trainable_token_indices": [4]}
    _, adapter = make_adapter(tmp_path, BACKBONE, base=base, **config)
    (check,) = retarget(base, adapter, tmp_path / "out").checks
    assert check.weights == 4  # two products, the rows, and those of the output table
    assert (check.outputs.source, check.outputs.changed) == (BACKBONE, 0)


@pytest.mark.parametrize("to", ["RobertaForMaskedLM", "RobertaForTokenClassification"])
def test_a_backbone_s_adapter_gets_the_prefix_of_a_head(tmp_path, sources, to):
    base = sources("roberta")
    config = {"target_modules": r"encoder\.layer\.\d.*(query|value)", "bias": "lora_only"}
    _, adapter = make_adapter(tmp_path, "RobertaModel", base=base, **config)
    own = {} if to == "RobertaForMaskedLM" else {"to": to}
    report = retarget(base, adapter, tmp_path / "out", **own)
    outputs = report.checks[0].outputs  # of a class whose head is in no checkpoint, the hidden states
    assert (outputs.source, outputs.changed) == ("RobertaModel", 0)
    names = load_file(tmp_path / "out/adapter/adapter_model.safetensors")
    assert all(name.startswith("base_model.model.roberta.encoder.layer.") for name in names)


def per_expert(folder, rank=2, prefix="base_model.model.model.layers.{}."):
    """An adapter of the small Mixtral as peft saved it when each expert was a module."""
    import torch

    generator, tensors = torch.Generator().manual_seed(0), {}
    shapes = {f"block_sparse_moe.experts.{e}.{w}": (64, 32) for e in range(4) for w in ("w1", "w3")}
    shapes |= {f"block_sparse_moe.experts.{e}.w2": (32, 64) for e in range(4)} | {"self_attn.q_proj": (32, 32)}
    for layer in range(2):
        for module, (rows, columns) in shapes.items():
            name = prefix.format(layer) + module
            tensors[f"{name}.lora_A.weight"] = torch.randn(rank, columns, generator=generator) * 0.1
            tensors[f"{name}.lora_B.weight"] = torch.randn(rows, rank, generator=generator) * 0.1
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 4, "target_modules": ["w1", "w2", "w3", "q_proj"],
              "base_model_name_or_path": "some/where"}  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_experts_of_their_own_are_joined_as_peft_joins_them(tmp_path, sources):
    base, adapter = sources("mixtral"), per_expert(tmp_path / "adapter")
    report = retarget(base, adapter, tmp_path / "out")
    assert (report.checks[0].outputs.source, report.checks[0].outputs.changed) == ("MixtralForCausalLM", 0)
    names = load_file(tmp_path / "out/adapter/adapter_model.safetensors")
    assert {name.partition("layers.0.")[2] for name in names if ".experts." in name} > {"mlp.experts.lora_A.weight"}
    one, other = (load_adapted(base, folder, "MixtralForCausalLM") for folder in (adapter, tmp_path / "out/adapter"))
    assert logits(one).equal(logits(other))

    def one_sign(tensors):
        name = next(name for name in tensors if ".experts.base_layer.lora_B" in name)
        tensors[name][3] *= -1
        return tensors

    wrong = edit_adapter(tmp_path / "out/adapter", tmp_path / "wrong", one_sign)
    failures = compared(report, base, adapter, wrong).failures
    assert any("is not that of the weights which it joins" in failure for failure in failures)


def test_experts_are_not_joined_and_renamed_at_once_nor_parted(tmp_path, sources, bases, adapter_of):
    backbone = per_expert(tmp_path / "backbone", prefix="base_model.model.layers.{}.")
    with pytest.raises(InputRejected, match="has weights of experts that are fused now, and another prefix"):
        retarget(sources("mixtral"), backbone, tmp_path / "out")

    def on_the_block(tensors):
        return {name.replace(".down_proj", ""): value for name, value in tensors.items() if ".down_proj" in name}

    fused = edit_adapter(adapter_of(LLAMA, **LORA), tmp_path / "fused", on_the_block)
    with pytest.raises(
        InputRejected, match="'model.layers.0.mlp' .* holds modules of its own, into which peft parts no"
    ):
        retarget(bases / "llama", fused, tmp_path / "out")


def test_a_module_without_a_place_is_named_with_the_nearest(bases, adapter_of, tmp_path):
    both = adapter_of(LLAVA, target_modules=["q_proj"])
    words = (
        r"'model.vision_tower.encoder.layers.0.self_attn.q_proj' \(one of 2\) of the adapter finds no place of its shape in"
        r" LlamaForCausalLM, though 2 other modules would; nearest names: model.layers.0.self_attn.q_proj"
    )
    with pytest.raises(InputRejected, match=words):
        retarget(bases / "llama", both, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_where_two_places_fit_the_class_decides_or_both_are_named(bases, adapter_of, tmp_path):
    adapter = adapter_of(LLAMA, target_modules=["q_proj"])  # the tower's have the same shape
    retarget(bases / "llava", adapter, tmp_path / "out")
    names = load_file(tmp_path / "out/adapter/adapter_model.safetensors")
    assert all(".language_model." in name for name in names)
    unknown = edit_adapter(adapter, tmp_path / "unknown", auto_mapping=None, base_model_name_or_path="some/where")
    text = tmp_path / "llava"
    text.mkdir()
    for path in (bases / "llava").iterdir():
        (text / path.name).write_bytes(path.read_bytes())
    config = json.loads((text / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 1
    renamed = edit_adapter(
        unknown, tmp_path / "renamed", lambda held: {n.replace("model.layers", "x.layers"): v for n, v in held.items()}
    )
    with pytest.raises(InputRejected, match="may be any of model.language_model.layers.0.* model.vision_tower.encoder"):
        retarget(text, renamed, tmp_path / "never")


def test_names_that_peft_changes_when_it_loads_them_are_said_to_be_so(tmp_path):
    """It renames what has the names of now once more, so that no adapter of the shared experts loads on this class."""
    if not hasattr(transformers, "MistralLarge4ForConditionalGeneration"):
        pytest.skip("this release of transformers has no such class")
    tiny("MistralLarge4ForConditionalGeneration", tmp_path / "base")
    _, adapter = make_adapter(
        tmp_path, "MistralLarge4TextModel", base=tmp_path / "base", target_modules=r".*shared_experts\.down_proj"
    )
    with pytest.raises(
        InputRejected, match=r"'.*mlp\.mlp\.shared_experts.*; the name is none of the adapter's: peft makes it"
    ):
        retarget(tmp_path / "base", adapter, tmp_path / "out")


def test_what_needs_no_other_names_or_no_such_class_is_said(bases, adapter_of, tmp_path):
    adapter = adapter_of(LLAVA, **INNER)
    with pytest.raises(RecipeError, match="every name of the adapter is one of Llava.* already"):
        retarget(bases / "llava", adapter, tmp_path / "out")
    for to, words in (
        ("Nothing", "is not a model class"),
        ("BertModel", "takes a BertConfig"),
        ("PreTrainedModel", "is a base class"),
    ):
        with pytest.raises(RecipeError, match=rf"^operations.0.to: .*{words}"):
            retarget(bases / "llava", adapter, tmp_path / "out", to=to)
    other = edit_adapter(adapter, tmp_path / "other", peft_type="IA3")
    with pytest.raises(InputRejected, match="is a IA3; retarget_adapter renames LoRA alone"):
        retarget(bases / "llama", other, tmp_path / "out")


def test_old_and_new_names_in_one_file_are_refused(bases, adapter_of, tmp_path):
    adapter = adapter_of(LLAVA, **INNER)
    twice = edit_adapter(
        adapter, tmp_path / "twice", lambda held: {**held, **{n: v.clone() for n, v in older(held).items()}}
    )
    with pytest.raises(InputRejected, match="holds tensors by old and by new names, of which only one can be meant"):
        retarget(bases / "llava", twice, tmp_path / "out")


# What a check is there for.


def compared(report, base, old, new, places=None):
    from graftkit.verification.adapters.retargeted import compare_retargeted

    check = report.plan.outcomes[0].checks[0]
    return compare_retargeted(base, old, new, places or check.places, check.to)


def without_one(tensors):
    return dict(list(tensors.items())[1:])


def last_bit(tensors):
    import torch

    name = next(iter(tensors))
    tensors[name].view(-1)[0] = torch.nextafter(tensors[name].view(-1)[0], torch.tensor(torch.inf))
    return tensors


def layers_swapped(tensors):
    swap = {"layers.0": "layers.1", "layers.1": "layers.0"}
    return {
        next(name.replace(old, new) for old, new in swap.items() if old in name): value
        for name, value in tensors.items()
    }


def one_more(tensors):
    import torch

    name = "base_model.model.model.language_model.layers.0.self_attn.k_proj"
    return {**tensors, f"{name}.lora_A.weight": torch.ones(4, 32), f"{name}.lora_B.weight": torch.ones(16, 4)}


MORE = [f"language_model.layers.{i}.{name}" for i in range(2) for name in ("self_attn.q_proj", "mlp.down_proj")]
FAULTS = {
    "one more product": (
        one_more,
        {"target_modules": [*MORE, "language_model.layers.0.self_attn.k_proj"]},
        "is changed too",
    ),
    "a tensor is missing": (without_one, {}, "is missing"),
    "a last bit": (last_bit, {}, "gets something else"),
    "layers swapped": (layers_swapped, {}, "gets something else"),
    "another scaling": (None, {"lora_alpha": 9}, "gets something else"),
}


@pytest.fixture(scope="module")
def done(bases, adapter_of, tmp_path_factory):
    """An adapter, the report of its retargeting, and the new adapter."""
    output = tmp_path_factory.mktemp("done") / "out"
    return adapter_of(LLAMA, **LORA), retarget(bases / "llava", adapter_of(LLAMA, **LORA), output), output / "adapter"


@pytest.mark.parametrize(("change", "fields", "words"), FAULTS.values(), ids=FAULTS)
def test_a_planted_fault_is_caught(bases, done, tmp_path, change, fields, words):
    adapter, report, new = done
    wrong = edit_adapter(new, tmp_path / "wrong", change, **fields)
    assert any(words in failure for failure in compared(report, bases / "llava", adapter, wrong).failures)


def test_what_was_written_has_no_failures(bases, done):
    adapter, report, new = done
    assert compared(report, bases / "llava", adapter, new).failures == ()


def test_places_that_are_wrong_are_caught_by_the_outputs(bases, done, tmp_path):
    """Every product is where the operation says, and that is another layer."""
    from dataclasses import replace

    adapter, report, new = done
    wrong = edit_adapter(new, tmp_path / "wrong", layers_swapped)
    places = report.plan.outcomes[0].checks[0].places
    swapped = replace(
        places, modules={old: new.translate(str.maketrans("01", "10")) for old, new in places.modules.items()}
    )
    found = compared(report, bases / "llava", adapter, wrong, swapped)
    assert found.outputs.source == LLAMA
    (failure,) = found.failures
    assert failure.startswith("outputs: ")
    assert "from the old adapter's on LlamaForCausalLM with the same weights; 0 is allowed" in failure


def test_a_trained_adapter_without_effect_writes_nothing(bases, adapter_of, tmp_path):
    def faint(tensors):
        return {name: value * (1e-30 if "lora_B" in name else 1) for name, value in tensors.items()}

    adapter = edit_adapter(adapter_of(LLAMA, **LORA), tmp_path / "faint", faint)
    with pytest.raises(VerificationFailed, match="though 4 trained modules ran: the adapter has no effect"):
        retarget(bases / "llava", adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_forward_that_the_adapter_stops_is_a_failure(tmp_path):
    """This router returns two tensors, and peft adds its product to one."""
    tiny("Llama4ForCausalLM", tmp_path / "base")
    _, adapter = make_adapter(tmp_path, "Llama4TextModel", base=tmp_path / "base", target_modules=["router"])
    with pytest.raises(VerificationFailed, match="does not run with the adapter: AttributeError"):
        retarget(tmp_path / "base", adapter, tmp_path / "out")


def test_an_untrained_adapter_and_one_that_no_probe_runs_are_said_to_be(bases, adapter_of, tmp_path):
    def at_start(tensors):
        return {name: value * (0 if "lora_B" in name else 1) for name, value in tensors.items()}

    start = edit_adapter(adapter_of(LLAMA, **LORA), tmp_path / "start", at_start)
    report = retarget(bases / "llava", start, tmp_path / "out")
    assert ("effect of the adapter", "none") in {row[:2] for row in report.checks[0].rows()}
    tower = adapter_of(LLAVA, target_modules=r".*vision_tower.*q_proj")
    before = edit_adapter(
        tower, tmp_path / "before", lambda held: {n.replace("model.vision_tower.", "vision_tower."): v for n, v in held.items()},
        target_modules=["q_proj"],
    )  # fmt: skip
    report = retarget(bases / "llava", before, tmp_path / "images")
    assert ("effect of the adapter", "not measured") in {row[:2] for row in report.checks[0].rows()}


def test_on_a_quantized_base_products_are_compared_and_outputs_are_not(bases, adapter_of, tmp_path):
    base = tmp_path / "quantized"
    base.mkdir()
    for path in (bases / "llava").iterdir():
        (base / path.name).write_bytes(path.read_bytes())
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(
        json.dumps({**config, "quantization_config": {"quant_method": "gptq", "bits": 4}})
    )
    (check,) = retarget(base, adapter_of(LLAMA, **LORA), tmp_path / "out").checks
    assert (check.weights, check.outputs) == (4, None)
    assert "quantized" in check.not_run


def test_the_recipe_of_the_project(demo, tmp_path):
    _, adapter = make_adapter(tmp_path / "lora", LLAMA, base=demo, target_modules=["q_proj"], task_type="CAUSAL_LM")
    done = here(
        "apply", "recipes/retarget_adapter.yaml", f"operations.0.adapter={adapter}", "--output", tmp_path / "out"
    )
    assert done.returncode == 0, done.stderr
    assert "effect of the adapter" in done.stdout
    assert not (tmp_path / "out/model.safetensors").exists()
    names = load_file(tmp_path / "out/adapter/adapter_model.safetensors")
    assert all(name.startswith("base_model.model.layers.") for name in names)
    load_adapted(demo, tmp_path / "out/adapter", BACKBONE)
