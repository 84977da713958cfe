"""The benchmark of heads: its texts do not leak from training into test, and docs/heads.md shows what was measured."""

import importlib
import json
import re
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def scripts():
    """The modules of scripts/ by name, which import one another."""
    sys.path.insert(0, str(ROOT / "scripts"))
    yield {name: importlib.import_module(name) for name in ("docstrings", "bench_heads")}
    sys.path.remove(str(ROOT / "scripts"))


@pytest.fixture(scope="module")
def texts(scripts):
    return scripts["docstrings"].texts()


def test_each_text_stands_once_and_without_the_name_of_its_module(texts):
    plain = Counter(re.sub(r"\W+", " ", text.text).lower() for text in texts)
    assert max(plain.values()) == 1
    named = [text for text in texts if re.search(rf"(?i)\b{text.module.strip('_')}\b", text.text)]
    assert named == []


def test_a_domain_of_too_few_modules_is_named(scripts, texts):
    with pytest.raises(ValueError, match=r"too few modules of the domain gui: turtle$"):
        scripts["docstrings"].split(
            tuple(text for text in texts if text.label != "gui" or text.module == "turtle"), 0, train=128, test=60
        )


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.skipif(find_spec("idlelib") is None, reason="this Python comes without tkinter and idlelib")
def test_no_module_is_trained_on_and_tested_on(seed, scripts, texts):
    found = scripts["docstrings"].split(texts, seed, train=128, test=60)
    assert not {text.module for text in found.train} & {text.module for text in found.test}
    for side, size in ((found.train, 128), (found.test, 60)):
        assert Counter(text.label for text in side) == dict.fromkeys(scripts["docstrings"].LABELS, size)


def test_the_table_of_the_page_is_that_of_the_results(scripts):
    bench = scripts["bench_heads"]
    done = json.loads(bench.RESULTS.read_text(encoding="utf-8"))
    page = bench.PAGE.read_text(encoding="utf-8")
    assert bench.table(done, bench.RATE) in page
    for init in bench.INITS:
        for size in bench.SIZES:
            assert len(bench.cell(done, init, size, bench.RATE, 0, "loss")) == 3
            assert len(bench.cell(done, init, size, bench.RATE, 50, "accuracy")) == 3
            assert bench.cell(done, init, size, bench.RATE, 300, "accuracy")
