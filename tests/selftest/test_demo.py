"""The verifier catches every planted fault on the model that ships, and flags no clean copy of it."""

import json
from pathlib import Path

import pytest
from support.command import real

from graftkit.compare import CHECKS
from graftkit.errors import RecipeError
from graftkit.selftest import grown
from graftkit.selftest.clean import clean_copies
from graftkit.selftest.fault import OUTPUTS, REPORT
from graftkit.selftest.faults import FAULTS
from graftkit.selftest.run import CLEAN, selftest

ROOT = Path(__file__).parents[2]
DEMO = str(ROOT / "recipes" / "models" / "demo-lm")


@pytest.fixture(scope="module")
def found():
    return selftest(DEMO, clean=4, adapter_faults=(), grown_faults=(), trimmed_faults=())


def test_every_fault_is_caught_and_no_clean_copy_flagged(found):
    assert found.failures == ()
    assert len(found.planted) >= 35
    assert all(fault.seen_by for fault in found.planted)
    assert [dict(run.flagged) for run in found.clean] == [{}] * 7


def test_each_check_catches_something_that_no_other_one_does(found):
    alone = {next(iter(fault.seen_by)) for fault in found.planted if len(fault.seen_by) == 1}
    assert alone >= {"loading", "config", "tokenizer"}
    assert any("bytes" in fault.seen_by for fault in found.planted)


def test_by_how_much_is_said(found):
    by_name = {fault.name: fault for fault in found.planted}
    assert by_name["swapped rows"].weights > 0.1
    assert by_name["swapped rows"].outputs > 1
    assert by_name["changed rope_theta"].outputs > 1
    assert by_name["changed dropout"].outputs == 0
    assert by_name["NaN in k_proj"].weights == float("inf")


def test_what_cannot_exist_is_said_with_its_reason(found):
    reasons = {fault.name: fault.not_applicable for fault in found.faults if fault.not_applicable}
    assert reasons["dropped bias"] == "no tensor is a bias"
    assert reasons["layer_types off by one"] == "the config holds no layer_types"


@pytest.mark.parametrize("check", [check for check in CHECKS if check != REPORT])
def test_a_blinded_verifier_fails_its_selftest(check):
    due = [fault for fault in FAULTS if check in fault.seen_by][:4]
    blind = selftest(
        DEMO,
        leave_out=(check,),
        outputs=check == OUTPUTS,
        clean=0,
        faults=due,
        adapter_faults=(),
        grown_faults=(),
        trimmed_faults=(),
    )
    assert any(check in failure or "not caught" in failure for failure in blind.failures)
    assert any(fault.missed_by == (check,) for fault in blind.planted)


@pytest.mark.slow
def test_the_command_says_what_a_switched_off_check_would_miss():
    done = real("selftest", "--no-outputs", "--without", "config", "--json")
    assert done.returncode == 4, done.stderr
    report = json.loads(done.stdout)
    assert report["left_out"] == ["config"]
    assert any(failure.startswith("not caught: changed dropout") for failure in report["failures"])
    copies = [copy.name for copy in clean_copies(CLEAN)]
    outputs = [f"{name}; {copy.name}" for name in ("grown", "trimmed") for copy in grown.clean_copies()]
    assert [run["name"] for run in report["clean"]] == [*copies, *outputs, *(f"adapter; {name}" for name in copies)]
    assert not any(run["flagged"] for run in report["clean"])


def test_a_check_that_does_not_exist_is_refused():
    with pytest.raises(RecipeError, match="there is no check 'smell'"):
        selftest(DEMO, leave_out=("smell",))


def test_without_the_shipped_model_one_must_be_named(monkeypatch):
    monkeypatch.setattr("graftkit.selftest.run.__file__", "/nowhere/graftkit/selftest/run.py")
    with pytest.raises(RecipeError, match="graftkit selftest MODEL"):
        selftest()
