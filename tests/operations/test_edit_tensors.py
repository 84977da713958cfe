"""edit_tensors: each step gives what plain torch gives, keeps all other bytes, and a step that is left out or changed is caught."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.command import assert_one_line, here
from support.families import build
from support.recipes import recipe

import graftkit
from graftkit import engine
from graftkit.checkpoint.rounding import round_once
from graftkit.errors import InputRejected, RecipeError
from graftkit.verification.weights.edited import EditCheck
from graftkit.verification.weights.replayed_steps import nearest

LAYER = r"model\.layers\.(\d+)\."
HEAD, TABLE = "lm_head.weight", "model.embed_tokens.weight"
Q, K = (f"model.layers.0.self_attn.{side}_proj.weight" for side in "qk")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return build("llama", tmp_path_factory.mktemp("edit") / "base", dtype="bfloat16", shard_size="60KB")


@pytest.fixture(scope="module")
def tuned(base, tmp_path_factory):
    """The base with float32 tables that differ everywhere."""
    folder = build("llama", tmp_path_factory.mktemp("edit") / "tuned")
    path = folder / "model.safetensors"
    held = load_file(path)
    generator = torch.Generator().manual_seed(5)
    held = {name: value + torch.randn(value.shape, generator=generator) for name, value in held.items()}
    save_file(held, path, metadata={"format": "pt"})
    return folder


def edit(source, output, *steps, **fields):
    fields.setdefault("verify", {"outputs": False})
    return graftkit.apply(recipe(source, output, {"op": "edit_tensors", "steps": list(steps)}, **fields))


def plan(source, *steps, **fields):
    return engine.plan(recipe(source, "never", {"op": "edit_tensors", "steps": list(steps)}, **fields))


def tensors(folder):
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


def exact(values, dtype):
    """The nearest values of ``dtype``, found by trying the neighbours."""
    first = values.to(dtype)
    ends = [torch.full_like(first, end) for end in (torch.inf, -torch.inf)]
    near = torch.stack([first, *(torch.nextafter(first, end) for end in ends)])
    return near.gather(0, (near.double() - values).abs().argmin(0)[None])[0]


STEPS = {
    "scale": ({"scale": {"tensors": [HEAD], "factor": 0.3}}, lambda old, _: {HEAD: exact(old[HEAD].double() * 0.3, torch.bfloat16)}),
    "add": (
        {"add": {"tensors": [HEAD, r".*\.0\.mlp.*"], "fine_tuned": "{tuned}", "weight": 0.7}},
        lambda old, new: {
            name: exact(value.double() + 0.7 * (new[name].double() - value.double()), torch.bfloat16)
            for name, value in old.items() if name == HEAD or ".0.mlp" in name
        },
    ),
    "permute, reshape": (
        [{"permute": {"tensors": [Q], "dims": [1, 0]}}, {"reshape": {"tensors": [K], "shape": [-1, 16]}},
         {"reshape": {"tensors": [K], "shape": [16, 32]}}],
        lambda old, _: {Q: old[Q].T},
    ),
    "concat, split other": (
        [{"concat": {"tensors": [Q, K], "into": "joint"}},
         {"split": {"tensors": ["joint"], "sizes": [16, 32], "into": [K, Q]}}],
        lambda old, _: {K: torch.cat([old[Q], old[K]])[:16], Q: torch.cat([old[Q], old[K]])[16:]},
    ),
    "along the second axis": (
        [{"split": {"tensors": [f"{LAYER}mlp.down_proj.weight"], "axis": -1, "into": [r"\1.a", r"\1.b"]}},
         {"concat": {"tensors": [r"(\d)\.b", r"(\d)\.a"], "axis": 1, "into": r"model.layers.\1.mlp.down_proj.weight"}}],
        lambda old, _: {n: v.roll(32, 1) for n, v in old.items() if "down_proj" in n},
    ),
    "fill": ({"fill": {"tensors": [r".*norm\.weight"], "init": {"scheme": "constant", "value": 0.1}}},
             lambda old, _: {n: torch.full_like(v, 0.1) for n, v in old.items() if "norm" in n}),
    "swap": ({"rename": {Q: f"model.layers.1{Q[14:]}", f"model.layers.1{Q[14:]}": Q}},
             lambda old, _: {Q: old[f"model.layers.1{Q[14:]}"], f"model.layers.1{Q[14:]}": old[Q]}),
}  # fmt: skip


def filled(steps, tuned):
    listed = steps if isinstance(steps, list) else [steps]
    return json.loads(json.dumps(listed).replace("{tuned}", str(tuned)))


@pytest.mark.parametrize("name", STEPS)
def test_a_step_gives_what_torch_gives_and_keeps_the_rest(base, tuned, tmp_path, name):
    steps, wanted = STEPS[name]
    report = edit(base, tmp_path / "out", *filled(steps, tuned))
    old, new = tensors(base), tensors(tmp_path / "out")
    changed = wanted(old, tensors(tuned))
    assert old.keys() == new.keys()
    assert all(new[key].equal(changed.get(key, value)) for key, value in old.items())
    assert any(not old[key].equal(value) for key, value in changed.items())
    assert report.checks[0].failures == ()
    assert report.checks[0].moved + report.checks[0].computed == len(old)


def test_the_nearest_matrix_of_a_rank(base, tmp_path):
    edit(base, tmp_path / "out", {"low_rank": {"tensors": [r".*\.0\.mlp\..*"], "rank": 3}})
    old, new = tensors(base), tensors(tmp_path / "out")
    for name, value in old.items():
        if ".0.mlp." not in name:
            assert new[name].equal(value)
            continue
        sizes = torch.linalg.svdvals(value.double())
        rounding = 2.0**-8 * float(value.double().norm())
        assert abs(float((new[name].double() - value.double()).norm()) - float(sizes[3:].norm())) <= rounding
        assert float(torch.linalg.svdvals(new[name].double())[3]) <= rounding < sizes[3]


def test_other_names_of_the_same_weights_are_bitwise_and_run(base, tmp_path):
    report = edit(base, tmp_path / "out", {"rename": {r"model\.(.*)": r"\1"}}, verify={"outputs": True})
    assert report.outputs.passed
    assert all(item.bitwise for item in report.outputs.comparisons)
    old, new = tensors(base), tensors(tmp_path / "out")
    assert {name.removeprefix("model."): value.tolist() for name, value in old.items()} == {
        n: v.tolist() for n, v in new.items()
    }
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == new.keys()
    assert "bitwise" in report.verdict
    mended = edit(tmp_path / "out", tmp_path / "back", {"rename": {r"(?!lm_head)(.*)": r"model.\1"}})
    assert [value.tolist() for value in tensors(tmp_path / "back").values()] == [
        value.tolist() for value in old.values()
    ]
    assert "bitwise" in mended.verdict


def test_values_on_purpose_are_measured_and_those_that_cancel_are_bitwise(base, tmp_path):
    steps = [
        {"scale": {"tensors": [f"{LAYER}self_attn.{side}_proj.weight"], "factor": by}}
        for side, by in (("v", 0.5), ("o", 2))
    ]
    report = edit(base, tmp_path / "out", *steps, verify={"outputs": True})
    assert report.outputs.measured
    assert all(item.bitwise for item in report.outputs.comparisons)
    assert "intentional" in report.verdict


def test_a_source_that_does_not_load_is_mended(base, tmp_path):
    held = {name: value for name, value in tensors(base).items() if name != "model.norm.weight"}
    for path in base.glob("*.json"):
        if "index" not in path.name:
            (tmp_path / "source").mkdir(exist_ok=True)
            (tmp_path / "source" / path.name).write_bytes(path.read_bytes())
    save_file(held, tmp_path / "source/model.safetensors", metadata={"format": "pt"})
    step = {"fill": {"tensors": ["model.norm.weight"], "shape": [32], "dtype": "bfloat16", "init": "ones"}}
    report = edit(tmp_path / "source", tmp_path / "out", step, verify={"outputs": True})
    assert any("does not load as it is" in note for note in report.to_json()["notes"])
    assert tensors(tmp_path / "out")["model.norm.weight"].tolist() == [1.0] * 32
    with pytest.raises(InputRejected, match="would not load"):
        plan(base, {"delete": ["model.norm.weight"]})


def test_a_model_in_another_dtype_says_so(base, tmp_path):
    edit(base, tmp_path / "out", {"cast": {"tensors": [".*"], "dtype": "float32"}}, verify={"outputs": True})
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "float32"
    old, new = tensors(base), tensors(tmp_path / "out")
    assert all(new[name].equal(value.float()) for name, value in old.items())
    edit(tmp_path / "out", tmp_path / "back", {"cast": {"tensors": [".*"], "dtype": "bfloat16"}})
    assert all(value.equal(old[name]) for name, value in tensors(tmp_path / "back").items())


def test_tensors_of_no_class_are_renamed_and_made_where_they_are_carried(base, tmp_path):
    steps = [
        {"fill": {"tensors": ["mtp.a"], "shape": [3, 4], "dtype": "bfloat16", "init": "kaiming_uniform"}},
        {"rename": {"mtp.a": "mtp.b"}},
    ]
    with pytest.raises(InputRejected, match="unknown_tensors: carry"):
        plan(base, *steps)
    report = edit(base, tmp_path / "out", *steps, unknown_tensors="carry", verify={"outputs": True})
    assert report.outputs.passed
    assert tensors(tmp_path / "out")["mtp.b"].shape == (3, 4)
    again = edit(base, tmp_path / "again", *steps, unknown_tensors="carry", seed=1)
    assert again.verdict
    assert not tensors(tmp_path / "again")["mtp.b"].equal(tensors(tmp_path / "out")["mtp.b"])


def test_parts_are_joined_in_the_order_of_their_numbers(base, tmp_path):
    parts = [f"x.{number}" for number in range(12)]
    steps = [
        {"concat": {"tensors": [Q, K], "into": "all"}},
        {"split": {"tensors": ["all"], "into": parts}},
        {"concat": {"tensors": [r"x\.\d+"], "into": "all"}},
        {"split": {"tensors": ["all"], "into": [Q, K], "sizes": [32, 16]}},
    ]
    edit(base, tmp_path / "out", *steps)
    old, new = tensors(base), tensors(tmp_path / "out")
    assert all(new[name].equal(value) for name, value in old.items())


def test_it_stands_before_and_behind_other_operations(base, tmp_path):
    operations = [
        {"op": "extend_vocab", "special_tokens": ["<|a|>"]},
        {"op": "edit_tensors", "steps": [{"scale": {"tensors": [TABLE, Q], "factor": 0.7}}]},
        {"op": "edit_tensors", "steps": [{"scale": {"tensors": [Q], "factor": 0.7}}, {"cast": {"tensors": [K], "dtype": "float32"}}]},
        {"op": "extend_vocab", "special_tokens": ["<|b|>"]},
    ]  # fmt: skip
    report = graftkit.apply(recipe(base, tmp_path / "out", *operations))
    assert [check.failures for check in report.checks] == [(), ()]
    old, new = tensors(base), tensors(tmp_path / "out")
    once = exact(old[Q].double() * 0.7, torch.bfloat16)
    assert new[Q].equal(exact(once.double() * 0.7, torch.bfloat16))
    assert new[TABLE][:320].equal(exact(old[TABLE][:320].double() * 0.7, torch.bfloat16))


WRONG = {
    "no such tensor": ([{"delete": ["model.layer.0.mlp.up_proj.weight"]}], r"steps\.0\.delete\.0: .* fits no tensor; the nearest names are .*model\.layers\.0\.mlp\.up_proj"),
    "one name for two": ([{"rename": {r"model\.layers\.\d+\.(.*)": r"x.\1"}}], r"steps\.0\.rename: .* would both be called 'x\.input_layernorm"),
    "a name that is taken": ([{"rename": {Q: HEAD}}], r"steps\.0\.rename: .* as another tensor is"),
    "a name that is none": ([{"rename": {Q: "__metadata__"}}], "no name of a tensor"),
    "sizes": ([{"split": {"tensors": [Q], "into": ["a", "b"], "sizes": [1, 2]}}], r"steps\.0\.split\.sizes: add up to 3, and .* has 32"),
    "not equal parts": ([{"split": {"tensors": [Q], "into": ["a", "b", "c"]}}], "not 3 equal parts"),
    "parts that do not fit": ([{"concat": {"tensors": [Q, HEAD], "axis": 1, "into": "a"}}], r"steps\.0\.concat\.tensors: .* does not join"),
    "a part for one only": ([{"concat": {"tensors": [r"model\.layers\.(\d)\.self_attn\.q.*", r"model\.layers\.(0)\.self_attn\.k.*"], "into": r"\1"}}], r"concat\.tensors\.1: has no part for '1'"),
    "axes": ([{"permute": {"tensors": [Q], "dims": [1, 2, 0]}}], r"permute\.dims: "),
    "a shape of other values": ([{"reshape": {"tensors": [Q], "shape": [7, -1]}}], r"reshape\.shape: "),
    "a rank that is too large": ([{"low_rank": {"tensors": [Q], "rank": 32}}], r"low_rank\.rank: .* at most 32"),
    "a vector has no fans": ([{"fill": {"tensors": ["model.norm.weight"], "init": "xavier_normal"}}], r"fill\.init: .* no matrix"),
    "the same checkpoint": ([{"add": {"tensors": [Q], "fine_tuned": "{base}"}}], "is the base itself"),
    "a dtype": ([{"assert": {"dtype": {Q: "float32"}}}], r"steps\.0\.assert\.dtype: .* BF16, not float32"),
    "a shape": ([{"scale": {"tensors": [Q], "factor": 2}}, {"assert": {"shape": {Q: [-1, 31]}}}], r"steps\.1\.assert\.shape: .* has shape \[32, 32\]"),
    "nothing is left": ([{"delete": [".*"]}], "leaves no tensor"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_step_that_does_not_fit_is_an_error_at_its_place(base, name):
    steps, message = WRONG[name]
    given = json.loads(json.dumps([*steps, {"scale": {"tensors": [K], "factor": 3}}]).replace("{base}", str(base)))
    with pytest.raises(RecipeError, match=message) as caught:
        plan(base, *given)
    assert str(caught.value).startswith("operations.0.steps.")


@pytest.mark.slow  # takes the seconds that it may
def test_an_expression_without_end_is_stopped(base):
    with pytest.raises(RecipeError, match=r"steps\.0\.delete\.0: .* takes more than 5 seconds"):
        plan(base, {"delete": [r"(.*.*.*.*)*!"]})


VALUES = {
    "equal": {"equal": [HEAD, TABLE]},
    "norm": {"norm": {Q: {"max": 0.1}}},
    "at least": {"norm": {Q: {"min": 1000}}},
}


@pytest.mark.parametrize("name", VALUES)
def test_an_assertion_of_values_stops_before_anything_is_written(base, tmp_path, name):
    steps = [{"scale": {"tensors": [K], "factor": 2}}, {"assert": VALUES[name]}]
    plan(base, *steps)
    with pytest.raises(RecipeError, match=r"^operations\.0\.steps\.1\.assert\.\w+: "):
        edit(base, tmp_path / "out", *steps)
    assert not (tmp_path / "out").exists()


def test_assertions_that_hold_and_a_tied_name_that_is_not_stored(tmp_path):
    tied = build("llama_tied", tmp_path / "tied")
    norm = float(load_file(tied / "model.safetensors")[Q].norm())
    holds = {"equal": [HEAD, TABLE], "finite": [".*"], "norm": {Q: {"min": norm * 0.999, "max": norm * 1.001}}}
    edit(
        tied,
        tmp_path / "out",
        {"assert": holds},
        {"scale": {"tensors": [K], "factor": 2}},
        {"assert": {"equal": [TABLE, TABLE]}},
    )
    old, new = load_file(tied / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert new[K].equal(old[K] * 2)
    assert new.keys() == old.keys()


def test_values_that_are_not_finite_are_named(base, tmp_path):
    held = tensors(base)
    held[Q] = held[Q].clone()
    held[Q][3, 3] = torch.nan
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "config.json").write_bytes((base / "config.json").read_bytes())
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
    steps = [{"assert": {"finite": [".*q_proj.*"]}}, {"scale": {"tensors": [K], "factor": 2}}]
    with pytest.raises(RecipeError, match=r"steps\.0\.assert\.finite: .*0\.self_attn\.q_proj.* NaN"):
        edit(folder, tmp_path / "out", *steps, allow_nonfinite=True)


def test_the_command_line_names_the_line(base, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"version: 1\nbase_model: {base}\noutput: {tmp_path / 'out'}\noperations:\n  - op: edit_tensors\n    steps:\n"
        "      - scale: {tensors: [lm_head.weight], factor: 2}\n      - assert: {equal: [lm_head.weight, model.embed_tokens.weight]}\n"
    )
    assert_one_line(here("apply", path, "-q"), 2, "recipe.yaml:8: operations.0.steps.1.assert.equal: ")
    assert not (tmp_path / "out").exists()


def test_the_recipe_that_people_copy_changes_no_output(tmp_path):
    done = here("apply", "recipes/edit_tensors.yaml", "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out/graft_report.json").read_text())
    assert report["verdict"].startswith("verified (intentional)")
    assert all(item["largest"] == 0 for item in report["outputs"]["comparisons"])


FAULTS = {
    "a step left out": (lambda steps: steps[:-1], "is not what the steps make"),
    "another order": (lambda steps: [steps[0], steps[2], steps[1], *steps[3:]], "is not what the steps make"),
    "another axis": (lambda steps: [{"split": {**steps[0]["split"], "axis": 1}}, *steps[1:]], "the steps make torch.bfloat16 [16, 32]"),
    "another factor": (lambda steps: [*steps[:2], {"scale": {**steps[2]["scale"], "factor": 0.31}}, *steps[3:]], "is not what"),
    "a name left": (lambda steps: [*steps[:3], *steps[4:]], "the steps leave no tensor 'b'"),
}  # fmt: skip

TRUE = [
    {"split": {"tensors": [Q], "into": ["a", "b"]}},
    {"add": {"tensors": [HEAD], "fine_tuned": "{tuned}", "weight": 0.5}},
    {"scale": {"tensors": [HEAD], "factor": 0.3}},
    {"rename": {"b": "c"}},
    {"low_rank": {"tensors": [K], "rank": 2}},
]


def given(base, tuned, steps):
    """What the steps are planned to give, and the check of it."""
    listed = filled(steps, tuned)
    planned = engine.plan(
        recipe(base, "never", {"op": "edit_tensors", "steps": [*listed, {"fill": {"tensors": [Q], "shape": [32, 32], "dtype": "bfloat16", "init": "ones"}}]},
               unknown_tensors="carry")
    )  # fmt: skip
    (check,) = planned.outcomes[0].checks
    return planned.result, check


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_caught(base, tuned, name):
    change, message = FAULTS[name]
    right, check = given(base, tuned, TRUE)
    assert isinstance(check, EditCheck)
    assert check.compare(right.tensors).failures == ()
    wrong, _ = given(base, tuned, change(TRUE))
    failures = check.compare(wrong.tensors).failures
    assert any(message in failure for failure in failures), failures


@pytest.mark.parametrize("tensor", [HEAD, K, TABLE, "a"])
def test_a_changed_value_is_caught(base, tuned, tmp_path, tensor):
    from graftkit.checkpoint.computed import computed
    from graftkit.checkpoint.reading import read_tensor

    right, check = given(base, tuned, TRUE)
    value = read_tensor(right.tensors[tensor]).clone()
    value.view(-1)[5] = torch.nextafter(value.view(-1)[5], torch.tensor(torch.inf, dtype=value.dtype))
    wrong = right.with_tensors({tensor: computed("BF16", tuple(value.shape), lambda: value)})
    (failure,) = check.compare(wrong.tensors).failures
    assert tensor in failure


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_value_between_two_is_rounded_once(dtype):
    generator = torch.Generator().manual_seed(0)
    low = torch.randn(4000, generator=generator).to(dtype)
    high = torch.nextafter(low, torch.full_like(low, torch.inf))
    middle = (low.double() + high.double()) / 2
    values = torch.cat(
        [
            middle,
            middle * (1 + 2.0**-50),
            middle * (1 - 2.0**-50),
            torch.tensor([0.0, -0.0, 1e300, -1e-300], dtype=torch.float64),
        ]
    )
    found = round_once(values, dtype)
    assert ((found[:-4].double() - values[:-4]).abs() == (exact(values[:-4], dtype).double() - values[:-4]).abs()).all()
    assert (found[:4000].view(torch.int16) & 1 == 0).all()
    assert found[-4:].tolist() == [0.0, -0.0, torch.inf, -0.0]
    largest = torch.finfo(dtype).max
    half = (largest + 2.0 ** math.frexp(largest)[1]) / 2  # from here on, infinity is nearer
    ends = torch.tensor([half * (1 - 2.0**-40), half, -half, torch.inf, -1e300, torch.nan], dtype=torch.float64)
    assert nearest(values, dtype).equal(found)  # the check rounds by other code to the same bits
    assert (
        nearest(ends, dtype).nan_to_num(1.5, 9, -9).tolist() == round_once(ends, dtype).nan_to_num(1.5, 9, -9).tolist()
    )
    assert (values[:-4].to(dtype) != found[:-4]).any()  # torch itself rounds twice
