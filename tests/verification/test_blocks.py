"""Blocks that were inserted or dropped: every comparison pairs the blocks that correspond, and names a fault at its own place."""

import shutil

import pytest
import torch
from support.blocks import correspondence, with_blocks

from graftkit.running.forward import load
from graftkit.verification.adapters.merged_model import compare_with_adapted
from graftkit.verification.adapters.weights import residual_gap
from graftkit.verification.comparison import paired
from graftkit.verification.first_step import compare_first_step
from graftkit.verification.lens.lens import compare_lens
from graftkit.verification.outputs import compare_outputs
from graftkit.verification.promises import Scope
from graftkit.verification.signal import compare_signal
from graftkit.verification.subject import Subject

#: Three blocks, and one that does nothing behind the first; in front; at the end.
BASE = (0, 1, 0)
MIDDLE, FRONT, END = (0, ~0, 1, 2), (~0, 0, 1, 2), (0, 1, 2, ~2)


@pytest.fixture(scope="module")
def source(tmp_path_factory, sources):
    """Three blocks, all different."""

    def differ(state):
        for name, value in state.items():
            if name.startswith("model.layers.2.") and value.ndim == 2:
                value.copy_(value.flip(0))

    return with_blocks(sources("llama"), tmp_path_factory.mktemp("blocks") / "source", BASE, change=differ)


@pytest.fixture(scope="module")
def grown(source, tmp_path_factory):
    made = {}

    def make(order):
        if order not in made:
            made[order] = with_blocks(source, tmp_path_factory.mktemp("grown") / "result", order)
        return made[order]

    return make


def faulty(source, place, order, tensor):
    def change(state):
        state[tensor][3] *= 1.5

    return with_blocks(source, place, order, change=change)


@pytest.mark.parametrize("order", [MIDDLE, FRONT, END], ids=["middle", "front", "end"])
def test_an_identity_block_changes_no_output_bit_and_every_hidden_state_is_compared(source, grown, order):
    report = compare_outputs(Subject(source, grown(order), correspondence=correspondence(3, order)))
    assert report.failures == ()
    assert all(item.bitwise for item in report.comparisons)
    names = {item.name for item in report.comparisons if not item.name.startswith("step")}
    assert names == {"logits", *(f"hidden_states.{index}" for index in range(4))}


def test_without_a_correspondence_the_two_give_different_outputs(source, grown):
    assert "gives these outputs and the other not" in compare_outputs(Subject(source, grown(MIDDLE))).failures[0]


def test_an_identity_block_taken_out_again_changes_nothing_either(source, grown):
    back = correspondence(3, MIDDLE)
    back = type(back)(blocks=back.blocks.inverse, stack=back.stack)
    report = compare_outputs(Subject(grown(MIDDLE), source, correspondence=back))
    assert report.failures == ()
    names = {item.name for item in report.comparisons if not item.name.startswith("step")}
    assert names == {"logits", *(f"hidden_states.{index}" for index in (0, 1, 3, 4))}
    assert compare_lens(Subject(grown(MIDDLE), source, correspondence=back), token_budget=120).largest == 0
    found = compare_first_step(Subject(grown(MIDDLE), source, correspondence=back))
    assert (found.failures, found.gradients.parameter) == ((), "")
    signal = compare_signal(Subject(grown(MIDDLE), source, correspondence=back))
    assert signal.new_blocks == ()
    rms = next(figure for figure in signal.figures if figure.key == "rms")
    assert rms.before == rms.after


def test_the_right_blocks_are_compared_where_one_was_dropped(source, tmp_path):
    order = (0, 2)
    result, change = with_blocks(source, tmp_path / "result", order), correspondence(3, order)
    report = compare_outputs(Subject(source, result, correspondence=change, scope=Scope.MEASURE))
    assert report.failures == ()
    bitwise = {item.name: item.bitwise for item in report.comparisons}
    assert bitwise["hidden_states.0"]
    assert bitwise["hidden_states.1"]
    assert not bitwise["hidden_states.3"]
    assert "hidden_states.2" not in bitwise
    modules = compare_lens(
        Subject(source, result, correspondence=change, scope=Scope.MEASURE), token_budget=120
    ).modules
    assert modules["model.layers.0"] == 0
    assert modules["model.layers.2"] > 0
    assert not any(name.startswith("model.layers.1") for name in modules)
    rms = next(f for f in compare_signal(Subject(source, result, correspondence=change)).figures if f.key == "rms")
    whole = next(f for f in compare_signal(Subject(source, source)).figures if f.key == "rms")
    assert rms.before == (whole.after[0], whole.after[2])
    assert rms.after[0] == rms.before[0]


@pytest.mark.parametrize("order", [MIDDLE, FRONT, END], ids=["middle", "front", "end"])
def test_lens_signal_and_gradients_see_no_difference_in_any_old_block(source, grown, order):
    change = correspondence(3, order)
    lens = compare_lens(Subject(source, grown(order), correspondence=change), token_budget=120)
    assert (lens.failures, lens.largest, lens.first) == ((), 0, None)
    assert {f"model.layers.{index}.mlp.down_proj" for index in range(3)} <= lens.modules.keys()
    assert not any(name.startswith("model.layers.3") for name in lens.modules)
    signal = compare_signal(Subject(source, grown(order), correspondence=change))
    added = order.index(next(block for block in order if block < 0))
    assert signal.new_blocks == (f"model.layers.{added}",)
    for figure in signal.figures:
        assert figure.before[added] is None
        assert all(a is None or a == b for a, b in zip(figure.before, figure.after, strict=True))
    step = compare_first_step(Subject(source, grown(order), correspondence=change))
    assert step.failures == ()
    assert step.gradients.parameter == "", "equal to the last bit"
    assert step.moves[f"model.layers.{added}.mlp.down_proj.weight"] == 0
    assert step.moves[f"model.layers.{added}.mlp.up_proj.weight"] == 1
    assert {name.split(".")[2] for name in step.moves} == {str(added)}


def test_a_fault_in_an_old_block_is_named_at_its_own_place(source, tmp_path):
    change = correspondence(3, MIDDLE)
    result = faulty(source, tmp_path / "result", MIDDLE, "model.layers.2.mlp.up_proj.weight")  # block 1 of the source
    report = compare_outputs(Subject(source, result, correspondence=change))
    assert "outputs: hidden_states.2 (in the result hidden_states.3) of probe" in report.failures[0]
    first = compare_lens(Subject(source, result, correspondence=change), token_budget=120).first
    assert first.module == "model.layers.1.mlp.up_proj"
    assert first.tensors == ("model.layers.1.mlp.up_proj.weight",)
    assert "model.layers.1.mlp.up_proj (in the result model.layers.2.mlp.up_proj) differs" in first.sentence()
    step = compare_first_step(Subject(source, result, correspondence=change))
    assert step.gradients.differs
    assert f"old parameter {change.shown(step.gradients.parameter)} differs" in step.failures[0]
    rms = next(f for f in compare_signal(Subject(source, result, correspondence=change)).figures if f.key == "ratio")
    assert [a == b for a, b in zip(rms.before, rms.after, strict=True)] == [True, False, False, False]


def test_a_block_that_is_no_identity_is_caught_where_it_first_shows(source, tmp_path):
    def loud(state):
        state["model.layers.1.mlp.down_proj.weight"][0, 0] = 0.5

    result, change = with_blocks(source, tmp_path / "result", MIDDLE, change=loud), correspondence(3, MIDDLE)
    assert (
        "outputs: hidden_states.2 (in the result"
        in compare_outputs(Subject(source, result, correspondence=change)).failures[0]
    )
    lens = compare_lens(Subject(source, result, correspondence=change), token_budget=120)
    assert lens.first.module == "model.layers.1.input_layernorm"
    assert lens.first.tensors == ()


def test_old_blocks_in_another_order_are_a_difference(source, tmp_path):
    result = with_blocks(source, tmp_path / "result", (0, ~0, 2, 1))
    failures = compare_outputs(Subject(source, result, correspondence=correspondence(3, MIDDLE))).failures
    assert "hidden_states.2" in failures[0]
    moved = correspondence(3, (0, ~0, 2, 1))
    lens = compare_lens(Subject(source, result, correspondence=moved), token_budget=120)
    assert lens.first.tensors == (), "the weights are those of the right block, what they are given is not"


def test_outputs_are_paired_with_those_of_the_same_block_and_what_is_missing_is_named():
    change = correspondence(3, MIDDLE)
    old = [*(f"step 0 hidden_states.{index}" for index in range(4)), "step 0 logits"]
    new = [*(f"step 0 hidden_states.{index}" for index in range(5)), "step 0 logits"]
    pairs, alone = paired(old, new, change)
    assert [name.rpartition(".")[2] for name in pairs.values()] == ["0", "1", "3", "4", "step 0 logits"]
    assert alone == frozenset()
    assert paired(old, new[:3] + new[4:], change)[1] == {"step 0 hidden_states.2"}
    assert paired(old[:2] + old[3:], new, change)[1] == {"step 0 hidden_states.3"}
    assert paired(old, [*new, "more"], change)[1] == {"more"}


def test_base_and_adapter_are_put_together_block_by_block(source, grown, tmp_path):
    from peft import LoraConfig, get_peft_model

    old, new = load(source).model, load(grown(MIDDLE)).model
    config = LoraConfig(r=4, target_modules=["down_proj"], layers_to_transform=[0, 2, 3])
    adapted = get_peft_model(new, config, adapter_name="default").get_base_model()
    change = correspondence(3, MIDDLE)
    assert residual_gap(adapted, old, change).failures == ()
    with torch.no_grad():
        adapted.model.layers[2].mlp.down_proj.base_layer.weight[0] *= 1.01
    (failure,) = residual_gap(adapted, old, change).failures
    assert "model.layers.2.mlp.down_proj" in failure


def test_a_merge_is_compared_with_its_adapter_also_where_blocks_came_behind_it(source, tmp_path):
    import transformers
    from peft import LoraConfig, get_peft_model

    model = transformers.AutoModelForCausalLM.from_pretrained(source)
    torch.manual_seed(0)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    merged = adapted.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    shutil.copy(source / "tokenizer.json", tmp_path / "merged" / "tokenizer.json")
    shutil.copy(source / "tokenizer_config.json", tmp_path / "merged" / "tokenizer_config.json")
    result, later = with_blocks(tmp_path / "merged", tmp_path / "result", MIDDLE), correspondence(3, MIDDLE)
    report = compare_with_adapted(source, result, tmp_path / "adapter", later=later)
    assert report.failures == ()
    assert len(report.weights) == 6
    assert {"hidden_states.0", "hidden_states.2", "hidden_states.3", "logits"} <= {item.name for item in report.outputs}
    broken = faulty(tmp_path / "merged", tmp_path / "broken", MIDDLE, "model.layers.2.mlp.down_proj.weight")
    failures = compare_with_adapted(source, broken, tmp_path / "adapter", later=later).failures
    assert "weights: 'model.layers.1.mlp.down_proj.weight' is not base plus adapter" in failures[0]
    assert not any("model.layers.2" in failure for failure in failures)


def test_as_many_blocks_as_before_are_not_taken_for_the_same_blocks(source, tmp_path):
    order = (~0, 0, 2)
    result, change = with_blocks(source, tmp_path / "result", order), correspondence(3, order)
    signal = compare_signal(Subject(source, result, correspondence=change))
    assert signal.new_blocks == ("model.layers.0",)
    rms, whole = (
        next(figure for figure in found.figures if figure.key == "rms")
        for found in (signal, compare_signal(Subject(source, source)))
    )
    assert rms.before == (None, whole.after[0], whole.after[2])
    assert rms.after[1] == whole.after[0]
    bitwise = {
        item.name: item.bitwise
        for item in compare_outputs(Subject(source, result, correspondence=change, scope=Scope.MEASURE)).comparisons
    }
    assert bitwise["hidden_states.1"]
    assert not bitwise["logits"]


def test_a_block_is_the_source_s_also_where_a_fault_has_changed_it(source, tmp_path):
    def change_first_rows(state):
        for name, value in state.items():
            if name.startswith("model.layers.2.") and value.ndim == 2:
                value[0] *= 2

    result = with_blocks(source, tmp_path / "result", MIDDLE, change=change_first_rows)
    signal = compare_signal(Subject(source, result, correspondence=correspondence(3, MIDDLE)))
    assert signal.new_blocks == ("model.layers.1",)
    rms = next(figure for figure in signal.figures if figure.key == "rms")
    assert [a == b for a, b in zip(rms.before, rms.after, strict=True)] == [True, False, False, False]
