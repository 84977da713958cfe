"""The page: rendered from the report's JSON alone, self-contained, escaped, and honest about what it leaves out."""

import copy
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from support.families import build

import graftkit
from graftkit.errors import InputRejected
from graftkit.report.page import PAGE, REPORT, render_page, write_page
from graftkit.report.page.axes import linear, logarithmic
from graftkit.report.page.numbers import number, short_count
from graftkit.report.unchecked import unchecked

ROOT = Path(__file__).parent.parent.parent
HOSTILE = "</script><script>window.acted=1</script>"
TOKENS = [HOSTILE, "<img src=x onerror=window.acted=1>", "\"'><b>&amp;", "\u202eback", "\x1b[31m"]


class Outline(HTMLParser):
    """Elements with their attributes, and the text of each section by its anchor."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.texts, self._open = [], {}, None
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag == "section":
            self._open = dict(attributes)["id"]

    def handle_data(self, data):
        self.texts[self._open] = self.texts.get(self._open, "") + data

    def named(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    source, place = build("llama", folder / "source"), folder / "out"
    operation = {"op": "extend_vocab", "tokens": ["coroutine"], "special_tokens": TOKENS, "init": "mean"}
    graftkit.apply({"version": 1, "base_model": str(source), "operations": [operation], "output": str(place)})
    return place


@pytest.fixture
def report(output):
    return json.loads((output / REPORT).read_text())


def test_apply_writes_the_page_and_the_command_makes_the_same_again(output):
    page = output / PAGE
    before = page.read_bytes()
    page.unlink()
    command = [sys.executable, "-m", "graftkit", "report", str(output)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, str(page), "")
    assert page.read_bytes() == before


def test_it_is_one_file_that_asks_for_nothing(output):
    page = (output / PAGE).read_text()
    outline = Outline(page)
    assert not [a for _, a in outline.elements if {"src", "style", "onclick", "onerror"} & a.keys()]
    assert all(a["href"].startswith("#") for a in outline.named("a"))
    assert not outline.named("link")
    assert not re.search(r"@import|url\(|https?://", page)
    policy = next(a["content"] for a in outline.named("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy


def test_nothing_in_a_token_or_a_name_becomes_markup(output, report):
    outline = Outline((output / PAGE).read_text())
    assert [a.get("type") for a in outline.named("script")] == [None, "application/json"]
    assert not outline.named("img")
    assert not outline.named("b")
    text = "".join(outline.texts.values())
    assert HOSTILE in text
    assert "\u202e" not in text
    assert "\\u202eback" in text
    assert "\x1b" not in text
    report["ledger"][0]["name"] = HOSTILE
    report["source"]["name"] = report["verdict"] = report["recipe"] = report["notes"][0] = HOSTILE
    report["tokenization"][0]["differences"][0]["probe"] = report["checked"][0]["figure"] = HOSTILE
    assert len(Outline(render_page(report)).named("script")) == 2


def test_every_section_says_what_the_report_measured(output, report):
    texts = Outline((output / PAGE).read_text()).texts
    assert {
        "checks",
        "layers",
        "distribution",
        "rows",
        "tokenization",
        "config",
        "tensors",
        "not-checked",
    } <= texts.keys()
    assert "bit for bit" in texts["layers"]
    assert number(report["outputs"]["distribution"]["bound"]) in texts["distribution"]
    assert "coroutine" in texts["rows"]
    assert "2 with new values" in texts["tensors"]
    assert "Verified" in texts[None]
    assert report["promise"]["observable"] in texts[None]


ABSENT = {
    "checks": ("Checks", lambda r: r.pop("checked")),
    "layers": ("Difference by layer", lambda r: r["outputs"].update(comparisons=[])),
    "distribution": ("Next-token distribution", lambda r: r["outputs"].update(distribution=None)),
    "rows": ("New rows against old rows", lambda r: r.update(figures={})),
    "tokenization": ("Tokenization", lambda r: r.update(tokenization=[])),
    "config": ("Config and tokenizer", lambda r: r["changes"].update(values=[])),
    "tensors": ("Tensors", lambda r: r.update(ledger=[])),
}


@pytest.mark.parametrize("key", ABSENT)
def test_a_section_without_figures_is_left_out_and_listed(key, report):
    title, remove = ABSENT[key]
    assert title not in dict(unchecked(report))
    remove(report)
    texts = Outline(render_page(report)).texts
    assert key not in texts
    assert title in texts["not-checked"]


def test_a_report_without_outputs_is_verified_in_part(report):
    report.update(outputs=None, outputs_not_compared="verify.outputs is off")
    texts = Outline(render_page(report)).texts
    assert "Verified in part" in texts[None]
    assert "verify.outputs is off" in texts["not-checked"]
    assert not {"layers", "distribution"} & texts.keys()


def test_what_is_changed_on_purpose_is_not_called_preserved(report):
    assert "Preserves" in Outline(render_page(report)).texts[None]
    report["promise"].update(strength="intentional", observable="two tensors are made anew", domain="every input")
    text = Outline(render_page(report)).texts[None]
    assert "Changed on purpose: two tensors are made anew, for every input." in text
    assert "Preserves" not in text


def test_what_the_probes_left_out_is_said(report):
    report["outputs"].update(skipped={"long": "no"}, not_kept=3, cached_decoding="not covered: no cache", ids_covered=7)
    found = dict(unchecked(report))
    assert found["Cached decoding"] == "no cache"
    assert {"Probe 'long'", "3 outputs", "Old token ids"} <= found.keys()


def test_the_first_layer_that_differs_is_named_and_drawn(report):
    for item in report["outputs"]["comparisons"]:
        if item["name"].endswith("hidden_states.2"):
            item.update(bitwise=False, largest=0.25, allowed=0.5)
    page = render_page(report)
    assert "first difference is at layer 2: 0.250" in Outline(page).texts["layers"]
    assert "layer 2, max |Δ|: 0.250" in page


LENS = {
    "dtype": "bfloat16", "first": None, "largest": 0.0, "floor": {"height": 1e-14, "threshold": 1e-12}, "outputs": {"logits": 0.0},
    "modules": {"model.layers.0.mlp": 0.0, "model.layers.1": 0.0, "model.norm": 0.0},
    "noise": {"runs": [{"run": "result", "error": 0.01, "rho": 1.0, "divergence": None}], "probes": []},
}  # fmt: skip


def test_the_lens_has_its_sections_and_names_the_first_difference(report):
    report["checks"]["lens"] = copy.deepcopy(LENS)
    texts = Outline(render_page(report)).texts
    assert "to the last bit" in texts["float64"]
    assert "rho is 1.00" in texts["noise"]
    first = {"module": "model.layers.1", "gap": 3e-9, "tensors": ["model.layers.1.w"], "unlike": ""}
    report["checks"]["lens"].update(first=first, largest="inf")
    report["checks"]["lens"]["modules"]["model.layers.1"] = 3e-9
    page = render_page(report)
    assert "first difference is at model.layers.1" in Outline(page).texts["float64"]
    assert "layer 1, max |Δ| over RMS: 3.00 × 10⁻⁹" in page
    assert {"True float64", "Noise of the arithmetic"}.isdisjoint(dict(unchecked(report)))


def test_the_model_card_has_the_same_table_and_what_was_not_checked(output, report):
    card = (output / "README.md").read_text()
    assert card.count("\n| ") >= len(report["checked"])
    for row in report["checked"]:
        assert f"| {row['check'].split('(')[0]}" in card
    for item in report["not_checked"]:
        assert f"- {item['what']}: " in card
    assert "<script" not in card.partition("| check |")[2]


def big(report, tensors):
    """The report of a model of so many tensors, with names and shards as the hub has them."""
    report = copy.deepcopy(report)
    report["ledger"] += [
        {
            "name": f"model.layers.{i // 12}.self_attn.q_proj.weight_{i % 12}", "dtype": "BF16", "shape": [1536, 1536],
            "shard": f"model-{i % 7:05}-of-00007.safetensors", "sha256": f"{i * 7919:064x}", "source_bytes": 4718592,
            "produced_bytes": 0,
        }
        for i in range(tensors)
    ]  # fmt: skip
    return report


def test_the_page_of_a_model_of_338_tensors_is_small(report):
    assert len(render_page(big(report, 308)).encode()) < 200_000


def test_a_value_that_is_not_finite_leaves_the_page_whole(report):
    rows = next(iter(report["figures"]["operations.0.extend_vocab"].values()))["new_rows"]
    rows["rows"][0].update(norm=float("nan"), rank=0.0)
    report["outputs"]["comparisons"][0].update(bitwise=False, largest=float("inf"))
    report["outputs"]["distribution"]["kl"][0] = float("nan")
    assert Outline(render_page(report)).texts["rows"]


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "has no graft_report.json"), ("{", "is not JSON"), ("{}", "is not a report"), ("[1]", "is not a report"),
     ('{"source": 1}', "is not a report"), ("[" * 100_000, "is nested more than 64 levels deep")],
)  # fmt: skip
def test_what_is_no_report_is_refused_in_one_line(content, words, tmp_path):
    if content is not None:
        (tmp_path / REPORT).write_text(content)
    with pytest.raises(InputRejected, match=words) as refused:
        write_page(tmp_path)
    assert len(str(refused.value).splitlines()) == 1
    assert not (tmp_path / PAGE).exists()


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (None, "–"), (1.18e-4, "1.18 × 10⁻⁴"), (-1.18e-4, "−1.18 × 10⁻⁴"), (0.00246, "0.00246"), (0.5, "0.500"),
     (0.99984, "1.00"), (12.345, "12.3"), (-2.5, "−2.50"), (123456.0, "123,456"), (4e9, "4.00 × 10⁹"), (float("inf"), "inf")],
)  # fmt: skip
def test_numbers_read_well(value, shown):
    assert number(value) == shown


def test_counts_are_short():
    assert [short_count(v) for v in (7, 9_999, 49_152, 8_388_558)] == ["7", "9,999", "49.2 k", "8.39 M"]


@pytest.mark.parametrize("values", [[0.1, 0.2], [0, 0], [5], [], [-3, 7e6], [1e-12, 3e-12], [float("nan"), 1]])
def test_a_linear_axis_holds_its_values_and_has_round_ticks(values):
    axis = linear(values, 0, 100)
    places = [axis.at(v) for v in values if math.isfinite(v)]
    assert all(0 <= place <= 100 for place in places)
    assert 2 <= len(axis.ticks()) <= 8
    assert len({label for _, label in axis.ticks()}) == len(axis.ticks())


def test_a_logarithmic_axis_ends_at_powers_of_ten():
    axis = logarithmic([3e-9, 0.0, 2e-3], 0, 60)
    assert (axis.low, axis.high) == pytest.approx((1e-9, 1e-2))
    assert axis.at(1e-9) == pytest.approx(0)
    assert axis.at(1e-2) == pytest.approx(60)
    assert axis.ticks()[0][1] == "10⁻⁹"
