"""replace_head over a dozen families: reloaded by plain transformers, every tensor there, labels and pad token right."""

import json
import math

import pytest
import torch
import transformers
from support import recipes
from support.recipes import config_of, load

import graftkit
from graftkit.recipe.replace_head import LABELLED

LABELS = ["negative", "neutral", "positive"]

#: Family, and the tasks that transformers has a class for.
TASKS = [
    *((family, "sequence_classification") for family in
      ("llama", "llama_tied", "gpt2", "gpt_neox", "gemma2", "mixtral", "bert", "bert_base", "roberta", "t5", "bart")),
    *((family, "token_classification") for family in ("llama", "gpt2", "bert_base", "t5")),
    *((family, "question_answering") for family in ("llama", "gpt_neox", "bert", "bart")),
    *((family, "multiple_choice") for family in ("bert_base_with_head", "roberta")),
    *((family, "reward") for family in ("llama", "bert")),
    *((family, "masked_lm") for family in ("bert_base", "bert_base_with_head")),
]  # fmt: skip


def recipe(source, output, task="sequence_classification", *before, **fields):
    labels = {"labels": LABELS} if task in LABELLED and "num_labels" not in fields and "labels" not in fields else {}
    operation = {"op": "replace_head", "task": task, **labels, **fields}
    return recipes.recipe(source, output, *before, operation)


@pytest.mark.parametrize(("family", "task"), TASKS)
def test_every_tensor_is_there_and_the_backbone_is_the_source_s(family, task, sources, tmp_path):
    report = graftkit.apply(recipe(sources(family), tmp_path / "out", task))
    assert report.outputs.passed
    assert all(item.bitwise for item in report.outputs.comparisons)
    (first, info), (second, _) = load(tmp_path / "out"), load(tmp_path / "out")
    assert info["missing_keys"] == info["mismatched_keys"] == set()
    again = second.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in first.state_dict().items())
    if task in LABELLED:
        assert first.config.id2label == dict(enumerate(LABELS))
        assert first.config.label2id == {name: index for index, name in enumerate(LABELS)}
        assert config_of(tmp_path / "out")["num_labels"] == 3
    source_bytes = {e.name: e.source_bytes for e in report.ledger}
    produced = {e.name for e in report.ledger if e.produced_bytes}
    assert {name for name in produced if source_bytes[name]} == set()
    assert {name.split(".")[0] for name in produced} <= {
        "score",
        "classifier",
        "qa_outputs",
        "classification_head",
        "cls",
        "bert",
        "roberta",
    }


def test_names_and_config_are_those_of_transformers_own_way(sources, tmp_path):
    from safetensors.torch import load_file

    source = sources("bert_base")
    graftkit.apply(recipe(source, tmp_path / "out"))
    theirs = transformers.BertForSequenceClassification.from_pretrained(
        source, num_labels=3, id2label=dict(enumerate(LABELS)), label2id={n: i for i, n in enumerate(LABELS)}
    )
    theirs.save_pretrained(tmp_path / "theirs")
    ours, other = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "theirs"))
    assert ours.keys() == other.keys()
    assert all(torch.equal(ours[name], other[name]) for name in ours if not name.startswith("classifier"))
    config, wanted = config_of(tmp_path / "out"), config_of(tmp_path / "theirs")
    for key in ("architectures", "id2label", "label2id", "dtype"):
        assert config[key] == wanted[key]


def test_the_default_head_is_zero_and_its_inner_layers_are_alive(sources, tmp_path):
    graftkit.apply(recipe(sources("roberta"), tmp_path / "out"))
    model, _ = load(tmp_path / "out")
    head = model.classifier
    assert not head.out_proj.weight.any()
    assert not head.out_proj.bias.any()
    assert not head.dense.bias.any()
    assert 0.018 < head.dense.weight.std() < 0.022
    ids = torch.arange(5, 20)[None]
    loss = model(input_ids=ids, labels=torch.tensor([1])).loss
    assert loss.item() == pytest.approx(math.log(3), abs=1e-6)


def test_the_first_loss_with_a_prior_is_its_entropy(sources, tmp_path):
    prior = [0.2, 0.5, 0.3]
    graftkit.apply(recipe(sources("bert"), tmp_path / "out", init={"scheme": "zeros", "class_prior": prior}))
    model, _ = load(tmp_path / "out")
    ids = torch.arange(5, 20)[None]
    losses = [model(input_ids=ids, labels=torch.tensor([label])).loss.item() for label in range(3)]
    entropy = -sum(p * math.log(p) for p in prior)
    assert sum(p * loss for p, loss in zip(prior, losses, strict=True)) == pytest.approx(entropy, abs=1e-6)


def test_a_prior_of_many_labels_is_the_focal_one(sources, tmp_path):
    kind = "multi_label_classification"
    init = {"scheme": "zeros", "class_prior": 0.01}
    graftkit.apply(recipe(sources("bert"), tmp_path / "out", problem_type=kind, init=init))
    model, _ = load(tmp_path / "out")
    assert model.config.problem_type == kind
    logits = model(input_ids=torch.arange(5, 20)[None]).logits
    assert torch.allclose(logits.sigmoid(), torch.full((1, 3), 0.01))


def test_a_prior_without_a_bias_is_refused_with_the_reason(sources, tmp_path):
    init = {"scheme": "zeros", "class_prior": [0.2, 0.5, 0.3]}
    with pytest.raises(graftkit.GraftkitError, match=r"'score.weight' of LlamaForSequenceClassification has none"):
        graftkit.plan(recipe(sources("llama"), tmp_path / "out", init=init))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_source_s_dtype_is_kept(dtype, sources, tmp_path):
    source = sources("bert_base", dtype=dtype)
    report = graftkit.apply(recipe(source, tmp_path / "out", init="xavier_uniform", inner_init="orthogonal"))
    assert {entry.dtype for entry in report.ledger} == {"BF16" if dtype == "bfloat16" else "F16"}
    assert load(tmp_path / "out")[0].dtype == getattr(torch, dtype)


def test_the_same_recipe_gives_the_same_bytes_and_another_seed_others(sources, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        graftkit.apply({**recipe(sources("roberta"), tmp_path / name, init="normal"), "seed": seed})
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b != c


def test_another_task_s_head_is_dropped_by_name_and_none_of_it_is_reused(sources, tmp_path):
    fields = {"init": "normal"}
    graftkit.apply(recipe(sources("bert"), tmp_path / "first", "token_classification", **fields))
    report = graftkit.apply(recipe(tmp_path / "first", tmp_path / "second", "sequence_classification", **fields))
    assert any(
        "cls.predictions.bias" in note
        for note in graftkit.plan(recipe(sources("bert"), tmp_path / "x")).outcomes[0].notes
    )
    changed = {change.name: change.kind for change in report.plan.tensors}
    assert changed["classifier.weight"] == "computed"
    assert changed["bert.pooler.dense.weight"] == "added"


def test_labels_of_an_older_head_do_not_stay(sources, tmp_path):
    graftkit.apply(recipe(sources("bert"), tmp_path / "first", problem_type="multi_label_classification"))
    graftkit.apply(recipe(tmp_path / "first", tmp_path / "second", "question_answering"))
    config = config_of(tmp_path / "second")
    assert not {"id2label", "label2id", "num_labels", "problem_type"} & config.keys()
    assert load(tmp_path / "second")[0].qa_outputs.weight.shape[0] == 2


def test_the_language_model_head_is_kept_on_request(sources, tmp_path):
    from safetensors.torch import load_file

    graftkit.apply(recipe(sources("llama"), tmp_path / "out", keep_lm_head=True))
    assert "lm_head.weight" in load_file(tmp_path / "out" / "model.safetensors")
    assert load(tmp_path / "out")[1]["missing_keys"] == set()
    with pytest.raises(graftkit.GraftkitError, match="BertModel has no language-model head to keep"):
        graftkit.plan(recipe(sources("bert_base"), tmp_path / "x", keep_lm_head=True))


def without_pad(source, directory, **config):
    import shutil

    shutil.copytree(source, directory)
    for name, changes in (("config.json", {"pad_token_id": None, **config}), ("tokenizer_config.json", {})):
        value = {**json.loads((directory / name).read_text()), **changes}
        if name == "tokenizer_config.json":
            del value["pad_token"]
        (directory / name).write_text(json.dumps(value))
    return directory


def test_a_pad_token_is_required_never_guessed_and_written_where_it_is_read(sources, tmp_path):
    source = without_pad(sources("llama"), tmp_path / "source")
    with pytest.raises(graftkit.GraftkitError, match=r"config.json names none; add one with extend_vocab"):
        graftkit.plan(recipe(source, tmp_path / "out"))
    with pytest.raises(graftkit.GraftkitError, match="no token '<none>'"):
        graftkit.plan(recipe(source, tmp_path / "out", pad_token="<none>"))
    extend = {"op": "extend_vocab", "special_tokens": ["<|pad|>"]}
    graftkit.apply(recipe(source, tmp_path / "out", "sequence_classification", extend, pad_token="<|pad|>"))
    config = config_of(tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert config["pad_token_id"] == tokenizer.pad_token_id == tokenizer.convert_tokens_to_ids("<|pad|>")
    eos = without_pad(sources("llama"), tmp_path / "eos", pad_token_id=2)
    with pytest.raises(graftkit.GraftkitError, match="end-of-sequence token, which also ends texts"):
        graftkit.plan(recipe(eos, tmp_path / "x"))


def test_a_pad_token_that_tokenizer_and_config_disagree_on_is_refused(sources, tmp_path):
    source = without_pad(sources("llama"), tmp_path / "source", pad_token_id=3)
    with pytest.raises(graftkit.GraftkitError, match="config.json says id 3"):
        graftkit.plan(recipe(source, tmp_path / "out"))


def test_what_transformers_has_no_class_for_is_refused_by_name(sources, tmp_path):
    with pytest.raises(
        graftkit.GraftkitError, match="no class for multiple_choice of model type 'llama'; it has classes for: sequence"
    ):
        graftkit.plan(recipe(sources("llama"), tmp_path / "out", "multiple_choice"))
    with pytest.raises(
        graftkit.GraftkitError, match="BartForCausalLM has 1 tensors in its backbone that the checkpoint lacks, or has"
    ):
        graftkit.plan(recipe(sources("bart"), tmp_path / "out", "causal_lm"))
    with pytest.raises(graftkit.GraftkitError, match="is LlamaForCausalLM already"):
        graftkit.plan(recipe(sources("llama"), tmp_path / "out", "causal_lm"))


def test_shards_without_the_head_are_taken_over_whole(sources, tmp_path):
    source = sources("llama", shard_size="40KB")
    graftkit.apply(recipe(source, tmp_path / "out"))
    shards = sorted(path.name for path in source.glob("*.safetensors"))
    same = [
        n
        for n in shards
        if (tmp_path / "out" / n).exists() and (source / n).read_bytes() == (tmp_path / "out" / n).read_bytes()
    ]
    assert len(same) >= len(shards) - 2 > 1


def test_matched_rows_are_as_long_as_the_trained_rows_beside(sources, tmp_path):
    graftkit.apply(recipe(sources("llama_tied"), tmp_path / "words", init="matched", num_labels=331))
    rows = load(sources("llama_tied"))[0].lm_head.weight.norm(dim=1)
    made = load(tmp_path / "words")[0].score.weight
    torch.testing.assert_close(made.norm(dim=1).sort().values, rows.sort().values)
    first = recipe(sources("roberta"), tmp_path / "first", init="xavier_uniform", num_labels=2)
    graftkit.apply({**first, "verify": {"outputs": False}})
    again = recipe(tmp_path / "first", tmp_path / "again", init="matched", inner_init="matched", num_labels=2)
    graftkit.apply({**again, "verify": {"outputs": False}})
    for name in ("classifier.dense.weight", "classifier.out_proj.weight"):
        old, new = (load(tmp_path / place)[0].get_parameter(name).detach() for place in ("first", "again"))
        torch.testing.assert_close(new.norm(dim=1).sort().values, old.norm(dim=1).sort().values)
        assert not torch.equal(new, old)


def test_matched_without_rows_beside_is_refused(sources, tmp_path):
    with pytest.raises(graftkit.GraftkitError, match="no trained rows beside 'classifier.weight': neither an old head"):
        graftkit.plan(recipe(sources("bert_base"), tmp_path / "out", init="matched"))
