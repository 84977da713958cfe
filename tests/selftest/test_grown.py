"""Every byte of an output that lies beside its report: each planted fault is caught, and the same tensors in other files are no fault."""

import json

import pytest
from support.families import build

from graftkit.selftest.grown import GROWN_FAULTS
from graftkit.selftest.run import selftest


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return str(build("llama", tmp_path_factory.mktemp("llama"), dtype="bfloat16"))


@pytest.fixture(scope="module")
def found(llama):
    return selftest(llama, clean=0, faults=(), adapter_faults=(), trimmed_faults=())


def test_every_fault_is_caught_and_no_clean_copy_flagged(found):
    assert found.failures == ()
    assert len(found.planted) == len(GROWN_FAULTS)
    assert all("report" in fault.seen_by for fault in found.planted)
    assert [dict(run.flagged) for run in found.clean] == [{}] * 4


def test_what_only_the_report_shows_is_told_apart(found):
    seen = {fault.name.removeprefix("grown: "): set(fault.seen_by) for fault in found.planted}
    assert {name for name, checks in seen.items() if checks == {"report"}} >= {
        "one bit of the card",
        "one bit of the recipe",
        "one bit of the page",
        "one bit of the report",
        "config.json edited",
        "one bit of __metadata__",
    }
    assert seen["new row overwritten"] == seen["another folder's report"] == {"report", "bytes"}


def test_a_blinded_verifier_fails_its_selftest(llama):
    blind = selftest(
        llama,
        leave_out=("report",),
        clean=0,
        faults=(),
        adapter_faults=(),
        trimmed_faults=(),
        grown_faults=GROWN_FAULTS[:2],
    )
    assert [fault.missed_by for fault in blind.planted] == [("report",)] * 2
    assert GROWN_FAULTS[1].name in blind.failures[1]


def test_a_model_that_takes_no_token_says_why(tmp_path):
    source = build("llama", tmp_path / "named", rows=320, tokens=310)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "image_token_id": 310}))
    found = selftest(
        str(source), clean=0, faults=(), adapter_faults=(), trimmed_faults=(), grown_faults=GROWN_FAULTS[:1]
    )
    assert found.planted == found.clean == ()
    assert "no tokens for this model: " in found.faults[0].not_applicable
