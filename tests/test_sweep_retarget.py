"""The sweep of retargeted adapters over every wrapper: planted faults and the page here, a few wrappers and all of them behind the marker."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from support.families import build
from support.sweeps import load_script

ROOT = Path(__file__).parent.parent
SCRIPT, PAGE = ROOT / "scripts" / "sweep_retarget.py", ROOT / "docs" / "sweep_retarget.md"


def counts(page):
    """What is inside -> works, refused, wrong, not built."""
    found = re.findall(r"^\| ([a-z ]+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|$", page, re.MULTILINE)
    return {name: tuple(map(int, numbers)) for name, *numbers in found}


def run(*arguments):
    done = subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    return done


@pytest.fixture(scope="module")
def sweep():
    return load_script("sweep_retarget")


@pytest.fixture(scope="module")
def made(tmp_path_factory, sweep):
    """A wrapper and its text model, and an adapter of the text model with the names of each."""
    import transformers

    place = tmp_path_factory.mktemp("sweep")
    model = transformers.LlavaForConditionalGeneration.from_pretrained(build("llava", place / "base")).eval()
    small = sweep.inner_model(model, transformers.LlamaModel)
    sweep.train(small, place / "adapter")
    (place / "new").mkdir()
    tensors = load_file(place / "adapter/adapter_model.safetensors")
    renamed = {name.replace(".layers.", ".model.language_model.layers."): value for name, value in tensors.items()}
    save_file(renamed, place / "new/adapter_model.safetensors")
    config = (place / "adapter/adapter_config.json").read_text(encoding="utf-8")
    (place / "new/adapter_config.json").write_text(config, encoding="utf-8")
    return place, small, model


def another_layer(tensors):
    swap = str.maketrans("01", "10")
    return {
        re.sub(r"layers\.\d", lambda found: found[0].translate(swap), name): value for name, value in tensors.items()
    }


def a_last_bit(tensors):
    import torch

    name = min(tensors)
    tensors[name][0, 0] = torch.nextafter(tensors[name][0, 0], torch.tensor(torch.inf))
    return tensors


@pytest.mark.parametrize(
    ("damage", "reason"), [(another_layer, "which is on another weight"), (a_last_bit, "has changed its values")]
)
def test_a_damaged_result_is_called_wrong(damage, reason, sweep, made, tmp_path):
    place, small, model = made
    for path in (place / "new").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    save_file(damage(load_file(tmp_path / "adapter_model.safetensors")), tmp_path / "adapter_model.safetensors")
    with pytest.raises(sweep.Wrong, match=reason):
        sweep.check_places(place / "adapter", small, tmp_path, model)
    with pytest.raises(sweep.Wrong, match="there and back"):
        sweep.check_same(place / "new", tmp_path if damage is a_last_bit else place / "adapter")


def test_the_page_counts_every_wrapper_and_nothing_is_wrong(sweep):
    from transformers import __version__

    text = PAGE.read_text(encoding="utf-8")
    assert "## wrong: 0" in text
    found = counts(text)
    assert {*sweep.INSIDE, sweep.BACKBONE} <= found.keys()
    assert all(wrong == 0 for _, _, wrong, _ in found.values())
    assert sum(works for works, *_ in found.values()) > 0
    if f"transformers {__version__} " in text:
        assert f"of the {len(sweep.wrappers(''))} wrappers that transformers names" in text


@pytest.mark.slow
def test_wrappers_that_need_care_work(tmp_path):
    """Scaled logits, ids of images that are masked in the wrapper alone, two stacks, names that a prefix tells nothing of."""
    page = tmp_path / "page.md"
    done = run("--jobs", 2, "--match", "^(Llava|AyaVision|Gemma3|Florence2|Qwen3VL)For", "--out", page)
    assert done.returncode == 0, done.stdout
    assert all(not wrong and works for works, _, wrong, _ in counts(page.read_text(encoding="utf-8")).values())


@pytest.mark.slow
def test_no_wrapper_of_transformers_is_wrong(tmp_path):
    page = tmp_path / "page.md"
    done = run("--jobs", 2, "--out", page)
    assert done.returncode == 0, done.stdout
    found = counts(page.read_text(encoding="utf-8"))
    assert sum(works for works, *_ in found.values()) > 0.8 * sum(map(sum, found.values()))
