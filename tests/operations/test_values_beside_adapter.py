"""Trained values beside an adapter are refused by name, or left behind as asked; states of trainings pass without a word."""

import pickle
import shutil

import pytest
from support.adapters import make_adapter
from support.command import assert_one_line
from support.families import build
from support.recipes import applied, apply_by_command, recipe

import graftkit
from graftkit.errors import RecipeError

STATES = (
    *("optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state.pth", "rng_state_1.pth", "training_args.bin", "optimizer.bin"),
    *("trainer_state.json", "random_states_0.pkl", "adapter_model.bin", "README.md", "tokenizer.model", "latest"),
)  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("beside")
    return make_adapter(root, "LlamaForCausalLM", base=build("llama", root / "base"), target_modules=["q_proj"])


@pytest.fixture
def beside(made, tmp_path):
    """A copy of the adapter with further files; each would end the test if it were unpickled."""

    class Trap:
        def __reduce__(self):
            return exec, ("raise SystemExit('a pickle was read')",)

    def make(*names):
        folder = shutil.copytree(made[1], tmp_path / "adapter")
        for name in names:
            (folder / name).write_bytes(pickle.dumps(Trap()))
        return folder

    return make


def merge(adapter, **fields):
    return {"op": "merge_adapter", "adapter": str(adapter), **fields}


@pytest.mark.parametrize(
    "name",
    ["new_embeddings.safetensors", "non_lora_trainables.bin", "vision_tower.pt", "model.safetensors", "head.pkl"],
)
def test_what_would_be_missing_in_the_output_is_refused_by_name(made, beside, name, tmp_path):
    done, output = apply_by_command(made[0], tmp_path / "run", merge(beside(name)))
    assert_one_line(done, 3, f"{name} holds trained values beside adapter_model.safetensors, which would be missing")
    assert f"or merge without it: leave: [{name}]" in done.stderr
    assert not output.exists()


def test_what_is_left_behind_as_asked_is_a_note(made, beside, tmp_path):
    folder = beside("new_embeddings.safetensors", "a.pt", "b.pt")
    _, report = applied(made[0], tmp_path / "run", merge(folder, leave=["new_embeddings.safetensors", "*.pt"]))
    assert [note for note in report["notes"] if "left behind" in note] == [
        "a.pt, b.pt, new_embeddings.safetensors: left behind as asked; trained values beside the adapter that are not in the output"
    ]


def test_what_is_not_named_is_still_refused(made, beside, tmp_path):
    done, _ = apply_by_command(made[0], tmp_path / "run", merge(beside("a.pt", "b.pt", "c.pt"), leave=["a.pt"]))
    assert_one_line(done, 3, "b.pt, c.pt hold trained values")
    assert "leave: [b.pt, c.pt]" in done.stderr


@pytest.mark.parametrize(("names", "there"), [((), "there are none"), (("a.pt",), "there are a.pt")])
def test_a_name_that_fits_nothing_is_an_error_of_the_recipe(made, beside, names, there, tmp_path):
    with pytest.raises(RecipeError, match=rf"^operations\.0\.leave: 'tower\*' fits no file .*; {there}$"):
        graftkit.plan(recipe(made[0], tmp_path / "out", merge(beside(*names), leave=["tower*"])))


def test_states_of_trainings_pass_without_a_word(made, beside, tmp_path):
    folder = beside(*STATES)
    (folder / "global_step10").mkdir()
    (folder / "global_step10/zero_pp_rank_0_mp_rank_00_optim_states.pt").write_bytes(b"x")
    plan = graftkit.plan(recipe(made[0], tmp_path / "out", merge(folder)))
    assert not any(name in note for name in (*STATES, "global_step") for note in plan.notes)
