"""trim_vocab before and behind other operations, under the lens, and in front of adapters that were made before it."""

import pytest
import torch
from support.adapters import make_adapter
from support.families import TOKENS, build
from support.recipes import applied, load, recipe

import graftkit
from graftkit.errors import InputRejected

#: Pieces that stay beside bytes and special tokens; their neighbours go, so that ids move.
KEEP = {"op": "trim_vocab", "keep": {"tokens": ["ea", "et", "ot", "se"]}}
KEPT = 260 + 4
ADD = {"op": "extend_vocab", "special_tokens": ["<|a|>", "<|b|>"]}


def measured(source, place, *operations, **verify):
    return graftkit.apply(recipe(source, place, *operations, **({"verify": verify} if verify else {})))


def test_new_tokens_first_then_fewer(sources, tmp_path):
    report = measured(sources("llama"), tmp_path / "out", ADD, KEEP)
    assert report.plan.new_tokens == {"<|a|>": KEPT, "<|b|>": KEPT + 1}
    ids = report.plan.correspondence.ids
    assert (ids.source, ids.result, ids.fresh) == (331, KEPT + 2, (KEPT, KEPT + 1))
    assert report.outputs.ids == KEPT
    assert report.outputs.distribution.bound is None  # the rows that the new ones are the mean of are not all there
    assert graftkit.verify(str(sources("llama")), str(tmp_path / "out")).failures == ()


def test_fewer_tokens_first_then_new(sources, tmp_path):
    report = measured(sources("llama"), tmp_path / "out", KEEP, ADD)
    assert report.plan.new_tokens == {"<|a|>": KEPT, "<|b|>": KEPT + 1}
    found = report.outputs.distribution
    assert found.kl_max <= found.bound == pytest.approx(2 / KEPT, rel=0.02)
    assert graftkit.verify(str(sources("llama")), str(tmp_path / "out")).failures == ()


def test_fewer_tokens_twice(sources, tmp_path):
    first = {"op": "trim_vocab", "keep": {"tokens": ["ea", "et", "ot", "se", "in"]}}
    both, once = tmp_path / "both", tmp_path / "once"
    measured(sources("llama"), both, first, KEEP)
    measured(sources("llama"), once, KEEP)
    assert (both / "model.safetensors").read_bytes() == (once / "model.safetensors").read_bytes()
    assert (both / "tokenizer.json").read_bytes() == (once / "tokenizer.json").read_bytes()


def test_renamed_tokens_stay_under_their_names(sources, tmp_path):
    rename = {"op": "rename_tokens", "names": {"<unk>": "<|tool|>"}}
    keep = {"op": "trim_vocab", "keep": {"tokens": ["ea", "<|tool|>"]}}
    for place, operations in (("one", (rename, keep)), ("other", (KEEP, rename))):
        report = measured(sources("llama"), tmp_path / place, *operations)
        assert "<|tool|>" in report.plan.renamed_tokens.values()
        assert graftkit.verify(str(sources("llama")), str(tmp_path / place)).failures == ()


def test_an_adapter_and_a_head_behind_it(sources, tmp_path):
    lora = measured(sources("llama"), tmp_path / "lora", KEEP, {"op": "add_lora", "r": 2})
    assert lora.plan.promise.strength.word == "bitwise"
    head = {"op": "replace_head", "task": "sequence_classification", "labels": ["a", "b"], "pad_token": "<pad>"}
    report = measured(sources("llama"), tmp_path / "head", KEEP, head)
    model, _ = load(tmp_path / "head")
    assert model.get_input_embeddings().weight.shape[0] == KEPT
    assert all(item.bitwise for item in report.outputs.comparisons)


@pytest.mark.parametrize(
    "family", ["llama_tied", "gpt2", "bert", "bert_base_with_head", "t5", "bart", "mixtral", "llava"]
)
def test_it_holds_over_families(family, sources, tmp_path):
    output, report = applied(sources(family), tmp_path, KEEP)
    (old, before_info), (new, info) = load(sources(family)), load(output)
    for key in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert set(map(str, info[key])) == set(map(str, before_info[key]))
    kept = [
        index for _, start, length in report["correspondence"]["ids"]["runs"] for index in range(start, start + length)
    ]
    before, after = (model.get_input_embeddings().weight for model in (old, new))
    assert torch.equal(before[kept], after)
    hidden = [item for item in report["outputs"]["comparisons"] if "hidden" in item["name"]]
    assert all(item["bitwise"] for item in hidden)
    assert report["outputs"]["ids_covered"] == len(kept)


def test_every_look_compares_under_the_new_ids(sources, tmp_path):
    report = measured(sources("llama"), tmp_path / "out", KEEP, lens=True, signal=True, first_step=True)
    found = {finding.name: finding for finding in report.findings}
    assert max(found["lens"].outputs.values()) < found["lens"].floor.threshold
    assert found["lens"].first is None
    gap = found["first_step"].gradients
    assert gap is not None
    assert not gap.differs
    assert {figure.key for figure in found["signal"].figures} >= {"rms"}


def test_the_lens_sees_a_row_that_is_shifted(sources, tmp_path, monkeypatch):
    import sys

    from graftkit.verification.lens.lens import compare_lens
    from graftkit.verification.subject import Subject

    operation = sys.modules["graftkit.operations.trim_vocab"]
    right = operation.pick_rows

    def shifted(base, *, axis, rows):
        return right(base, axis=axis, rows=[*rows[:260], rows[260] + 1, *rows[261:]])

    monkeypatch.setattr(operation, "pick_rows", shifted)
    report = measured(sources("llama"), tmp_path / "out", KEEP, outputs=False)
    found = compare_lens(Subject(sources("llama"), tmp_path / "out", correspondence=report.plan.correspondence))
    assert any("differs in float64" in failure for failure in found.failures)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A base, and adapters on it that have rows of tokens, each in its own way."""
    base = build("llama", tmp_path_factory.mktemp("base") / "base")
    kinds = {
        "rows of tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [5, 270]},
        "a table as a whole": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
        "factors of a table": {"target_modules": ["q_proj", "embed_tokens"]},
        "linears alone": {"target_modules": ["q_proj"]},
    }
    place = tmp_path_factory.mktemp("adapters")
    return base, {
        kind: make_adapter(place / str(number), "LlamaForCausalLM", base=base, **config)[1]
        for number, (kind, config) in enumerate(kinds.items())
    }


@pytest.mark.parametrize("kind", ["rows of tokens", "a table as a whole", "factors of a table"])
@pytest.mark.parametrize("padded", [None, 331])
def test_token_rows_of_the_old_vocabulary_are_refused(kind, padded, trained, tmp_path):
    """Also where the table has as many rows again, so that no size tells."""
    base, adapters = trained
    merge = {"op": "merge_adapter", "adapter": str(adapters[kind]), "base": "accept"}
    keep = {**KEEP, "pad_to_multiple_of": padded} if padded else KEEP
    with pytest.raises(
        InputRejected, match=r"brings rows by the ids of another vocabulary: '.*' is id \d+ there and \d+ in"
    ):
        graftkit.plan(recipe(base, tmp_path / "out", keep, merge))


def test_an_adapter_of_linears_alone_merges_behind_it(trained, tmp_path):
    base, adapters = trained
    merge = {"op": "merge_adapter", "adapter": str(adapters["linears alone"]), "base": "accept"}
    report = graftkit.apply(recipe(base, tmp_path / "out", KEEP, merge))
    assert report.plan.correspondence.ids.result == KEPT < TOKENS


def test_rows_that_are_merged_first_come_along(trained, tmp_path):
    base, adapters = trained
    merge = {"op": "merge_adapter", "adapter": str(adapters["rows of tokens"])}
    measured(base, tmp_path / "merged", merge)
    measured(base, tmp_path / "both", merge, KEEP)
    (one, _), (other, _) = load(tmp_path / "merged"), load(tmp_path / "both")
    kept = [5, 6]
    assert torch.equal(one.get_input_embeddings().weight[kept], other.get_input_embeddings().weight[kept])
