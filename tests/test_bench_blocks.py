"""The benchmark of new blocks: docs/blocks.md shows what was measured, and old and new domain are not the same texts."""

import json
from pathlib import Path

import pytest
from support.sweeps import load_script

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def bench():
    return load_script("bench_blocks")


@pytest.fixture(scope="module")
def done():
    return json.loads((ROOT / "docs" / "bench_blocks.json").read_text(encoding="utf-8"))


def test_the_page_shows_what_was_measured(bench, done):
    page = (ROOT / "docs" / "blocks.md").read_text(encoding="utf-8")
    shown = page.partition(bench.BEGIN)[2].partition(bench.END)[0].strip()
    assert shown == bench.table(done).strip(), "run scripts/bench_blocks.py --write"
    assert "img/blocks.svg" in page
    assert (ROOT / "docs" / "img" / "blocks.svg").is_file()


def test_every_start_was_trained_with_every_seed_to_the_end(bench, done):
    assert {*done["runs"]} == {f"{start} {seed}" for start in bench.STARTS for seed in bench.SEEDS}
    for run in done["runs"].values():
        assert [item["step"] for item in run] == list(range(0, bench.STEPS + 1, bench.EVERY))


def test_identity_begins_where_the_model_was_and_the_others_do_not(bench, done):
    firsts = {start: {done["runs"][f"{start} {seed}"][0]["old"] for seed in bench.SEEDS} for start in bench.STARTS}
    assert len(firsts["identity"]) == len(firsts["copy"]) == 1
    assert min(firsts["copy"] | firsts["random"]) > max(firsts["identity"])


def test_no_package_is_both_trained_on_and_measured_on(bench):
    assert not {*bench.TRAINED} & {*bench.TESTED}
    assert all(sum(map(len, bench.code(packages))) > 100_000 for packages in (bench.TRAINED, bench.TESTED))
