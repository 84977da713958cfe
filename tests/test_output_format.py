"""`output_format: dcp`: verified as a plain checkpoint, then written as torch.distributed.checkpoint reads it, byte for byte."""

import json
import warnings

import pytest
import torch.distributed.checkpoint as dcp
import transformers
from support.command import assert_one_line, here
from support.recipes import config_of, load, recipe

import graftkit
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.errors import InputRejected, RecipeError, VerificationFailed
from graftkit.verification.weights import dcp_form
from graftkit.verification.weights.dcp_form import compare_with_folder

GROW = {"op": "extend_vocab", "tokens": ["zqx"]}
CAST = {"op": "cast", "dtype": "float32"}


def read_back(folder):
    """The model of a trainer that starts from the folder."""
    model = getattr(transformers, config_of(folder)["architectures"][0])._from_config(
        transformers.AutoConfig.from_pretrained(folder)
    )
    state = model.state_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load(state, checkpoint_id=folder, no_dist=True)
    model.load_state_dict(state)
    return model.eval()


def test_a_trainer_reads_what_the_plain_output_holds(sources, tmp_path):
    """Of a tied class, whose state dict asks for both sides."""
    source = sources("llama_tied", "bfloat16")
    report = graftkit.apply(recipe(source, tmp_path / "dcp", GROW, output_format="dcp"))
    graftkit.apply(recipe(source, tmp_path / "plain", GROW))
    wanted, _ = load(tmp_path / "plain")
    found = read_back(tmp_path / "dcp")
    assert found.state_dict().keys() == wanted.state_dict().keys()
    assert all(value.equal(found.state_dict()[name]) for name, value in wanted.state_dict().items())
    names = {path.name for path in (tmp_path / "dcp").iterdir()}
    assert {".metadata", "config.json", "tokenizer.json", "graft_report.json"} <= names
    assert not [name for name in names if name.endswith((".safetensors", ".index.json"))]
    assert b"graftkit-staging" not in (tmp_path / "dcp/.metadata").read_bytes()
    assert "verified as a plain checkpoint, of which the DCP folder holds every tensor byte for byte" in report.verdict
    assert report.to_json()["checks"]["dcp"]["tensors"] == len(found.state_dict())
    files = {entry["name"] for entry in json.loads((tmp_path / "dcp/graft_report.json").read_text())["files"]}
    assert {".metadata", "__0_0.distcp"} <= files


def test_what_is_written_converts_back(sources, tmp_path):
    source = sources("llama", "bfloat16")
    graftkit.apply(recipe(source, tmp_path / "dcp", CAST, output_format="dcp", verify={"outputs": False}))
    back = recipe(tmp_path / "dcp", tmp_path / "back", {"op": "convert"}, verify={"outputs": False})
    graftkit.apply(back, allow_pickle=True)
    graftkit.apply(recipe(source, tmp_path / "plain", CAST, verify={"outputs": False}))
    assert (tmp_path / "back/model.safetensors").read_bytes() == (tmp_path / "plain/model.safetensors").read_bytes()


def test_the_same_recipe_gives_the_same_bytes_and_is_up_to_date(demo, tmp_path):
    fields = {"output_format": "dcp", "verify": {"outputs": False}}
    for name in "ab":
        (tmp_path / f"{name}.json").write_text(json.dumps(recipe(demo, tmp_path / name, GROW, **fields)))
        assert here("apply", tmp_path / f"{name}.json", "-q").returncode == 0
    for name in (".metadata", "__0_0.distcp"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert "up to date" in here("apply", tmp_path / "a.json", "--if-changed").stdout


def test_a_folder_that_does_not_hold_the_same_is_caught_and_nothing_is_written(sources, tmp_path, monkeypatch):
    right = dcp_form.write_folder

    source = sources("llama", "bfloat16")
    given = recipe(source, tmp_path / "out", GROW, output_format="dcp", verify={"outputs": False})
    plain = Checkpoint.open(source)
    names = {name: name for name in plain.tensors}
    (tmp_path / "folder").mkdir()
    right(plain, names, tmp_path / "folder")
    assert compare_with_folder(plain, names, tmp_path / "folder").failures == ()
    other = {**names, "model.embed_tokens.weight": "lm_head.weight"}
    (failure,) = compare_with_folder(plain, other, tmp_path / "folder").failures
    assert "'model.embed_tokens.weight' does not hold the bytes" in failure
    fewer = {name: disk for name, disk in names.items() if name != "model.norm.weight"}
    (failure,) = compare_with_folder(plain, fewer, tmp_path / "folder").failures
    assert "model.norm.weight: in one of the folder and the checkpoint alone" in failure
    (tmp_path / "folder/.metadata").write_bytes(b"garbage")
    (failure,) = compare_with_folder(plain, names, tmp_path / "folder").failures
    assert failure.startswith("dcp: .metadata: is damaged")
    monkeypatch.setattr(
        dcp_form,
        "write_folder",
        lambda plain, names, folder: right(plain, {**names, "model.embed_tokens.weight": "lm_head.weight"}, folder),
    )
    with pytest.raises(VerificationFailed, match="dcp: 'model.embed_tokens.weight' does not hold the bytes"):
        graftkit.apply(given)
    assert not (tmp_path / "out").exists()


def test_what_has_no_such_form_is_refused_in_a_line(demo, sources, tmp_path):
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(recipe(demo, tmp_path / "out", {"op": "add_lora", "r": 2}, output_format="dcp")))
    assert_one_line(here("validate", path), 2, "output_format: add_lora makes an adapter, which only peft's own format")
    with pytest.raises(InputRejected, match=r"output_format: dcp: MixtralForCausalLM makes others of .* leave it out"):
        graftkit.plan(recipe(sources("mixtral"), tmp_path / "out", GROW, output_format="dcp"))
    with pytest.raises(RecipeError, match="output_format"):
        graftkit.parse_recipe(recipe(demo, tmp_path / "out", GROW, output_format="gguf"))
