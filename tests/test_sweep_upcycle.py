"""The sweep of upcycling over pairs of classes: one dense class, a planted fault, and the page."""

import pytest
from safetensors.torch import load_file, save_file
from support.sweeps import load_script
from support.tiny import build

import graftkit


@pytest.fixture(scope="module")
def sweep():
    return load_script("sweep_upcycle")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    directory = tmp_path_factory.mktemp("llama")
    build("LlamaForCausalLM", directory)
    return directory


def test_a_pair_works_or_is_refused_with_its_reason(sweep, llama, tmp_path):
    word, why = sweep.try_pair(llama, tmp_path / "out", "MixtralForCausalLM")
    assert word.startswith("works")
    assert not why
    word, why = sweep.try_pair(llama, tmp_path / "none", "Qwen3MoeForCausalLM")
    assert (word, "gives other outputs" in why) == ("refused", True)


def test_a_damaged_result_is_called_wrong(sweep, llama, tmp_path, monkeypatch):
    apply = graftkit.apply

    def apply_and_damage(recipe):
        report = apply(recipe)
        path = tmp_path / "out/model.safetensors"
        state = load_file(path)
        state["model.layers.0.block_sparse_moe.experts.1.w2.weight"] += 0.01
        save_file(state, path, metadata={"format": "pt"})
        return report

    monkeypatch.setattr(graftkit, "apply", apply_and_damage)
    word, why = sweep.try_pair(llama, tmp_path / "out", "MixtralForCausalLM")
    assert word == "wrong"
    assert "logits moved by" in why


def test_the_page_counts_pairs(sweep):
    pairs = [
        sweep.Pairs("A", {"AMoe": ("works", ""), "BMoe": ("refused", "BMoe cannot do what A does: x")}),
        sweep.Pairs("C", why_none="sparse"),
    ]
    page = sweep.markdown(pairs, "python x")
    assert "2 classes: 1 are sparse, 1 dense, of which 1 have a sparse class with their rest." in page
    assert "| A | BMoe | refused | x |" in page
