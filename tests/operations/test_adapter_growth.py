"""Adapters that were trained after the vocabulary grew: over a base that has not grown, and over one that has."""

import dataclasses
import json
import shutil
import warnings

import pytest
from support.adapters import edit_adapter, load_adapted, merged_by_peft
from support.tiny import build

from graftkit import engine
from graftkit.adapter_verification import verify_adapter
from graftkit.architecture.peft.edits import Factors, Replaced
from graftkit.architecture.peft.equal_edits import equal_edits
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.safetensors_header import read_header
from graftkit.checkpoint.tokenizer import NO_TOKENIZER, find_tokenizer
from graftkit.errors import InputRejected
from graftkit.operations.adapters.growth import lines_to_grow

LLAMA, ROWS, MORE = "LlamaForCausalLM", 331, 335
TOKENS = ["<a>", "<b>", "<c>", "<d>"]
GROW = {"op": "extend_vocab", "special_tokens": TOKENS}
NEW = list(range(ROWS, MORE))

#: Whether the base is tied, and the adapter's config: each form in which peft saves tables of a vocabulary that grew.
FORMS = {
    "whole tables": (False, {}),
    "tied, whole tables": (True, {}),
    "factors on tables": (False, {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}),
    "tied, factors on the input": (True, {"target_modules": ["q_proj", "embed_tokens"]}),
    "tied, factors on the output": (True, {"target_modules": ["q_proj", "lm_head"]}),
    "factors and magnitudes": (False, {"target_modules": ["embed_tokens", "lm_head"], "use_dora": True}),
    "saved modules": (False, {"modules_to_save": ["embed_tokens", "lm_head"]}),
    "one saved module": (False, {"modules_to_save": ["lm_head"]}),
    "tied, saved modules": (True, {"modules_to_save": ["embed_tokens", "lm_head"]}),
    "tied, one saved module": (True, {"modules_to_save": ["embed_tokens"]}),
    "rows": (False, {"trainable_token_indices": {"embed_tokens": NEW, "lm_head": NEW}}),
    "tied, rows": (True, {"trainable_token_indices": NEW}),
}
SLOW = ("tied, whole tables", "factors and magnitudes", "one saved module", "tied, factors on the output", "rows")


def train(directory, tie, config, class_name=LLAMA):
    """``directory/base``, ``directory/adapter`` with its tokenizer, and ``directory/grown``: the base with rows of its own making."""
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model

    base = directory / "base"
    build(class_name, base, tokenizer_size=ROWS, tie=tie)
    model = getattr(transformers, class_name).from_pretrained(base)
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(TOKENS, special_tokens=True)
    model.resize_token_embeddings(MORE, mean_resizing=False)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = get_peft_model(model, LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], **config}))
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter), alpha=0.05)
        adapted.save_pretrained(directory / "adapter")
    tokenizer.save_pretrained(directory / "adapter")
    apply(base, directory / "grown", GROW)
    return base, directory / "adapter", directory / "grown"


def apply(base, output, *operations):
    recipe = {"version": 1, "base_model": str(base), "operations": list(operations), "output": str(output)}
    return engine.apply(recipe)


def merging(adapter, **fields):
    return {"op": "merge_adapter", "adapter": str(adapter), **fields}


@pytest.mark.parametrize(
    "config",
    [{"target_modules": ["q_proj", "embed_tokens"]}, {"modules_to_save": ["embed_tokens"]}],
    ids=["factors", "saved"],
)
def test_tied_sides_that_change_alike_stay_tied(tmp_path, config):
    import torch
    import transformers

    _, adapter, grown = train(tmp_path, tie=True, config={**config, "ensure_weight_tying": True})
    report = apply(grown, tmp_path / "out", merging(adapter))
    assert not any("was tied" in note for note in report.plan.outcomes[0].notes)
    assert json.loads((tmp_path / "out/config.json").read_text())["tie_word_embeddings"] is True
    ids = torch.arange(300, MORE)[None]
    with torch.no_grad():
        wanted = load_adapted(grown, adapter, LLAMA)(ids).logits
        found = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out")(ids).logits
    assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_what_two_tied_weights_get_is_compared_by_value(tmp_path):
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    a, b, table = torch.randn(4, 6), torch.randn(9, 4), torch.randn(9, 6)
    named = {
        "a": a,
        "b": b,
        "a_turned": a.T,
        "b_turned": b.T,
        "b_other": 2 * b.T,
        "table": table,
        "again": table,
        "other": -table,
    }
    save_file(
        {name: value.clone(memory_format=torch.contiguous_format) for name, value in named.items()},
        tmp_path / "t.safetensors",
    )
    t = read_header(tmp_path / "t.safetensors").tensors
    linear = Factors("head", t["a"], t["b"], 4, 2.0, "linear")
    turned = Factors("table", t["b_turned"], t["a_turned"], 4, 2.0, "transposed")
    whole, again, other = (Replaced(name, t[name], shared=False) for name in ("table", "again", "other"))
    shared = Replaced("head", t["other"], shared=True)
    assert equal_edits((linear,), (turned,))
    assert equal_edits((whole, linear), (again, turned))
    assert equal_edits((shared, whole), (again,))
    assert not equal_edits((linear,), (dataclasses.replace(turned, a=t["b_other"]),))
    assert not equal_edits((linear,), (dataclasses.replace(turned, scaling=1.0),))
    assert not equal_edits((linear,), (dataclasses.replace(turned, magnitude=t["a"]),))
    assert not equal_edits((whole,), (other,))
    assert not equal_edits((shared,), (shared, linear))


def test_a_tied_head_that_is_saved_with_its_own_name_inside_fits(tmp_path):
    """A module below another one that is saved whole keeps the adapter's name in the file."""
    _, adapter, grown = train(
        tmp_path, None, {"target_modules": ["query"], "modules_to_save": ["cls"]}, "BertForMaskedLM"
    )
    found = verify_adapter(str(adapter), str(grown))
    assert found.failures == ()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return train(tmp_path_factory.mktemp("trained"), tie=False, config={})


@pytest.mark.parametrize(
    ("tie", "config"), [pytest.param(*form, id=name, marks=[pytest.mark.slow] * (name in SLOW)) for name, form in FORMS.items()]
)  # fmt: skip
def test_over_a_base_that_has_grown_each_form_gives_what_peft_gives(tmp_path, tie, config):
    import torch
    import transformers

    _, adapter, grown = train(tmp_path, tie, config)
    report = apply(grown, tmp_path / "out", merging(adapter))
    assert "made for this base" not in report.verdict
    ids = torch.arange(300, MORE)[None]
    with torch.no_grad():
        wanted = load_adapted(grown, adapter, LLAMA)(ids).logits
        found = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out")(ids).logits
    assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_verify_knows_the_base_that_has_grown(trained):
    _, adapter, grown = trained
    found = verify_adapter(str(adapter), str(grown), outputs=False)
    assert found.failures == ()
    assert "apart from the tensors that the adapter brings" in found.origin.known_by


def test_verify_takes_the_names_that_peft_saves_and_never_loads(tmp_path):
    _, adapter, grown = train(tmp_path, tie=True, config={"modules_to_save": ["embed_tokens", "lm_head"]})
    assert verify_adapter(str(adapter), str(grown)).failures == ()
    assert apply(grown, tmp_path / "out", {"op": "resize_adapter", "adapter": str(adapter), "r": 6})


@pytest.mark.parametrize(
    "operation", [{"op": "merge_adapter"}, {"op": "resize_adapter", "r": 2}], ids=lambda one: one["op"]
)
def test_over_a_base_that_has_not_both_sizes_are_named_with_the_lines_to_add(tmp_path, trained, operation):
    base, adapter, grown = trained
    with pytest.raises(InputRejected) as refused:
        apply(base, tmp_path / "out", {**operation, "adapter": str(adapter)})
    words = f"adapter: was trained on a vocabulary of 335 rows, and {base} has 331; grow the base first, above this operation: "
    assert str(refused.value).endswith(words + f"- {json.dumps(GROW)}")
    assert not (tmp_path / "out").exists()


def test_the_lines_to_add_let_it_merge(tmp_path, trained):
    from safetensors.torch import load_file

    base, adapter, grown = trained
    apply(base, tmp_path / "out", GROW, merging(adapter))
    wanted, found = merged_by_peft(grown, adapter, LLAMA), load_file(tmp_path / "out/model.safetensors")
    assert all(wanted[name].equal(found[name]) for name in wanted)


def test_without_a_tokenizer_beside_the_adapter_the_lines_are_words(tmp_path, trained):
    base, adapter, _ = trained
    alone = shutil.copytree(adapter, tmp_path / "alone", ignore=shutil.ignore_patterns("*token*"))
    with pytest.raises(InputRejected, match="335 rows, .*has 331; .*extend_vocab with the tokens that were added"):
        apply(base, tmp_path / "out", merging(alone))


def test_an_adapter_that_fits_no_number_of_rows_is_refused_as_before(tmp_path, trained):
    base, adapter, _ = trained
    wrong = edit_adapter(adapter, tmp_path / "wrong", r=8)
    with pytest.raises(InputRejected, match="size mismatch"):
        apply(base, tmp_path / "out", merging(wrong))


def test_lines_pad_count_and_fall_back_to_words(tmp_path, trained):
    base, adapter, _ = trained
    smaller = Checkpoint.open(str(base))
    larger = find_tokenizer(Checkpoint.open(str(trained[2])).documents)
    padded = {**GROW, "pad_to_multiple_of": 8}
    assert lines_to_grow(smaller, ROWS, 336, larger) == f"- {json.dumps(padded)}"
    alone = {"op": "extend_vocab", "pad_to_multiple_of": 64}
    assert lines_to_grow(smaller, ROWS, 384, find_tokenizer(smaller.documents)) == f"- {json.dumps(alone)}"
    assert "in the order of their ids" in lines_to_grow(smaller, ROWS, 333, larger)
    assert "in the order of their ids" in lines_to_grow(smaller, ROWS, MORE, NO_TOKENIZER)
    apply(base, tmp_path / "many", {"op": "extend_vocab", "tokens": [f"<new{i}>" for i in range(40)]})
    many = find_tokenizer(Checkpoint.open(str(tmp_path / "many")).documents)
    assert "the 40 tokens of ids 331 to 370, in this order" in lines_to_grow(smaller, ROWS, 371, many)


def change(base, directory, name):
    """A copy of a base in which one row of the tensor ``name`` is another one."""
    from safetensors.torch import load_file, save_file

    copy = shutil.copytree(base, directory)
    tensors = load_file(copy / "model.safetensors")
    tensors[name][0] *= 2
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    (copy / "graft_report.json").unlink(missing_ok=True)
    return copy


def test_a_grown_base_that_differs_in_what_the_adapter_leaves_is_refused(tmp_path, trained):
    _, adapter, grown = trained
    other = change(grown, tmp_path / "other", "model.layers.1.mlp.up_proj.weight")
    with pytest.raises(InputRejected, match=r"weights are not those .*: model.layers.1.mlp.up_proj.weight"):
        apply(other, tmp_path / "out", merging(adapter))
    assert "up_proj" in verify_adapter(str(adapter), str(other), outputs=False).failures[0]
    assert apply(other, tmp_path / "accepted", merging(adapter, base="accept"))
    same = change(grown, tmp_path / "same", "lm_head.weight")  # the adapter brings it whole
    assert apply(same, tmp_path / "merged", merging(adapter))


def test_a_grown_table_that_the_adapter_does_not_bring_is_evidence(tmp_path, trained):
    _, adapter, grown = trained

    def drop(tensors):
        return {name: value for name, value in tensors.items() if "lm_head" not in name}

    with pytest.raises(InputRejected, match=r"other tensors .*: lm_head.weight is F32 \[335, \d+\], there F32 \[331, "):
        apply(grown, tmp_path / "out", merging(edit_adapter(adapter, tmp_path / "less", drop)))


def test_another_config_of_a_grown_base_is_evidence(tmp_path, trained):
    _, adapter, grown = trained
    other = shutil.copytree(grown, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    with pytest.raises(InputRejected, match="config.json: rms_norm_eps was .*, now 0.5"):
        apply(other, tmp_path / "out", merging(adapter))


def test_a_named_base_that_cannot_be_built_is_another_one(tmp_path, trained):
    base, adapter, grown = trained
    strange = shutil.copytree(base, tmp_path / "strange")
    config = json.loads((strange / "config.json").read_text())
    (strange / "config.json").write_text(json.dumps({**config, "model_type": "unheard_of"}))
    renamed = edit_adapter(adapter, tmp_path / "renamed", base_model_name_or_path=str(strange))
    with pytest.raises(
        InputRejected, match=r"other tensors than .*: lm_head.weight is F32 \[335, .*named is .*strange"
    ):
        apply(grown, tmp_path / "out", merging(renamed))
