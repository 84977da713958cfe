"""transplant_tokenizer: rows of shared tokens bit for bit, the others by scheme, and everything that names an id at its new place."""

import dataclasses
import importlib
import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import tokenizer_sources as sources_of
from support.command import assert_one_line, here, real
from support.donors import TEMPLATE, write_donor
from support.recipes import applied, apply_by_command, config_of, load, recipe
from transformers import AutoTokenizer

import graftkit
from graftkit import engine
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.reading import read_tensor
from graftkit.errors import InputRejected, RecipeError, VerificationFailed
from graftkit.verification.promises import PromiseClass

#: The file: the name in its package is the function.
operation = importlib.import_module("graftkit.operations.transplant_tokenizer")
transplanted = importlib.import_module("graftkit.verification.tokens.transplanted")

INPUT, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture(scope="session")
def donors(tmp_path_factory):
    """Folders of donors by kind, each made once: read them, do not change them."""
    made = {}

    def donor(kind):
        if kind not in made:
            made[kind] = write_donor(kind, tmp_path_factory.mktemp("donor") / kind)
        return made[kind]

    return donor


def transplant(donor, **fields):
    return {"op": "transplant_tokenizer", "donor": str(donor), **fields}


def tables(directory):
    return load_file(directory / "model.safetensors")


def words(values):
    return values.contiguous().view(torch.int16 if values.element_size() == 2 else torch.int32)


def spelled(directory):
    """Each token of a folder as the text that it stands for, by id; written without what graftkit knows of tokenizers."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    return {
        index: text
        for index in range(len(tokenizer))
        if (text := tokenizer.decode([*tokenizer.encode("a", add_special_tokens=False)[-1:], index])[1:])
        and "\ufffd" not in text
    }


@pytest.mark.parametrize("kind", ["sentencepiece", "unigram", "byte_level"])
def test_tokens_of_the_same_text_have_the_bases_rows(demo, donors, tmp_path, kind):
    planned = graftkit.plan(recipe(demo, tmp_path / "out", transplant(donors(kind))))
    before, after = tables(demo), rows_of(planned)
    mine, theirs = spelled(demo), spelled(donors(kind))
    ids = {text: index for index, text in sorted(mine.items(), reverse=True)}
    names = AutoTokenizer.from_pretrained(donors(kind)).convert_ids_to_tokens([*range(len(after[INPUT]))])
    same = {index: ids[text] for index, text in theirs.items() if text in ids and not names[index].startswith("<")}
    assert len(same) > 300
    for name in (INPUT, OUTPUT):
        assert words(after[name][[*same]]).equal(words(before[name][[*same.values()]]))
        assert after[name].isfinite().all()
        assert len(after[name]) == len(names) == planned.result.config["vocab_size"] == 900


def rows_of(planned):
    """The tables as they would be written."""
    return {name: read_tensor(planned.result.tensors[name]) for name in (INPUT, OUTPUT)}


@pytest.fixture(scope="module")
def grafted(demo, donors, tmp_path_factory):
    return applied(demo, tmp_path_factory.mktemp("grafted"), transplant(donors("sentencepiece")))


def test_the_files_are_the_donors_byte_for_byte(grafted, donors):
    output, _ = grafted
    for path in donors("sentencepiece").iterdir():
        assert (output / path.name).read_bytes() == path.read_bytes()
    loaded = AutoTokenizer.from_pretrained(output)
    assert loaded.chat_template == TEMPLATE
    text = "def mean(xs):\n    return  sum(xs) — café"
    assert loaded(text)["input_ids"] == AutoTokenizer.from_pretrained(donors("sentencepiece"))(text)["input_ids"]


def test_roles_move_with_the_tokenizer(grafted, demo):
    output, report = grafted
    generation = json.loads((output / "generation_config.json").read_text())
    for document in (config_of(output), generation):
        assert [document[f"{role}_token_id"] for role in ("bos", "eos", "pad")] == [1, 2, 3]
    before, after = tables(demo), tables(output)
    assert words(after[INPUT][[1, 2]]).equal(words(before[INPUT][[0, 1]]))  # <s> and </s> are what <bos> and <eos> are
    assert "eos_token '<eos>' has that of '</s>'" in " ".join(report["notes"])


def test_over_shared_ids_the_model_is_the_base_bit_for_bit(grafted):
    """The general check runs both on sequences of shared tokens, each under its own ids."""
    _, report = grafted
    found = report["outputs"]
    assert found["ids_covered"] == found["ids"] > 500
    assert all(item["bitwise"] for item in found["comparisons"] if "hidden" in item["name"])
    assert report["promise"]["measured"] in ("bitwise", "rounded")


def test_bits_per_byte_stand_in_report_and_page(grafted):
    output, report = grafted
    found = report["checks"]["texts"]
    assert found["before"] > 0
    assert found["after"] > 0
    assert 0 < found["agreement"] <= 1
    done = here("report", output)
    assert done.returncode == 0, done.stderr
    assert "bits per byte" in (output / "graft_report.html").read_text()


@pytest.mark.parametrize("init", ["fvt", "mean", "copy_shared", {"scheme": "omp", "k": 8}], ids=str)
def test_new_rows_are_what_the_scheme_says(demo, donors, with_weights, tmp_path, init):
    donor = with_weights if isinstance(init, dict) else donors("byte_level")
    planned = graftkit.plan(recipe(demo, tmp_path / "out", transplant(donor, init=init)))
    before, after = tables(demo), rows_of(planned)
    base, other = (graftkit_spelling(directory) for directory in (demo, donor))
    found = transplanted.shared_tokens(base, other)
    fresh = [index for index in range(len(after[INPUT])) if index not in found.origins]
    assert len(fresh) > 100
    assert planned.outcomes[0].figures()["made"] == len(fresh)
    for name in (INPUT, OUTPUT):
        wanted = _wanted(init, name, before, base, other, found, fresh, donor)
        # one rounding to bfloat16 of a value that is summed in another order in float64
        torch.testing.assert_close(after[name][fresh].double(), wanted, rtol=2.0**-8, atol=1e-12)


def graftkit_spelling(directory):
    from graftkit.checkpoint.tokenizer.folder import TokenizerFolder
    from graftkit.checkpoint.tokenizer.spelling import Spelling

    return Spelling(TokenizerFolder.open(str(directory)).files)


def _wanted(init, name, before, base, other, found, fresh, donor):
    """The rows by the definitions, from the whole tables in float64."""
    table = before[name].double()
    live = table[: base.files.size]
    mean = live.mean(0)
    if init == "mean":
        return mean.expand(len(fresh), -1)
    if init == "copy_shared":
        return table[sorted({*found.origins.values()})].mean(0).expand(len(fresh), -1)
    if init == "fvt":
        from graftkit.checkpoint.tokenizer.segmentation import Segmentation

        split = Segmentation(base)
        pieces = [split.pieces(other.texts.get(index, b"")) for index in fresh]
        return torch.stack([table[list(ids)].mean(0) if ids else mean for ids in pieces])
    from graftkit.initializers.matching_pursuit import matching_pursuit

    theirs = load_file(donor / "model.safetensors")[name]
    plain = {origin: index for origin, index in found.places.items() if index in other.texts}
    combined = matching_pursuit(theirs[fresh], theirs[[*plain.values()]], init["k"])
    return combined.of(table[[*plain]])


@pytest.fixture(scope="module")
def with_weights(donors, tmp_path_factory):
    """A donor of the byte-level kind with tables of its own, narrower than the base's."""
    import transformers

    folder = tmp_path_factory.mktemp("weights") / "donor"
    shutil.copytree(donors("byte_level"), folder)
    size = len(AutoTokenizer.from_pretrained(folder))
    torch.manual_seed(7)
    config = transformers.LlamaConfig(
        vocab_size=size, hidden_size=48, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4
    )
    transformers.LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
    return folder


def test_omp_gives_back_the_bases_own_rows_where_the_donor_is_a_rotation_of_it(demo, tmp_path):
    """The donor has the base's rows, turned, under a tokenizer that lacks the names of a hundred tokens: their combinations are
    themselves, or as near as 160 other rows of 160 coordinates come."""
    donor = tmp_path / "donor"
    shutil.copytree(demo, donor)
    document = json.loads((demo / "tokenizer.json").read_text())
    vocab = document["model"]["vocab"]
    gone = [token for token, index in vocab.items() if index >= 2030]
    renamed = {
        **{token: index for token, index in vocab.items() if token not in gone},
        **{f"ZQ{i}": vocab[t] for i, t in enumerate(gone)},
    }
    merges = [pair for pair in document["model"]["merges"] if "".join(pair) not in gone]
    document["model"] |= {"vocab": renamed, "merges": merges}
    (donor / "tokenizer.json").write_text(json.dumps(document))
    generator = torch.Generator().manual_seed(1)
    turn = torch.linalg.qr(torch.randn(160, 160, generator=generator, dtype=torch.float64))[0]
    turned = {
        name: (value.double() @ turn if name in (INPUT, OUTPUT) else value) for name, value in tables(demo).items()
    }
    save_file(
        {name: value.float() if name in (INPUT, OUTPUT) else value for name, value in turned.items()},
        donor / "model.safetensors",
        {"format": "pt"},
    )
    planned = graftkit.plan(recipe(demo, tmp_path / "out", transplant(donor, init={"scheme": "omp", "k": 160})))
    before, after = tables(demo), rows_of(planned)
    index = [vocab[token] for token in gone]
    figures = planned.outcomes[0].figures()["donor"]
    assert figures[INPUT]["tokens"] == len(gone)
    for name in (INPUT, OUTPUT):
        error = (after[name][index].double() - before[name][index].double()).norm(dim=1) / before[name][
            index
        ].double().norm(dim=1)
        assert error.max() <= 2.0**-8 + figures[name]["residual_max"] * 50


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece"])
def test_a_model_of_pieces_takes_a_tokenizer_of_another_kind(donors, tmp_path, kind):
    """The reverse of the demo model's case: the base has SentencePiece's marks, and the donor has letters for bytes, or marks too."""
    base = _small(
        "LlamaForCausalLM", tmp_path / "base", write_donor("sentencepiece", tmp_path / "tokenizer", tokens=700)
    )
    output, report = applied(base, tmp_path, transplant(donors(kind)))
    mine, theirs = graftkit_spelling(base), graftkit_spelling(donors(kind))
    found = transplanted.shared_tokens(mine, theirs)
    assert sum(mine.files.tokens[origin].startswith("▁") for origin in found.origins.values()) > 80
    before, after = tables(base), tables(output)
    new, old = [*found.origins], [*found.origins.values()]
    assert words(after[INPUT][new]).equal(words(before[INPUT][old]))
    assert report["checks"]["transplanted"]["failures"] == []


def _small(name, folder, tokenizer, **fields):
    """A small random model of a class, with the tokenizer files of a folder."""
    import transformers

    loaded = AutoTokenizer.from_pretrained(tokenizer)
    ids = {f"{role}_id": loaded.convert_tokens_to_ids(content) for role, content in loaded.special_tokens_map.items()}
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = getattr(transformers, name)
    known = {key: value for key, value in ids.items() if key in ("pad_token_id", "bos_token_id", "eos_token_id")}
    torch.manual_seed(3)
    model(model.config_class(vocab_size=len(loaded), **small, **known, **fields)).save_pretrained(folder)
    for path in tokenizer.iterdir():
        shutil.copy(path, folder)
    return folder


def test_words_and_their_parts_of_wordpiece_find_their_like(donors, tmp_path):
    """An encoder without a head for words: figures are cosines, and cls and sep keep their rows by role."""
    base = _small("BertForMaskedLM", tmp_path / "base", write_donor("wordpiece", tmp_path / "tokenizer"))
    output, report = applied(base, tmp_path, transplant(donors("unigram")))
    mine, theirs = graftkit_spelling(base), graftkit_spelling(donors("unigram"))
    found = transplanted.shared_tokens(mine, theirs).origins
    names = {theirs.files.tokens[index]: mine.files.tokens[origin] for index, origin in found.items()}
    assert names["▁the"] == "the"
    assert any(old == f"##{new}" for new, old in names.items())
    assert names["<unk>"] == "[UNK]"
    assert names["<pad>"] == "[PAD]"
    texts = report["checks"]["texts"]
    assert -1 <= texts["least"] <= texts["mean"] <= 1
    loaded, info = load(output)
    assert not info["missing_keys"]
    assert loaded.config.vocab_size == len(AutoTokenizer.from_pretrained(output))
    assert "no cls_token, mask_token, sep_token" in " ".join(report["notes"]) or "no cls_token" in " ".join(
        report["notes"]
    )


@pytest.mark.parametrize(
    "family",
    [
        "llama_tied",
        "t5",
        *(pytest.param(one, marks=pytest.mark.slow) for one in ("gpt2", "gemma2", "gpt_neox", "bart", "bert")),
    ],
)
def test_every_family_has_its_tables_in_the_donors_order(sources, donors, tmp_path, family):
    """Tied tables, output biases, an encoder with a decoder."""
    output, report = applied(sources(family), tmp_path, transplant(donors("sentencepiece"), pad_to_multiple_of=64))
    assert report["checks"]["transplanted"]["failures"] == []
    model, info = load(output)
    assert not info["missing_keys"]
    assert model.get_input_embeddings().weight.shape[0] % 64 == 0
    changed = [item for item in report["changes"]["tensors"] if item["kind"] == "gathered"]
    assert changed
    assert len({item["rows"] for item in changed}) == 1


def test_a_decoder_begins_with_the_token_that_it_began_with(sources, donors, tmp_path):
    planned = graftkit.plan(recipe(sources("t5"), tmp_path / "out", transplant(donors("sentencepiece"))))
    assert planned.result.config["decoder_start_token_id"] == 3 == planned.result.config["pad_token_id"]


def test_positions_that_are_counted_from_the_pad_id_are_refused(sources, donors, tmp_path):
    with pytest.raises(
        InputRejected,
        match=r"embeddings.* counts positions from the pad token.*would become 3 and was 0.*give a donor",
    ):
        graftkit.plan(recipe(sources("roberta"), tmp_path / "out", transplant(donors("sentencepiece"))))


@pytest.mark.slow
def test_it_comes_behind_new_tokens_and_before_an_adapter(demo, donors, tmp_path):
    """A token that extend_vocab added is one of the base's that the donor shares, by its name."""
    extend = {"op": "extend_vocab", "special_tokens": ["<|tool|>"], "init": "mean"}
    output, report = applied(demo, tmp_path, extend, transplant(donors("byte_level")), {"op": "add_lora", "r": 2})
    ids = AutoTokenizer.from_pretrained(output).get_vocab()
    mean = tables(output)[INPUT][ids["<|tool|>"]]
    assert not mean.eq(0).all()
    assert report["new_tokens"] == {}
    adapter = json.loads((output / "adapter/adapter_config.json").read_text())
    made = {item["rows"] for item in report["changes"]["tensors"] if item["kind"] == "gathered"}
    assert made == {len(ids) for ids in adapter["trainable_token_indices"].values()}
    assert report["checks"]["transplanted"]["failures"] == []


def test_new_tokens_come_behind_it(demo, donors, tmp_path):
    """They are new beside the donor's tokens, with which the tokenizer check then compares."""
    extend = {"op": "extend_vocab", "special_tokens": ["<|call|>"], "init": "mean"}
    output, report = applied(demo, tmp_path, transplant(donors("sentencepiece")), extend)
    assert report["new_tokens"] == {"<|call|>": 900}
    assert AutoTokenizer.from_pretrained(output).convert_tokens_to_ids("<|call|>") == 900
    assert report["tokenization"][0]["covered"]["old_ids"] == 900


def test_verify_knows_what_was_written_by_the_report_beside_it(grafted, demo, tmp_path):
    output, _ = grafted
    done = here("verify", demo, output, "--no-outputs")
    assert done.returncode == 0, done.stderr
    copy = tmp_path / "copy"
    shutil.copytree(output, copy)
    (copy / "chat_template.jinja").write_text("{{ messages }}")
    done = here("verify", demo, copy, "--no-outputs")
    assert done.returncode == 4
    assert "chat_template.jinja is not the file that was written" in done.stdout + done.stderr


def test_the_recipe_that_ships_runs(donors, tmp_path):
    done = real(
        "apply",
        "recipes/transplant_tokenizer.yaml",
        "--output",
        tmp_path / "out",
        f"operations.0.donor={donors('sentencepiece')}",
    )
    assert done.returncode == 0, done.stderr
    assert "rows of shared tokens" in done.stdout


FAULTS = {
    "a row further on": ("tables", lambda rows: torch.roll(rows, 1, 0), "rows of shared tokens differ from the base's"),
    "two rows changed places": ("tables", lambda rows: rows[[*range(300), 301, 300, *range(302, len(rows))]], "2 rows of shared tokens"),
    "one bit": ("tables", lambda rows: (rows.view(torch.int16) ^ (torch.arange(rows.numel()).view(rows.shape) == 160 * 300)).view(rows.dtype), "1 row of shared"),
    "a new row without end": ("tables", lambda rows: rows.index_fill(0, torch.tensor([0]), torch.inf), "1 new row not finite"),
    "a row too few": ("tables", lambda rows: rows[:-1], "has 899 rows for the 900 ids"),
    "an id that stayed": ("generation_config.json", lambda text: text.replace('"eos_token_id": 2', '"eos_token_id": 1'), "the donor's eos_token is id 2"),
    "an id that no token has": ("config.json", lambda text: text.replace('"pad_token_id": 3', '"pad_token_id": 2048'), "which no token of the donor has"),
    "a template that stayed": ("chat_template.jinja", lambda text: "{{ messages }}", "is not the donor's file"),
    "a tokenizer that stayed": ("tokenizer.json", lambda text: text.replace("<pad>", "<fill>"), "is not the donor's file"),
    "a list that stayed": ("merges.txt", lambda text: "#version: 0.2\n", "is the old tokenizer's"),
    "a file that is gone": ("special_tokens_map.json", lambda text: None, "of the donor is missing"),
    "a copy of the template": ("processor_config.json", lambda text: json.dumps({"chat_template": "{{ messages }}"}), "old tokenizer's chat template"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(grafted, demo, donors, tmp_path, fault):
    output, _ = grafted
    place, change, words_ = FAULTS[fault]
    broken = tmp_path / "broken"
    shutil.copytree(output, broken)
    if place == "tables":
        found = tables(broken)
        save_file({**found, INPUT: change(found[INPUT]).contiguous()}, broken / "model.safetensors", {"format": "pt"})
    else:
        text = (broken / place).read_text() if (broken / place).is_file() else ""
        if (changed := change(text)) is None:
            (broken / place).unlink()
        else:
            (broken / place).write_text(changed)
    planned = engine.plan(recipe(demo, tmp_path / "never", transplant(donors("sentencepiece"))))
    check = planned.outcomes[0].checks[0]
    clean, found = (check.run(engine.subject_of(planned, folder)) for folder in (output, broken))
    assert clean.failures == ()
    assert words_ in " ".join(found.failures)


def test_what_a_wrong_operation_writes_is_never_committed(demo, donors, tmp_path, monkeypatch):
    """Rows one further on, from the planning itself: neither bytes nor names can tell, the tokens can."""
    right = operation.shared_tokens

    def shifted(base, donor):
        found = right(base, donor)
        return dataclasses.replace(
            found, origins={index: (origin + 1) % 2000 for index, origin in found.origins.items()}
        )

    monkeypatch.setattr(operation, "shared_tokens", shifted)
    with pytest.raises(VerificationFailed, match="rows of shared tokens differ from the base's|transplanted"):
        engine.apply(recipe(demo, tmp_path / "out", transplant(donors("sentencepiece")), verify={"outputs": False}))
    assert not (tmp_path / "out").exists()


def refused(base, place, *operations):
    done, output = apply_by_command(base, place, *operations)
    assert not output.exists()
    return done


def test_refusals_are_one_line(demo, donors, sources, tmp_path):
    slow = sources_of.write({"vocab.json": {}, "merges.txt": ""}, tmp_path / "slow")
    cases = [
        (transplant(slow), 3, "tokenizer.json: not found, only merges.txt, vocab.json"),
        (transplant(tmp_path), 3, "tokenizer.json: not found"),
        (transplant(demo), 2, "has the tokenizer that the base has already"),
        (transplant(donors("unigram"), init={"scheme": "omp", "k": 900}), 2, "base and donor share only"),
        (transplant(donors("unigram"), init={"scheme": "omp", "k": 8}), 3, "fvt asks for nothing but its tokenizer"),
        (transplant(donors("unigram"), init="omb"), 2, "did you mean 'omp'?"),
        (transplant(donors("unigram"), texts=str(tmp_path / "none.txt")), 2, "none.txt"),
    ]
    for place, (wrong, code, words_) in enumerate(cases):
        assert_one_line(refused(demo, tmp_path / str(place), wrong), code, words_)


def pieces_of(folder):
    """What the pieces of a SentencePiece tokenizer spell."""
    document = json.loads((folder / "tokenizer.json").read_text())
    return {piece.replace("▁", " ") for piece, _ in document["model"]["vocab"]}


def test_a_named_id_without_counterpart_is_refused_or_dropped_by_name(demo, donors, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(demo, base)
    config = config_of(demo)
    (base / "config.json").write_text(json.dumps({**config, "sep_token_id": 1000, "eos_token_id": [1, 1001]}))
    planned = graftkit.plan(recipe(base, tmp_path / "out", transplant(donors("unigram"))))
    assert planned.result.config["eos_token_id"][0] == 2
    assert (
        any("sep_token_id: was id 1000" in note for note in planned.notes)
        or planned.result.config["sep_token_id"] is not None
    )
    tokenizer, spelled = AutoTokenizer.from_pretrained(demo), pieces_of(donors("unigram"))
    lone = next(index for index in range(1999, 0, -1) if tokenizer.decode([index]) not in spelled)
    (base / "config.json").write_text(json.dumps({**config, "image_token_id": lone}))
    name = tokenizer.convert_ids_to_tokens(lone)
    with pytest.raises(InputRejected, match=f"image_token_id: names id {lone} .*{re.escape(name)}"):
        graftkit.plan(recipe(base, tmp_path / "out", transplant(donors("unigram"))))
    (base / "config.json").write_text(json.dumps(config))
    generation = {"bad_words_ids": [[lone]], "eos_token_id": 1}
    (base / "generation_config.json").write_text(json.dumps(generation))
    with pytest.raises(InputRejected, match="bad_words_ids: names id "):
        graftkit.plan(recipe(base, tmp_path / "out", transplant(donors("unigram"))))


def test_a_donor_without_a_class_for_its_tokenizer_is_refused(demo, tmp_path):
    documents = sources_of.unigram()
    del documents["tokenizer_config.json"]["tokenizer_class"], documents["config.json"]
    donor = sources_of.write(documents, tmp_path / "donor")
    with pytest.raises(InputRejected, match="names no tokenizer_class"):
        graftkit.plan(recipe(demo, tmp_path / "out", transplant(donor)))


def test_a_model_in_memory_gets_another_tokenizer(demo, donors, grafted):
    """What `graft` gives is what `apply` writes, and the tokenizer beside it is the donor's."""
    import transformers

    model, tokenizer = transformers.AutoModelForCausalLM.from_pretrained(demo), AutoTokenizer.from_pretrained(demo)
    made = {"version": 1, "operations": [transplant(donors("sentencepiece"))]}
    new, given, report = graftkit.graft(model, tokenizer, made)
    written = tables(grafted[0])
    assert all(new.state_dict()[name].equal(value) for name, value in written.items())
    assert given.get_vocab() == AutoTokenizer.from_pretrained(donors("sentencepiece")).get_vocab()
    assert given.chat_template == TEMPLATE
    assert (new.config.bos_token_id, new.config.pad_token_id, new.generation_config.eos_token_id) == (1, 3, 2)
    assert new.get_input_embeddings().weight.shape[0] == 900
    assert model.get_input_embeddings().weight.shape[0] == 2048
    assert {"transplanted", "texts"} <= {finding.name for finding in report.findings}


def test_planning_reads_no_weight_and_changes_nothing(demo, donors, tmp_path):
    planned = graftkit.plan(recipe(demo, tmp_path / "out", transplant(donors("sentencepiece"))))
    assert planned.promise.strength is PromiseClass.INTENTIONAL
    ids = planned.correspondence.ids
    assert ids is not None
    assert (ids.source, ids.result) == (2048, 900)
    assert len({*ids.kept}) == len(ids.kept)
    assert Checkpoint.open(str(demo)).documents["tokenizer.json"] == planned.source.documents["tokenizer.json"]


def test_texts_of_a_file_are_measured_on(demo, donors, tmp_path):
    (tmp_path / "texts.txt").write_text("The with statement is used to wrap the execution of a block.\n")
    _, report = applied(demo, tmp_path, transplant(donors("sentencepiece"), texts=str(tmp_path / "texts.txt")))
    found = report["checks"]["texts"]
    assert found["texts"] == 1
    assert found["bytes"] == 60


def test_an_error_names_its_field(demo, tmp_path):
    with pytest.raises(RecipeError, match=r"^operations\.0\.donor: "):
        graftkit.plan(recipe(demo, tmp_path / "out", transplant(demo)))
