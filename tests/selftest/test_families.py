"""The selftest on other architectures: what a Llama cannot show."""

import pytest
from support.families import build

from graftkit.compare import verify
from graftkit.selftest.copies import copy_checkpoint
from graftkit.selftest.faults import FAULTS
from graftkit.selftest.growth import bias, grow
from graftkit.selftest.run import selftest
from graftkit.selftest.subject import Subject

TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


@pytest.mark.slow
def test_bert_in_bfloat16(tmp_path):
    build("bert", tmp_path / "bert", dtype="bfloat16")
    found = selftest(str(tmp_path / "bert"), clean=3)
    assert found.failures == ()
    caught = {fault.name for fault in found.planted}
    assert caught >= {
        "zeroed bias",
        "dropped bias",
        "other number of heads",
        "tie flag turned",
        "zero-padded tied bias",
    }


@pytest.mark.parametrize(("family", "names"), [
    ("gemma2", {"layer_types off by one"}),
    ("llama", {"lost chat template", "re-tied head", "new row overwritten", "chat template that is a file's name"}),
    ("llama_tied", {"tables untied though equal", "pad token that is eos", "new row overwritten"}),
])  # fmt: skip
def test_faults_that_need_another_model(family, names, tmp_path):
    build(family, tmp_path / family)
    (tmp_path / family / "chat_template.jinja").write_text(TEMPLATE)
    found = selftest(
        str(tmp_path / family), clean=1, faults=[fault for fault in FAULTS if fault.name in names],
        adapter_faults=(), grown_faults=(), trimmed_faults=(),
    )  # fmt: skip
    assert found.failures == ()
    assert {fault.name for fault in found.planted} == names


def test_a_grown_bias_is_flagged_where_zeros_pad_it_and_only_there(tmp_path):
    build("bert", tmp_path / "bert")
    subject = Subject.open(str(tmp_path / "bert"))
    place = bias(subject)
    for name, zeros in (("zeros", place), ("means", "")):
        copy = copy_checkpoint(subject.checkpoint, tmp_path / name)
        grow(copy, subject, zeros=zeros)
        found = verify(str(tmp_path / "bert"), str(copy))
        assert bool(found.failures) == bool(zeros)
        if zeros:
            assert place in found.failures[0]
            assert "padded with zeros" in found.failures[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "family", ["llama_tied", "gpt2", "gpt_neox", "gemma2", "mixtral", "roberta", "t5", "bart", "cohere"]
)
def test_every_family(family, tmp_path):
    build(family, tmp_path / family)
    assert selftest(str(tmp_path / family), clean=5).failures == ()
