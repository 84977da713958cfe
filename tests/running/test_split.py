"""A model whose blocks other ranks run gives the bits of one process; what cannot be split is run by one, and says why."""

import types
from collections import OrderedDict

import pytest
import torch
from support.batches import batch
from support.direct_line import DirectLine, bits, outputs_alone_and_split
from support.families import FAMILIES, build
from support.tiny import build as build_tiny
from torch.overrides import TorchFunctionMode

from graftkit.errors import NotAsStored, StorageFault, VerificationFailed
from graftkit.running.forward import load, run, undisturbed
from graftkit.running.reference import run_source
from graftkit.running.split.adopting import adopt, with_adopted
from graftkit.running.split.crew import Crew
from graftkit.running.split.interrupts import CannotSplit, LineBroken
from graftkit.running.split.parcels import Shelf, pack, raw_of, unpack
from graftkit.running.split.parts import assign_blocks
from graftkit.running.split.together import together
from graftkit.verification.outputs import compare_outputs
from graftkit.verification.subject import Subject


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    place = tmp_path_factory.mktemp("split") / "llama"
    build_tiny("LlamaForCausalLM", place, config_overrides={"num_hidden_layers": 4})
    return place


@pytest.mark.parametrize(
    ("family", "wanted"), [*((family, None) for family in FAMILIES), ("llama_tied", True), ("mixtral", True)]
)
def test_the_bits_of_one_process(family, wanted, tmp_path):
    build(family, tmp_path)
    crew = Crew(DirectLine(3), wanted=wanted)
    alone, split, _ = outputs_alone_and_split(tmp_path, 3, crew)
    assert alone == split
    figures = crew.figures()
    assert not figures["run_by_rank_0_alone"]
    assert sum(rank["blocks"] for rank in figures["ranks"][1:]) > 0
    assert all(rank["bytes_moved"] for rank in figures["ranks"])
    assert crew.paged is bool(wanted)


@pytest.mark.parametrize(
    "name",
    ["MambaForCausalLM", "FalconH1ForCausalLM", "Qwen3NextForCausalLM", "Gemma3nForCausalLM", "Zamba2ForCausalLM"],
)
def test_the_bits_of_one_process_where_state_goes_along(name, tmp_path):
    """State-space models write into their caches in place, and some blocks read what others left in them."""
    build_tiny(name, tmp_path)
    alone, split, crew = outputs_alone_and_split(tmp_path, 2)
    assert alone == split
    assert any(probe.startswith("cached") for probe in alone) == (alone["cached"] == "covered")
    assert all(rank["bytes_moved"] for rank in crew.figures()["ranks"]) or crew.figures()["run_by_rank_0_alone"]


def test_a_model_that_changes_its_blocks_from_outside_is_run_by_one_process(tmp_path):
    """BigBird replaces the attention of its blocks where a text is short."""
    build_tiny("BigBirdForCausalLM", tmp_path)
    alone, split, crew = outputs_alone_and_split(tmp_path, 2)
    assert alone == split
    assert "changes bert.encoder.layer.0 before it runs it" in crew.figures()["run_by_rank_0_alone"]


def test_blocks_that_share_weights_are_dealt_out(tmp_path):
    """Zamba 2 has one transformer block in several places, so that blocks add up to more bytes than the model has."""
    build_tiny("Zamba2ForCausalLM", tmp_path)
    alone, split, crew = outputs_alone_and_split(tmp_path, 3)
    assert alone == split
    assert not crew.figures()["run_by_rank_0_alone"]


def test_a_class_that_changes_what_it_loads_is_run_by_one_process(tmp_path):
    """Youtu's makes the row of the padding id zero, whatever the file holds."""
    build_tiny("YoutuForCausalLM", tmp_path)
    alone, split, crew = outputs_alone_and_split(tmp_path, 2)
    assert alone == split
    assert "writes into model.embed_tokens.weight when it is loaded" in crew.figures()["run_by_rank_0_alone"]
    with undisturbed(), pytest.raises(NotAsStored, match="runs where it fits into memory, and not from its files"):
        load(tmp_path, paged=True)


def test_a_model_without_blocks_is_run_by_one_process(tmp_path):
    """ALBERT has one block that it runs again and again, in no list."""
    build_tiny("AlbertForMaskedLM", tmp_path)
    alone, split, crew = outputs_alone_and_split(tmp_path, 2)
    assert alone == split
    figures = crew.figures()
    assert bool(figures["run_by_rank_0_alone"]) == (not any(rank["blocks"] for rank in figures["ranks"]))


def test_a_parameter_of_another_rank_is_not_read(llama):
    crew = Crew(DirectLine(2))
    with undisturbed():
        model = crew.load(llama).model
        with pytest.raises(CannotSplit, match="weight of a block is read from outside"):
            _ = model.model.layers[3].mlp.up_proj.weight
        owned = crew._line.owners[1]._parts[0].loaded.model
        with pytest.raises(CannotSplit):
            _ = owned.lm_head.weight


def test_a_mode_that_does_not_go_along_is_for_one_process(llama):
    class Mode(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    with undisturbed(), Mode(), pytest.raises(CannotSplit, match=r"more than its outputs \(Mode\)"):
        run(Crew(DirectLine(2)).load(llama).model, batch())


def test_the_other_attention_goes_along(llama):
    with undisturbed():
        whole, split = load(llama).model, Crew(DirectLine(3)).load(llama).model
        found = []
        for model in (whole, split):
            found.append(run(model, batch())["logits"])
            model.set_attn_implementation("eager")
            found.append(run(model, batch())["logits"])
            model.set_attn_implementation("sdpa")
            found.append(run(model, batch())["logits"])
    assert all(found[place].equal(found[place + 3]) for place in range(3))
    assert not found[0].equal(found[1])


def test_parameters_that_are_set_from_outside_are_for_one_process(llama):
    with undisturbed():
        model = Crew(DirectLine(2)).load(llama).model
        held = model.model.layers[3].mlp.up_proj._parameters
        held["weight"] = torch.nn.Parameter(torch.zeros(held.copy()["weight"].shape))
        with pytest.raises(CannotSplit, match="changes model.layers.3 before it runs it"):
            run(model, batch())


def test_hooks_inside_of_blocks_see_the_calls_that_others_make(llama):
    def seen_by(model):
        seen = []
        for name, module in model.named_modules():
            if name.endswith(("mlp", "q_proj")):
                module.register_forward_hook(lambda _, args, output, name=name: seen.append((name, args[0], output)))
        run(model, batch())
        return seen

    with undisturbed():
        whole, split = (seen_by(model) for model in (load(llama).model, Crew(DirectLine(3)).load(llama).model))
    assert [name for name, *_ in whole] == [name for name, *_ in split]
    assert len(whole) == 8
    assert all(a.equal(c) and b.equal(d) for (_, a, b), (_, c, d) in zip(whole, split, strict=True))


def test_a_hook_that_changes_what_a_module_gives_is_no_one_s_to_replay(llama):
    with undisturbed():
        model = Crew(DirectLine(2)).load(llama).model
        model.model.layers[3].mlp.register_forward_hook(lambda _, __, output: output + 1)
        with pytest.raises(CannotSplit, match="is changed"):
            run(model, batch())


def test_random_numbers_of_a_block_are_those_of_one_process(llama, monkeypatch):
    """Blocks that draw numbers draw them from one stream, whichever rank runs them."""
    from transformers.models.llama.modeling_llama import LlamaMLP

    before = LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: before(self, x) + torch.randn(x.shape))
    alone, split, crew = outputs_alone_and_split(llama, 3)
    assert alone == split
    assert not crew.figures()["run_by_rank_0_alone"]


def test_what_a_block_writes_into_its_input_is_written_here(llama, monkeypatch):
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    before = LlamaDecoderLayer.forward

    def forward(self, hidden_states, *args, **kwargs):
        hidden_states.mul_(1.5)
        return before(self, hidden_states, *args, **kwargs)

    with undisturbed():
        plain = bits(run_source(llama, None, 0, None, {}, lambda _: None))
    monkeypatch.setattr(LlamaDecoderLayer, "forward", forward)
    alone, split, _ = outputs_alone_and_split(llama, 3)
    assert alone == split
    assert alone != plain


def test_what_a_block_raises_is_raised_here_in_the_same_words(llama, monkeypatch):
    from transformers.models.llama.modeling_llama import LlamaMLP

    def fail(self, x):
        raise TypeError("no such thing")

    monkeypatch.setattr(LlamaMLP, "forward", fail)
    for crew in (None, Crew(DirectLine(2))):
        with (
            pytest.raises(VerificationFailed, match=r"needs other inputs than token ids \(TypeError: no such thing\)"),
            undisturbed(),
        ):
            run_source(llama, None, 0, None, {}, lambda _: None, crew=crew)


def test_a_changed_weight_of_a_block_elsewhere_is_found_in_the_words_of_one_process(llama, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(llama, tmp_path / "changed")
    tensors = load_file(tmp_path / "changed" / "model.safetensors")
    tensors["model.layers.2.mlp.up_proj.weight"][3, 5] += 0.5
    save_file(tensors, tmp_path / "changed" / "model.safetensors", {"format": "pt"})
    crew = Crew(DirectLine(2))
    reports = [compare_outputs(Subject(llama, tmp_path / "changed", crew=c)).to_json() for c in (None, crew)]
    for report in reports:
        del report["seconds"]
    assert reports[0] == reports[1]
    assert reports[0]["failures"]
    assert not crew.figures()["run_by_rank_0_alone"]


def test_a_line_that_breaks_ends_the_comparison_and_is_no_finding(llama):
    class Breaking(DirectLine):
        sent = 0

        def send(self, rank, message):
            self.sent += 1
            if self.sent == 12:
                raise StorageFault("the other ranks do not answer any more")
            super().send(rank, message)

    line = Breaking(2)
    with pytest.raises(StorageFault, match="do not answer"):
        compare_outputs(Subject(llama, llama, crew=Crew(line)))
    assert line.sent == 12


def test_a_reason_not_to_split_begins_again_without_the_crew():
    crew, tried = Crew(DirectLine(2)), []

    def find(with_crew):
        tried.append(with_crew)
        if with_crew is not None:
            raise CannotSplit("it is round")
        return "found"

    assert not crew.is_used
    assert together(crew, "a figure", find) == "found"
    assert crew.is_used
    assert tried == [crew, None]
    assert crew.figures()["run_by_rank_0_alone"] == "a figure: it is round"

    def broken(_):
        raise LineBroken(StorageFault("gone"))

    with pytest.raises(StorageFault, match="gone"):
        together(crew, "a figure", broken)


def test_blocks_are_shared_out_in_runs_of_equal_bytes():
    blocks = {f"layers.{number}": 10 for number in range(8)}
    assert list(assign_blocks(blocks, 0, 4).values()) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert list(assign_blocks(blocks, 40, 3).values()) == [1, 1, 1, 1, 2, 2, 2, 2]
    assert list(assign_blocks(blocks, 1000, 2).values()) == [1] * 8
    assert set(assign_blocks({"a": 0, "b": 0}, 0, 3).values()) <= {0, 1, 2}


LAID = {
    "plain": lambda: torch.arange(12.0).view(3, 4),
    "turned": lambda: torch.arange(12.0).view(3, 4).T,
    "stretched": lambda: torch.ones(3, 1).expand(3, 5),
    "a part": lambda: torch.arange(40, dtype=torch.bfloat16)[3:37:2],
    "no element": lambda: torch.empty(0, 4),
    "one": lambda: torch.tensor(3),
    "bits": lambda: torch.tensor([True, False]),
    "narrow": lambda: torch.randn(5).to(torch.float16)[1:],
    "complex": lambda: torch.randn(3, dtype=torch.complex64),
}


@pytest.mark.parametrize("kind", LAID)
def test_a_tensor_arrives_as_it_lay(kind):
    tensor = LAID[kind]()
    here, there = Shelf(), Shelf()
    for _ in range(2):
        data, _ = pack({"a": tensor, "b": [tensor]}, here)
        found, _ = unpack(data, there, owner=True)
        assert found["a"] is found["b"][0]
        assert found["a"].equal(tensor)
        assert (found["a"].stride(), found["a"].dtype) == (tensor.stride(), tensor.dtype)
        assert not tensor.numel() or (found["a"].data_ptr() - tensor.data_ptr()) % 64 == 0


def test_what_went_lately_goes_by_its_digest():
    here, there, tensor = Shelf(), Shelf(), torch.randn(1000)
    sizes = []
    for value in (tensor, tensor, tensor.clone(), tensor + 1):
        data, _ = pack(value, here)
        assert unpack(data, there, owner=True)[0].equal(value)
        sizes.append(len(data))
    assert sizes[0] > 4000
    assert sizes[1] < 1000
    assert sizes[2] < 1000 or tensor.data_ptr() % 64 != 0
    assert sizes[3] > 4000


def test_both_ends_forget_the_same():
    here, there = Shelf(10_000), Shelf(10_000)
    values = [torch.full((1000,), float(number)) for number in range(6)]
    for number in (0, 1, 0, 2, 0, 3, 1, 4, 5, 0):
        data, _ = pack(values[number], here)
        assert unpack(data, there, owner=True)[0].equal(values[number])
        here.trim()
        there.trim()
        assert list(here._held) == list(there._held)
    assert len(here._held) == 2


@pytest.mark.parametrize(
    "value", [torch.nn.Linear(2, 2), lambda: 0, torch.ones(2, requires_grad=True), torch.ones(2, device="meta")],
    ids=["module", "function", "gradient", "meta"],
)  # fmt: skip
def test_what_cannot_be_sent_is_said(value):
    with pytest.raises(CannotSplit, match="is given"):
        pack([value], Shelf())


def test_state_that_came_back_is_in_the_objects_that_are_here():
    def cache(keys):
        layer = types.SimpleNamespace(keys=keys, seen=[1])
        return types.SimpleNamespace(layers=[layer], names=OrderedDict(a=1), other={"b": (1, layer)})

    here, back = cache(None), cache(torch.ones(3))
    back.layers[0].seen.append(2)
    back.layers.append(types.SimpleNamespace(keys=torch.zeros(1)))
    back.names["c"] = 3
    layer, names, adopted = here.layers[0], here.names, {}
    assert adopt(here, back, adopted) is here
    assert here.layers[0] is layer
    assert layer.keys.equal(torch.ones(3))
    assert layer.seen == [1, 2]
    assert len(here.layers) == 2
    assert here.names is names
    assert names == OrderedDict(a=1, c=3)
    assert here.other["b"][1] is layer
    assert with_adopted((5, back), adopted) == (5, here)


def test_the_bytes_of_a_tensor_are_its_own():
    assert raw_of(torch.arange(10, dtype=torch.int16)[2:4]).tolist() == [2, 0, 3, 0]


def test_what_one_rank_cannot_load_is_heard_and_the_line_stays_in_step(llama, tmp_path):
    """A model that no rank can load is refused in the words of one process, and the next one is run."""
    import shutil

    shutil.copytree(llama, tmp_path / "broken")
    config = tmp_path / "broken" / "config.json"
    config.write_text(config.read_text().replace('"num_key_value_heads": ', '"num_key_value_heads": 1'))
    crew, said = Crew(DirectLine(3)), []
    for with_crew in (None, crew):
        with pytest.raises(VerificationFailed) as error, undisturbed():
            crew.load(tmp_path / "broken") if with_crew else load(tmp_path / "broken")
        said.append(str(error.value))
    assert said[0] == said[1]
    with undisturbed():
        assert run(crew.load(llama).model, batch())["logits"].equal(run(load(llama).model, batch())["logits"])
