"""merge_adapter beside peft's own merge, on small bases of several families."""

import dataclasses
import json
import shutil

import pytest
from support.adapters import edit_adapter, load_adapted, make_adapter, merged_by_peft

from graftkit import engine
from graftkit.architecture.peft.edits import Factors
from graftkit.checkpoint.safetensors_header import read_header
from graftkit.errors import InputRejected
from graftkit.operations.adapters import merge as low_rank

CAUSAL = "CAUSAL_LM"
LLAMA, GPT2, MIXTRAL = "LlamaForCausalLM", "GPT2LMHeadModel", "MixtralForCausalLM"
CONV1D = {"fan_in_fan_out": True, "task_type": CAUSAL}
EXPERTS = {"target_modules": ["q_proj"], "target_parameters": ["gate_up_proj", "down_proj"], "task_type": CAUSAL}

#: Class, keywords of the base, and the adapter's config.
FAMILIES = {
    "llama, rsLoRA, patterns": (LLAMA, {}, {"target_modules": "all-linear", "task_type": CAUSAL, "use_rslora": True,
                                            "rank_pattern": {"q_proj": 6}, "alpha_pattern": {"k_proj": 3}}),
    "llama, DoRA, embedding": (LLAMA, {}, {"target_modules": ["q_proj", "embed_tokens"], "use_dora": True}),
    "llama, token rows of both tables": (LLAMA, {}, {"target_modules": ["q_proj"], "trainable_token_indices":
                                                     {"embed_tokens": [7, 3, 300], "lm_head": [5]}}),
    "llama, whole tables": (LLAMA, {}, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]}),
    "tied llama, token rows": (LLAMA, {"tie": True}, {"target_modules": ["q_proj"], "trainable_token_indices": [9, 2]}),
    "tied llama, own head": (LLAMA, {"tie": True}, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "gpt2, Conv1D, biases": (GPT2, {}, {"target_modules": ["c_attn", "c_proj"], "lora_bias": True, **CONV1D}),
    "gpt2, Conv1D, DoRA": (GPT2, {}, {"target_modules": ["c_fc"], "use_dora": True, **CONV1D}),
    "gpt2, trained biases": (GPT2, {}, {"target_modules": ["c_attn"], "bias": "all", **CONV1D}),
    "bert, head": ("BertForSequenceClassification", {}, {"target_modules": ["query", "value"], "task_type": "SEQ_CLS"}),
    "t5": ("T5ForConditionalGeneration", {}, {"target_modules": ["q", "wo"], "task_type": "SEQ_2_SEQ_LM"}),
    "mixtral, experts": (MIXTRAL, {}, EXPERTS),
    "gpt-oss, transposed experts": ("GptOssForCausalLM", {}, EXPERTS),
}  # fmt: skip


def merge(base, adapter, output, **recipe):
    operation = {"op": "merge_adapter", "adapter": str(adapter)}
    return engine.apply(
        {"version": 1, "base_model": str(base), "operations": [operation], "output": str(output), **recipe}
    )


def state(directory, class_name):
    import transformers

    model, info = getattr(transformers, class_name).from_pretrained(directory, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return model.state_dict()


SLOW = ("llama, whole tables", "gpt2, Conv1D, DoRA", "t5", "tied llama, own head")


@pytest.mark.parametrize(
    ("class_name", "base", "config"),
    [pytest.param(*case, id=name, marks=[pytest.mark.slow] * (name in SLOW)) for name, case in FAMILIES.items()],
)
def test_fp32_equals_peft_to_the_last_bit(tmp_path, class_name, base, config):
    source, adapter = make_adapter(tmp_path, class_name, **base, **config)
    report = merge(source, adapter, tmp_path / "out")
    wanted, found = merged_by_peft(source, adapter, class_name), state(tmp_path / "out", class_name)
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if not wanted[name].equal(found[name])] == []
    (check,) = report.checks
    assert not check.skipped
    assert max(output.ratio for output in check.outputs) < 2


@pytest.mark.parametrize("config", [{"target_modules": ["q_proj", "embed_tokens"]}, EXPERTS], ids=["tables", "experts"])
def test_bf16_is_rounded_once_and_never_worse_than_peft(tmp_path, config):
    import torch

    source, adapter = make_adapter(tmp_path, MIXTRAL, dtype="bfloat16", **config)
    merge(source, adapter, tmp_path / "out")
    by_peft, found = merged_by_peft(source, adapter, MIXTRAL), state(tmp_path / "out", MIXTRAL)
    model = load_adapted(source, adapter, MIXTRAL).double()
    exact = model.merge_and_unload().state_dict()
    changed = [name for name in exact if not exact[name].to(torch.bfloat16).equal(state(source, MIXTRAL)[name])]
    assert changed
    better = 0
    for name in changed:
        ours, theirs = ((values[name].double() - exact[name]).norm() for values in (found, by_peft))
        assert ours <= theirs
        better += bool(ours < theirs)
        assert (found[name] != exact[name].float().to(torch.bfloat16)).float().mean() < 1e-3
    assert better


@pytest.mark.parametrize("layout", ["linear", "transposed"])
def test_rows_that_are_folded_block_by_block_are_rounded_once(tmp_path, monkeypatch, layout):
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    weight, a, b = torch.randn(50, 24).bfloat16(), torch.randn(4, 24), torch.randn(50, 4)
    if layout == "transposed":
        a, b = torch.randn(4, 50), torch.randn(24, 4)
    save_file({"weight": weight, "a": a, "b": b.contiguous()}, tmp_path / "x.safetensors")
    stored = read_header(tmp_path / "x.safetensors").tensors
    monkeypatch.setattr(low_rank, "BLOCK", 7 * 48)
    monkeypatch.setattr(low_rank, "WIDENED", 3 * 24)
    edit = Factors("weight", stored["a"], stored["b"], 4, 0.3, layout)
    made = low_rank.edited(stored["weight"], (edit,))
    found = torch.frombuffer(bytearray(b"".join(piece.produce() for piece in made.segments())), dtype=torch.bfloat16)
    assert [piece.nbytes for piece in made.segments()] == [7 * 48] * 7 + [48]
    product = b.double() @ a.double()
    exact = weight.double() + 0.3 * (product.T if layout == "transposed" else product)
    assert torch.equal(found.view(50, 24), exact.float().bfloat16())


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_one_side_of_a_tied_pair_is_untied_and_compared_unmerged(tmp_path, target):
    import torch
    import transformers

    source, adapter = make_adapter(tmp_path, LLAMA, tie=True, target_modules=["q_proj", target])
    report = merge(source, adapter, tmp_path / "out")
    assert json.loads((tmp_path / "out/config.json").read_text())["tie_word_embeddings"] is False
    assert any("was tied" in note for note in report.plan.outcomes[0].notes)
    ids = torch.arange(40)[None]
    with torch.no_grad():
        adapted = load_adapted(source, adapter, LLAMA)(ids).logits
        by_peft = load_adapted(source, adapter, LLAMA).merge_and_unload()(ids).logits
        merged = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out")(ids).logits
    assert (merged - adapted).abs().max() < 1e-5
    assert (by_peft - adapted).abs().max() > 1e-2


def test_an_adapter_with_one_pair_for_each_expert_is_converted_as_peft_does(tmp_path):
    import torch
    from safetensors.torch import load_file

    source, adapter = make_adapter(tmp_path, MIXTRAL, target_modules=["q_proj"], task_type=CAUSAL)
    base, torch_state = load_file(source / "model.safetensors"), {}
    generator = torch.Generator().manual_seed(1)
    experts = [name for name in base if ".experts." in name]
    for name in experts:
        out, wide = base[name].shape
        key = "base_model.model." + name.removesuffix(".weight")
        torch_state[f"{key}.lora_A.weight"] = torch.randn(4, wide, generator=generator)
        torch_state[f"{key}.lora_B.weight"] = torch.randn(out, 4, generator=generator)
    old = edit_adapter(
        adapter, tmp_path / "old", lambda tensors: tensors | torch_state, target_modules=["q_proj", "w1", "w2", "w3"]
    )
    merge(source, old, tmp_path / "out")
    wanted, found = merged_by_peft(source, old, MIXTRAL), state(tmp_path / "out", MIXTRAL)
    assert all(wanted[name].equal(found[name]) for name in wanted)
    name = experts[0]
    a, b = (torch_state[f"base_model.model.{name.removesuffix('.weight')}.lora_{x}.weight"] for x in "AB")
    written = load_file(tmp_path / "out/model.safetensors")[name]
    assert torch.allclose(written, base[name] + 2 * b @ a, atol=1e-5)


def test_an_adapter_trained_on_new_rows_merges_behind_extend_vocab(tmp_path):
    from support.tiny import build

    build(LLAMA, tmp_path / "base")
    extend = {"op": "extend_vocab", "special_tokens": [f"<new{i}>" for i in range(12)]}
    recipe = {"version": 1, "base_model": str(tmp_path / "base"), "operations": [extend]}
    engine.apply(recipe | {"output": str(tmp_path / "extended")})
    config = {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [330, 334], "lm_head": [334]}}
    _, adapter = make_adapter(tmp_path, LLAMA, base=tmp_path / "extended", **config)
    both = [extend, {"op": "merge_adapter", "adapter": str(adapter)}]
    engine.apply(recipe | {"operations": both, "output": str(tmp_path / "out")})
    wanted = merged_by_peft(tmp_path / "extended", adapter, LLAMA)
    found = state(tmp_path / "out", LLAMA)
    assert all(wanted[name].equal(found[name]) for name in wanted)


@pytest.mark.parametrize("rows", [12, 2], ids=["the table grows", "free rows are taken"])
def test_new_tokens_come_behind_a_merge(tmp_path, rows):
    """The merge is compared over the old ids, and the new rows are made of the merged table."""
    from safetensors.torch import load_file
    from support.families import ROWS, build

    build("llama", tmp_path / "base", **({"tokens": ROWS} if rows == 12 else {}))
    config = {"target_modules": ["q_proj", "lm_head", "embed_tokens"]}
    source, adapter = make_adapter(tmp_path, LLAMA, base=tmp_path / "base", **config)
    extend = {"op": "extend_vocab", "special_tokens": [f"<new{i}>" for i in range(rows)]}
    operations = [{"op": "merge_adapter", "adapter": str(adapter)}, extend]
    recipe = {"version": 1, "base_model": str(source), "operations": operations}
    report = engine.apply({**recipe, "output": str(tmp_path / "out")})
    (check,) = report.checks
    assert not check.skipped
    assert len(check.outputs) > 1
    found, wanted = load_file(tmp_path / "out/model.safetensors"), merged_by_peft(source, adapter, LLAMA)
    ids = sorted(report.plan.new_tokens.values())
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        assert found[name][: ids[0]].equal(wanted[name][: ids[0]])
        mean = wanted[name][: ids[0]].double().mean(0)
        assert (found[name][ids].double() - mean).abs().max() < 2**-20 * mean.abs().max()


def test_another_head_comes_behind_a_merge(tmp_path):
    """The merge is then compared over what both models have: the backbone's weights and hidden states."""
    config = {"target_modules": ["q_proj", "lm_head"]}
    source, adapter = make_adapter(tmp_path, LLAMA, **config)
    head = {"op": "replace_head", "task": "sequence_classification", "labels": ["a", "b"], "pad_token": "<pad>"}
    operations = [{"op": "merge_adapter", "adapter": str(adapter)}, head]
    recipe = {"version": 1, "base_model": str(source), "operations": operations}
    report = engine.apply({**recipe, "output": str(tmp_path / "out")})
    check = next(check for check in report.checks if check.name == "merged against adapted")
    assert {weight.name for weight in check.weights} == {
        f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 1)
    }
    assert check.outputs
    assert all("hidden" in output.name for output in check.outputs)
    planned = engine.plan({**recipe, "output": str(tmp_path / "never")})
    subject = engine.behind(engine.subject_of(planned, tmp_path / "out"), planned.outcomes[0], planned.outcomes[1:])
    (merge, _), broken = (
        (outcome.checks for outcome in planned.outcomes),
        shutil.copytree(tmp_path / "out", tmp_path / "broken"),
    )
    spoil(broken, "model.layers.1.self_attn.q_proj.weight")
    failures = merge[0].run(dataclasses.replace(subject, result=broken)).failures
    assert "'model.layers.1.self_attn.q_proj.weight' is not base plus adapter" in failures[0]


def spoil(directory, name):
    from safetensors.torch import load_file, save_file

    tensors = load_file(directory / "model.safetensors")
    tensors[name][0] *= 2
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    directory = tmp_path_factory.mktemp("llama")
    return make_adapter(directory, LLAMA, target_modules=["q_proj", "down_proj"], task_type=CAUSAL)


def drop(fragment):
    return lambda tensors: {name: value for name, value in tensors.items() if fragment not in name}


def partition(fragment):
    """What ZeRO-3 leaves of the tensors that hold ``fragment`` in their names."""
    return lambda tensors: {
        name: value[:0, 0].clone() if fragment in name else value for name, value in tensors.items()
    }


REFUSED = {
    "partitioned": (
        {"tensors": partition("q_proj.lora_A")},
        "adapter_model.safetensors: 2 tensors of shape .0.*gather",
    ),
    "missing tensor": ({"tensors": drop("1.mlp.down_proj.lora_B")}, "layers.1.mlp.down_proj.lora_B.weight' is missing"),
    "left over": (
        {"target_modules": ["q_proj"]},
        "has no place for tensor .* does not adapt .* target_modules names others",
    ),
    "another rank": ({"r": 8}, "size mismatch"),
    "no such target": ({"target_modules": ["c_attn"]}, "peft cannot put it on LlamaForCausalLM"),
    "a field of another peft": ({"use_warp": True}, "'use_warp' is not a field"),
    "pissa on the pristine base": ({"init_lora_weights": "pissa_niter_4"}, "makes peft change the base's weights"),
    "another tuner": ({"peft_type": "IA3"}, "peft_type 'IA3' is not LORA"),
    "routed variant": ({"layer_replication": [[0, 2]]}, "layer_replication"),
    "head that the base lacks": (
        {"tensors": lambda t: t | {"base_model.model.score.weight": next(iter(t.values())).clone()}},
        "replace_head goes before merge_adapter",
    ),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused_by_name_before_anything_is_written(tmp_path, llama, change, message):
    source, adapter = llama
    changed = edit_adapter(adapter, tmp_path / "changed", **change)
    with pytest.raises(InputRejected, match=message):
        merge(source, changed, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def residual(tmp_path_factory):
    """A base, and the output of a PiSSA recipe: another base of the same shapes, with the adapter that belongs to it."""
    from support.tiny import build

    directory = tmp_path_factory.mktemp("residual")
    build(LLAMA, directory / "base")
    lora = {"op": "add_lora", "r": 4, "lora_alpha": 4, "init_lora_weights": "pissa", "target_modules": ["q_proj"]}
    engine.apply(
        {"version": 1, "base_model": str(directory / "base"), "operations": [lora], "output": str(directory / "out")}
    )
    return directory


def alone(residual, directory, **fields):
    """The adapter without the report that lies beside it."""
    return edit_adapter(residual / "out/adapter", directory / "alone", **fields)


def test_a_base_that_the_report_does_not_name_is_refused_before_anything_is_written(residual, tmp_path):
    merge(residual / "out", residual / "out/adapter", tmp_path / "right")
    with pytest.raises(InputRejected, match="weights are not those that the adapter was made for.*base: accept"):
        merge(residual / "base", residual / "out/adapter", tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


def test_without_a_report_the_named_base_is_compared_where_it_is_there(residual, tmp_path):
    adapter = alone(residual, tmp_path)
    report = merge(residual / "out", adapter, tmp_path / "right")
    assert "made for" not in report.verdict
    copied = shutil.copytree(residual / "out", tmp_path / "copied", ignore=shutil.ignore_patterns("adapter"))
    merge(copied, adapter, tmp_path / "same")
    with pytest.raises(InputRejected, match="weights are not those that the adapter was made for.*named is"):
        merge(residual / "base", adapter, tmp_path / "wrong")


def test_another_base_can_be_accepted_and_the_verdict_says_so(residual, tmp_path):
    operation = {"op": "merge_adapter", "adapter": str(alone(residual, tmp_path)), "base": "accept"}
    recipe = {"version": 1, "base_model": str(residual / "base"), "operations": [operation]}
    report = engine.apply({**recipe, "output": str(tmp_path / "out")})
    assert "the base was accepted without asking whether the adapter was made for it" in report.verdict


def test_where_nothing_tells_the_base_the_verdict_says_so(residual, tmp_path):
    adapter = alone(residual, tmp_path, base_model_name_or_path="somebody/model")
    report = merge(residual / "base", adapter, tmp_path / "out")
    assert (
        "the adapter was made for this base: adapter_config.json names 'somebody/model', which is not on this"
        in report.verdict
    )


def test_a_base_that_only_remembers_the_name_is_not_taken_for_it(residual, tmp_path):
    """A fine-tuned checkpoint keeps the name of what it was tuned from; its weights are others."""
    base = shutil.copytree(residual / "base", tmp_path / "tuned")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "_name_or_path": "somebody/model"}))
    report = merge(base, alone(residual, tmp_path, base_model_name_or_path="somebody/model"), tmp_path / "out")
    assert "the adapter was made for this base: adapter_config.json names 'somebody/model'" in report.verdict


@pytest.mark.parametrize("fields", [{"revision": 3}, {"auto_mapping": ["LlamaForCausalLM"]}], ids=str)
def test_what_an_adapter_says_of_its_base_may_be_nonsense(residual, tmp_path, fields):
    operation = {
        "op": "merge_adapter",
        "adapter": str(alone(residual, tmp_path, base_model_name_or_path="somebody/model", **fields)),
    }
    recipe = {
        "version": 1,
        "base_model": str(residual / "base"),
        "operations": [operation],
        "output": str(tmp_path / "out"),
    }
    assert "the adapter was made for this base" in engine.plan(recipe).promise.sentence()


def test_an_adapter_of_another_kind_of_class_is_refused(residual, tmp_path):
    mapping = {"base_model_class": "Qwen2ForCausalLM", "parent_library": "transformers"}
    adapter = alone(residual, tmp_path, base_model_name_or_path="somebody/model", auto_mapping=mapping)
    with pytest.raises(InputRejected, match="names the class Qwen2ForCausalLM, and the base is a LlamaForCausalLM"):
        merge(residual / "base", adapter, tmp_path / "out")


@pytest.mark.parametrize("tie", [False, True], ids=["untied", "tied"])
def test_a_base_in_half_precision_can_be_written_in_float32_with_the_whole_update(tmp_path, tie):
    import torch

    config = {"target_modules": ["q_proj", "lm_head"] if tie else "all-linear"}
    source, adapter = make_adapter(tmp_path, LLAMA, dtype="bfloat16", tie=tie, scale=2e-4, **config)
    operation = {"op": "merge_adapter", "adapter": str(adapter), "dtype": "float32"}
    recipe = {"version": 1, "base_model": str(source), "operations": [operation]}
    report = engine.apply({**recipe, "output": str(tmp_path / "out")})
    (check,) = report.checks
    assert check.kept == pytest.approx(1, abs=1e-3)
    found, base = state(tmp_path / "out", LLAMA), state(source, LLAMA)
    exact = load_adapted(source, adapter, LLAMA).double().merge_and_unload().state_dict()
    assert {str(value.dtype) for value in found.values()} == {"torch.float32"}
    assert found["model.norm.weight"].equal(base["model.norm.weight"].float())
    name = "model.layers.1.self_attn.q_proj.weight"
    assert torch.allclose(found[name].double(), exact[name], rtol=0, atol=2**-22 * float(exact[name].abs().max()))


def test_a_pattern_that_fits_no_target_is_named_and_merged_as_peft_does(tmp_path):
    patterns = {"rank_pattern": {"v_proj": 6}, "alpha_pattern": {"^q_proj": 100, "k_proj": 3}}
    source, adapter = make_adapter(tmp_path, LLAMA, target_modules=["q_proj", "k_proj"], **patterns)
    report = merge(source, adapter, tmp_path / "out")
    notes = [note for note in report.plan.outcomes[0].notes if "_pattern" in note]
    assert [note.partition("; ")[0] for note in notes] == [
        "adapter_config.json: rank_pattern: 'v_proj' matches no target",
        "adapter_config.json: alpha_pattern: '^q_proj' matches no target",
    ]
    assert "did you mean 'q_proj'" in notes[1]
    wanted, found = merged_by_peft(source, adapter, LLAMA), state(tmp_path / "out", LLAMA)
    assert all(wanted[name].equal(found[name]) for name in wanted)


def test_a_pattern_may_name_a_parameter(tmp_path):
    patterns = {"alpha_pattern": {"experts.down_proj": 3}}
    source, adapter = make_adapter(tmp_path, MIXTRAL, **EXPERTS, **patterns)
    plan = engine.plan(
        {"version": 1, "base_model": str(source), "output": str(tmp_path / "never"),
         "operations": [{"op": "merge_adapter", "adapter": str(adapter)}]}
    )  # fmt: skip
    assert not any("_pattern" in note for note in plan.outcomes[0].notes)


def test_a_pickle_and_missing_files_are_refused(tmp_path, llama):
    source, adapter = llama
    pickled = shutil.copytree(adapter, tmp_path / "pickled")
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    with pytest.raises(InputRejected, match="adapter_model.bin: is a pickle"):
        merge(source, pickled, tmp_path / "out")
    (pickled / "adapter_model.bin").unlink()
    with pytest.raises(InputRejected, match="adapter_model.safetensors: is missing"):
        merge(source, pickled, tmp_path / "out")
    (pickled / "adapter_config.json").unlink()
    with pytest.raises(InputRejected, match="adapter_config.json: is missing"):
        merge(source, pickled, tmp_path / "out")
    with pytest.raises(InputRejected, match="is not the folder of an adapter"):
        merge(source, tmp_path / "nowhere", tmp_path / "out")


def test_a_value_that_is_not_finite_is_not_merged(tmp_path, llama):
    source, adapter = llama

    def poison(tensors):
        tensors[next(iter(tensors))][0, 0] = float("nan")
        return tensors

    with pytest.raises(InputRejected, match="holds NaN or infinity"):
        merge(source, edit_adapter(adapter, tmp_path / "nan", poison), tmp_path / "out")


def test_dora_on_a_row_that_became_zero_is_refused_by_name(tmp_path):
    from safetensors.torch import load_file, save_file

    source, adapter = make_adapter(tmp_path, LLAMA, target_modules=["q_proj"], use_dora=True)
    name = "layers.1.self_attn.q_proj"
    for path, key in (
        (source / "model.safetensors", f"model.{name}.weight"),
        (adapter / "adapter_model.safetensors", f"base_model.model.model.{name}.lora_B.weight"),
    ):
        tensors = load_file(path)
        tensors[key][2] = 0
        save_file(tensors, path, {"format": "pt"})
    with pytest.raises(InputRejected, match=rf"{name}.weight: 1 output\(s\) have norm zero"):
        merge(source, adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()
