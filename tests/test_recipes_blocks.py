"""The recipes with blocks, each through the command line, then loaded as a trainer does it."""

import json

import pytest
from support import recipes
from support.command import here, real

pytestmark = pytest.mark.numerical


@pytest.mark.parametrize(
    ("name", "blocks", "words"),
    [
        ("llama_pro", 6, ("verified (bitwise): hidden states behind every block that was there, and logits", "new_blocks = (",
                          "unfrozen_parameters: ")),
        ("drop_layers", 2, ("verified (intentional): 1 block is dropped", "KL(old, new) of logits mean")),
        ("depth_upscale", 4, ("verified (intentional): 1 block is copied", "KL(old, new) of logits mean", "new_blocks = (")),
    ],
)  # fmt: skip
def test_the_recipe_gives_a_model_of_so_many_blocks(name, blocks, words, tmp_path):
    command = real if name == "llama_pro" else here
    done = command("apply", f"recipes/{name}.yaml", "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.split())
    for word in words:
        assert word in text
    model, info = recipes.load(tmp_path / "out")
    assert len(model.model.layers) == recipes.config_of(tmp_path / "out")["num_hidden_layers"] == blocks
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    report = json.loads((tmp_path / "out/graft_report.json").read_text())
    (figures,) = report["figures"].values()
    assert len(figures["blocks"]) == blocks
    assert {change["kind"] for change in report["changes"]["tensors"]} >= ({"dropped"} if blocks == 2 else {"copied"})
    assert [line for line in done.stdout.splitlines() if "model.layers" in line and "note:" in line]
