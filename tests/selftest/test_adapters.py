"""Every fault planted into an adapter or its base is caught, and no other way of writing the same ones is flagged."""

import pytest
from support.families import build
from support.tiny import build as build_class

from graftkit.selftest import adapters
from graftkit.selftest.adapter_faults import ADAPTER_FAULTS
from graftkit.selftest.run import selftest


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return str(build("llama", tmp_path_factory.mktemp("llama"), dtype="bfloat16"))


@pytest.fixture(scope="module")
def found(llama):
    return selftest(llama, clean=2, faults=(), grown_faults=(), trimmed_faults=())


def test_every_fault_is_caught_and_no_clean_copy_flagged(found):
    assert found.failures == ()
    assert len(found.planted) == len(ADAPTER_FAULTS)
    assert all(fault.seen_by for fault in found.planted)
    assert [dict(run.flagged) for run in found.clean] == [{}] * 11
    names = [run.name for run in found.clean]
    assert sum("trained for" in name for name in names) == 4
    assert sum(name.endswith(("one thread", "formula", "oneDNN")) for name in names) == 3


def test_what_only_the_report_shows_and_what_outputs_and_gradients_show_is_told_apart(found):
    seen = {fault.name.removeprefix("adapter: "): set(fault.seen_by) for fault in found.planted}
    assert seen["changed alpha"] == seen["dropped target"] == seen["flipped bit in A"] == {"adapter"}
    assert seen["renamed key"] == seen["dropped tensors"] == {"adapter", "peft"}
    assert seen["another base of the same shape"] == {"base"}
    assert "outputs" in seen["B that is not zero"]
    assert "gradients" in seen["A of zeros"]


def test_by_how_much_is_said(found):
    by_name = {fault.name.removeprefix("adapter: "): fault for fault in found.planted}
    assert by_name["changed alpha"].outputs == by_name["flipped bit in B"].outputs == 0
    assert 0 < by_name["flipped bit in B"].weights < 1e-44
    assert by_name["B that is not zero"].outputs > 0
    assert by_name["NaN in A"].weights == float("inf")


@pytest.mark.parametrize("check", [*adapters.CHECKS, "outputs"])
def test_a_blinded_verifier_fails_its_selftest(llama, check):
    due = [fault for fault in ADAPTER_FAULTS if check in fault.seen_by][:1]
    blind = selftest(
        llama, leave_out=(check,), clean=0, faults=(), adapter_faults=due, grown_faults=(), trimmed_faults=()
    )
    assert [fault.missed_by for fault in blind.planted] == [(check,)]
    assert due[0].name in blind.failures[0]


def test_a_model_that_takes_no_adapter_says_why(tmp_path):
    build_class("MambaForCausalLM", tmp_path / "mamba")
    found = selftest(
        str(tmp_path / "mamba"),
        clean=1,
        faults=(),
        adapter_faults=ADAPTER_FAULTS[:1],
        grown_faults=(),
        trimmed_faults=(),
    )
    assert found.planted == ()
    assert "no adapter for this model" in found.faults[0].not_applicable
    assert len(found.clean) == 4


def test_a_verifier_that_cries_wolf_at_trained_adapters_is_told(llama, monkeypatch):
    """As one does that holds every adapter to what a fresh one promises."""
    from graftkit.verification.adapters.outputs import OutputGap
    from graftkit.verification.promises import PromiseClass

    honest = OutputGap.failures
    monkeypatch.setattr(OutputGap, "failures", lambda gap, strength: honest(gap, PromiseClass.BITWISE))
    found = selftest(llama, clean=1, faults=(), adapter_faults=ADAPTER_FAULTS[:1], grown_faults=(), trimmed_faults=())
    flagged = [run.name for run in found.clean if run.flagged]
    assert flagged == [name for name in (run.name for run in found.clean) if name.endswith("verified")]
    assert "clean copy flagged: adapter trained for" in found.failures[0]
