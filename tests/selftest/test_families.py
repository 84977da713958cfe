"""The selftest on other architectures: what a Llama cannot show."""

import pytest
from support.families import build

from graftkit.selftest.faults import FAULTS
from graftkit.selftest.run import selftest

TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


def test_bert_in_bfloat16(tmp_path):
    build("bert", tmp_path / "bert", dtype="bfloat16")
    found = selftest(str(tmp_path / "bert"), clean=3)
    assert found.failures == ()
    caught = {fault.name for fault in found.planted}
    assert caught >= {"zeroed bias", "dropped bias", "other number of heads", "tie flag turned"}


@pytest.mark.parametrize(("family", "names"), [
    ("gemma2", {"layer_types off by one"}),
    ("llama", {"lost chat template", "re-tied head"}),
])  # fmt: skip
def test_faults_that_need_another_model(family, names, tmp_path):
    build(family, tmp_path / family)
    (tmp_path / family / "chat_template.jinja").write_text(TEMPLATE)
    found = selftest(str(tmp_path / family), clean=1, faults=[fault for fault in FAULTS if fault.name in names])
    assert found.failures == ()
    assert {fault.name for fault in found.planted} == names


@pytest.mark.slow
@pytest.mark.parametrize(
    "family", ["llama_tied", "gpt2", "gpt_neox", "gemma2", "mixtral", "roberta", "t5", "bart", "cohere"]
)
def test_every_family(family, tmp_path):
    build(family, tmp_path / family)
    assert selftest(str(tmp_path / family), clean=5).failures == ()
