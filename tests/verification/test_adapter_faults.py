"""Every planted fault of an adapter is caught: by the report's digests, by loading, by outputs or by gradients."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.families import build

from graftkit.adapter_verification import verify_adapter
from graftkit.checkpoint.adapter import Adapter
from graftkit.checkpoint.tensors import Computed, Zeros
from graftkit.cli import run
from graftkit.engine import apply, execute, plan
from graftkit.errors import InputRejected, VerificationFailed

LEAF = "base_model.model.model.layers.1.self_attn.q_proj"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("adapters")
    build("llama", root / "base")
    apply(
        {
            "version": 1, "base_model": str(root / "base"), "output": str(root / "out"),
            "operations": [{"op": "add_lora", "r": 4, "lora_alpha": 8}],
        }
    )  # fmt: skip
    return root


@pytest.fixture
def output(made, tmp_path):
    shutil.copytree(made / "out", tmp_path / "out")
    return tmp_path / "out"


def edit_config(output, **changes):
    path = output / "adapter/adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_tensors(output, change):
    path = output / "adapter/adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def rename(tensors):
    tensors[f"{LEAF}.lora_B.weights"] = tensors.pop(f"{LEAF}.lora_B.weight")


def flip(tensors):
    tensors[f"{LEAF}.lora_B.weight"].view(torch.int32)[3, 1] ^= 1  # the smallest number there is


def drop(tensors):
    for part in ("A", "B"):
        del tensors[f"{LEAF}.lora_{part}.weight"]


def poison(tensors):
    tensors[f"{LEAF}.lora_A.weight"][0, 0] = float("nan")


def other_base(root, place):
    """The base with one weight a little different: names, shapes and config are the same."""
    shutil.copytree(root / "base", place)
    tensors = load_file(place / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] += 1e-3
    save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
    return str(place)


def failures(output, base=None, **options):
    return " / ".join(verify_adapter(str(output / "adapter"), base, **options).failures)


def test_what_was_written_passes_with_and_without_its_report(output):
    found = verify_adapter(str(output / "adapter"))
    assert found.failures == found.notes == ()
    (output / "graft_report.json").unlink()
    found = verify_adapter(str(output / "adapter"))
    assert found.failures == ()
    assert found.report is None
    assert "changed lora_alpha" in found.notes[0]
    assert "another base of the same shape cannot be seen" in found.notes[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (rename, "adapter_model.safetensors is not the reported one"),
        (flip, "adapter_model.safetensors is not the reported one"),
        (drop, "adapter_model.safetensors is not the reported one"),
        (poison, "adapter_model.safetensors is not the reported one"),
    ],
)
@pytest.mark.parametrize("outputs", [True, False])
def test_the_report_s_digests_catch_changed_weights(output, change, words, outputs):
    edit_tensors(output, change)
    assert words in failures(output, outputs=outputs)


def test_the_report_catches_a_changed_alpha_and_a_dropped_target_by_name(output):
    edit_config(output, lora_alpha=16)
    assert "lora_alpha is 16, was 8" in failures(output, outputs=False)
    config = json.loads((output / "graft_report.json").read_text())["adapter"]["config"]
    edit_config(output, lora_alpha=8, target_modules=[n for n in config["target_modules"] if "layers.1" not in n])
    assert "target_modules is" in failures(output, outputs=False)


@pytest.mark.parametrize("outputs", [True, False])
def test_the_report_catches_another_base_of_the_same_shape(made, output, tmp_path, outputs):
    said = failures(output, other_base(made, tmp_path / "twin"), outputs=outputs)
    assert "the base's weights are not those that the adapter was made for: model.layers.0.mlp.up_proj.weight" in said


@pytest.mark.parametrize("outputs", [True, False])
def test_without_a_report_the_base_that_the_config_names_tells_another_one(made, output, tmp_path, outputs):
    (output / "graft_report.json").unlink()
    said = failures(output, other_base(made, tmp_path / "twin"), outputs=outputs)
    assert "the base's weights are not those that the adapter was made for" in said


def test_a_base_that_nothing_tells_is_never_called_verified(made, output, capsys):
    (output / "graft_report.json").unlink()
    edit_config(output, base_model_name_or_path="somebody/model")
    for options in ([], ["--no-outputs"]):
        assert run(["verify", str(made / "base"), "--adapter", str(output / "adapter"), *options]) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert "verified:" not in said
        assert "not known to be its base: adapter_config.json names 'somebody/model'" in said


def test_a_base_of_another_shape_is_caught_from_headers_alone(output, tmp_path):
    build("llama_tied", tmp_path / "tied")
    assert "the base has other tensors" in failures(output, str(tmp_path / "tied"), outputs=False)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (rename, "peft reports missing tensors"),
        (drop, "peft reports missing tensors"),
        (poison, "holds NaN"),
        (lambda tensors: tensors[f"{LEAF}.lora_A.weight"].zero_(), "it would never learn"),
    ],
)
def test_without_a_report_loading_outputs_and_gradients_catch_what_they_can(output, change, words):
    (output / "graft_report.json").unlink()
    edit_tensors(output, change)
    assert words in failures(output)


def test_without_a_report_a_changed_alpha_passes_and_that_is_said(output):
    (output / "graft_report.json").unlink()
    edit_config(output, lora_alpha=16)
    found = verify_adapter(str(output / "adapter"))
    assert found.failures == ()
    assert "cannot be seen" in found.notes[0]


def test_a_trained_adapter_promises_nothing_and_its_effect_is_told(output, capsys):
    (output / "graft_report.json").unlink()
    edit_tensors(output, lambda tensors: [value.add_(1e-2) for name, value in tensors.items() if "lora_B" in name])
    assert run(["verify", "--adapter", str(output / "adapter")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "trained: it moves the outputs by" in said
    found = verify_adapter(str(output / "adapter"))
    assert found.check.trained
    assert found.check.gap.relative > 1e-4


def test_a_trained_adapter_still_fails_where_its_report_promises_that_it_changes_nothing(output):
    edit_tensors(output, lambda tensors: tensors[f"{LEAF}.lora_B.weight"].fill_(1e-3))
    said = failures(output)
    assert "is not the base's" in said
    assert "is not the reported one" in said


@pytest.mark.parametrize("outputs", [True, False])
def test_a_diverged_adapter_fails_with_and_without_the_forward(output, outputs):
    (output / "graft_report.json").unlink()
    edit_tensors(output, poison)
    assert "holds NaN or infinity" in failures(output, outputs=outputs)


def test_a_base_that_is_gone_is_named(output, capsys):
    edit_config(output, base_model_name_or_path="/nowhere/base")
    with pytest.raises(InputRejected, match="base_model_name_or_path"):
        verify_adapter(str(output / "adapter"))
    assert run(["verify", "--adapter", str(output / "adapter")]) == 3
    assert "graftkit verify BASE --adapter DIR" in capsys.readouterr().err


def test_the_command_line_says_what_failed(made, output, capsys):
    assert run(["verify", str(made / "base"), "--adapter", str(output / "adapter"), "--no-outputs"]) == 0
    edit_tensors(output, flip)
    assert run(["verify", "--adapter", str(output / "adapter"), "--no-outputs"]) == 4
    assert "is not the reported one" in capsys.readouterr().out
    assert run(["verify", "a"]) == 2
    assert run(["verify", "a", "b", "--adapter", "c"]) == 3


def planned_with(made, tmp_path, change):
    planned = plan(
        {
            "version": 1, "base_model": str(made / "base"), "output": str(tmp_path / "never"),
            "operations": [{"op": "add_lora", "r": 4}],
        }
    )  # fmt: skip
    outcome = planned.outcomes[0]
    tensors = dict(outcome.adapter.tensors)
    config = change(tensors, dict(outcome.adapter.config))
    object.__setattr__(outcome, "adapter", Adapter(config, tensors))
    return planned


def ones(tensors, config):
    values = torch.full(tensors[f"{LEAF}.lora_B.weight"].shape, 1e-2)
    tensors[f"{LEAF}.lora_B.weight"] = Computed(
        "F32", tuple(values.shape), lambda: values.view(torch.uint8).numpy().reshape(-1).data
    )
    return config


def dead(tensors, config):
    tensors[f"{LEAF}.lora_A.weight"] = Zeros("F32", tensors[f"{LEAF}.lora_A.weight"].shape)
    return config


def shorter(tensors, config):
    del tensors[f"{LEAF}.lora_A.weight"]
    return config


def unloadable(tensors, config):
    return {**config, "r": 5}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (ones, "promised bitwise"),
        (dead, "gets none at step 0, although one arrives there"),
        (shorter, "peft reports missing tensors"),
        (unloadable, "peft cannot load it"),
    ],
)
def test_an_operation_that_makes_a_wrong_adapter_writes_nothing(made, tmp_path, change, words):
    planned = planned_with(made, tmp_path, change)
    with pytest.raises(VerificationFailed, match=words):
        execute(planned)
    assert not (tmp_path / "never").exists()


def test_an_adapter_that_is_damaged_while_it_is_written_is_caught_byte_by_byte(made, tmp_path):
    from graftkit.checkpoint.adapter import write_adapter
    from graftkit.verification.structural import check_adapter

    planned = planned_with(made, tmp_path, lambda _, config: config)
    write_adapter(planned.adapter, tmp_path / "adapter")
    check_adapter(planned.adapter, tmp_path / "adapter")
    raw = bytearray((tmp_path / "adapter/adapter_model.safetensors").read_bytes())
    raw[-3] ^= 1
    (tmp_path / "adapter/adapter_model.safetensors").write_bytes(raw)
    with pytest.raises(VerificationFailed, match="differs from what was computed"):
        check_adapter(planned.adapter, tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps({**config, "r": 5}))
    with pytest.raises(VerificationFailed, match=r"adapter_config.json on disk is not the planned one"):
        check_adapter(planned.adapter, tmp_path / "adapter")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda output: edit_config(output, r=5), "size mismatch"),
        (lambda output: edit_config(output, lora_alpha=float("inf")), "an alpha is inf"),
        (lambda output: edit_config(output, target_modules=["nowhere"]), "peft cannot put it on LlamaForCausalLM"),
        (lambda output: edit_tensors(output, rename), "has no place for tensor"),
        (lambda output: edit_tensors(output, drop), "is missing"),
    ],
)
def test_shapes_alone_show_an_adapter_that_does_not_fit(output, capsys, damage, words):
    (output / "graft_report.json").unlink()
    damage(output)
    assert words in failures(output, outputs=False)
    assert run(["verify", "--adapter", str(output / "adapter"), "--no-outputs"]) == 4
    assert "verified" not in capsys.readouterr().out


def test_what_was_not_run_is_not_called_unchanged(output, capsys):
    assert run(["verify", "--adapter", str(output / "adapter"), "--no-outputs"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "is the one that was reported and fits its base; the model was not run (--no-outputs)" in said


def test_the_same_values_in_other_files_are_the_same(made, output):
    """What a save or a re-sharding does to files is no fault."""
    path = output / "adapter/adapter_model.safetensors"
    tensors = load_file(path)
    save_file(dict(reversed(tensors.items())), path, metadata={"format": "pt", "longer": "header"})
    config = output / "adapter/adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text())))
    assert verify_adapter(str(output / "adapter"), outputs=False).failures == ()


@pytest.mark.parametrize("report", ["{", "[]", '{"checks": {"adapter": {"strength": "strong"}}, "ledger": []}'])
def test_a_damaged_report_is_named(output, report):
    (output / "graft_report.json").write_text(report)
    with pytest.raises(InputRejected, match=r"graft_report.json: is damaged .*move it away"):
        verify_adapter(str(output / "adapter"), outputs=False)


def test_a_merge_that_changes_outputs_is_told(made, output):
    """A merge rounds as soon as B is not zero, which is what a merge that is wrong looks like."""
    from graftkit.running.forward import load
    from graftkit.running.peft_loading import with_peft
    from graftkit.running.probes import Probe
    from graftkit.verification.adapters.outputs import merged

    edit_tensors(output, lambda tensors: tensors[f"{LEAF}.lora_B.weight"].fill_(1e-1))
    model, named = with_peft(load(made / "base").model, output / "adapter")
    ids = torch.arange(4, 16).unsqueeze(0)
    assert named == ()
    assert merged(model, Probe("ids", ids, torch.ones_like(ids)), frozenset()) == "failed"
