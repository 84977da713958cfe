"""Wider models do what they did, in float64 and by plain transformers; what is laid out wrongly is caught, and what is no width refused."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import recipes
from support.adapters import make_adapter
from support.families import build
from support.tiny import build as tiny

import graftkit
from graftkit import engine
from graftkit.architecture.widths.layouts import Grouped, Repeated
from graftkit.checkpoint.write import is_clean
from graftkit.compare import verify
from graftkit.errors import InputRejected, RecipeError, VerificationFailed
from graftkit.operations.widths import widening
from graftkit.operations.widths.search import Found

pytestmark = pytest.mark.numerical


def widen(**sizes):
    return {"op": "widen", "sizes": sizes}


def planned(source, *operations):
    return engine.plan(recipes.recipe(source, "out/never", *operations))


def logits(directory):
    """What plain transformers gives."""
    model, info = recipes.load(directory)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    ids = torch.arange(5, 25)[None]
    more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(ids, **more).logits


def changed(source, output):
    """Names of the tensors that have another shape."""
    old, new = (load_file(place / "model.safetensors") for place in (source, output))
    assert old.keys() == new.keys()
    assert all(torch.equal(old[name], new[name]) for name in old if old[name].shape == new[name].shape)
    return {name for name in old if old[name].shape != new[name].shape}


@pytest.mark.parametrize(
    ("family", "sizes", "zero"),
    [
        ("llama", {"intermediate_size": 96}, {"model.layers.*.mlp.down_proj.weight"}),
        ("gpt2", {"n_inner": 192}, {"transformer.h.*.mlp.c_proj.weight"}),
        ("mixtral", {"intermediate_size": 96}, {"model.layers.*.mlp.experts.down_proj"}),
        pytest.param("bert", {"intermediate_size": 96}, {"bert.encoder.layer.*.output.dense.weight"}, marks=pytest.mark.slow),
        pytest.param("gemma2", {"intermediate_size": 80}, {"model.layers.*.mlp.down_proj.weight"}, marks=pytest.mark.slow),
        ("t5", {"d_ff": 80}, {"encoder.block.*.layer.*.DenseReluDense.wo.weight",
                              "decoder.block.*.layer.*.DenseReluDense.wo.weight"}),
        pytest.param("bart", {"encoder_ffn_dim": 96}, {"model.encoder.layers.*.fc2.weight"}, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_more_units_leave_the_function_as_it_was(family, sizes, zero, sources, tmp_path):
    source, output = sources(family), tmp_path / "out"
    report = graftkit.apply(recipes.recipe(source, output, widen(**sizes)))
    (figures,) = report.figures.values()
    assert set(figures["widths"][0]["zero"]) == zero
    assert changed(source, output)
    assert torch.allclose(logits(source), logits(output), rtol=0, atol=1e-5)
    assert report.plan.promise.strength.word == "exact"
    assert any(check.name == "lens" for check in report.checks)


@pytest.fixture(scope="module")
def phi(tmp_path_factory):
    """Phi-3, whose gate and up projection are one matrix, and whose queries, keys and values are."""
    place = tmp_path_factory.mktemp("phi") / "source"
    tiny("Phi3ForCausalLM", place)
    return place


def test_old_slices_of_a_fused_matrix_stay_in_their_group(phi, tmp_path):
    graftkit.apply(recipes.recipe(phi, tmp_path / "out", widen(intermediate_size=112, num_key_value_heads=4)))
    old, new = (load_file(place / "model.safetensors") for place in (phi, tmp_path / "out"))
    gate_up = "model.layers.0.mlp.gate_up_proj.weight"
    assert (len(old[gate_up]), len(new[gate_up])) == (192, 224)
    for group in range(2):
        assert torch.equal(new[gate_up][group * 112 : group * 112 + 96], old[gate_up][group * 96 : (group + 1) * 96])
    qkv = "model.layers.0.self_attn.qkv_proj.weight"
    queries, keys, values = old[qkv].split([64, 32, 32])
    assert torch.equal(
        new[qkv],
        torch.cat([queries, *(p.view(2, 16, 64).repeat_interleave(2, 0).flatten(0, 1) for p in (keys, values))]),
    )
    assert torch.allclose(logits(phi), logits(tmp_path / "out"), rtol=0, atol=1e-5)


def test_key_value_heads_are_repeated_beside_their_copies(sources, tmp_path):
    source, output = sources("llama"), tmp_path / "out"
    report = graftkit.apply(recipes.recipe(source, output, widen(num_key_value_heads=4), verify={"first_step": True}))
    old, new = (load_file(place / "model.safetensors") for place in (source, output))
    name = "model.layers.1.self_attn.k_proj.weight"
    assert torch.equal(new[name], old[name].view(2, 8, 32).repeat_interleave(2, 0).flatten(0, 1))
    assert changed(source, output) == {f"model.layers.{i}.self_attn.{p}_proj.weight" for i in (0, 1) for p in "kv"}
    (step,) = (check for check in report.checks if check.name == "first_step")
    assert step.failures == ()
    assert not step.moves  # nothing is new, and gradients of copies add up to those of the old heads
    maps = report.plan.correspondence.widths[name]
    assert maps.axes[0][1].origin(31) == 15


def test_query_heads_stay_with_their_keys(sources, tmp_path):
    source, output = sources("gemma2"), tmp_path / "out"  # with a head_dim of its own
    graftkit.apply(recipes.recipe(source, output, widen(num_attention_heads=8)))
    old, new = (load_file(place / "model.safetensors") for place in (source, output))
    name = "model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(new[name].view(2, 4, 8, 32)[:, :2], old[name].view(2, 2, 8, 32))
    outputs = "model.layers.0.self_attn.o_proj.weight"
    assert not new[outputs].view(32, 2, 4, 8)[:, :, 2:].any()
    assert torch.allclose(logits(source), logits(output), rtol=0, atol=1e-5)


def test_what_is_new_has_the_norms_of_what_was_trained_and_learns(sources, tmp_path):
    source, output = sources("gpt2"), tmp_path / "out"
    report = graftkit.apply(recipes.recipe(source, output, widen(n_inner=192), verify={"first_step": True}))
    old, new = (load_file(place / "model.safetensors") for place in (source, output))
    rows = "transformer.h.0.mlp.c_fc.weight"  # Conv1D: units are columns
    assert torch.equal(new[rows][:, :128], old[rows])
    norms = old[rows].norm(dim=0)
    fresh = new[rows][:, 128:].norm(dim=0)
    assert norms.min() - 1e-5 <= fresh.min() <= fresh.max() <= norms.max() + 1e-5
    assert not new["transformer.h.0.mlp.c_proj.weight"][128:].any()
    assert not new["transformer.h.0.mlp.c_fc.bias"][128:].any()
    assert torch.equal(new["transformer.h.0.mlp.c_fc.bias"][:128], old["transformer.h.0.mlp.c_fc.bias"])
    (step,) = (check for check in report.checks if check.name == "first_step")
    assert step.failures == ()
    assert step.moves["transformer.h.0.mlp.c_proj.weight[new]"] == 0
    assert step.moves[f"{rows}[new]"] == 1


def test_a_shard_without_what_grows_is_taken_over_and_the_rest_planned_lazily(tmp_path):
    tiny("LlamaForCausalLM", tmp_path / "source", max_shard_size="100KB")
    found = planned(tmp_path / "source", widen(intermediate_size=128))
    held = {shard: any(".mlp." in name for name in names) for shard, names in found.source.shards.items()}
    assert {shard for shard, wider in held.items() if wider} == {
        shard for shard in held if not is_clean(found.source, found.result, shard)
    }
    assert not all(held.values())
    kinds = {type(found.result.tensors[f"model.layers.0.mlp.{name}_proj.weight"]).__name__ for name in ("gate", "down")}
    assert kinds == {"Joined", "Streamed"}


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"intermediat_size": 96}, "sizes.intermediat_size: is no field of this config; did you mean 'intermediate_size'?"),
        ({"intermediate_size": 48}, "sizes.intermediate_size: intermediate_size is 64, and 48 is no larger value: widen only makes larger"),
        ({"intermediate_size": 64}, "is no larger value: it is that already"),
        ({"vocab_size": 400}, "sizes.vocab_size: vocab_size is the size of the vocabulary: extend_vocab makes that larger"),
        ({"num_hidden_layers": 4}, "counts modules of a list: insert_blocks and arrange_blocks give a model more blocks"),
        ({"num_key_value_heads": 3}, "sizes.num_key_value_heads: LlamaForCausalLM does not run with 3: "),
        ({"num_attention_heads": 5}, "ValueError: The hidden size (32) is not a multiple of the number of attention heads (5)"),
        ({"max_position_embeddings": 256}, "max_position_embeddings makes no tensor larger"),
        ({"rms_norm_eps": 1}, "is no width: config.json has 1e-06 for rms_norm_eps"),
        ({"hidden_act": 2}, "is no width: config.json has 'silu' for hidden_act"),
        ({"intermediate_size": 96, "intermediate_siz": 128}, "sizes.intermediate_siz: is no field"),
    ],
)  # fmt: skip
def test_what_is_no_width_is_refused(sizes, words, sources):
    with pytest.raises(RecipeError) as error:
        planned(sources("llama"), widen(**sizes))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_init_without_anything_new_is_refused(sources):
    with pytest.raises(RecipeError, match="operations.0.init: makes nothing: all that is new are copies; leave it out"):
        planned(sources("llama"), {**widen(num_key_value_heads=4), "init": "normal"})


def test_a_norm_over_the_axis_is_the_reason(tmp_path, sources):
    tiny("BitNetForCausalLM", tmp_path / "source")
    with pytest.raises(InputRejected, match=r"norms have this axis \(model.layers.\*.mlp.ffn_sub_norm.weight\)"):
        planned(tmp_path / "source", widen(intermediate_size=128))
    with pytest.raises(
        InputRejected, match=r"norms have this axis .*; LayerNorm is more than a root mean square, for which"
    ):
        planned(sources("gpt2"), widen(n_embd=48))
    with pytest.raises(InputRejected, match="since model.embed_tokens.scalar_embed_scale depends on it too"):
        planned(sources("gemma2"), widen(hidden_size=64))


def test_rows_that_nothing_reads_are_no_width(sources):
    with pytest.raises(
        InputRejected, match="n_positions cannot grow from 64 to 128: new slices have no effect on inputs"
    ):
        planned(sources("gpt2"), widen(n_positions=128))


@pytest.mark.slow
def test_more_experts_take_part_in_the_softmax(sources):
    with pytest.raises(InputRejected, match="num_local_experts cannot grow from 4 to 8: none of the layouts and zeros"):
        planned(sources("mixtral"), widen(num_local_experts=8))


def test_more_experts_with_a_change_are_measured_and_old_ones_keep_their_bytes(sources, tmp_path):
    (tmp_path / "texts.txt").write_text("The with statement is used to wrap the execution of a block.")
    source = sources("mixtral")
    more = {**widen(num_local_experts=6), "allow_change": True, "texts": str(tmp_path / "texts.txt")}
    report = graftkit.apply(recipes.recipe(source, tmp_path / "out", more))
    assert report.plan.promise.sentence().startswith("intentional: num_local_experts grown with a change")
    (found,) = (check for check in report.checks if check.name == "given texts")
    assert found.kl_mean > 0
    assert found.perplexity_after != found.perplexity_before
    (figures,) = report.figures["operations.0.widen"]["widths"]
    assert figures["change"] > 0.01
    old, new = (load_file(place / "model.safetensors") for place in (source, tmp_path / "out"))
    routers = {name for name in old if name.endswith(".gate.weight")}
    assert all(torch.equal(new[name], old[name]) for name in old if name not in routers)
    assert all(torch.equal(new[name][:4], old[name]) for name in routers)
    experts = {name.split(".experts.")[1].split(".")[0] for name in new.keys() - old.keys()}
    assert experts == {"4", "5"}
    added = {name: bool(new[name].any()) for name in new.keys() - old.keys()}
    assert len(added) == 2 * 2 * 3
    assert all(alive == (".w2." not in name) for name, alive in added.items()), "what new experts write is zero"
    assert len({float(new[name][0, 0]) for name, alive in added.items() if alive}) == 2 * 2 * 2, "none is a twin"
    assert logits(tmp_path / "out").isfinite().all()


@pytest.mark.parametrize(
    ("name", "size", "where"),
    [
        ("GptOssForCausalLM", "num_local_experts", {"experts", "router"}),
        ("Qwen3MoeForCausalLM", "num_experts", {"gate"}),
    ],
)
def test_old_experts_keep_their_numbers_in_every_tensor(name, size, where, tmp_path):
    """Whichever layouts of single tensors move a small model's outputs least by chance."""
    source = tmp_path / "source"
    tiny(name, source)
    more = {**widen(**{size: 8}), "allow_change": True}
    graftkit.apply(recipes.recipe(source, tmp_path / "out", more))
    old, new = (load_file(place / "model.safetensors") for place in (source, tmp_path / "out"))
    grown = {name for name in old if old[name].shape != new[name].shape}
    assert {name.partition(".mlp.")[2].partition(".")[0] for name in grown} == where
    assert all(torch.equal(new[name][:4], old[name]) for name in grown)
    assert all(torch.equal(new[name], old[name]) for name in old.keys() - grown)


def test_a_norm_over_more_units_changes_what_it_gives_and_that_is_allowed_or_refused(tmp_path):
    source = tmp_path / "source"
    tiny("BitNetForCausalLM", source)
    more = widen(intermediate_size=144)
    with pytest.raises(InputRejected, match=r"norms have this axis .*; allow_change: true does it all the same"):
        planned(source, more)
    report = graftkit.apply(recipes.recipe(source, tmp_path / "out", {**more, "allow_change": True}))
    assert report.plan.promise.strength.word == "intentional"
    assert not logits(tmp_path / "out").equal(logits(source))


def test_a_change_that_is_allowed_and_not_needed_is_refused_and_so_is_one_that_nothing_compares(sources):
    with pytest.raises(RecipeError, match=r"operations.0.allow_change: nothing changes"):
        planned(sources("llama"), {**widen(intermediate_size=96), "allow_change": True})
    with pytest.raises(InputRejected, match="its hidden states would be others, and of another width"):
        planned(sources("gpt2"), {**widen(n_embd=48), "allow_change": True})


def found_instead(monkeypatch, change):
    """Let the experiment say something else than it found."""
    search = widening.search
    monkeypatch.setattr(widening, "search", lambda trial: change(search(trial)))


def assert_refused(source, place, operation):
    with pytest.raises(VerificationFailed, match="lens: .* differs in float64 .*nothing was written"):
        graftkit.apply(recipes.recipe(source, place / "out", operation))
    assert not (place / "out").exists()


def test_a_new_column_that_is_not_zero_is_caught(sources, tmp_path, monkeypatch):
    found_instead(monkeypatch, lambda found: Found(found.layouts, ()))
    assert_refused(sources("llama"), tmp_path, widen(intermediate_size=96))


def test_an_old_slice_in_the_wrong_group_is_caught(phi, tmp_path, monkeypatch):
    fused = "model.layers.*.mlp.gate_up_proj.weight"
    found_instead(monkeypatch, lambda found: Found({**found.layouts, fused: {0: Grouped(1)}}, found.zero))
    assert_refused(phi, tmp_path, widen(intermediate_size=112))


def test_heads_that_are_tiled_and_not_interleaved_are_caught(sources, tmp_path, monkeypatch):
    found_instead(
        monkeypatch,
        lambda found: Found({name: {0: Repeated(tiled=True)} for name in found.layouts}, (), repeated=True),
    )
    assert_refused(sources("llama"), tmp_path, widen(num_key_value_heads=4))


def test_a_gradient_of_an_old_slice_that_is_another_is_caught(sources, tmp_path):
    """A new column of ten units in the last place: outputs in float64 show it, and so do the gradients behind it."""
    from graftkit.verification.first_step import compare_first_step
    from graftkit.verification.subject import Subject

    source, output = sources("llama"), tmp_path / "out"
    report = graftkit.apply(recipes.recipe(source, output, widen(intermediate_size=96)))
    state = load_file(output / "model.safetensors")
    state["model.layers.0.mlp.down_proj.weight"][:, 64:] = 0.05
    save_file(state, output / "model.safetensors", {"format": "pt"})
    found = compare_first_step(Subject(source, output, correspondence=report.plan.correspondence))
    assert "the gradient of the old parameter" in found.failures[0]


def test_verify_pairs_slices_by_the_report(sources, tmp_path):
    source, output = sources("llama"), tmp_path / "out"
    graftkit.apply(recipes.recipe(source, output, widen(intermediate_size=96, num_key_value_heads=4)))
    found = verify(source, output)
    assert found.failures == ()
    assert "promised exact" in found.verdict
    state = load_file(output / "model.safetensors")
    state["model.layers.0.mlp.down_proj.weight"][:, 64:] = 1e-3
    recipes.save(output, tmp_path / "changed", state)
    (tmp_path / "changed/graft_report.json").write_bytes((output / "graft_report.json").read_bytes())
    assert verify(source, tmp_path / "changed").failures


def test_wider_blocks_vocabulary_and_adapter_in_one_recipe(sources, tmp_path):
    vocabulary = {"op": "extend_vocab", "special_tokens": ["<|a|>"]}
    lora = {"op": "add_lora", "r": 2, "target_modules": ["down_proj", "k_proj"], "layers_to_transform": [0]}
    steps = (
        widen(intermediate_size=96),
        {"op": "insert_blocks", "after": [0]},
        widen(num_key_value_heads=4),
        vocabulary,
        lora,
    )
    report = graftkit.apply(recipes.recipe(sources("llama"), tmp_path / "out", *steps, verify={"first_step": True}))
    assert report.plan.promise.strength.word == "exact"
    widths = report.plan.correspondence.widths
    assert len(widths) == 2 * 5
    assert widths["model.layers.1.mlp.up_proj.weight"].axes[0][1].result == 96
    shapes = {n: tuple(v.shape) for n, v in load_file(tmp_path / "out/adapter/adapter_model.safetensors").items()}
    assert shapes["base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"] == (2, 96)


@pytest.mark.slow
def test_an_adapter_of_the_wider_base_is_merged_into_it(sources, tmp_path):
    graftkit.apply(recipes.recipe(sources("llama"), tmp_path / "wide", widen(intermediate_size=96)))
    base, adapter = make_adapter(tmp_path, "LlamaForCausalLM", base=tmp_path / "wide", target_modules=["down_proj"])
    graftkit.apply(recipes.recipe(base, tmp_path / "merged", {"op": "merge_adapter", "adapter": str(adapter)}))
    assert load_file(tmp_path / "merged/model.safetensors")["model.layers.0.mlp.down_proj.weight"][:, 64:].any()


def test_the_same_seed_gives_the_same_bits_and_another_scheme_others(sources, tmp_path):
    name = "model.layers.0.mlp.up_proj.weight"
    made = []
    for place, more in enumerate(({}, {}, {"init": {"scheme": "xavier_normal"}}, {"init": "orthogonal"})):
        output = tmp_path / str(place)
        graftkit.apply(
            recipes.recipe(sources("llama"), output, {**widen(intermediate_size=96), **more}, verify={"outputs": False})
        )
        made.append(load_file(output / "model.safetensors")[name][64:])
    assert torch.equal(made[0], made[1])
    assert abs(float(made[2].std()) / (2 / (32 + 96)) ** 0.5 - 1) < 0.1
    assert torch.allclose(made[3] @ made[3].T, torch.eye(32), atol=1e-5)


def test_the_config_has_the_new_value_where_it_had_the_old_one(tmp_path):
    source = build("llava", tmp_path / "source")
    found = planned(source, widen(intermediate_size=96))
    values = [(change.document, change.place, change.new) for change in found.values]
    assert values == [("config.json", "text_config.intermediate_size", 96)]
    assert all(name.startswith("model.language_model.") for name in found.correspondence.widths)


@pytest.mark.slow
def test_a_model_in_memory_becomes_what_is_written(sources, tmp_path):
    import transformers

    source, operation = sources("llama"), widen(intermediate_size=96)
    graftkit.apply(recipes.recipe(source, tmp_path / "out", operation, verify={"outputs": False}))
    model, tokenizer = recipes.load(source)[0], transformers.AutoTokenizer.from_pretrained(source)
    new, _, report = graftkit.graft(model, tokenizer, {"version": 1, "operations": [operation]})
    written = load_file(tmp_path / "out/model.safetensors")
    assert all(torch.equal(value, written[name]) for name, value in new.state_dict().items())
    assert report.verdict.startswith("verified (exact)")


def test_blocks_that_the_class_leaves_out_are_refused(sources, tmp_path):
    """They would keep their old width, and whoever loads them wants the new one."""
    state = load_file(sources("llama") / "model.safetensors")
    more = {n.replace(".layers.1.", ".layers.2."): v.clone() for n, v in state.items() if ".layers.1." in n}
    recipes.save(sources("llama"), tmp_path / "mtp", {**state, **more})
    recipe = recipes.recipe(tmp_path / "mtp", "out/never", widen(intermediate_size=96), unknown_tensors="carry")
    with pytest.raises(
        InputRejected, match=r"'model.layers.2.mlp.\w+.weight' is not loaded by LlamaForCausalLM and would keep"
    ):
        engine.plan(recipe)


def test_a_class_that_cannot_be_differentiated_is_said_to_be_so(tmp_path):
    """RWKV writes in place what its backward wants, so nothing is known of gradients, and the plan does not keep quiet."""
    tiny("RwkvForCausalLM", tmp_path / "source")
    notes = planned(tmp_path / "source", widen(intermediate_size=192)).notes
    assert any("whether new slices get a gradient was not seen" in note for note in notes)


def test_nothing_is_said_of_gradients_that_were_seen(sources):
    assert not any("gradient" in note for note in planned(sources("llama"), widen(intermediate_size=96)).notes)
