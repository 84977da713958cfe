"""The recipe that widens, through the command line, then loaded as a trainer does it."""

import json

import pytest
from support import recipes
from support.command import real

pytestmark = pytest.mark.numerical


def printed_by(shipped, output):
    """What the command prints of a recipe that ships, first step included, its white space made single."""
    done = real("apply", shipped, "--output", output, "verify.first_step=true")
    assert done.returncode == 0, done.stderr
    return " ".join(done.stdout.split())


def test_the_recipe_gives_a_wider_model_that_learns(tmp_path):
    printed = printed_by("recipes/widen.yaml", tmp_path / "out")
    for words in (
        "verified (exact): hidden states and logits, for every input",
        "note: intermediate_size was 448, is 640",
        "note: zero in what is new, so that the model does what it did: model.layers.*.mlp.down_proj.weight",
    ):
        assert words in printed, words
    model, info = recipes.load(tmp_path / "out")
    assert model.config.intermediate_size == 640
    assert not info["missing_keys"]
    assert not model.model.layers[2].mlp.down_proj.weight[:, 448:].any()
    report = json.loads((tmp_path / "out/graft_report.json").read_text())
    recipes.assert_equal_in_float64(report)
    moves = report["checks"]["first_step"]["moves"]
    assert len(moves) == 9
    assert set(moves.values()) == {0, 1}  # every new parameter has a gradient at one of the first two steps
    assert report["figures"]["operations.0.widen"]["widths"][0]["zero"] == ["model.layers.*.mlp.down_proj.weight"]
    assert report["promise"]["measured"] in ("exact", "bitwise")


def test_the_recipe_gives_a_wider_stream_that_learns(tmp_path):
    printed = printed_by("recipes/widen_hidden_size.yaml", tmp_path / "out")
    for words in (
        "verified (exact): hidden states and logits, for every input",
        "note: hidden_size was 160, is 640",
    ):
        assert words in printed, words
    model, info = recipes.load(tmp_path / "out")
    assert model.config.hidden_size == model.model.embed_tokens.weight.shape[1] == 640
    assert model.config.rms_norm_eps == 1e-6 / 4
    assert not info["missing_keys"]
    assert not model.model.embed_tokens.weight[:, 160:].any()
    report = json.loads((tmp_path / "out/graft_report.json").read_text())
    recipes.assert_equal_in_float64(report)
    assert report["promise"]["measured"] in ("exact", "bitwise")


def test_what_is_no_width_is_refused_with_its_line(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "version: 1\nbase_model: recipes/models/demo-lm\noperations:\n  - op: widen\n    sizes:\n      vocab_size: 4096\n"
        f"output: {tmp_path / 'out'}\n"
    )
    done = real("plan", path)
    assert done.returncode == 2
    assert (
        "recipe.yaml:6: operations.0.sizes.vocab_size: vocab_size is the size of the vocabulary: extend_vocab"
        in done.stderr
    )
