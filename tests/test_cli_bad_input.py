"""Whatever is given to a command, it ends with one line that says what is wrong, the right code, and nothing written."""

import json
import os
import shutil

import pytest
from support.adapters import make_adapter
from support.command import assert_one_line, here
from support.recipes import recipe

TOKENS = {"op": "extend_vocab", "special_tokens": ["<|a|>"]}
LORA = {"op": "add_lora", "r": 4}


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (
            ["validate"],
            2,
            "graftkit: validate: the following arguments are required: RECIPE; see graftkit validate --help",
        ),
        (["apply", "recipes/quickstart.yaml", "--output", ""], 2, "output"),
        (["apply", "recipes/quickstart.yaml", "--output", "/"], 2, "--overwrite"),
        (["apply", "recipes/quickstart.yaml", "--output", "recipes/models/demo-lm", "--overwrite"], 2, "the source"),
        (["apply", "recipes/quickstart.yaml", "--output", "README.md", "--overwrite"], 2, "is not a directory"),
        (["plan", "recipes/quickstart.yaml", "seed"], 2, "must be a path and a value"),
        (["plan", "recipes"], 2, "is not a regular file"),
        (
            # an output of its own: scripts/demo leaves one where the recipe says
            [
                "plan",
                "recipes/quickstart.yaml",
                "--output",
                "out/none",
                "operations.0.chat_template={file: nowhere.jinja}",
            ],
            2,
            "nowhere.jinja: No such file or directory",
        ),
        (["inspect", ""], 3, "an empty name"),
        (["inspect", "README.md"], 3, "is a file"),
        (["inspect", "a/b/c"], 3, "neither a folder nor a hub id"),
        (["diff", "recipes/models/demo-lm", "recipes"], 3, "config.json"),
        (["verify"], 2, "graftkit: verify: give two checkpoints"),
        (["verify", "--adapter", "recipes"], 3, "adapter_config.json"),
        (["verify", "--adapter", "recipes", "--lens"], 2, "--lens: is for two checkpoints"),
        (["report", "README.md"], 3, "graft_report.json"),
        (["report", "recipes"], 3, "graft_report.json"),
        (["selftest", "recipes"], 3, "config.json"),
    ],
)
def test_arguments(arguments, code, words):
    assert_one_line(here(*arguments), code, words)


def set_values(name, **values):
    def damage(model):
        path = model / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return damage


def write(name, text):
    return lambda model: (model / name).write_text(text)


def fifo(model):
    (model / "model.safetensors").unlink()
    os.mkfifo(model / "model.safetensors")


DAMAGED = {
    "config no JSON": (write("config.json", "{"), "config.json:1:2: is not JSON"),
    "config a list": (write("config.json", "[]"), "config.json: is not a JSON object"),
    "another width": (set_values("config.json", hidden_size=320), "on disk, the config wants"),
    "width a text": (set_values("config.json", hidden_size="big"), "hidden_size"),
    "layers without end": (set_values("config.json", num_hidden_layers=10**7), "num_hidden_layers is 10000000"),
    "class unknown": (set_values("config.json", architectures=["Nope"]), "Nope"),
    "class with an escape": (set_values("config.json", architectures=["\x1b[31mX"]), "class"),
    "truncated": (lambda model: os.truncate(model / "model.safetensors", 1000), "is truncated"),
    "a FIFO": (fifo, "model.safetensors"),
}


@pytest.mark.parametrize(("damage", "words"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_checkpoints(demo, tmp_path, damage, words):
    model = shutil.copytree(demo, tmp_path / "model")
    damage(model)
    assert_one_line(here("inspect", model), 3, words)
    for name, operation in (("tokens", TOKENS), ("adapter", LORA)):
        path = tmp_path / f"{name}.yaml"
        path.write_text(json.dumps(recipe(model, tmp_path / "out", operation)))
        assert_one_line(here("apply", path), 3, words)
    assert_one_line(here("verify", demo, model), 3, words)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter.yaml", "model", "tokens.yaml"]


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "add_adapter", "peft_type": "OFT", "target_modules": "all-linear", "config": {"oft_block_size": 16}},
        {"op": "resize_adapter", "adapter": "adapter", "r": 2},
    ],
    ids=lambda operation: operation["op"],
)
def test_a_base_that_would_not_load_gets_no_adapter(tmp_path, operation):
    base, _ = make_adapter(tmp_path, "LlamaForCausalLM", target_modules=["q_proj"])
    set_values("config.json", intermediate_size=33)(base)
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe(base, tmp_path / "out", operation)))
    assert_one_line(here("apply", path, cwd=tmp_path), 3, "on disk, the config wants")
    assert not (tmp_path / "out").exists()


def test_a_generation_config_that_is_no_object(demo, tmp_path):
    model = shutil.copytree(demo, tmp_path / "model")
    (model / "generation_config.json").write_text("[]")
    assert_one_line(here("inspect", model), 3, "generation_config.json: is not a JSON object")
