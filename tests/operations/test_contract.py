"""What every operation keeps: it is pure, its plan reads no weight, its errors carry their place, and it is shown where people look."""

import ast
import json
import os
import shutil
from pathlib import Path

import pytest
import yaml
from support import tokenizer_sources
from support.adapters import make_adapter
from support.families import build

from graftkit import engine
from graftkit.errors import InputRejected, RecipeError
from graftkit.operations import IMPLEMENTATIONS, NEED_PLAIN_WEIGHTS
from graftkit.recipe import json_schema
from graftkit.recipe.operations import MAKE_ADAPTERS

ROOT = Path(__file__).parents[2]

#: A spec of each operation, and one that is wrong in a way that only the checkpoint shows, with the field that is to blame.
SPECS = {
    "extend_vocab": (
        {"special_tokens": ["<|a|>"]},
        {"tokens": ["zqx"], "init": {"scheme": "copy", "token": "nowhere"}},
        "init",
    ),
    "learn_tokens": (
        {"texts": f"{ROOT}/recipes/examples/docstrings.jsonl", "size": 20},
        {"texts": f"{ROOT}/recipes/examples/docstrings.jsonl", "size": 100000},
        "size",
    ),
    "rename_tokens": ({"names": {"<unk>": "<|tool|>"}}, {"names": {"<nowhere>": "<|tool|>"}}, "names.<nowhere>"),
    "reinit_rows": ({"tokens": ["<unk>", 9]}, {"tokens": ["<unk>", 999]}, r"tokens.1"),
    "trim_vocab": (
        {"keep": {"tokens": ["et"]}},
        {"keep": {"tokens": ["et", "nowhere"]}},
        r"keep\.tokens\.1",
    ),
    "replace_head": (
        {"task": "sequence_classification", "labels": ["a", "b"], "pad_token": "<pad>"},
        {"task": "sequence_classification", "labels": ["a", "b"], "pad_token": "<|nowhere|>"},
        "pad_token",
    ),
    "add_lora": ({"r": 4}, {"r": 4, "target_modules": ["nowhere"]}, "target_modules"),
    "add_adapter": ({"peft_type": "IA3"}, {"peft_type": "LOHA", "target_modules": ["nowhere"]}, "target_modules"),
    "merge_adapter": ({"adapter": "{adapter}"}, None, ""),
    "resize_adapter": ({"adapter": "{adapter}", "r": 2}, {"adapter": "{adapter}", "r": 4}, "r"),
    "retarget_adapter": (
        {"adapter": "{adapter}", "to": "LlamaModel"},
        {"adapter": "{adapter}", "to": "BertModel"},
        "to",
    ),
    "combine_adapters": (
        {"adapters": [{"path": "{adapter}", "weight": 0.5}]},
        {"adapters": ["{adapter}"]},
        "adapters",
    ),
    "convert": ({}, None, ""),
    "edit_tensors": (
        {"steps": [{"scale": {"tensors": ["lm_head.weight"], "factor": 0.5}}]},
        {"steps": [{"delete": ["nowhere"]}]},
        r"steps\.0\.delete\.0",
    ),
    "extract_lora": (
        {"fine_tuned": "{tuned}", "r": 4},
        {"fine_tuned": "{tuned}", "r": 4, "allow_lost": ["nowhere"]},
        "allow_lost",
    ),
    "arrange_blocks": ({"blocks": [1, 0]}, {"blocks": [0, 2]}, "blocks"),
    "drop_blocks": ({"blocks": "last 1"}, {"blocks": "first 2"}, "blocks"),
    "insert_blocks": ({"after": [0]}, {"every": 3}, "every"),
    "extract_submodel": ({"architecture": "LlamaModel"}, {"architecture": "LlamaModle"}, "architecture"),
    "take_tensors": (
        {"donor": "{tuned}", "tensors": ["*.q_proj.weight"]},
        {"donor": "{tuned}", "tensors": ["*.nowhere"]},
        "tensors.0",
    ),
    "set_embeddings": ({"tied": True, "allow_change": True}, {"tied": False}, "tied"),
    "cast": ({"dtype": "bfloat16", "keep": ["*norm*"]}, {"dtype": "bfloat16", "keep": ["*nrom*"]}, r"keep\.0"),
    "extend_positions": ({"max_position_embeddings": 300}, {"max_position_embeddings": 100}, "max_position_embeddings"),
    "transplant_tokenizer": (
        {"donor": "{donor}"},
        {"donor": "{donor}", "init": {"scheme": "omp", "k": 1000}},
        r"init\.k",
    ),
    "reinit": ({"layers": "last 1"}, {"layers": [9]}, "layers"),
    "upcycle_moe": (
        {"num_experts": 4, "architecture": "MixtralForCausalLM"},
        {"num_experts": 4, "architecture": "MixtrlForCausalLM"},
        "architecture",
    ),
    "widen": ({"sizes": {"intermediate_size": 96}}, {"sizes": {"intermediate_size": 32}}, "sizes.intermediate_size"),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("contract")
    source = build("llama", root / "base")
    _, adapter = make_adapter(root, "LlamaForCausalLM", base=source, target_modules=["q_proj"])
    merge = {"op": "merge_adapter", "adapter": str(adapter)}
    engine.apply(
        {
            "version": 1,
            "base_model": str(source),
            "operations": [merge],
            "output": str(root / "tuned"),
            "verify": {"outputs": False},
        }
    )
    shutil.copytree(source, root / "slow")
    document = json.loads((root / "slow/tokenizer.json").read_text())
    (root / "slow/tokenizer.json").unlink()
    (root / "slow/vocab.json").write_text(json.dumps(document["model"]["vocab"]))
    (root / "slow/merges.txt").write_text("\n".join(map(" ".join, document["model"]["merges"])))
    (root / "slow/tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    donor = tokenizer_sources.write(tokenizer_sources.wordlevel(), root / "donor")
    return {
        "base": source,
        "adapter": adapter,
        "tuned": root / "tuned",
        "donor": donor,
        "root": root,
        "convert": root / "slow",
    }


def recipe(made, op, fields, **more):
    text = json.dumps(fields)
    for name in ("adapter", "tuned", "donor"):
        text = text.replace(f"{{{name}}}", str(made[name]))
    filled = json.loads(text)
    output = str(made["root"] / "never")
    return {
        "version": 1,
        "base_model": str(made.get(op, made["base"])),
        "operations": [{"op": op, **filled}],
        "output": output,
        **more,
    }


def test_there_is_a_spec_for_each_operation():
    assert SPECS.keys() == IMPLEMENTATIONS.keys()
    assert IMPLEMENTATIONS.keys() > NEED_PLAIN_WEIGHTS


@pytest.mark.parametrize("op", SPECS)
def test_planning_is_pure_and_reads_no_weight(made, op, monkeypatch):
    """Beside headers no more is read than tells whether the two tables are tied, or the fine-tuned weights differ."""
    tables = 2 * 331 * 32 * 4 + (made["tuned"] / "model.safetensors").stat().st_size * 2 * (op == "extract_lora")
    read, preadv = [], os.preadv

    def counted(*arguments):
        count = preadv(*arguments)
        read.append(count)
        return count

    monkeypatch.setattr(os, "preadv", counted)
    first = engine.plan(recipe(made, op, SPECS[op][0]))
    assert sum(read) <= tables
    second = engine.plan(recipe(made, op, SPECS[op][0]))
    assert (first.tensors, first.values, first.promise) == (second.tensors, second.values, second.promise)
    assert [outcome.notes for outcome in first.outcomes] == [outcome.notes for outcome in second.outcomes]
    assert first.source.tensors.keys() == second.source.tensors.keys()
    assert first.promise.observable
    assert (first.adapter is not None) == (op in MAKE_ADAPTERS)
    assert not (made["root"] / "never").exists()


@pytest.mark.parametrize("op", [op for op, (_, wrong, _) in SPECS.items() if wrong])
def test_an_error_carries_its_place(made, op):
    _, wrong, field = SPECS[op]
    first = recipe(made, op, wrong)
    other = (
        {"op": "reinit", "parameters": ["*.q_proj.weight"]}
        if op != "reinit"
        else {"op": "extend_vocab", "tokens": ["zqx"]}
    )
    behind = {**first, "operations": [other, *first["operations"]]}
    for place, given in enumerate((first, behind)):
        with pytest.raises(RecipeError, match=rf"^operations\.{place}\.{field}: "):
            engine.plan(given)


@pytest.mark.parametrize("op", sorted(NEED_PLAIN_WEIGHTS))
def test_a_quantized_base_is_refused_by_name(made, op, tmp_path):
    shutil.copytree(made["base"], tmp_path / "quantized")
    config = tmp_path / "quantized/config.json"
    config.write_text(
        json.dumps({**json.loads(config.read_text()), "quantization_config": {"quant_method": "gptq", "bits": 4}})
    )
    with pytest.raises(InputRejected, match=rf"quantization_config; {op} needs plain weights"):
        engine.plan({**recipe(made, op, SPECS[op][0]), "base_model": str(tmp_path / "quantized")})


def test_no_operation_writes_a_place_into_its_messages():
    """Planning adds it, once."""
    paths = [path for room in ("operations", "architecture") for path in (ROOT / "graftkit" / room).rglob("*.py")]
    texts = [
        (path.name, node.value)
        for path in paths
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    assert [found for found in texts if found[1].startswith(("operations: ", "operations."))] == []


def test_the_schema_that_editors_read_is_the_one_that_recipes_are_read_by():
    assert json.loads((ROOT / "recipes/schema.json").read_text(encoding="utf-8")) == json_schema()


@pytest.mark.parametrize("op", IMPLEMENTATIONS)
def test_it_is_shown_where_people_look(op):
    assert f"| `{op}` |" in (ROOT / "README.md").read_text(encoding="utf-8")
    recipes = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in (ROOT / "recipes").glob("*.yaml")]
    assert any(entry["op"] == op for found in recipes for entry in found["operations"]), (
        "no recipe of recipes/ shows it"
    )
    assert (ROOT / f"graftkit/operations/{op}.py").is_file()
    assert (ROOT / f"graftkit/recipe/{op}.py").is_file()
