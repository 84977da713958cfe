"""A trimmed output beside its report: what was renumbered in one place alone is caught, by the check that it belongs to."""

import pytest
from support.renamed import checkpoint
from support.tokenizer_sources import bpe, unigram

from graftkit.selftest.run import selftest
from graftkit.selftest.trimmed import TRIMMED_FAULTS


@pytest.mark.parametrize("make", [bpe, unigram], ids=lambda make: make.__name__)
def test_every_fault_is_caught_and_no_clean_copy_flagged(make, tmp_path):
    source = checkpoint(make, tmp_path / "base")
    found = selftest(str(source), clean=0, faults=(), adapter_faults=(), grown_faults=())
    assert found.failures == ()
    planted = {fault.name for fault in found.planted}
    assert planted == {fault.name for fault in TRIMMED_FAULTS} - (
        {"trimmed: merge left out"} if make is unigram else set()
    )
    assert [dict(run.flagged) for run in found.clean] == [{}] * 4


def test_a_blinded_verifier_fails_its_selftest(tmp_path):
    source = checkpoint(bpe, tmp_path / "base")
    found = selftest(
        str(source), leave_out=("tokenizer",), outputs=False, clean=0, faults=(), adapter_faults=(), grown_faults=(),
        trimmed_faults=TRIMMED_FAULTS[:1],
    )  # fmt: skip
    assert [fault.missed_by for fault in found.planted] == [("tokenizer",)]
