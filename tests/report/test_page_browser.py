"""The page in a real browser: both themes, desk and phone, no script error, nothing beside the file itself."""

import json
from dataclasses import replace

import pytest
from support import browser as chromium
from support.families import build

import graftkit
from graftkit.compare import verify
from graftkit.report.comparison import write_comparison
from graftkit.report.page import PAGE, REPORT, render_page
from graftkit.verification.checks import Sentences

pytestmark = pytest.mark.skipif(
    chromium.find() is None,
    reason="no browser of the Chromium family; apt-get install chromium, or name one in GRAFTKIT_BROWSER",
)

TOKENS = ["</script><script>window.acted=1</script>", "<img src=x onerror=window.acted=1>"]
SIZES = {"desk": 1100, "phone": 390}

#: Contrast of the text of an element against what it stands on (WCAG 2.2, 1.4.3).
CONTRAST = """(() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const channels = (colour) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = (colour) => channels(colour).slice(0, 3).map((c) => c / 255)
    .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (channels(colour)[3] === 255) return colour;
    }
    return getComputedStyle(document.body).backgroundColor;
  };
  const found = {};
  for (const element of document.querySelectorAll("h1 span, p, td, th, dt, dd, code, figcaption, .cell, svg text, .result, nav a, summary, button")) {
    if (!element.textContent.trim() || element.closest("svg[aria-hidden]") || element.disabled) continue;
    const style = getComputedStyle(element);
    const [a, b] = [light(element.closest("svg") ? style.fill : style.color), light(ground(element))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) found[`${element.tagName}.${element.getAttribute("class")}`] = ratio;
  }
  return found;
})()"""

#: Words of a plot that stand outside its paper, or over one another.
STRAY = """[...document.querySelectorAll("svg.plot")].flatMap((plot) => {
  const paper = plot.getBoundingClientRect();
  const words = [...plot.querySelectorAll("text")].map((word) => [word.textContent, word.getBoundingClientRect()]);
  const outside = words.filter(([, box]) => box.left < paper.left - 1 || box.right > paper.right + 1 || box.bottom > paper.bottom + 1);
  const meets = ([, a], [, b]) => a.left < b.right && b.left < a.right && a.top + 2 < b.bottom && b.top + 2 < a.bottom;
  const over = words.filter((word, i) => words.slice(i + 1).some((other) => meets(word, other)));
  return [...outside, ...over].map(([text]) => text);
})"""


@pytest.fixture(scope="module")
def browser():
    with chromium.browser() as started:
        yield started


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    source, place = build("llama", folder / "source"), folder / "out"
    operation = {"op": "extend_vocab", "tokens": ["coroutine"], "special_tokens": TOKENS}
    recipe = {"version": 1, "base_model": str(source), "operations": [operation], "output": str(place)}
    graftkit.apply({**recipe, "verify": {"signal": True, "lens": True}})
    return place


@pytest.fixture(scope="module")
def full(output, tmp_path_factory):
    """A page with every section and 20,000 tensors."""
    report = json.loads((output / REPORT).read_text())
    for layer, item in enumerate(report["outputs"]["comparisons"]):
        item.update(bitwise=False, largest=1e-7 * 3**layer, allowed=1.0)
    entry = report["ledger"][-1]
    report["ledger"] += [{**entry, "name": f"extra.{i}.weight", "shard": f"s{i % 3}"} for i in range(20_000)]
    page = tmp_path_factory.mktemp("full") / PAGE
    page.write_text(render_page(report))
    return page


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_it_looks_right_in_both_themes_and_sizes(browser, full, size, dark, tmp_path):
    browser.open(full, width=SIZES[size], dark=dark)
    assert browser.errors == []
    assert browser.requests == [f"file://{full}"]
    assert browser.run("window.acted === undefined")
    assert browser.run("document.documentElement.scrollWidth") == SIZES[size]
    assert browser.run(CONTRAST) == {}
    assert browser.run(STRAY) == []
    assert browser.run("document.querySelectorAll('svg.plot').length") >= 10
    browser.screenshot(tmp_path / "page.png")
    assert darkness(tmp_path / "page.png") == dark


def test_the_page_of_two_checkpoints_looks_right(browser, output, tmp_path):
    """A comparison without a recipe, in which something differs, on a phone and in the dark."""
    source, page = str(output.parent / "source"), tmp_path / "comparison.html"
    found = verify(source, str(output), lens=True)
    planted = Sentences("bytes", ("structure: planted " * 20,))
    findings = tuple(planted if finding.name == "bytes" else finding for finding in found.findings)
    write_comparison(source, str(output), replace(found, findings=findings), page)
    browser.open(page, width=SIZES["phone"], dark=True)
    assert browser.errors == []
    assert browser.requests == [f"file://{page}"]
    assert browser.run("window.acted === undefined")
    assert browser.run("document.documentElement.scrollWidth") == SIZES["phone"]
    assert browser.run(CONTRAST) == {}
    assert browser.run(STRAY) == []
    assert browser.run("document.querySelector('.badge').textContent") == "Differs"


def darkness(path):
    from PIL import Image

    with Image.open(path) as image:
        pixels = image.convert("L").resize((40, 40))
    values = sorted(pixels.get_flattened_data() if hasattr(pixels, "get_flattened_data") else pixels.getdata())
    assert values[0] != values[-1], "an empty page"
    return values[len(values) // 2] < 128


def test_the_button_turns_the_theme_over_and_back(browser, output):
    browser.open(output / PAGE, dark=True)
    colour = "getComputedStyle(document.body).backgroundColor"
    dark = browser.run(colour)
    browser.run("document.getElementById('theme').click()")
    light = browser.run(colour)
    browser.open(output / PAGE, dark=True)
    assert browser.run(colour) == light != dark, "the choice is remembered"
    browser.run("document.getElementById('theme').click()")
    assert browser.run(colour) == dark
    assert browser.errors == []
    browser.run("localStorage.clear()")


NAMES = "[...document.querySelectorAll('#ledger-body tr td:first-child')].map((cell) => cell.textContent)"
COUNT = "document.getElementById('ledger-count').textContent"


def type_filter(browser, text):
    browser.run(
        f"(() => {{ const box = document.getElementById('ledger-filter'); box.value = {json.dumps(text)};"
        " box.dispatchEvent(new Event('input')); })()"
    )


def test_the_ledger_filters_sorts_and_turns_its_pages(browser, full):
    browser.open(full)
    first = browser.run(NAMES)
    assert len(first) == 40
    assert browser.run(COUNT) == "1–40 of 20,021"
    browser.run("document.getElementById('ledger-next').click()")
    assert not set(first) & set(browser.run(NAMES))
    type_filter(browser, "extra.1999 S1")
    assert browser.run(NAMES) == ["extra.1999.weight", *(f"extra.1999{i}.weight" for i in (0, 3, 6, 9))]
    type_filter(browser, "no such tensor")
    assert (browser.run(NAMES), browser.run(COUNT)) == ([], "no tensor matches")
    type_filter(browser, "331x32")
    assert browser.run(NAMES) == ["lm_head.weight", "model.embed_tokens.weight"]
    type_filter(browser, "extend_vocab")
    assert browser.run(NAMES) == ["lm_head.weight", "model.embed_tokens.weight"]
    type_filter(browser, "")
    browser.run("document.querySelector('[data-show=changed]').click()")
    assert browser.run(NAMES) == ["lm_head.weight", "model.embed_tokens.weight"]
    browser.run("document.querySelector('[data-sort=\"0\"]').click()")
    browser.run("document.querySelector('[data-sort=\"0\"]').click()")
    assert browser.run(NAMES) == ["model.embed_tokens.weight", "lm_head.weight"]
    assert browser.errors == []


def test_a_planted_script_error_is_seen(browser, output, tmp_path):
    page = (output / PAGE).read_text()
    policy = page[page.index("<meta http-equiv") :].partition(">")[0] + ">"
    broken = tmp_path / PAGE
    broken.write_text(page.replace(policy, "").replace('"use strict";', '"use strict"; nothing.at.all;', 1))
    browser.open(broken)
    assert any("nothing is not defined" in error for error in browser.errors)


def test_a_planted_script_does_not_run(browser, output, tmp_path):
    planted = tmp_path / PAGE
    planted.write_text((output / PAGE).read_text().replace("</main>", "<script>window.acted=1</script></main>"))
    browser.open(planted)
    assert browser.run("window.acted === undefined")
    assert any("Content Security Policy" in error for error in browser.errors)


def test_a_planted_request_is_refused_and_seen(browser, output, tmp_path):
    planted = tmp_path / PAGE
    planted.write_text((output / PAGE).read_text().replace("</main>", '<img src="http://127.0.0.1:9/x.png"></main>'))
    browser.open(planted)
    assert any("Content Security Policy" in error for error in browser.errors)


def test_low_contrast_and_a_stray_word_are_seen(browser, output, tmp_path):
    page = (output / PAGE).read_text()
    policy = page[page.index("<meta http-equiv") :].partition(">")[0] + ">"
    broken = tmp_path / PAGE
    broken.write_text(
        page.replace(policy, "").replace("</style>", ".lead { color: #ccc } svg text { font-size: 60px }</style>", 1)
    )
    browser.open(broken)
    assert "P.lead" in browser.run(CONTRAST)
    assert browser.run(STRAY)
