"""A new check enters with its fault: whatever can fail a verification is listed here with the test that plants it.

What can fail is found in the source: each class with ``failures``, each function that raises VerificationFailed, and each kind
of look of an adapter's check. Where such a class or function is new, this test fails until a line names its test.
"""

import ast
import re
from pathlib import Path

import pytest

from graftkit.compare import CHECKS
from graftkit.selftest.adapter_faults import ADAPTER_FAULTS
from graftkit.selftest.adapters import CHECKS as ADAPTER_CHECKS
from graftkit.selftest.faults import FAULTS
from graftkit.selftest.grown import GROWN_FAULTS

TESTS = Path(__file__).parents[1]
PACKAGE = TESTS.parent / "graftkit"

#: Only say of others what they say, or raise what others found.
PASSED_ON = {
    "verification/checks.py LeftOut",
    "verification/checks.py Sentences",
    "selftest/report.py Selftest",
    *(f"printed_json.py {name}Json" for name in ("Selftest", "Verify", "VerifyAdapter", "VerifyMerge")),
    "verification/checks.py Finding",
    "engine.py _raise_first",
    "adapter_verification.py verify_adapter",
}

PLANTED = {
    "merge_verification.py MergeVerification": "verification/test_merge_by_others.py test_merged_twice",
    "adapter_verification.py AdapterVerification": "selftest/test_adapters.py test_every_fault_is_caught_and_no_clean_copy_flagged",
    "compare.py Verification": "selftest/test_demo.py test_every_fault_is_caught_and_no_clean_copy_flagged",
    "verification/accounted.py Accounted": "selftest/test_grown.py test_every_fault_is_caught_and_no_clean_copy_flagged",
    "verification/adapters/merged_model.py AdaptedReport": "verification/test_merged_model.py test_a_planted_fault_is_caught_by_name",
    "verification/adapters/check.py AdapterReport": "verification/test_adapter_faults.py test_without_a_report_loading_outputs_and_gradients_catch_what_they_can",
    "verification/adapters/outputs.py OutputGap": "verification/test_adapter_faults.py test_without_a_report_loading_outputs_and_gradients_catch_what_they_can",
    "verification/adapters/weights.py WeightGap": "operations/test_add_lora_spectral.py test_a_factor_that_is_wrong_is_caught",
    "verification/differences.py Differences": "verification/test_outputs.py test_changed_weights_are_named_where_they_first_show",
    "verification/adapters/combined.py CombinedReport": "operations/test_combine_adapters.py test_planted_faults_are_caught",
    "verification/tokens/transplanted.py TransplantReport": "operations/test_transplant_tokenizer.py test_a_planted_fault_is_caught",
    "verification/tokens/averaged_rows.py AveragedReport": "verification/test_averaged_rows.py test_new_rows_one_place_further_on_are_caught",
    "verification/tokens/distilled.py DistilledReport": "operations/test_distillation.py test_rows_that_were_not_fitted_are_caught",
    "verification/tokens/text_quality.py LanguageReport": "verification/test_text_quality.py test_a_table_of_infinities_is_caught",
    "verification/tokens/text_quality.py EmbeddingReport": "verification/test_text_quality.py test_vectors_that_are_no_numbers_are_caught",
    "verification/weights/converted.py ConvertedReport": "operations/test_convert.py test_a_planted_fault_is_caught",
    "verification/weights/dcp_form.py DcpReport": "test_output_format.py test_a_folder_that_does_not_hold_the_same_is_caught_and_nothing_is_written",
    "verification/weights/dequantized.py DequantizedReport": "operations/test_dequantize.py test_a_planted_fault_in_a_matrix_is_caught",
    "verification/weights/edited.py EditedReport": "operations/test_edit_tensors.py test_a_planted_fault_is_caught",
    "verification/adapters/extracted.py ExtractedReport": "operations/test_extract_lora.py test_planted_faults_are_caught",
    "verification/first_step/report.py FirstStepReport": "verification/test_first_step.py test_a_changed_old_weight_shows_in_the_gradients",
    "running/forward.py load": "verification/test_outputs.py test_a_stale_vocabulary_size_does_not_load",
    "verification/given_texts.py GivenTextsReport": "operations/test_block_operations.py test_logits_that_are_no_numbers_on_given_texts_are_caught",
    "verification/heads/check.py HeadReport": "verification/test_heads.py test_a_missing_head_tensor_and_a_random_one_are_caught",
    "verification/heads/held_out.py HeldOutReport": "operations/test_head_examples.py test_labels_that_changed_places_are_caught",
    "verification/heads/value_head.py ValueHeadReport": "operations/test_value_head.py test_the_own_check_finds_what_is_not_as_it_was_asked_for",
    "verification/lens/lens.py _Found": "verification/lens/test_lens.py test_an_ulp_is_named_and_stands_in_the_noise",
    "verification/lens/report.py LensReport": "verification/lens/test_lens.py test_another_epsilon_is_named_by_its_module",
    "verification/tokens/learned_pieces.py LearnedPieces": "verification/test_learned_pieces.py test_a_merge_before_the_old_ones_is_caught",
    "verification/adapters/liveness.py Liveness": "verification/test_adapter_faults.py test_an_operation_that_makes_a_wrong_adapter_writes_nothing",
    "verification/outputs.py OutputsReport": "verification/test_outputs.py test_changed_weights_are_named_where_they_first_show",
    "verification/positions.py PositionsReport": "operations/test_extend_positions.py test_planted_faults_are_caught",
    "verification/weights/recast.py RecastReport": "operations/test_cast.py test_planted_faults_are_caught",
    "verification/weights/rescaled.py RescaledReport": "operations/test_widen_hidden_size.py test_values_that_are_not_the_nearest_are_caught",
    "verification/weights/recast_noise.py _run": "operations/test_cast.py test_planted_faults_are_caught",
    "verification/adapters/resized.py ResizedReport": "operations/test_resize_adapter.py test_planted_faults_are_caught",
    "verification/adapters/retargeted.py RetargetedReport": "operations/test_retarget_adapter.py test_a_planted_fault_is_caught",
    "verification/adapters/retargeted_outputs.py RetargetedOutputs": "operations/test_retarget_adapter.py test_places_that_are_wrong_are_caught_by_the_outputs",
    "verification/adapters/retargeted_outputs.py _run": "operations/test_retarget_adapter.py test_a_forward_that_the_adapter_stops_is_a_failure",
    "verification/adapters/retargeted_outputs.py _Gap": "operations/test_retarget_adapter.py test_places_that_are_wrong_are_caught_by_the_outputs",
    "running/live/assembling.py _load": "test_graft.py test_a_planned_checkpoint_that_lacks_a_tensor_is_not_put_together",
    "verification/signal/report.py SignalReport": "verification/test_signal.py test_what_is_not_finite_is_a_failure",
    "verification/structural.py _check_documents": "verification/test_structural.py test_a_changed_config_is_named",
    "verification/structural.py _check_finite": "verification/test_structural.py test_a_produced_value_that_is_not_finite_is_never_written",
    "verification/structural.py check_names": "verification/test_structural.py test_a_lost_tensor_is_named",
    "verification/structural.py check_tensor": "verification/test_structural.py test_changed_values_are_named",
    "verification/structural.py check_adapter": "verification/test_adapter_faults.py test_an_adapter_that_is_damaged_while_it_is_written_is_caught_byte_by_byte",
    "verification/taken.py TakenReport": "operations/test_take_tensors.py test_planted_faults_in_where_a_module_goes_are_caught",
    "verification/tokens/tokenization.py TokenizationReport": "verification/test_tokenization.py test_a_planted_fault_is_caught",
    "verification/tokens/trimmed_texts.py TrimmedReport": "operations/test_trim_vocab.py test_given_texts_that_fall_apart_are_a_failure",
    "verification/tokens/splits.py Splits": "verification/test_tokenization.py test_a_planted_fault_is_caught",
    "verification/adapters/tuner_gradients.py TunerGradients": "operations/test_add_adapter.py test_an_adapter_that_would_never_learn_is_refused",
}

#: The model cannot be run at all: nothing is compared, which is said, and no fault could tell.
CANNOT_RUN = {
    "running/block_costs.py cost_of_blocks",
    "running/loss.py observe",
    "running/peft_loading.py adapt",
    "running/inputs.py find_inputs",
    "verification/lens/setting.py in_float64",
    "running/reference.py _table",
    "verification/signal/compare.py _measured",
}


def what_can_fail(source):
    """Names of the classes that hold failures and of the functions that raise VerificationFailed."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef):
            fields = {getattr(item.target, "id", "") for item in node.body if isinstance(item, ast.AnnAssign)}
            methods = {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
            if "failures" in fields | methods:
                yield node.name
        elif isinstance(node, ast.FunctionDef):
            raised = [item.exc for item in ast.walk(node) if isinstance(item, ast.Raise) and item.exc]
            if any(getattr(getattr(call, "func", None), "id", "") == "VerificationFailed" for call in raised):
                yield node.name


def test_whatever_can_fail_has_a_test_that_plants_its_fault():
    found = {
        f"{path.relative_to(PACKAGE)} {name}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for name in what_can_fail(path.read_text(encoding="utf-8"))
    }
    assert found == PLANTED.keys() | PASSED_ON | CANNOT_RUN


@pytest.mark.parametrize("entry", sorted(set(PLANTED.values())))
def test_the_named_test_is_there_and_expects_a_failure(entry):
    path, name = entry.split()
    tree = ast.parse((TESTS / path).read_text(encoding="utf-8"))
    body = next(ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == name)
    assert re.search(r"pytest\.raises\(VerificationFailed|failures", body)


def test_a_check_that_is_new_is_seen():
    planted = "class New:\n    failures: tuple\n\ndef look():\n    raise VerificationFailed('no')\n"
    assert list(what_can_fail(planted)) == ["New", "look"]


def test_each_check_of_verify_is_asked_of_a_planted_fault():
    assert {check for fault in (*FAULTS, *GROWN_FAULTS) for check in fault.seen_by} == {*CHECKS, "loading"}
    asked = {check for fault in ADAPTER_FAULTS for check in fault.seen_by}
    assert asked == {*ADAPTER_CHECKS, "outputs", "loading"}
