"""extract_lora: the difference of a fine-tuned checkpoint as an adapter; what is no linear's difference is named."""

import json
import shutil

import pytest
from support.adapters import edit_adapter, load_adapted
from support.tiny import build

from graftkit import engine
from graftkit.errors import InputRejected, RecipeError
from graftkit.verification.adapters.extracted import compare_with_tuned

LLAMA, GPT2 = "LlamaForCausalLM", "GPT2LMHeadModel"


def tune(directory, class_name, change, **base):
    """``directory/base`` and ``directory/tuned``, which is the base with ``change(tensors)`` applied."""
    from safetensors.torch import load_file, save_file

    build(class_name, directory / "base", **base)
    shutil.copytree(directory / "base", directory / "tuned")
    tensors = load_file(directory / "tuned/model.safetensors")
    change(tensors)
    save_file(tensors, directory / "tuned/model.safetensors", {"format": "pt"})
    return directory / "base", directory / "tuned"


def low_rank(rank, *fragments):
    import torch

    def change(tensors):
        generator = torch.Generator().manual_seed(0)
        for name, value in tensors.items():
            if any(fragment in name for fragment in fragments) and value.ndim == 2:
                rows, columns = value.shape
                left, right = (torch.randn(*shape, generator=generator) for shape in ((rows, rank), (rank, columns)))
                value.add_((0.02 * left @ right).to(value.dtype))

    return change


def extract(base, tuned, output, **fields):
    operation = {"op": "extract_lora", "fine_tuned": str(tuned), **fields}
    return engine.apply({"version": 1, "base_model": str(base), "operations": [operation], "output": str(output)})


@pytest.mark.parametrize(("class_name", "parts"), [(LLAMA, ("q_proj", "down_proj")), (GPT2, ("c_attn", "c_fc"))])
def test_a_low_rank_difference_comes_back_whole(tmp_path, class_name, parts):
    import torch
    import transformers

    base, tuned = tune(tmp_path, class_name, low_rank(3, *parts))
    report = extract(base, tuned, tmp_path / "out", r=3)
    (check,) = report.checks
    assert all(lost <= check.allowed[name] < 1e-9 for name, lost in check.lost.items())
    assert check.missed < 1e-3 * check.effect
    config = json.loads((tmp_path / "out/adapter/adapter_config.json").read_text())
    assert (sorted(config["target_modules"]), config["r"]) == (sorted(parts), 3)
    ids = torch.arange(40)[None]
    with torch.no_grad():
        plain, wanted = (getattr(transformers, class_name).from_pretrained(one)(ids).logits for one in (base, tuned))
        found = load_adapted(base, tmp_path / "out/adapter", class_name)(ids).logits
    assert (wanted - found).norm() < 1e-3 * (wanted - plain).norm()


def test_ranks_follow_from_energy_and_match_an_svd(tmp_path):
    import torch
    from safetensors.torch import load_file

    base, tuned = tune(tmp_path, LLAMA, low_rank(8, "k_proj", "layers.0.mlp.up_proj"))
    report = extract(base, tuned, tmp_path / "out", energy=0.9)
    old, new = (load_file(folder / "model.safetensors") for folder in (base, tuned))
    adapter = load_file(tmp_path / "out/adapter/adapter_model.safetensors")
    ranks = report.figures["operations.0.extract_lora"]["ranks"]
    assert len(ranks) == 3
    for module, rank in ranks.items():
        squares = torch.linalg.svdvals(new[f"{module}.weight"].double() - old[f"{module}.weight"].double()).square()
        share = squares.cumsum(0) / squares.sum()
        assert share[rank - 1] >= 0.9 > (share[rank - 2] if rank > 1 else 0)
        assert adapter[f"base_model.model.{module}.lora_A.weight"].shape[0] == rank
        left, (rows, columns) = float(squares[rank:].sum() / squares.sum()), new[f"{module}.weight"].shape
        # the rounding of a Gram matrix for each direction, and of each of two factors to float32
        rounding = 2 * 2.0**-24 * rank**0.5
        assert abs(report.checks[0].lost[module] - left) <= 3 * (rows + columns) * rank * 2.0**-53 + 2 * rounding


def other(tensors):
    low_rank(2, "q_proj")(tensors)
    tensors["model.norm.weight"] += 0.5
    tensors["model.embed_tokens.weight"][3] += 1


def test_what_is_no_linear_is_named_refused_saved_or_lost(tmp_path):
    base, tuned = tune(tmp_path, LLAMA, other)
    with pytest.raises(
        RecipeError,
        match=r"^operations.0.allow_lost: 2 tensor.*model.embed_tokens.weight, model.norm.weight; name their modules",
    ):
        extract(base, tuned, tmp_path / "out", r=2)
    with pytest.raises(RecipeError, match=r"1 tensor.*model.norm.weight"):
        extract(base, tuned, tmp_path / "out", r=2, allow_lost=["embed_tokens"])
    with pytest.raises(RecipeError, match="allow_lost: 'lm_head' names nothing that differs"):
        extract(base, tuned, tmp_path / "out", r=2, allow_lost=["embed_tokens", "norm", "lm_head"])
    assert not (tmp_path / "out").exists()
    lossy = extract(base, tuned, tmp_path / "lossy", r=2, allow_lost=["embed_tokens"], modules_to_save=["model.norm"])
    assert lossy.figures["operations.0.extract_lora"]["lost_tensors"] == ["model.embed_tokens.weight"]
    whole = extract(base, tuned, tmp_path / "whole", r=2, modules_to_save=["model.norm", "embed_tokens"])
    assert whole.checks[0].missed < 1e-3 * whole.checks[0].effect < lossy.checks[0].missed


def test_equal_checkpoints_other_classes_and_contradictions_are_refused(tmp_path):
    base, tuned = tune(tmp_path, LLAMA, lambda tensors: None)
    with pytest.raises(InputRejected, match="nothing to extract"):
        extract(base, tuned, tmp_path / "out", r=2)
    with pytest.raises(RecipeError, match="r gives the rank already"):
        extract(base, tuned, tmp_path / "out", r=2, energy=0.5)
    with pytest.raises(RecipeError, match="needs r"):
        extract(base, tuned, tmp_path / "out")
    build(GPT2, tmp_path / "gpt2")
    with pytest.raises(InputRejected, match="is a GPT2LMHeadModel, the base a LlamaForCausalLM"):
        extract(base, tmp_path / "gpt2", tmp_path / "out", r=2)


def test_planted_faults_are_caught(tmp_path):
    base, tuned = tune(tmp_path, LLAMA, low_rank(2, "q_proj", "norm"))
    report = extract(base, tuned, tmp_path / "out", r=2)
    adapter, expected = tmp_path / "out/adapter", dict.fromkeys(report.checks[0].lost, 0.0)
    assert compare_with_tuned(base, tuned, adapter, expected).failures == ()

    def flip(tensors):
        name = next(name for name in tensors if "lora_B" in name)
        return tensors | {name: tensors[name].flip(0).contiguous()}

    for number, (change, fields) in enumerate([(flip, {}), (None, {"lora_alpha": 3}), (None, {"use_rslora": True})]):
        wrong = edit_adapter(adapter, tmp_path / f"wrong{number}", change, **fields)
        assert "loses" in compare_with_tuned(base, tuned, wrong, expected).failures[0]
    more = expected | {"model.layers.0.self_attn.v_proj": 0.0}
    assert "nothing for" in compare_with_tuned(base, tuned, adapter, more).failures[0]

    bent = edit_adapter(
        adapter, tmp_path / "bent", lambda tensors: {n: v * (1 + 1e-5 * ("lora_B" in n)) for n, v in tensors.items()}
    )
    assert "is allowed" in compare_with_tuned(base, tuned, bent, expected).failures[0]


@pytest.mark.parametrize("class_name", [LLAMA, GPT2])
def test_a_direction_that_the_difference_has_not_can_be_trained_and_is_not_seen(tmp_path, class_name):
    from safetensors.torch import load_file

    part = "q_proj" if class_name == LLAMA else "c_attn"

    def one(tensors):
        next(value for name, value in tensors.items() if f"{part}.weight" in name)[2, 3] += 0.5

    base, tuned = tune(tmp_path, class_name, one)
    (check,) = extract(base, tuned, tmp_path / "out", r=4).checks
    assert all(lost <= check.allowed[name] < 1e-12 for name, lost in check.lost.items())
    a, b = load_file(tmp_path / "out/adapter/adapter_model.safetensors").values()
    a, b = (a, b) if len(a) == 4 else (b, a)
    assert (a.norm(dim=1) > 0.1).all()
    assert b.any(0).tolist() == [True, False, False, False]


@pytest.mark.parametrize("choice", [{"r": 2}, {"energy": 0.9}])
def test_a_difference_that_is_not_finite_is_refused_by_name(tmp_path, choice):
    def diverge(tensors):
        tensors["model.layers.1.mlp.up_proj.weight"][0, :3] = float("nan")

    base, tuned = tune(tmp_path, LLAMA, diverge)
    with pytest.raises(
        InputRejected, match=r"layers.1.mlp.up_proj.weight: the difference .* has 3 value\(s\) that are not finite"
    ):
        extract(base, tuned, tmp_path / "out", **choice)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    """A base of 331 rows, and a fine-tuned checkpoint to which transformers has added four tokens."""
    import torch
    import transformers

    directory = tmp_path_factory.mktemp("grown")
    base, tuned = tune(directory, LLAMA, low_rank(2, "q_proj"), tokenizer_size=331)
    model = transformers.LlamaForCausalLM.from_pretrained(tuned)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tuned)
    tokenizer.add_tokens(["<a>", "<b>"], special_tokens=True)
    tokenizer.add_tokens([transformers.AddedToken("<c>", lstrip=True), "<d>"])
    model.resize_token_embeddings(335, mean_resizing=False)
    with torch.no_grad():
        for table in (model.model.embed_tokens, model.lm_head):
            table.weight[331:] += 0.1
    model.save_pretrained(tuned)
    tokenizer.save_pretrained(tuned)
    return base, tuned


ADD = [
    {"op": "extend_vocab", "special_tokens": ["<a>", "<b>"]},
    {"op": "extend_vocab", "tokens": [{"content": "<c>", "lstrip": True}, "<d>"]},
]


@pytest.mark.parametrize("field", ["modules_to_save", "allow_lost", None])
def test_more_rows_than_the_base_are_refused_with_the_lines_that_add_them(tmp_path, grown, field):
    base, tuned = grown
    lines = ", ".join(f"- {json.dumps(operation)}" for operation in ADD)
    with pytest.raises(InputRejected) as refused:
        extract(base, tuned, tmp_path / "out", r=2, **({field: ["embed_tokens", "lm_head"]} if field else {}))
    assert "2 tensors of LlamaForCausalLM: lm_head.weight is [335, " in str(refused.value)
    assert ", in the base [331, " in str(refused.value)
    assert str(refused.value).endswith(f"grow the base first, above this operation: {lines}")
    assert not (tmp_path / "out").exists()


def test_the_lines_that_add_rows_let_the_difference_be_extracted(tmp_path, grown):
    base, tuned = grown
    last = {"op": "extract_lora", "fine_tuned": str(tuned), "r": 2, "modules_to_save": ["embed_tokens", "lm_head"]}
    recipe = {"version": 1, "base_model": str(base), "operations": [*ADD, last], "output": str(tmp_path / "out")}
    check = next(check for check in engine.apply(recipe).checks if check.name == "extracted adapter against fine-tuned")
    assert check.missed < 1e-3 * check.effect


def test_other_shapes_than_rows_are_named_without_lines(tmp_path, grown):
    base, tuned = grown
    with pytest.raises(
        InputRejected, match=r"lm_head.weight is \[331, .*in the base \[335, .*base of the same shapes$"
    ):
        extract(tuned, base, tmp_path / "out", r=2)
