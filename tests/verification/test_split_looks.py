"""Lens, signal and first step over models that several ranks run find what one process finds, and say why where they cannot."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.direct_line import DirectLine
from support.recipes import recipe
from support.tiny import build

import graftkit
from graftkit.engine import plan
from graftkit.running import memory
from graftkit.running.float64 import float64
from graftkit.running.forward import load, outputs_of, undisturbed
from graftkit.running.split.crew import Crew
from graftkit.verification.first_step import compare_first_step
from graftkit.verification.lens.lens import compare_lens
from graftkit.verification.lens.trace import record
from graftkit.verification.signal import compare_signal
from graftkit.verification.subject import Subject

LOOKS = [compare_lens, compare_signal, compare_first_step]

#: A block of the other rank, and a weight in it, of each class.
FAULTS = {
    "LlamaForCausalLM": "model.layers.1.mlp.down_proj.weight",
    "T5ForConditionalGeneration": "decoder.block.1.layer.2.DenseReluDense.wo.weight",
    "BartForConditionalGeneration": "model.decoder.layers.1.fc2.weight",
    "MixtralForCausalLM": "model.layers.1.self_attn.o_proj.weight",
}


def found_by(look, *places, **options):
    """What one process finds and what two ranks do, less the seconds, and what the ranks did."""
    crew = Crew(DirectLine(2))
    reports = [look(Subject(*places, crew=with_crew, **options)).to_json() for with_crew in (None, crew)]
    for report in reports:
        del report["seconds"]
    return *reports, crew.figures()


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("look", LOOKS)
def test_a_changed_weight_of_a_block_elsewhere_is_found_as_by_one_process(name, look, tmp_path):
    build(name, tmp_path / "model")
    shutil.copytree(tmp_path / "model", tmp_path / "changed")
    tensors = load_file(tmp_path / "changed" / "model.safetensors")
    tensors[FAULTS[name]][0, 0] += 0.25
    save_file(tensors, tmp_path / "changed" / "model.safetensors", {"format": "pt"})
    alone, together, figures = found_by(look, tmp_path / "model", tmp_path / "changed")
    assert alone == together
    if (name, look) == ("MixtralForCausalLM", compare_first_step):  # its experts' products have no forward derivative
        assert figures["run_by_rank_0_alone"] == "first_step: what runs it asks for derivatives of gradients"
        return
    assert figures["run_by_rank_0_alone"] == ""
    assert figures["ranks"][1]["blocks"]
    if look is compare_lens:
        assert together["first"]["tensors"] == [FAULTS[name]]
        assert together["failures"]
    elif look is compare_first_step:
        assert together["gradients"]["error"] > 1e-3
        assert together["failures"]
        assert len(together["steps"]) == 8
    else:
        assert any(figure["change"] for figure in together["figures"] if figure["key"] == "gradient")


@pytest.mark.parametrize("look", LOOKS)
def test_blocks_are_compared_with_those_that_they_were(look, tmp_path):
    build("LlamaForCausalLM", tmp_path / "model", config_overrides={"num_hidden_layers": 4})
    wanted = recipe(
        tmp_path / "model", tmp_path / "out", {"op": "insert_blocks", "every": 2}, verify={"outputs": False}
    )
    correspondence = plan(wanted).correspondence
    graftkit.apply(wanted)
    alone, together, figures = found_by(look, tmp_path / "model", tmp_path / "out", correspondence=correspondence)
    assert alone == together
    assert figures["run_by_rank_0_alone"] == ""
    if look is compare_first_step:
        assert any("layers.5" in name and step is not None for name, step in together["moves"].items())


def test_parameters_that_are_made_for_a_comparison_are_for_one_process(tmp_path):
    """Those that were scaled are compared before they were rounded, which their owner does not hear of."""
    build("LlamaForCausalLM", tmp_path / "model", dtype="bfloat16")
    wanted = recipe(
        tmp_path / "model",
        tmp_path / "out",
        {"op": "widen", "sizes": {"hidden_size": 96}, "init": "matched"},
        verify={"outputs": False},
    )
    correspondence = plan(wanted).correspondence
    assert any(maps.scale != 1.0 for maps in correspondence.widths.values())
    graftkit.apply(wanted)
    alone, together, figures = found_by(
        compare_lens, tmp_path / "model", tmp_path / "out", correspondence=correspondence
    )
    assert alone == together
    assert figures["run_by_rank_0_alone"].startswith("lens: ")
    alone, together, figures = found_by(
        compare_first_step, tmp_path / "model", tmp_path / "out", correspondence=correspondence
    )
    assert alone == together
    assert figures["run_by_rank_0_alone"] == ""


def test_what_does_not_fit_into_the_memory_of_the_ranks_is_trained_by_one_process(tmp_path, monkeypatch):
    build("LlamaForCausalLM", tmp_path / "model")
    monkeypatch.setattr(memory, "available", lambda: 1000)
    alone, together, figures = found_by(compare_first_step, tmp_path / "model", tmp_path / "model")
    assert alone == together
    assert figures["run_by_rank_0_alone"].startswith("first_step: its parameters do not fit")


def test_what_a_module_gave_is_seen_as_it_was_then(tmp_path, monkeypatch):
    """A block may write into it afterwards."""
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    before = LlamaDecoderLayer.forward

    def forward(self, hidden_states, *args, **kwargs):
        hidden_states = self.mlp(hidden_states)
        hidden_states += 1
        return before(self, hidden_states, *args, **kwargs)

    monkeypatch.setattr(LlamaDecoderLayer, "forward", forward)
    build("LlamaForCausalLM", tmp_path / "model")
    with undisturbed():
        crew = Crew(DirectLine(2))
        from graftkit.running.probes import Probe

        ids = torch.arange(4, 16)[None]
        probe, found = Probe("some ids", ids, torch.ones_like(ids)), []
        for model in (load(tmp_path / "model").model, crew.load(tmp_path / "model").model):
            with float64(model):
                found.append(record(model, lambda model=model: outputs_of(model, probe))[0])
    whole, split = found
    assert list(whole) == list(split)
    for key, given in whole.items():
        for name, tensor in given.items():
            other = split[key][name]
            assert tensor.equal(crew.fetch(other) if hasattr(other, "location") else other), key
