"""graft: a model in memory becomes what `apply` would write, shares what did not change, and is verified beside itself."""

import contextlib
import gc
import json
import shutil
import tempfile

import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file, save_file
from support.families import FAMILIES
from support.recipes import config_of, recipe
from torch.multiprocessing.reductions import StorageWeakRef

import graftkit
from graftkit.checkpoint.adapter import Adapter
from graftkit.checkpoint.held import hold
from graftkit.errors import InputRejected, RecipeError, VerificationFailed
from graftkit.report.size import size
from graftkit.running.live.assembling import assemble
from graftkit.running.live.model import LiveModel, fresh_weights, open_live
from graftkit.verification.in_memory import check_adapter_in_memory, check_in_memory
from graftkit.verification.outputs import compare_outputs
from graftkit.verification.subject import Subject

pytestmark = pytest.mark.numerical

#: More tokens than the tables of the families have padding rows, so that they grow.
GROWS = {"op": "extend_vocab", "special_tokens": [f"<|{n}|>" for n in range(14)], "init": "mean"}
HEAD = {"op": "replace_head", "task": "sequence_classification", "labels": ["a", "b", "c"], "init": "zeros"}
AGAIN = {"op": "reinit", "layers": "last 1"}
LORA = {"op": "add_lora", "r": 4}


def loaded(source):
    """Model and tokenizer, as a user loads them."""
    model = getattr(transformers, config_of(source)["architectures"][0]).from_pretrained(source)
    return model, transformers.AutoTokenizer.from_pretrained(source)


def in_memory(*operations, **others):
    """A recipe that names neither base nor output."""
    return {"version": 1, "operations": list(operations), **others}


def same(ours, theirs):
    """Whether two state dicts hold the same tensors."""
    equal = (ours[name].dtype == theirs[name].dtype and ours[name].equal(theirs[name]) for name in theirs)
    return ours.keys() == theirs.keys() and all(equal)


def not_shared(new, old):
    """Names of what lies nowhere in the memory of the old model."""
    places = {value.data_ptr() for value in old.state_dict().values()}
    return {name for name, value in new.state_dict().items() if value.data_ptr() not in places}


def compare_with_apply(source, operation, folder):
    """Graft in memory, and hold what saving that gives against what `apply` writes; the new model and the old one."""
    graftkit.apply(recipe(source, folder / "out", operation, verify={"outputs": False}))
    model, tokenizer = loaded(source)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    new, new_tokenizer, report = graftkit.graft(model, tokenizer, in_memory(operation))
    assert same(model.state_dict(), before)
    new.save_pretrained(folder / "saved")
    files = [load_file(folder / name / "model.safetensors") for name in ("out", "saved")]
    assert same(files[1], files[0])
    theirs, their_tokenizer = loaded(folder / "out")
    ours = [{k: v for k, v in one.config.to_dict().items() if k != "_name_or_path"} for one in (new, theirs)]
    assert ours[0] == ours[1]
    assert dict(new_tokenizer.get_vocab()) == dict(their_tokenizer.get_vocab())
    assert new_tokenizer.special_tokens_map == their_tokenizer.special_tokens_map
    assert report.verdict.startswith("verified (")
    return new, model


@pytest.mark.parametrize(
    ("family", "dtype", "operation", "made"),
    [
        ("llama_tied", "float32", GROWS, {"model.embed_tokens.weight", "lm_head.weight"}),
        ("mixtral", "bfloat16", HEAD, {"score.weight"}),
        ("bert_base", "float32", HEAD, {"classifier.weight", "classifier.bias"}),
    ],
)
def test_the_new_model_is_what_apply_writes_and_shares_the_rest(family, dtype, operation, made, sources, tmp_path):
    new, old = compare_with_apply(sources(family, dtype), operation, tmp_path)
    assert not_shared(new, old) == made


@pytest.mark.parametrize("init", ["identity", "copy"])
def test_a_new_block_is_no_other_block_s_memory(init, sources, tmp_path):
    operation = {"op": "insert_blocks", "after": [0], "init": init}
    new, old = compare_with_apply(sources("llama"), operation, tmp_path)
    made = not_shared(new, old)
    assert made == {name for name in new.state_dict() if name.startswith("model.layers.1.")}
    assert len({value.data_ptr() for value in new.state_dict().values()}) == len(new.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "bert_base_with_head"])
@pytest.mark.parametrize("operation", [GROWS, HEAD, AGAIN], ids=lambda operation: operation["op"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_family_becomes_what_apply_writes(family, operation, dtype, sources, tmp_path):
    if operation is HEAD and family in ("llava", "cohere"):
        pytest.skip("transformers has no such class")
    new, old = compare_with_apply(sources(family, dtype), operation, tmp_path)
    assert not_shared(new, old) < new.state_dict().keys()


def adapter_of_apply(source, output, *operations):
    """The peft model that the output of `apply` gives, as a trainer loads it."""
    graftkit.apply(recipe(source, output, *operations, verify={"outputs": False}))
    base = output if (output / "config.json").exists() else source
    return PeftModel.from_pretrained(loaded(base)[0], output / "adapter", is_trainable=True)


@pytest.mark.parametrize(
    "operations",
    [
        [GROWS, LORA],
        pytest.param([{**LORA, "init_lora_weights": "pissa"}], marks=pytest.mark.slow),
        pytest.param([HEAD, LORA], marks=pytest.mark.slow),
        pytest.param([{"op": "add_adapter", "peft_type": "VERA"}], marks=pytest.mark.slow),
    ],
    ids=lambda operations: operations[-1].get("init_lora_weights", operations[0]["op"]),
)
def test_an_adapter_makes_the_peft_model_that_its_files_would(operations, sources, tmp_path):
    source = sources("llama", "bfloat16")
    theirs = adapter_of_apply(source, tmp_path / "out", *operations)
    model, tokenizer = loaded(source)
    ours, _, report = graftkit.graft(model, tokenizer, in_memory(*operations))
    assert same(ours.state_dict(), theirs.state_dict())
    assert [p.requires_grad for p in ours.parameters()] == [p.requires_grad for p in theirs.parameters()]
    assert type(ours) is type(theirs)
    assert ours.training
    assert "adapter" in {finding.name for finding in report.findings}


def test_an_adapter_leaves_the_given_model_and_tokenizer_alone(sources):
    model, tokenizer = loaded(sources("llama"))
    adapted, same_tokenizer, report = graftkit.graft(model, tokenizer, in_memory(LORA))
    assert same_tokenizer is tokenizer
    assert not any("lora" in name for name, _ in model.named_modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert {name for name in not_shared(adapted, model) if "lora_" not in name} == set()
    assert adapted.peft_config["default"].base_model_name_or_path == model.name_or_path
    assert report.not_compared == "the base is unchanged"


@pytest.mark.parametrize(
    "op", ["merge_adapter", "resize_adapter", "combine_adapters", "retarget_adapter", "extract_lora"]
)
def test_adapters_and_checkpoints_on_disk_meet_a_model_in_memory(op, sources, tmp_path):
    source = sources("llama")
    operation = {"op": op, "adapter": str(tmp_path / "adapter")}
    theirs = PeftModel.from_pretrained(loaded(source)[0], trained_adapter(source, tmp_path / "adapter"))
    if op == "resize_adapter":
        operation["r"] = 6
    if op == "combine_adapters":
        folders = [tmp_path / "adapter", shutil.copytree(tmp_path / "adapter", tmp_path / "again")]
        operation = {"op": op, "adapters": [{"path": str(folder), "weight": 0.5} for folder in folders]}
    if op == "retarget_adapter":
        as_of_the_base_model(tmp_path / "adapter")
    if op == "extract_lora":
        theirs.merge_and_unload().save_pretrained(tmp_path / "tuned")
        (tmp_path / "tuned" / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
        operation = {"op": op, "fine_tuned": str(tmp_path / "tuned"), "r": 4}
    model, tokenizer = loaded(source)
    new, _, report = graftkit.graft(model, tokenizer, in_memory(operation))
    assert report.verdict.startswith("verified (")
    ids = torch.arange(8)[None]
    with torch.inference_mode():
        expected = theirs.base_model.model(ids) if op == "extract_lora" else theirs.eval()(ids)
        torch.testing.assert_close(new.eval()(ids).logits, expected.logits, rtol=1e-3, atol=1e-3)
    assert isinstance(new, PeftModel) == (op != "merge_adapter")


def as_of_the_base_model(folder):
    """Let the adapter's names be those of the class without a head."""
    path = folder / "adapter_model.safetensors"
    save_file({name.replace("model.model.", "model.", 1): value for name, value in load_file(path).items()}, path)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "task_type": None}))


def trained_adapter(source, folder):
    """An adapter that moves the outputs."""
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(loaded(source)[0], LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    adapted.save_pretrained(folder)
    return folder


def test_modes_frozen_weights_and_buffers_go_along(sources):
    model, tokenizer = loaded(sources("llama"))
    model.bfloat16().train()  # casts the rotary frequencies, which are not saved
    model.model.layers[0].requires_grad_(requires_grad=False)
    model.gradient_checkpointing_enable()
    new, _, report = graftkit.graft(model, tokenizer, in_memory(GROWS))
    frozen = [{name for name, p in one.named_parameters() if not p.requires_grad} for one in (new, model)]
    assert frozen[0] == frozen[1]
    assert new.training
    assert model.training
    assert new.model.gradient_checkpointing
    assert {value.dtype for value in new.buffers()} == {torch.bfloat16}
    assert report.outputs.dtype == "bfloat16"
    new.get_input_embeddings().weight.sum().backward()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_no_weight_goes_through_a_file_and_none_stays_behind(sources, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    model, tokenizer = loaded(sources("llama"))
    old_table = StorageWeakRef(model.get_input_embeddings().weight.untyped_storage())
    seen = set()

    def watch(*_):
        seen.update(path.suffix for path in tmp_path.rglob("*") if path.is_file())

    new, _, report = graftkit.graft(model, tokenizer, in_memory(GROWS, LORA), progress=watch)
    assert seen == {".json"}
    assert not list(tmp_path.iterdir())
    del model
    gc.collect()
    assert old_table.expired()  # the report remembers the plan, and no weight
    assert report.to_json()["in_memory"]
    assert "in memory; nothing was written" in repr(report)
    assert "<iframe" in report._repr_html_()
    assert f"shared {size(report.plan.bytes_taken_over)}, made {size(report.plan.bytes_written)}" in repr(report.plan)


@pytest.mark.parametrize("form", ["mapping", "file", "recipe"])
def test_the_recipe_may_be_a_mapping_a_file_or_a_recipe(form, sources, tmp_path):
    given = in_memory(GROWS, verify={"outputs": False})
    if form == "file":
        given = tmp_path / "recipe.yaml"
        given.write_text(json.dumps(in_memory(GROWS, verify={"outputs": False})))
    if form == "recipe":
        given = graftkit.parse_recipe(recipe("elsewhere", tmp_path, GROWS, revision="x", verify={"outputs": False}))
    model, tokenizer = loaded(sources("llama"))
    new, new_tokenizer, report = graftkit.graft(model, tokenizer, given)
    assert len(new_tokenizer) == len(tokenizer) + 14
    assert report.plan.source.name == model.name_or_path
    assert "outputs were not compared" in report.verdict
    assert not any(path.suffix != ".yaml" for path in tmp_path.iterdir())


def test_what_is_wrong_with_a_recipe_has_its_line(sources, tmp_path):
    model, tokenizer = loaded(sources("llama"))
    (tmp_path / "r.yaml").write_text("version: 1\noperations:\n  - op: add_lora\n    target_modules: [q_prj]\n")
    with pytest.raises(RecipeError, match=r"r\.yaml:4: operations\.0\.target_modules"):
        graftkit.graft(model, tokenizer, tmp_path / "r.yaml")
    with pytest.raises(RecipeError, match="version"):
        graftkit.graft(model, tokenizer, {"operations": [LORA]})
    paged = in_memory(GROWS, verify={"paged": True})
    with pytest.raises(RecipeError, match="in memory already"):
        graftkit.graft(model, tokenizer, paged)


@contextlib.contextmanager
def one_process():
    """A process group of this process alone."""
    import torch.distributed as dist

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def sharded(model):
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import init_device_mesh

    with one_process():
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    return model


def quantized(model):
    """A weight as bitsandbytes keeps it: integers that are no plain parameter to compute with."""
    weight = model.model.layers[0].mlp.up_proj.weight
    packed = torch.nn.Parameter(weight.detach().mul(100).to(torch.int8), requires_grad=False)
    model.model.layers[0].mlp.up_proj.weight = packed
    return model


def configured(model):
    model.config.quantization_config = {"quant_method": "gptq", "bits": 4}
    return model


def adapted(model):
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(target_modules=["q_proj"]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (sharded, "sharded over processes"),
        (lambda model: model.to("meta"), "on the meta device"),
        (quantized, "layers.0.mlp.up_proj.weight'?: not plain floating-point parameters"),
        (configured, "quantized; load it without"),
        (adapted, "merge the adapter"),
        (torch.nn.DataParallel, r"give the model inside it \(\.module\)"),
        (lambda _: torch.nn.Linear(2, 2), "not a model of transformers"),
        (lambda model: type("Own", (type(model),), {})(model.config), "not a class of transformers itself"),
    ],
    ids=["fsdp", "meta", "int8", "quantized", "adapter", "wrapped", "other", "own class"],
)
def test_what_cannot_be_worked_on_is_refused_with_the_reason(change, words, sources):
    model, tokenizer = loaded(sources("llama"))
    with pytest.raises(InputRejected, match=words):
        graftkit.graft(change(model), tokenizer, in_memory(GROWS))


def test_weights_that_are_not_finite_are_refused(sources):
    model, tokenizer = loaded(sources("llama"))
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 5] = float("nan")
    with pytest.raises(InputRejected, match="up_proj.*not finite"):
        graftkit.graft(model, tokenizer, in_memory(GROWS))


@pytest.fixture
def live(sources, tmp_path):
    """A model in memory, opened, and one that was made of it, whose weights are copies."""
    model, tokenizer = loaded(sources("llama"))
    source = open_live(model, tokenizer, tmp_path / "live")
    made = LiveModel.of(fresh_weights(model), source.directory, "made")
    return source, made


def test_a_changed_weight_fails_by_bytes_and_by_outputs(live):
    source, made = live
    ledger = check_in_memory(source.checkpoint, made.checkpoint)
    assert all(entry.source_bytes and not entry.produced_bytes and entry.sha256 for entry in ledger)
    assert compare_outputs(Subject(source, made)).failures == ()
    with torch.no_grad():
        made.model.model.layers[1].mlp.up_proj.weight[0, 0] += 1
    with pytest.raises(VerificationFailed, match="up_proj.weight' differs from the source"):
        check_in_memory(source.checkpoint, made.checkpoint)
    assert compare_outputs(Subject(source, made)).failures


def test_a_lost_tensor_and_another_dtype_fail(live):
    source, made = live
    made.model.model.norm.bfloat16()
    with pytest.raises(VerificationFailed, match="norm.weight' was written as BF16"):
        check_in_memory(source.checkpoint, LiveModel.of(made.model, made.directory, "made").checkpoint)
    made.model.lm_head.weight = made.model.get_input_embeddings().weight
    with pytest.raises(VerificationFailed, match="not the planned ones"):
        check_in_memory(source.checkpoint, LiveModel.of(made.model, made.directory, "made").checkpoint)


def test_a_planned_checkpoint_that_lacks_a_tensor_is_not_put_together(live, tmp_path):
    source, _ = live
    for name, words in (("lm_head.weight", "missing tensors: lm_head.weight"), ("model.norm.weight", "model.norm")):
        planned = source.checkpoint.with_tensors({name: None})
        with pytest.raises(VerificationFailed, match=words):
            assemble(planned, source, tmp_path / name)


def test_a_changed_factor_fails(sources):
    model, tokenizer = loaded(sources("llama"))
    planned = graftkit.plan(recipe(sources("llama"), "out", LORA)).adapter
    held = {name: hold(tensor) for name, tensor in planned.tensors.items()}
    assert len(check_adapter_in_memory(planned, Adapter(planned.config, held))) == len(held)
    next(iter(held.values())).values[0] += 1
    with pytest.raises(VerificationFailed, match="differs from what was computed"):
        check_adapter_in_memory(planned, Adapter(planned.config, held))
