"""docs/initializers.md: it shows every scheme, its figures are there, and what it says and runs is true."""

import json
import re
import textwrap
from pathlib import Path

import pytest
import torch
from support.families import build

import graftkit
from graftkit.initializers.fans import CONV1D, EMBEDDING, LINEAR, Layout, conv, experts, fans
from graftkit.initializers.make import MAKERS

pytestmark = pytest.mark.numerical

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "initializers.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("scheme", [*MAKERS, "lsuv"])
def test_every_scheme_has_its_row_and_its_spectrum(scheme):
    row = next(line for line in PAGE.splitlines() if re.match(rf"\| (`\w+` )?`{scheme}`", line) and "spectrum_" in line)
    assert f"img/spectrum_{scheme}.svg" in row


def test_every_figure_is_there_small_and_shown():
    shown = set(re.findall(r"img/(\w+\.svg)", PAGE))
    there = {path.name: path.stat().st_size for path in (ROOT / "docs" / "img").glob("*.svg")}
    assert shown <= there.keys()
    assert all(size < 60_000 for size in there.values())


def test_links_within_the_page_have_a_target():
    headings = {
        re.sub(r"[^\w\- ]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in PAGE.splitlines()
        if line.startswith("#")
    }
    assert set(re.findall(r"\]\(#([\w-]+)\)", PAGE)) <= headings


def torch_fans(*shape):
    return torch.nn.init._calculate_fan_in_and_fan_out(torch.empty(shape))


def test_what_the_page_says_of_torchs_fans():
    assert torch_fans(20, 12) == fans((20, 12), LINEAR)[0] == (12, 20)
    assert torch_fans(12, 20) == fans((12, 20), CONV1D)[0][::-1]
    assert fans((8, 3, 5, 5), conv(2))[0] == (75, 100)
    assert torch_fans(8, 3, 5, 5) == (75, 200)
    assert (torch_fans(50, 8), fans((50, 8), EMBEDDING)[0]) == ((8, 50), (1, 8))
    assert torch_fans(12, 4)[1] == sum(part.fan_out for part in fans((12, 4), Layout(parts=(4, 4, 4))))
    assert (torch_fans(7, 20, 12), fans((7, 20, 12), experts())[0]) == ((240, 84), (12, 20))


def test_the_trainer_of_the_page_reads_the_multipliers(tmp_path, monkeypatch):
    code = re.search(r"<!-- tested: tests/test_docs_initializers.py .*? -->\n```python\n(.*?)```", PAGE, re.DOTALL)[1]
    assert len(code.strip().splitlines()) <= 20
    operation = {"op": "reinit", "layers": "last 2", "init": {"scheme": "mup", "base_width": 8}}
    source = build("llama", tmp_path / "source")
    graftkit.apply(
        {"version": 1, "base_model": str(source), "operations": [operation], "output": str(tmp_path / "out" / "mup")}
    )
    monkeypatch.chdir(tmp_path)
    ids = torch.randint(4, 300, (64, 16), generator=torch.Generator().manual_seed(0))
    code = code.replace('"out/run", max_steps=20', '"out/run", max_steps=2, report_to=[], use_cpu=True')
    space = {"dataset": [{"input_ids": row, "labels": row} for row in ids]}
    exec(compile(textwrap.dedent(code), "initializers.md", "exec"), space)  # noqa: S102 - the page's own code
    rates = {id(p): group["initial_lr"] for group in space["optimizer"].param_groups for p in group["params"]}
    named = dict(space["model"].named_parameters())
    assert rates[id(named["model.layers.1.mlp.up_proj.weight"])] == pytest.approx(3e-4 / 4)
    assert rates[id(named["model.layers.1.input_layernorm.weight"])] == rates[id(named["lm_head.weight"])] == 3e-4
    decays = [group["initial_lr"] * group["weight_decay"] for group in space["optimizer"].param_groups]
    assert decays == [pytest.approx(3e-4 * 0.1)] * len(decays)
    assert json.loads((tmp_path / "out" / "mup" / "lr_multipliers.json").read_text())
    assert space["trainer"].state.global_step == 2


def test_the_recipe_of_the_page_names_known_fields():
    import yaml

    from graftkit.recipe import parse_recipe

    blocks = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        parse_recipe({"version": 1, "base_model": "a", "operations": yaml.safe_load(block), "output": "o"})
