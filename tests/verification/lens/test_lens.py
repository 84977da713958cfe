"""Two checkpoints through the lens: what is equal passes, what is not is named, and both stand beside the noise."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.command import here, real
from support.families import ROWS, build

import graftkit
from graftkit.architecture.correspondence import IDENTITY, Correspondence
from graftkit.errors import InputRejected, RecipeError, VerificationFailed
from graftkit.verification.lens.lens import compare_lens
from graftkit.verification.lens.setting import device_of
from graftkit.verification.promises import Scope
from graftkit.verification.subject import Subject

TOKENS = 120


def changed(source, target, *, weights=None, config=None):
    shutil.copytree(source, target)
    if weights is not None:
        tensors = load_file(target / "model.safetensors")
        weights(tensors)
        save_file({k: v.contiguous() for k, v in tensors.items()}, target / "model.safetensors", {"format": "pt"})
    if config is not None:
        values = json.loads((target / "config.json").read_text())
        (target / "config.json").write_text(json.dumps({**values, **config}))
    return target


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return build("llama", tmp_path_factory.mktemp("llama"), dtype="bfloat16")


@pytest.fixture(scope="module")
def grafted(tmp_path_factory):
    """A source, and the same with two new tokens."""
    place = tmp_path_factory.mktemp("grafted")
    source = build("llama", place / "source", tokens=ROWS, dtype="bfloat16")
    operation = {"op": "extend_vocab", "special_tokens": ["<|a|>", "<|b|>"]}
    recipe = {"version": 1, "base_model": str(source), "operations": [operation], "output": str(place / "result")}
    graftkit.apply({**recipe, "verify": {"outputs": False, "lens": True}})
    return source, place / "result"


def look(source, result, change=IDENTITY, **options):
    return compare_lens(Subject(source, result, correspondence=change, **options), token_budget=TOKENS)


def runs(report):
    return {run.run: run for run in report.noise.runs}


@pytest.mark.parametrize("family", ["llama", "mixtral", "bert_base", "t5", "llava"])
def test_a_copy_is_equal(family, tmp_path):
    source = build(family, tmp_path / "source", dtype="bfloat16")
    report = look(source, changed(source, tmp_path / "copy"))
    assert report.failures == ()
    assert report.largest == 0
    assert report.first is None
    assert runs(report)["result"].rho == 1
    assert runs(report)["result in float64"].error == 0
    nulls = [run for run in report.noise.runs if run.run not in ("source", "result", "result in float64")]
    assert nulls
    assert any(run.error != runs(report)["source"].error for run in nulls)
    assert all(0.2 < run.rho < 5 for run in nulls)
    assert runs(report)["result in float64"].rho == 0
    json.dumps(report.to_json(), allow_nan=False)
    assert all(len(row) == 3 for row in report.rows())


def test_an_ulp_is_named_and_stands_in_the_noise(llama, tmp_path):
    def flip(tensors):
        tensors["model.layers.1.mlp.up_proj.weight"].view(torch.int16)[3, 5] += 1

    report = look(llama, changed(llama, tmp_path / "result", weights=flip))
    assert report.first.module == "model.layers.1.mlp.up_proj"
    assert report.first.tensors == ("model.layers.1.mlp.up_proj.weight",)
    assert report.first.reaches
    assert "model.layers.1.mlp.up_proj.weight differs" in report.failures[0]
    assert report.floor.threshold < report.largest < 1e-2
    assert runs(report)["result"].rho < 1.5
    assert report.noise.runs[1].divergence.max < max(run.divergence.max for run in report.noise.runs[3:])


def test_what_stays_inside_is_shown_and_fails_nothing(tmp_path):
    source = build("bert", tmp_path / "source", dtype="bfloat16")

    def flip(tensors):
        tensors["bert.encoder.layer.1.attention.self.key.bias"].view(torch.int16)[3] += 1

    report = look(source, changed(source, tmp_path / "result", weights=flip))
    assert report.failures == ()
    assert report.first.module == "bert.encoder.layer.1.attention.self.key"
    assert not report.first.reaches


def test_another_epsilon_is_named_by_its_module(llama, tmp_path):
    report = look(llama, changed(llama, tmp_path / "result", config={"rms_norm_eps": 2e-6}))
    assert report.first.module == "model.layers.0.input_layernorm"
    assert "its own tensors are equal" in report.failures[0]


def test_real_noise_raises_rho(llama, tmp_path):
    def shake(tensors):
        for tensor in tensors.values():
            tensor.add_(torch.randn(tensor.shape) * 0.02 * tensor.float().std())

    report = look(llama, changed(llama, tmp_path / "result", weights=shake))
    assert runs(report)["result"].rho > 3
    assert runs(report)["result"].divergence.max > 10 * max(run.divergence.max for run in report.noise.runs[3:])
    worst, *others = report.noise.worst
    assert worst.max == runs(report)["result"].divergence.max
    assert all(other.max <= worst.max for other in others)
    assert sum(item.positions for item in report.noise.probes) == runs(report)["result"].divergence.positions
    assert sum(item.positions for item in report.noise.places) == runs(report)["result"].divergence.positions


def test_a_flip_beyond_the_noise_is_counted(llama, tmp_path):
    def swap(tensors):
        head = tensors["lm_head.weight"]
        head[:] = head.flip(0).clone()

    report = look(llama, changed(llama, tmp_path / "result", weights=swap))
    found = runs(report)["result"].divergence
    assert 0 < found.flips_beyond_noise <= found.flips
    assert all(run.divergence.flips_beyond_noise == 0 for run in report.noise.runs[3:])


def test_nan_in_the_result_is_no_small_difference(llama, tmp_path):
    def spoil(tensors):
        tensors["model.layers.1.self_attn.k_proj.weight"][0, 0] = torch.nan

    report = look(llama, changed(llama, tmp_path / "result", weights=spoil))
    assert report.first.module == "model.layers.1.self_attn.k_proj"
    assert report.failures
    json.dumps(report.to_json(), allow_nan=False)


def test_new_tokens_leave_the_old_ids_equal(grafted):
    source, result = grafted
    change = Correspondence.of_ids(ROWS, ROWS + 2, ROWS, (ROWS, ROWS + 1))
    report = look(source, result, change)
    assert report.failures == ()
    assert report.largest <= report.floor.threshold
    assert runs(report)["result"].rho == pytest.approx(1, abs=0.5)


def test_the_recipe_asked_for_the_lens_and_its_report_has_it(grafted):
    report = json.loads((grafted[1] / "graft_report.json").read_text())
    lens = report["checks"]["lens"]
    assert lens["failures"] == []
    assert lens["largest"] <= lens["floor"]["threshold"]
    assert lens["modules"]["model.layers.1"] == 0


def test_differences_that_are_meant_are_measured(llama, tmp_path):
    def change(tensors):
        tensors["model.norm.weight"] *= 2

    result = changed(llama, tmp_path / "result", weights=change)
    report = look(llama, result, scope=Scope.MEASURE)
    assert report.failures == ()
    assert report.largest > 0.1
    assert ("outputs in float64", "measured") in {row[:2] for row in report.rows()}
    assert look(llama, result).failures


def test_a_head_is_left_out_where_only_the_backbone_is_compared(llama, tmp_path):
    def change(tensors):
        tensors["lm_head.weight"] *= 2

    result = changed(llama, tmp_path / "result", weights=change)
    assert look(llama, result).failures
    assert look(llama, result, scope=Scope.BACKBONE).failures == ()


def test_a_backbone_without_its_pooler_or_its_decoder_is_compared_as_far_as_it_goes(tmp_path):
    for family, task in (("bert_base", "masked_lm"), ("t5", "token_classification")):
        source, result = build(family, tmp_path / family), tmp_path / f"{family} out"
        labels = {"labels": ["a", "b"]} if task == "token_classification" else {}
        operation = {"op": "replace_head", "task": task, **labels}
        recipe = {"version": 1, "base_model": str(source), "operations": [operation], "output": str(result)}
        graftkit.apply({**recipe, "verify": {"outputs": False}})
        assert look(source, result, scope=Scope.BACKBONE).failures == ()
        name = {
            "bert_base": "bert.encoder.layer.1.output.dense.weight",
            "t5": "transformer.encoder.block.1.layer.1.DenseReluDense.wo.weight",
        }[family]
        moved = changed(result, tmp_path / f"{family} moved", weights=lambda t, name=name: t[name][3, 5].mul_(1 + 1e-4))
        (failure,) = look(source, moved, scope=Scope.BACKBONE).failures
        assert "differs in float64" in failure
        assert name.partition(".")[2].removesuffix(".weight") in failure


def test_a_source_with_missing_tensors_is_refused(llama, tmp_path):
    source = changed(llama, tmp_path / "source", weights=lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(InputRejected, match="norm"):
        look(source, llama)


def test_a_result_with_missing_tensors_fails(llama, tmp_path):
    result = changed(
        llama, tmp_path / "result", weights=lambda tensors: tensors.pop("model.layers.0.mlp.up_proj.weight")
    )
    assert "missing tensors: model.layers.0.mlp.up_proj.weight" in look(llama, result).failures[0]


def test_another_size_fails(llama, tmp_path):
    result = changed(llama, tmp_path / "result", config={"intermediate_size": 60})
    with pytest.raises(VerificationFailed, match="shapes that do not fit"):
        look(llama, result)


@pytest.mark.parametrize(
    ("name", "message"),
    [("cuda:99", "cuda:99 is not there"), ("mps", "does not compute in float64"), ("gpu\x1b", "is no device")],
)
def test_a_device_that_is_not_there_is_refused(name, message):
    with pytest.raises(RecipeError, match=message) as refused:
        device_of(name)
    assert "\x1b" not in str(refused.value)


def test_the_command_line_looks_through_the_lens(llama, tmp_path):
    def flip(tensors):
        tensors["model.layers.0.self_attn.o_proj.weight"].view(torch.int16)[1, 1] += 1

    result = changed(llama, tmp_path / "result", weights=flip)
    done = here("verify", llama, result, "--lens", "--no-outputs")
    assert done.returncode == 4, done.stderr
    assert "model.layers.0.self_attn.o_proj.weight differs" in " ".join(done.stdout.split())
    found = json.loads(real("verify", llama, result, "--lens", "--json").stdout)
    assert found["lens"]["first"]["module"] == "model.layers.0.self_attn.o_proj"
    assert found["found"]["lens"]


@pytest.mark.parametrize("arguments", [["--device", "cpu"], ["--lens", "--device", "cuda:99"]])
def test_a_device_that_cannot_be_used_is_a_usage_error(llama, arguments):
    done = here("verify", llama, llama, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("graftkit: --device: ")
    assert len(done.stderr.splitlines()) == 1
