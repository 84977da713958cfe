"""combine_adapters: heads, rows of tokens, magnitudes and biases are kept, added or refused; and what a recipe may not say."""

import json
import shutil

import pytest
from support.adapters import edit_adapter, make_adapter
from support.command import here

from graftkit import engine
from graftkit.errors import InputRejected, RecipeError
from graftkit.initializers.combination import Combination
from graftkit.recipe import parse_recipe
from graftkit.verification.adapters.combined import Source, compare_with_sources

LLAMA = "LlamaForCausalLM"


def recipe(model, sources, output, **fields):
    adapters = [{"path": str(path), "weight": weight} for path, weight in sources]
    operation = {"op": "combine_adapters", "adapters": adapters, **fields}
    return {"version": 1, "base_model": str(model), "operations": [operation], "output": str(output)}


def combine(*given, check=True, **fields):
    return engine.apply({**recipe(*given, **fields), "verify": {"outputs": check}})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A base, and adapters by what they have beside or in place of a plain update."""
    place = tmp_path_factory.mktemp("made")
    base, plain = make_adapter(place / "plain", LLAMA, target_modules=["q_proj"])
    found = {"plain": plain}
    for name, fields in {
        "other": {"target_modules": ["q_proj", "v_proj"]},
        "head": {"target_modules": ["v_proj"], "modules_to_save": ["lm_head"]},
        "tokens": {"target_modules": ["v_proj"], "trainable_token_indices": [3, 4]},
        "table": {"target_modules": ["lm_head", "v_proj"]},
        "dora": {"target_modules": ["v_proj"], "use_dora": True},
        "dora too": {"target_modules": ["o_proj"], "use_dora": True},
        "classes": {"target_modules": ["v_proj"], "task_type": "SEQ_2_SEQ_LM"},
        "words": {"target_modules": ["v_proj"], "task_type": "CAUSAL_LM"},
    }.items():
        found[name] = make_adapter(place / name, LLAMA, base=base, seed=1, **fields)[1]
    return base, found


def failures(base, sources, folder):
    return compare_with_sources(base, [Source(*one) for one in sources], folder, Combination("cat")).failures


@pytest.mark.parametrize(("kind", "tensor"), [("head", "lm_head.weight"), ("tokens", "trainable_tokens_delta")])
def test_whole_values_are_kept_from_the_one_that_has_them(tmp_path, made, kind, tensor):
    from safetensors.torch import load_file

    base, adapters = made
    sources = [(adapters["plain"], 0.5), (adapters[kind], 1.0)]
    report = combine(base, sources, tmp_path / "out", check=kind == "tokens")
    assert any("the whole values of" in note for note in report.plan.notes)
    old, new = (
        load_file(folder / "adapter_model.safetensors") for folder in (adapters[kind], tmp_path / "out/adapter")
    )
    name = next(name for name in old if tensor in name)
    assert old[name].equal(new[name])
    assert failures(base, sources, tmp_path / "out/adapter") == ()
    wrong = edit_adapter(
        tmp_path / "out/adapter", tmp_path / "wrong", lambda held: {**held, name: held[name].roll(1, 0).contiguous()}
    )
    assert failures(base, sources, wrong)[0].startswith("values: ")


@pytest.mark.parametrize(
    ("names", "weights", "words"),
    [
        (("plain", "head"), (1.0, 0.5), "cannot be taken 0.5 times; give this adapter the weight 1"),
        (("head", "tokens"), (1.0, 1.0), "which do not add as updates do"),
        (("head", "table"), (1.0, 1.0), "is replaced by .* and adapted by"),
        (("plain", "dora"), (1.0, 1.0), "is DoRA, .* the others have no magnitudes"),
        (("dora",), (0.5,), "is DoRA, .* a weight is not 1"),
        (("classes", "words"), (1.0, 1.0), "task_type is CAUSAL_LM and SEQ_2_SEQ_LM"),
    ],
)
def test_what_does_not_add_is_refused(tmp_path, made, names, weights, words):
    base, adapters = made
    sources = [(adapters[name], weight) for name, weight in zip(names, weights, strict=True)]
    with pytest.raises(InputRejected, match=words):
        engine.plan(recipe(base, sources, tmp_path / "out"))


def test_two_dora_adapters_on_one_weight_are_refused(tmp_path, made):
    base, adapters = made
    again = shutil.copytree(adapters["dora"], tmp_path / "again")
    with pytest.raises(InputRejected, match="v_proj.weight.* is adapted by more than one"):
        engine.plan(recipe(base, [(adapters["dora"], 1.0), (again, 1.0)], tmp_path / "out"))


def test_dora_on_other_weights_is_taken_as_it_is(tmp_path, made):
    base, adapters = made
    sources = [(adapters["dora"], 1.0), (adapters["dora too"], 1.0)]
    (check,) = combine(base, sources, tmp_path / "out").checks
    assert check.bitwise
    assert all(product.exact for product in check.products)
    wrong = edit_adapter(
        tmp_path / "out/adapter", tmp_path / "wrong",
        lambda held: {name: value * 2 if "magnitude" in name else value for name, value in held.items()},
    )  # fmt: skip
    assert any(failure.startswith("magnitudes: ") for failure in failures(base, sources, wrong))


def test_equal_tables_of_all_are_what_they_lie_on(tmp_path, made):
    base, adapters = made
    again = shutil.copytree(adapters["head"], tmp_path / "again")
    sources = [(adapters["head"], 0.5), (again, 0.5)]
    combine(base, sources, tmp_path / "out", check=False)
    assert failures(base, sources, tmp_path / "out/adapter") == ()


def test_a_table_that_is_the_base_s_own_is_no_value(tmp_path, made):
    """peft saves a table beside its update, though nothing has trained it."""
    from safetensors.torch import load_file

    base, adapters = made
    assert any(
        name.endswith("base_layer.weight") for name in load_file(adapters["table"] / "adapter_model.safetensors")
    )
    combine(base, [(adapters["plain"], 1.0), (adapters["table"], 0.5)], tmp_path / "out", check=False)
    written = load_file(tmp_path / "out/adapter/adapter_model.safetensors")
    assert not any("base_layer" in name for name in written)


def test_biases_of_updates_are_added(tmp_path):
    fields = {"target_modules": ["c_attn"], "lora_bias": True}
    base, first = make_adapter(tmp_path / "a", "GPT2LMHeadModel", **fields)
    _, other = make_adapter(tmp_path / "b", "GPT2LMHeadModel", base=base, seed=1, r=2, scale=0.1, **fields)
    _, plain = make_adapter(tmp_path / "c", "GPT2LMHeadModel", base=base, target_modules=["c_fc"])
    sources = [(first, 0.5), (other, -1.5), (plain, 1.0)]
    combine(base, sources, tmp_path / "out", check=False)
    assert failures(base, sources, tmp_path / "out/adapter") == ()

    def wrong(held):
        return {name: value * 1.001 if name.endswith("lora_B.bias") else value for name, value in held.items()}

    (failure, *_) = failures(base, sources, edit_adapter(tmp_path / "out/adapter", tmp_path / "wrong", wrong))
    assert failure.startswith("biases: ")
    with pytest.raises(InputRejected, match="leaves biases out"):
        engine.plan(recipe(base, sources, tmp_path / "no", combination="linear"))


def test_ranks_that_do_not_fit_are_named(tmp_path, made):
    base, adapters = made
    narrow = make_adapter(tmp_path, LLAMA, base=base, r=2, target_modules=["q_proj"])[1]
    with pytest.raises(RecipeError, match=r"^operations\.0\.combination: linear adds A to A .* has rank 4 in .*, 2 in"):
        engine.plan(recipe(base, [(adapters["plain"], 1.0), (narrow, 1.0)], tmp_path / "out", combination="linear"))


def test_an_adapter_of_another_base_is_refused_and_accepted(tmp_path, made):
    from support.tiny import build

    base, adapters = made
    build(LLAMA, tmp_path / "base", seed=1)
    _, strange = make_adapter(tmp_path, LLAMA, base=tmp_path / "base", target_modules=["q_proj"])
    sources = [(adapters["plain"], 1.0), (strange, 1.0)]
    with pytest.raises(InputRejected, match="base's weights are not those that the adapter was made for"):
        combine(base, sources, tmp_path / "out")
    assumed = combine(base, sources, tmp_path / "out", check=False, base="accept").plan.promise.assumptions
    assert f"the base was accepted without asking whether {strange} was made for it" in assumed


def test_values_beside_an_adapter_are_named_with_its_place(tmp_path, made):
    base, adapters = made
    beside = shutil.copytree(adapters["plain"], tmp_path / "beside")
    (beside / "new_embeddings.safetensors").write_bytes(b"x")
    given = recipe(base, [(adapters["other"], 1.0), (beside, 1.0)], tmp_path / "out")
    with pytest.raises(InputRejected, match=r"new_embeddings\.safetensors holds trained values"):
        engine.plan(given)
    given["operations"][0]["adapters"][1]["leave"] = ["*.bin"]
    with pytest.raises(RecipeError, match=r"^operations\.0\.adapters\.1\.leave: '\*\.bin' fits no file"):
        engine.plan(given)
    given["operations"][0]["adapters"][1]["leave"] = ["new_*"]
    assert any("left behind as asked" in note for note in engine.plan(given).notes)


def test_values_that_are_not_finite_are_the_adapter_s_fault(tmp_path, made):
    base, adapters = made
    broken = edit_adapter(
        adapters["plain"],
        tmp_path / "broken",
        lambda held: {name: value * float("nan") for name, value in held.items()},
    )
    with pytest.raises(InputRejected, match=r"broken: the factors of .* not finite"):
        combine(base, [(adapters["other"], 1.0), (broken, 1.0)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"combination": "ties"}, "operations.0: ties needs density"),
        ({"density": 0.5}, "operations.0.density: cat keeps all values"),
        ({"svd_rank": 4}, "operations.0.svd_rank: cat chooses no rank"),
        ({"combination": "dare_linear", "density": 0.5, "majority_sign_method": "total"}, "elects no sign"),
        ({"combination": "cats"}, "operations.0.combination: "),
        ({"adapters": ["a", {"path": "b"}, "a"]}, "operations.0.adapters.2: is adapters.0 again"),
        ({"adapters": []}, "operations.0.adapters: "),
        ({"adapters": [{"path": "a", "wieght": 1}]}, "did you mean 'weight'?"),
        ({"adapters": [{"path": "a", "weight": "half"}]}, "operations.0.adapters.0.weight: "),
    ],
)
def test_a_recipe_that_contradicts_itself_is_refused(fields, words):
    operation = {"op": "combine_adapters", "adapters": ["a", {"path": "b", "weight": 2}], **fields}
    with pytest.raises(RecipeError) as caught:
        parse_recipe({"version": 1, "base_model": "b", "operations": [operation], "output": "o"})
    assert words in str(caught.value)


def test_the_recipe_of_the_project(demo, tmp_path):
    adapters = [
        make_adapter(tmp_path / name, LLAMA, base=demo, r=rank, target_modules=["q_proj"], task_type="CAUSAL_LM")[1]
        for name, rank in (("one", 8), ("two", 2))
    ]
    given = [f"operations.0.adapters.0.path={adapters[0]}", f"operations.0.adapters.1.path={adapters[1]}"]
    done = here("apply", "recipes/combine.yaml", *given, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "combined products" in done.stdout
    assert not (tmp_path / "out/model.safetensors").exists()
    config = json.loads((tmp_path / "out/adapter/adapter_config.json").read_text())
    assert (config["r"], config["task_type"]) == (10, "CAUSAL_LM")
