"""docs/lora.md: what it says of the exact form's learning rate holds, and what it names is there."""

import re
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.numerical

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
import exact_lora_study as study_script  # noqa: E402 - a script beside the package

PAGE = (ROOT / "docs" / "lora.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def curves():
    return study_script.study([1e-3], steps=20)[1e-3]


def test_the_exact_form_at_half_the_learning_rate_trains_as_peft_s_own(curves):
    assert study_script.difference(curves["half"], curves["peft"])[1] < 0.01
    assert curves["peft"][-1] < curves["peft"][0] - 1


def test_at_the_same_learning_rate_it_does_not(curves):
    assert study_script.difference(curves["same"], curves["peft"])[0] > 0.05
    assert curves["same"][-1] < curves["peft"][-1]


def test_both_start_as_the_same_model(curves):
    assert curves["same"][0] == curves["half"][0] == pytest.approx(curves["peft"][0], rel=1e-5)


def test_links_and_figures_of_the_page_are_there():
    for target in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert (ROOT / "docs" / target).exists(), target
