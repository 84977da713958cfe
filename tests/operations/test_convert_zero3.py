"""convert: the parts that the ranks of DeepSpeed's ZeRO 3 saved become whole weights again; nothing of DeepSpeed is needed or run."""

import os
import shutil
import sys
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file
from support.families import build
from support.recipes import recipe

import graftkit
from graftkit import engine
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.distributed import parts
from graftkit.errors import InputRejected

HEAD, TABLE, NORM = "lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"
FROZEN = "model.layers.1.mlp.up_proj.weight"
STEP = "global_step7"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return build("llama_tied", tmp_path_factory.mktemp("zero") / "base", dtype="bfloat16")


@pytest.fixture
def scaler(monkeypatch):
    """An object of a class of DeepSpeed's, which stands in the files of its optimizers."""
    module = ModuleType("deepspeed")
    module.LossScaler = type("LossScaler", (), {"__module__": "deepspeed"})
    monkeypatch.setitem(sys.modules, "deepspeed", module)
    found = module.LossScaler()
    found.cur_scale = 1.0
    return found


def master(base):
    """The weights as an optimizer has them: float32, and not just those of bfloat16."""
    held = load_file(base / "model.safetensors")
    return {name: value.float() + 2**-20 * value.float().abs() for name, value in held.items()}


def padded(value, ranks):
    """One run of values for each rank, as long on each."""
    share = -(-value.numel() // ranks)
    return torch.cat([value.flatten(), value.new_full((share * ranks - value.numel(),), 77)]).split(share)


def spread(base, source, scaler, ranks=3, frozen=(FROZEN,)):
    """A folder as ``ranks`` ranks of DeepSpeed write it: matrices in one group, all others in the next. Returns what it holds."""
    shutil.copytree(base, source)
    (source / "model.safetensors").unlink()
    (source / STEP).mkdir()
    (source / "latest").write_text(STEP)
    held = master(base)
    trained = {name: value for name, value in held.items() if name not in frozen}
    kept = {name: held[name].bfloat16() for name in frozen}
    groups = [[n for n, v in trained.items() if v.dim() > 1], [n for n, v in trained.items() if v.dim() < 2]]
    for rank in range(ranks):
        model = {
            "module": {f"module.{name}": torch.empty(0, dtype=torch.bfloat16) for name in (*held, HEAD)},
            "buffer_names": [],
            "param_shapes": [{f"module.{n}": trained[n].shape for n in group} for group in groups],
            "frozen_param_shapes": {f"module.{n}": v.shape for n, v in kept.items()} or None,
            "frozen_param_fragments": {f"module.{n}": padded(v, ranks)[rank].clone() for n, v in kept.items()} or None,
            "shared_params": {f"module.{HEAD}": f"module.{TABLE}"},
            "ds_version": "0.19.8",
        }
        flat = [torch.cat([padded(trained[n], ranks)[rank] for n in group]) for group in groups]
        state = {
            "loss_scaler": scaler,
            "zero_stage": 3,
            "partition_count": ranks,
            "optimizer_state_dict": {"state": {0: {"exp_avg": flat[0] * 2, "exp_avg_sq": flat[0] ** 2}}},
            "fp32_flat_groups": flat,
        }
        torch.save(model, file_of(source, "model", rank))
        torch.save({"optimizer_state_dict": state, "ds_version": "0.19.8"}, file_of(source, "optim", rank))
    return {**trained, **kept}


def file_of(source, kind, rank):
    return source / STEP / f"{'bf16_' if kind == 'optim' else ''}zero_pp_rank_{rank}_mp_rank_00_{kind}_states.pt"


def changed(source, kind, rank, change):
    """Save one of the files again, with what ``change`` does to it."""
    held = torch.load(file_of(source, kind, rank), weights_only=False)
    change(held)
    torch.save(held, file_of(source, kind, rank))


def convert(source, output, *more, **given):
    return graftkit.apply(recipe(source, output, {"op": "convert"}, *more, **given), allow_pickle=True)


def equal(output, held):
    new = {}
    for file in output.glob("*.safetensors"):
        new |= load_file(file)
    return new.keys() == held.keys() and all(
        new[name].dtype == value.dtype and new[name].equal(value) for name, value in held.items()
    )


def test_the_weights_of_all_ranks_are_put_together_and_tied_ones_stay_one(base, tmp_path, scaler):
    held = spread(base, tmp_path / "source", scaler)
    report = convert(tmp_path / "source", tmp_path / "out")
    assert report.verdict.startswith("verified (bitwise)")
    assert report.checks[0].tensors == len(held) + 1
    assert equal(tmp_path / "out", held)
    assert "in float32, are read" in report.plan.source.left_behind[f"{STEP}/"]
    assert sorted(path.name for path in (tmp_path / "out").glob("*zero*")) == []


def test_a_cast_follows_and_files_are_several(base, tmp_path, scaler, monkeypatch):
    """Also of more ranks than a norm has values for, with nothing frozen, and from the folder of the step itself."""
    held = spread(base, tmp_path / "source", scaler, ranks=67, frozen=())
    for path in (tmp_path / "source").iterdir():
        if path.is_file():
            shutil.copy(path, tmp_path / "source" / STEP)
    monkeypatch.setattr(parts, "FILE_BYTES", 1 << 15)
    cast = {"op": "cast", "dtype": "bfloat16"}
    report = convert(tmp_path / "source" / STEP, tmp_path / "out", cast, verify={"outputs": False})
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    assert equal(tmp_path / "out", {name: value.bfloat16() for name, value in held.items()})
    assert report.checks[0].failures == ()


def test_an_optimizer_that_would_run_code_is_refused_and_nothing_is_run(base, tmp_path, scaler):
    class Trap:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    spread(base, tmp_path / "source", scaler)
    changed(tmp_path / "source", "optim", 1, lambda held: held.update(more=Trap()))
    with pytest.raises(InputRejected, match="could run code: it names posix.system"):
        convert(tmp_path / "source", tmp_path / "out")
    assert not (tmp_path / "ran").exists()


def _state(held):
    return held["optimizer_state_dict"]


def _drop_frozen(held):
    held["frozen_param_fragments"].clear()


def _longer(held):
    _state(held)["fp32_flat_groups"].append(torch.zeros(4))


def _shorter(held):
    groups = _state(held)["fp32_flat_groups"]
    groups[0] = groups[0][:-1].clone()


def _rows(held):
    groups = _state(held)["fp32_flat_groups"]
    groups[:] = [group[:, None] for group in groups]


def _half(held):
    groups = _state(held)["fp32_flat_groups"]
    groups[:] = [group.half() for group in groups]


WRONG = {
    "a rank is missing": (lambda source: file_of(source, "model", 1).unlink(), "rank 1 has no file of model_states"),
    "no optimizer": (lambda source: file_of(source, "optim", 2).unlink(), "rank 2 has no file of optim_states"),
    "fewer ranks": (
        lambda source: [file_of(source, kind, 2).unlink() for kind in ("model", "optim")],
        "spread over 3 ranks, and 2 ranks left files",
    ),
    "too many values": (lambda source: changed(source, "optim", 1, _longer), "holds 4 values of no weight"),
    "too few values": (lambda source: changed(source, "optim", 1, _shorter), "its groups end within"),
    "no groups": (lambda s: changed(s, "optim", 0, lambda h: _state(h).pop("fp32_flat_groups")), "has no fp32_flat_groups"),
    "groups of rows": (lambda source: changed(source, "optim", 1, _rows), "are not flat"),
    "no tensors": (lambda s: changed(s, "optim", 0, lambda h: _state(h).update(fp32_flat_groups=[1])), "is of type int"),
    "no shapes": (lambda s: changed(s, "model", 0, lambda h: h.update(param_shapes=[3])), "names no weights and their shapes"),
    "a strange shape": (lambda s: changed(s, "model", 0, lambda h: h.update(param_shapes={"a": 3})), "'a' has no shape"),
    "nothing by name": (lambda s: changed(s, "model", 0, lambda h: h.update(shared_params=[1])), "holds nothing by name"),
    "two dtypes": (lambda source: changed(source, "optim", 1, _half), "its shares have several dtypes: F16, F32"),
    "no frozen share": (lambda source: changed(source, "model", 2, _drop_frozen), "has no share of .* of the frozen"),
    "cut off": (lambda source: os.truncate(file_of(source, "optim", 1), 999), "is not in the format|damaged archive"),
    "parallel": (
        lambda source: shutil.copy(
            file_of(source, "model", 0), source / STEP / "zero_pp_rank_0_mp_rank_01_model_states.pt"
        ),
        "cut for tensor parallelism too",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_parts_that_are_not_all_of_one_training_are_refused(base, tmp_path, scaler, name):
    damage, message = WRONG[name]
    spread(base, tmp_path / "source", scaler)
    damage(tmp_path / "source")
    with pytest.raises(InputRejected, match=message):
        graftkit.plan(recipe(tmp_path / "source", tmp_path / "out", {"op": "convert"}), allow_pickle=True)


def test_a_gathered_tensor_that_is_not_what_torch_loads_is_caught(base, tmp_path, scaler):
    spread(base, tmp_path / "source", scaler)
    planned = engine.plan(recipe(tmp_path / "source", "never", {"op": "convert"}), allow_pickle=True)
    (check,) = planned.outcomes[0].checks
    right = planned.result.tensors
    assert check.compare(right, None).failures == ()
    swapped = {**right, TABLE: right["model.layers.0.mlp.down_proj.weight"]}
    (failure,) = check.compare(swapped, None).failures
    assert TABLE in failure
    (failure,) = check.compare({name: one for name, one in right.items() if name != NORM}, None).failures
    assert f"{NORM!r} is missing" in failure
    plain = Checkpoint.open(base).tensors
    assert len(check.compare({**right, FROZEN: plain[FROZEN]}, None).failures) == 0
    assert len(check.compare({**right, NORM: plain[NORM]}, None).failures) == 1
