"""Blocks dropped, moved, copied and inserted: the bytes are those of the right block, the promise is kept, and what cannot be is refused."""

import contextlib
import json

import pytest
import torch
from safetensors.torch import load_file
from support import recipes
from support.families import build
from support.tiny import build as tiny

import graftkit
from graftkit import engine
from graftkit.checkpoint.tensors import Stored, Zeros
from graftkit.checkpoint.write import is_clean
from graftkit.compare import verify
from graftkit.errors import InputRejected, RecipeError, VerificationFailed
from graftkit.operations.blocks import silence

STACK = {"llama": "model.layers.", "gpt2": "transformer.h.", "mixtral": "model.layers.", "t5": "decoder.block.",
         "llava": "model.language_model.layers.", "bert": "bert.encoder.layer."}  # fmt: skip


def drop(*blocks):
    return {"op": "drop_blocks", "blocks": list(blocks)}


def arrange(*blocks):
    return {"op": "arrange_blocks", "blocks": list(blocks)}


def insert(*after, **fields):
    return {"op": "insert_blocks", "after": list(after), **fields}


def planned(source, *operations):
    return engine.plan(recipes.recipe(source, "out/never", *operations))


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """Llama with five blocks, all different, in shards of one block or so."""
    place = tmp_path_factory.mktemp("deep") / "source"
    tiny("LlamaForCausalLM", place, config_overrides={"num_hidden_layers": 5}, max_shard_size="100KB")
    return place


def blocks_of(directory, prefix):
    """The parameters of each block as transformers loads them, by name less the number."""
    state = recipes.load(directory)[0].state_dict()
    found = {}
    for name, value in state.items():
        if name.startswith(prefix):
            number, _, rest = name.removeprefix(prefix).partition(".")
            found.setdefault(int(number), {})[rest] = value
    return found


def equal(old, new):
    return old.keys() == new.keys() and all(torch.equal(old[name], new[name]) for name in old)


@pytest.mark.parametrize(
    ("family", "operation", "order"),
    [
        ("llama", drop(0), (1,)),
        ("gpt2", arrange(1, 0, 1), (1, 0, 1)),
        pytest.param("mixtral", insert(0, init="copy"), (0, 0, 1), marks=pytest.mark.slow),
        ("t5", insert(1, init="copy"), (0, 1, 1)),
        pytest.param("llava", drop("last 1"), (0,), marks=pytest.mark.slow),
        ("bert", arrange(1, 0), (1, 0)),
    ],
)
def test_each_block_is_the_one_that_was_named(family, operation, order, sources, tmp_path):
    source, output = sources(family), tmp_path / "out"
    report = graftkit.apply(recipes.recipe(source, output, operation))
    assert report.plan.promise.strength.word == "intentional"
    assert any(item.kl_mean and item.kl_max > 0 for item in report.outputs.comparisons)
    old, new = blocks_of(source, STACK[family]), blocks_of(output, STACK[family])
    assert len(new) == len(order)
    assert all(equal(old[source], new[place]) for place, source in enumerate(order))


@pytest.mark.parametrize(
    "class_name",
    [
        "GPT2LMHeadModel",
        "MambaForCausalLM",
        pytest.param("LlamaForCausalLM", marks=pytest.mark.slow),
        pytest.param("Qwen3NextForCausalLM", marks=pytest.mark.slow),
    ],
)
def test_new_blocks_that_are_the_identity_leave_every_bit(class_name, tmp_path):
    tiny(class_name, tmp_path / "source", dtype="bfloat16")
    report = graftkit.apply(recipes.recipe(tmp_path / "source", tmp_path / "out", {"op": "insert_blocks", "every": 1}))
    assert report.plan.promise.strength.word == "bitwise"
    assert all(item.bitwise for item in report.outputs.comparisons)
    assert report.figures["operations.0.insert_blocks"]["new_blocks"]
    old, new = (recipes.load(tmp_path / name)[0] for name in ("source", "out"))
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        assert torch.equal(old(ids).logits, new(ids).logits)


def test_moved_blocks_are_bytes_and_clean_shards_stay_clean(deep):
    found = planned(deep, insert(3))
    kinds = {}
    for change in found.tensors:
        kinds.setdefault(change.kind, set()).add(
            (change.old_name.split(".")[2:3] or [""])[0] + ">" + change.name.split(".")[2]
        )
    assert kinds == {"moved": {"4>5"}, "copied": {"3>4"}, "added": {">4"}}
    assert all(isinstance(tensor, Stored | Zeros) for tensor in found.result.tensors.values())
    assert sum(change.produced for change in found.tensors) == sum(
        tensor.nbytes for tensor in found.result.tensors.values() if isinstance(tensor, Zeros)
    )
    dirty = [shard for shard in found.result.shards if not is_clean(found.source, found.result, shard)]
    untouched = [
        shard for shard, names in found.source.shards.items() if not any(".layers.4." in name for name in names)
    ]
    assert untouched
    assert not set(dirty) & set(untouched)


@pytest.mark.slow
def test_copies_are_spread_over_the_files_that_change_anyway(deep):
    found = planned(deep, arrange("0-3", "1-4"))
    dirty = [shard for shard in found.result.shards if not is_clean(found.source, found.result, shard)]
    assert found.result.shards.keys() == found.source.shards.keys()
    assert {name.split(".")[2] for shard in dirty for name in found.result.shards[shard] if ".layers." in name} >= {
        "4",
        "5",
        "6",
    }
    at_the_end = planned(deep, insert(4, init="copy"))
    grown = {s for s, names in at_the_end.result.shards.items() if any(".layers.5." in name for name in names)}
    assert grown <= {s for s, names in at_the_end.source.shards.items() if any(".layers.4." in name for name in names)}


def test_kinds_of_changes_when_blocks_go(deep):
    found = planned(deep, drop(1))
    changes = {
        (change.kind, change.name.split(".")[2], change.old_name.split(".")[2:3] == ["4"]) for change in found.tensors
    }
    assert changes == {("dropped", "1", False), ("moved", "1", False), ("moved", "2", False), ("moved", "3", True)}
    assert found.notes[:2] == ("model.layers had 5 blocks, has 4", "dropped: block 1")


def test_numbers_are_those_of_the_base_as_the_operation_finds_it(deep):
    found = planned(deep, drop(0), insert(0, init="copy"))
    names = {change.old_name for change in found.tensors if change.kind == "copied"}
    assert {name.split(".")[2] for name in names} == {"1"}
    blocks = found.correspondence.blocks
    assert (blocks.kept, blocks.places, blocks.fresh, blocks.dropped) == ((1, 2, 3, 4), (0, 2, 3, 4), (1,), (0,))


@pytest.mark.parametrize(
    ("operation", "words"),
    [
        (drop("first 5"), "operations.0.blocks: drops all 5 blocks"),
        ({"op": "drop_blocks", "keep": ["0-4"]}, "operations.0.keep: keeps all 5 blocks"),
        (drop(1, "0-2"), "operations.0.blocks: names block 1 twice"),
        (drop(5), "model.layers: there is no block 5: the model has 5, numbered from 0 to 4"),
        (arrange("0-4"), "operations.0.blocks: is the order in which the blocks are already"),
        (insert(1, 1), "operations.0.after: names block 1 twice; two new blocks in a row"),
        ({"op": "insert_blocks", "every": 6}, "operations.0.every: model.layers has only 5 blocks"),
    ],
)
def test_what_the_base_has_no_place_for_is_refused(operation, words, deep):
    with pytest.raises(RecipeError) as error:
        planned(deep, operation)
    assert words in str(error.value)


def test_blocks_behind_the_last_are_refused(deep, tmp_path):
    tensors = {}
    for path in deep.glob("*.safetensors"):
        tensors |= load_file(path)
    extra = {
        "model.layers.5." + n.removeprefix("model.layers.4."): v.clone()
        for n, v in tensors.items()
        if ".layers.4." in n
    }
    recipes.save(deep, tmp_path / "mtp", {**tensors, **extra})
    with pytest.raises(
        InputRejected, match="stands behind the 5 blocks that the config counts, as those of multi-token"
    ):
        planned(tmp_path / "mtp", drop(0))


def test_a_class_without_an_identity_is_refused_and_takes_copies(sources):
    with pytest.raises(InputRejected, match="BertForMaskedLM: no zeros make a block the identity.*use init: copy"):
        planned(sources("bert"), insert(0))
    assert planned(sources("bert"), insert(0, init="copy")).promise.strength.word == "intentional"


def test_a_writer_that_was_missed_is_caught_and_nothing_is_written(sources, tmp_path, monkeypatch):
    monkeypatch.setattr(silence, "find_writers", lambda *_: ("model.layers.1.mlp.down_proj.weight",))
    with pytest.raises(VerificationFailed, match="differs: .*promised bitwise.*nothing was written"):
        graftkit.apply(recipes.recipe(sources("llama"), tmp_path / "out", insert(0)))
    assert not (tmp_path / "out").exists()


def test_blocks_that_were_swapped_on_the_way_are_caught(sources, tmp_path, monkeypatch):
    """The report's correspondence says which is which, and verify A B pairs by it."""
    graftkit.apply(recipes.recipe(sources("llama"), tmp_path / "out", insert(0)))
    assert verify(str(sources("llama")), str(tmp_path / "out")).failures == ()
    state = load_file(tmp_path / "out/model.safetensors")
    swap = {"model.layers.0.": "model.layers.2.", "model.layers.2.": "model.layers.0."}
    other = {
        next((new + n.removeprefix(old) for old, new in swap.items() if n.startswith(old)), n): v
        for n, v in state.items()
    }
    recipes.save(tmp_path / "out", tmp_path / "swapped", other)
    assert verify(str(sources("llama")), str(tmp_path / "swapped")).failures


def test_a_second_identity_beside_the_first_is_refused(sources, tmp_path):
    llama = sources("llama")
    for second in (insert(1), insert(0)):  # a copy of the new one, and one more between it and its source
        with pytest.raises(RecipeError, match="operations.1: insert_blocks: block 1 gives what it is given already"):
            planned(llama, insert(0), second)
    graftkit.apply(recipes.recipe(llama, tmp_path / "grown", insert(0), verify={"outputs": False}))
    for place, refused in ((0, True), (2, False)):
        (outcome,) = planned(tmp_path / "grown", insert(place)).outcomes  # whose blocks are zero is seen by their bytes
        with (
            pytest.raises(RecipeError, match="gives what it is given already") if refused else contextlib.nullcontext()
        ):
            outcome.prepare(lambda _: None)


@pytest.mark.slow
def test_two_identity_blocks_in_a_row_get_the_same_gradient(sources, tmp_path):
    """Why they are refused."""
    twice = (insert(0), arrange("0-1", 1, 2))
    graftkit.apply(recipes.recipe(sources("llama"), tmp_path / "two", *twice, verify={"outputs": False}))
    model, _ = recipes.load(tmp_path / "two")
    model(torch.arange(5, 25)[None]).logits.square().sum().backward()
    first, second = (model.model.layers[index].mlp.down_proj.weight.grad for index in (1, 2))
    assert bool(first.any())
    assert torch.equal(first, second)


def test_dora_on_an_identity_block_is_refused_and_elsewhere_is_not(sources):
    llama, dora = sources("llama"), {"op": "add_lora", "r": 2, "use_dora": True, "target_modules": ["o_proj"]}
    with pytest.raises(
        RecipeError, match="divides each row by its norm, and 'model.layers.1.self_attn.o_proj.weight' is made zero"
    ):
        planned(llama, insert(0), dora)
    assert planned(llama, insert(0), {**dora, "target_modules": ["q_proj"]}).adapter is not None
    assert planned(llama, insert(0), drop(1), dora).adapter is not None


def test_a_copy_of_a_block_with_zeros_on_the_way_would_never_learn(sources):
    llama = sources("llama")
    blank = {"op": "reinit", "parameters": ["model.layers.0.mlp.up_proj.weight"], "init": "zeros"}
    with pytest.raises(InputRejected, match="the new blocks would never learn: no gradient reaches model.layers.1.mlp"):
        planned(llama, blank, insert(0))
    blank["parameters"] = ["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(RecipeError, match="operations.1.init: from these zeros no gradient ever reaches"):
        planned(llama, insert(0), blank)


def test_blocks_vocabulary_head_and_adapter_in_one_recipe(sources, tmp_path):
    vocabulary = {"op": "extend_vocab", "special_tokens": ["<|a|>", "<|b|>"]}
    report = graftkit.apply(
        recipes.recipe(
            sources("llama"),
            tmp_path / "lm",
            insert(0),
            vocabulary,
            {"op": "add_lora", "r": 2, "target_modules": ["q_proj"]},
        )
    )
    assert report.plan.promise.strength.word == "bitwise"
    assert (tmp_path / "lm/adapter/adapter_model.safetensors").is_file()
    head = {"op": "replace_head", "task": "sequence_classification", "labels": ["x", "y"], "pad_token": "<pad>"}
    report = graftkit.apply(recipes.recipe(sources("llama"), tmp_path / "head", insert(1), vocabulary, head))
    assert {item.name for item in report.outputs.comparisons if item.bitwise} >= {"hidden_states.1", "hidden_states.2"}


def test_lora_on_the_new_blocks_alone(sources):
    llama = sources("llama")
    lora = {"op": "add_lora", "r": 2, "layers_to_transform": "new", "target_modules": ["q_proj", "o_proj"]}

    def blocks(*operations):
        return {name.split(".layers.")[1].partition(".")[0] for name in planned(llama, *operations).adapter.tensors}

    assert blocks(insert(0), lora) == {"1"}
    assert blocks(insert(0), {**lora, "target_modules": "all-linear"}) == {"1"}
    assert blocks(insert(0), {"op": "drop_blocks", "blocks": ["first 1"]}, lora) == {"0"}
    with pytest.raises(RecipeError, match="layers_to_transform: no operation before this one makes a block"):
        planned(llama, lora)


def test_an_adapter_behind_frozen_zeros_alone_is_refused_and_beside_a_writer_named(sources, tmp_path):
    lora = {"op": "add_lora", "r": 2, "layers_to_transform": "new", "target_modules": ["q_proj"]}
    with pytest.raises(VerificationFailed, match="gradients: none arrives at model.layers.1.self_attn.q_proj nor at"):
        graftkit.apply(recipes.recipe(sources("llama"), tmp_path / "out", insert(0), lora))
    both = {**lora, "target_modules": ["q_proj", "o_proj"]}
    report = graftkit.apply(recipes.recipe(sources("llama"), tmp_path / "out", insert(0), both))
    (found,) = (check.gradients for check in report.checks if check.name == "adapter")
    assert (found.alive, found.blocked, found.failures) == (1, ("model.layers.1.self_attn.q_proj",), ())
    assert "is_trainable=True" in report.snippets
    assert "new_blocks" not in report.snippets, "peft freezes the base, and its names are others"


@pytest.mark.slow
def test_an_adapter_of_the_grown_base_is_merged_into_it(sources, tmp_path):
    from support.adapters import make_adapter, merged_by_peft

    graftkit.apply(recipes.recipe(sources("llama"), tmp_path / "grown", insert(0)))
    base, adapter = make_adapter(
        tmp_path,
        "LlamaForCausalLM",
        base=tmp_path / "grown",
        target_modules=["down_proj", "q_proj"],
        layers_to_transform=[1],
    )
    graftkit.apply(recipes.recipe(base, tmp_path / "merged", {"op": "merge_adapter", "adapter": str(adapter)}))
    wanted, found = merged_by_peft(base, adapter, "LlamaForCausalLM"), load_file(tmp_path / "merged/model.safetensors")
    for name, value in wanted.items():
        assert torch.allclose(found[name], value, rtol=0, atol=float(value.abs().max()) * 2.0**-22), name
    assert bool(found["model.layers.1.mlp.down_proj.weight"].any())


def test_learning_rates_go_with_their_blocks(sources, tmp_path):
    mup = {"op": "reinit", "layers": [1], "init": {"scheme": "mup", "base_width": 16}}
    report = graftkit.apply(recipes.recipe(sources("llama"), tmp_path / "out", mup, arrange(1, 0, 1)))
    found = json.loads((tmp_path / "out/lr_multipliers.json").read_text())
    assert {name.split(".")[2] for name in found} == {"0", "2"}
    names = dict(recipes.load(tmp_path / "out")[0].named_parameters())
    assert found.keys() <= names.keys()
    assert report.plan.correspondence.blocks.fresh == (2,)


def test_the_trainer_is_told_which_blocks_are_new(sources, tmp_path):
    report = graftkit.apply(recipes.recipe(sources("llama"), tmp_path / "out", insert(0)))
    assert 'new_blocks = ("model.layers.1.",)' in report.snippets
    assert 'unfrozen_parameters: ["^model\\\\.layers\\\\.1[.]"]' in report.snippets
    lines = [
        line for line in report.snippets.splitlines() if line.startswith(("new_blocks", "for name", "    parameter"))
    ]
    model, _ = recipes.load(tmp_path / "out")
    exec("\n".join(lines), {"model": model})  # noqa: S102 - what is printed for people to run
    trained = {name.split(".")[2] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {"1"}


def test_names_without_a_number_of_their_own_block_are_refused(deep):
    from graftkit.operations.blocks import stack

    found = stack.find_stack(graftkit_checkpoint(deep))
    odd = stack.Stack(found.checkpoint, found.structure, found.layers, ({"model.norm.weight": "norm.weight"},) * 5)
    with pytest.raises(InputRejected, match="'model.norm.weight' does not say in its name which block it belongs to"):
        stack.names_on_disk(odd, found.structure.skeleton, (1, 0, 2, 3, 4))


def graftkit_checkpoint(directory):
    from graftkit.checkpoint.checkpoint import Checkpoint

    return Checkpoint.open(str(directory))


def test_the_number_of_a_block_is_not_that_of_an_expert(tmp_path):
    source = build("mixtral", tmp_path / "source")
    found = planned(source, arrange(1, 0))
    pairs = {(change.old_name, change.name) for change in found.tensors}
    assert (
        "model.layers.1.block_sparse_moe.experts.1.w2.weight",
        "model.layers.0.block_sparse_moe.experts.1.w2.weight",
    ) in pairs


TEXTS = ("The with statement is used to wrap the execution of a block.", "def area(radius): return 3.14 * radius ** 2")


def given(place):
    (place / "texts.txt").write_text("\n".join(TEXTS))
    return str(place / "texts.txt")


def perplexity(directory):
    """Of the texts, as one sequence of losses, by transformers alone."""
    from transformers import AutoTokenizer

    model, tokenizer, losses = recipes.load(directory)[0], AutoTokenizer.from_pretrained(directory), []
    for text in TEXTS:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            logits = model(input_ids=ids).logits[0].double()
        losses.append(torch.nn.functional.cross_entropy(logits[:-1], ids[0][1:], reduction="none"))
    return float(torch.cat(losses).mean().exp())


def test_kl_and_perplexity_on_given_texts_are_measured_under_new_ids_too(sources, tmp_path):
    copied = insert(1, init="copy", texts=given(tmp_path))
    tokens = {"op": "extend_vocab", "special_tokens": ["<|a|>"], "init": "mean"}
    report = graftkit.apply(recipes.recipe(sources("llama"), tmp_path / "out", copied, tokens))
    (found,) = (check for check in report.checks if check.name == "given texts")
    assert found.perplexity_before == pytest.approx(perplexity(sources("llama")), rel=1e-5)
    assert found.perplexity_after == pytest.approx(perplexity(tmp_path / "out"), rel=1e-5)
    assert 0 < found.kl_mean < found.kl_max
    assert {"KL(old, new) of given texts", "perplexity of given texts"} <= {row.check for row in report.rows()}


def test_logits_that_are_no_numbers_on_given_texts_are_caught(sources):
    from graftkit.architecture.correspondence import IDENTITY
    from graftkit.running.loaded_tokenizer import LoadedTokenizer
    from graftkit.running.predictions import text_probes
    from graftkit.verification.given_texts import compare_predictions

    old, new = (recipes.load(sources("llama"))[0] for _ in range(2))
    probes = list(text_probes(old, LoadedTokenizer.of(sources("llama")), TEXTS, 50))
    same = compare_predictions(old, new, probes, IDENTITY)
    assert (same.kl_max, same.failures) == (0, ())
    new.model.norm.weight.data[0] = torch.nan
    failures = compare_predictions(old, new, probes, IDENTITY).failures
    assert failures == ("given texts: the result's logits hold NaN",)


@pytest.mark.parametrize(("family", "words"), [("bert_base", "gives no logits over token ids"), ("bert", "")])
def test_what_cannot_be_measured_on_given_texts_is_said(family, words, sources, tmp_path):
    report = graftkit.apply(recipes.recipe(sources(family), tmp_path / "out", {**drop(0), "texts": given(tmp_path)}))
    (found,) = (check for check in report.checks if check.name == "given texts")
    assert words in found.not_run
    assert bool(words) == bool(found.not_run) == (found.kl_mean is None)
    assert found.perplexity_before is None


def test_texts_that_cannot_be_read_are_named_at_their_field(sources):
    with pytest.raises(RecipeError, match=r"operations.0.texts: none.txt: cannot be read"):
        planned(sources("llama"), {**drop(0), "texts": "none.txt"})
    with pytest.raises(RecipeError, match=r"operations.0.texts: measures nothing where the outputs stay"):
        planned(sources("llama"), insert(0, texts="none.txt"))


def test_a_block_of_two_streams_gives_both_as_they_were(tmp_path):
    """A reversible block adds attention to one and the feed-forward layer to the other."""
    tiny("ReformerForMaskedLM", tmp_path / "source")
    report = graftkit.apply(recipes.recipe(tmp_path / "source", tmp_path / "out", insert(0)))
    assert report.plan.promise.strength.word == "bitwise"
    zero = {
        name
        for name, value in load_file(tmp_path / "out/model.safetensors").items()
        if ".layers.1." in name and not value.any()
    }
    assert {name.split(".layers.1.")[1].split(".")[0] for name in zero} == {"attention", "feed_forward"}


def test_blocks_with_which_the_class_does_not_run_are_refused_where_it_cannot_run_without_values_either(tmp_path):
    """The last block alone has attention, which the cache asks for; the experts before it need values to run whole."""
    if not hasattr(pytest.importorskip("transformers"), "Qwen4ExpForCausalLM"):
        pytest.skip("this transformers has no such class")
    tiny("Qwen4ExpForCausalLM", tmp_path / "source")
    with pytest.raises(InputRejected, match="does not run with these blocks: ValueError: `get_seq_length`"):
        planned(tmp_path / "source", drop("last 1"))
