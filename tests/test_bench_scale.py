"""What scripts/bench_scale.py makes of its measurements."""

import importlib.util
import json
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "bench_scale.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench_scale", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_work_is_told_apart_into_that_of_each_rank_and_that_of_each_gigabyte(bench):
    measured = {ranks: [{"work": 3.0 + 2 * 5.0 / ranks}] * ranks for ranks in (1, 2, 4)}
    each, per_gigabyte = bench.work_per_gigabyte(measured, 2.0)
    assert each == pytest.approx(3.0)
    assert per_gigabyte == pytest.approx(5.0)


def test_the_model_shares_files_out_whole(bench):
    one, eight = ([float(cell.replace(",", "")) for cell in row.strip("| ").split("|")] for row in bench.modelled(4.0))
    assert (one[0], one[1], eight[0], eight[1]) == (1, 810, 8, 102)
    assert one[2] == pytest.approx(810 * (3 / bench.READ + 1 / bench.WRITE), abs=1)
    assert eight[4] == max(eight[2], eight[3])
    assert one[5] == pytest.approx(2 * 810 / bench.READ, abs=1)
    assert eight[5] == pytest.approx(one[5] / 8, abs=1)


def test_what_ranks_did_to_run_the_models_is_read_from_the_report(bench, tmp_path):
    report = {
        "by_ranks": {
            "ranks": [
                {
                    "rank": 1,
                    "blocks": 3,
                    "weight_bytes_read": 2_000_000_000,
                    "bytes_moved": 1_500_000,
                    "processor_seconds": 2.5,
                }
            ]
        }
    }
    (tmp_path / "graft_report.json").write_text(json.dumps(report))
    assert bench.run_rows(2, tmp_path) == ["| 2 | 1 | 3 | 2.00 | 1.5 | 2.5 |"]
    (tmp_path / "graft_report.json").write_text("{}")
    assert bench.run_rows(1, tmp_path) == []
