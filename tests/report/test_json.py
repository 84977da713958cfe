"""What `--json` prints and graft_report.json holds is JSON for every reader, also where a figure is not finite."""

import json

import pytest
from safetensors.torch import load_file, save_file
from support.command import real
from support.families import build

TARGET = "model.layers.1.mlp.down_proj.weight"


def strict(text):
    """The JSON of ``text``, read by one who knows no NaN and no infinity, as the format has none."""

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture(scope="module")
def infinite(tmp_path_factory):
    """A checkpoint with an infinite weight, and a recipe that makes it anew and says its size before."""
    folder = tmp_path_factory.mktemp("infinite")
    base = build("llama", folder / "base")
    tensors = load_file(base / "model.safetensors")
    tensors[TARGET][0, 0] = float("inf")
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        json.dumps(
            {
                "version": 1, "base_model": str(base), "allow_nonfinite": True, "output": str(folder / "out"),
                "operations": [{"op": "reinit", "parameters": [TARGET]}],
            }
        )
    )  # fmt: skip
    return base, recipe, folder / "out"


def test_an_infinite_figure_is_a_word_in_the_report_and_on_the_page(infinite):
    _, recipe, output = infinite
    done = real("apply", recipe, "--json")
    assert done.returncode == 0, done.stderr
    written = strict((output / "graft_report.json").read_text())
    for report in (strict(done.stdout), written):
        (figures,) = report["figures"].values()
        assert figures[TARGET]["rms_before"] == "inf"
    page = (output / "graft_report.html").read_bytes()
    assert real("report", output).returncode == 0
    assert (output / "graft_report.html").read_bytes() == page


def test_a_comparison_of_outputs_that_overflow_is_json(infinite, tmp_path):
    base, _, _ = infinite
    changed = build("llama", tmp_path / "changed")
    done = real("verify", base, changed, "--json", "--report", tmp_path / "page.html")
    assert done.returncode == 4, done.stderr
    assert '"inf"' in done.stdout or '"nan"' in done.stdout
    assert strict(done.stdout)["failures"]
    assert (tmp_path / "page.html").is_file()
