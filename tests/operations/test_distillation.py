"""Token distillation: input rows fitted to texts bring hidden states nearer to those behind the old tokens than the subword mean does."""

import json
import re
import shutil
from collections import Counter

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.command import assert_one_line, here
from support.donors import corpus, write_donor
from support.quantized import quantized
from support.recipes import applied, recipe
from transformers import AutoModelForCausalLM, AutoTokenizer

import graftkit
from graftkit import engine
from graftkit.checkpoint.reading import read_tensor
from graftkit.errors import InputRejected, RecipeError
from graftkit.initializers.row_descent import RowDescent

INPUT, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Paragraphs of the documentation that the demo model was trained on, a text a line."""
    paragraphs = [" ".join(part.split()) for text in corpus() for part in text.split("\n\n") if len(part) > 200]
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_text("\n".join(paragraphs[::4][:190]) + "\n")
    return path


@pytest.fixture(scope="module")
def words(texts, demo):
    """The two words that stand there most often among those that the demo model has no token for."""
    tokenizer = AutoTokenizer.from_pretrained(demo)
    counts = Counter(re.findall(r"[a-z]{6,}", texts.read_text()))
    new = (word for word, _ in counts.most_common() if word not in tokenizer.get_vocab())
    return [word for word in new if len(tokenizer.tokenize(f" {word}")) > 2][:2]


def distill(texts, **fields):
    return {"scheme": "distill", "texts": str(texts), **fields}


@pytest.fixture(scope="module")
def donor(tmp_path_factory):
    return write_donor("sentencepiece", tmp_path_factory.mktemp("donor") / "donor", tokens=2000)


def transplant(donor, init):
    return {"op": "transplant_tokenizer", "donor": str(donor), "init": init}


@pytest.fixture(scope="module")
def distilled(demo, donor, texts, tmp_path_factory):
    """The output, the report, and the plan that was written."""
    output = tmp_path_factory.mktemp("distilled") / "out"
    planned = engine.plan(recipe(demo, output, transplant(donor, distill(texts))))
    engine.execute(planned)
    return output, json.loads((output / "graft_report.json").read_text()), planned


def held_out_topics():
    """Text of the demo model's kind that neither it nor the rows were trained on, in parts of two hundred letters."""
    from train_demo_model import texts as all_texts

    flat = " ".join(" ".join(all_texts()[1]).split())
    return [flat[start : start + 200] for start in range(0, len(flat) - 200, 200)]


def mean_distance(base, folder, rows):
    """Mean distance of last hidden states where both tokenizers end at the same letter, by transformers alone.

    ``rows`` take the place of the input table in ``folder``.
    """
    sides = []
    for place in (base, folder):
        model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval()
        sides.append((model, AutoTokenizer.from_pretrained(place)))
    sides[1][0].get_input_embeddings().weight.data = rows.float()
    found = []
    for text in held_out_topics():
        ends, states = [], []
        for model, tokenizer in sides:
            split = tokenizer(text, return_offsets_mapping=True, return_tensors="pt")
            ends.append({int(end): place for place, (_, end) in enumerate(split["offset_mapping"][0]) if end})
            with torch.no_grad():
                states.append(model(split["input_ids"], output_hidden_states=True).hidden_states[-1][0])
        both = sorted(ends[0].keys() & ends[1].keys())
        places = [[one[end] for end in both] for one in ends]
        found.append((states[0][places[0]] - states[1][places[1]]).norm(dim=1))
    return float(torch.cat(found).mean())


def test_hidden_states_on_held_out_texts_are_nearer_than_with_subword_means(distilled, demo, donor, tmp_path):
    output, _, _ = distilled
    planned = graftkit.plan(recipe(demo, tmp_path / "out", transplant(donor, "fvt")))
    means, fitted = read_tensor(planned.result.tensors[INPUT]), load_file(output / "model.safetensors")[INPUT]
    assert mean_distance(demo, output, fitted) < mean_distance(demo, output, means)


def test_output_rows_and_shared_rows_are_those_of_fvt(distilled, demo, donor, tmp_path):
    output, report, _ = distilled
    planned = graftkit.plan(recipe(demo, tmp_path / "out", transplant(donor, "fvt")))
    written = load_file(output / "model.safetensors")
    assert written[OUTPUT].equal(read_tensor(planned.result.tensors[OUTPUT]))
    moved = (written[INPUT] != read_tensor(planned.result.tensors[INPUT])).any(1)
    figures = report["figures"]["operations.0.transplant_tokenizer"]["distilled"]
    assert 0 < int(moved.sum()) <= figures["tokens"] - figures["not_seen"]


def test_the_report_says_how_far_states_were_and_are(distilled):
    output, report, _ = distilled
    figures = report["figures"]["operations.0.transplant_tokenizer"]["distilled"]
    assert figures["distance_after"]["fitted"] < figures["distance_before"]["fitted"]
    assert figures["distance_after"]["held_out"] < figures["distance_before"]["held_out"]
    check = report["checks"]["distilled"]
    assert check["start"] == figures["distance_before"]["held_out"]
    # the written rows are rounded to bfloat16, which moves states by about as much of their size
    assert check["distance"] == pytest.approx(figures["distance_after"]["held_out"], rel=2.0**-4)
    assert report["promise"]["strength"] == "intentional"
    done = here("report", output)
    assert done.returncode == 0, done.stderr
    assert "hidden states behind new tokens" in (output / "graft_report.html").read_text()


def test_rows_that_were_not_fitted_are_caught(distilled, tmp_path):
    """The fitted rows one place further on: states are further away than with subword means."""
    output, _, planned = distilled
    broken = tmp_path / "broken"
    shutil.copytree(output, broken)
    tensors = load_file(broken / "model.safetensors")
    save_file(
        {**tensors, INPUT: tensors[INPUT].roll(1, 0).contiguous()}, broken / "model.safetensors", {"format": "pt"}
    )
    check = next(check for check in planned.outcomes[0].checks if check.name == "distilled")
    clean, found = (check.run(engine.subject_of(planned, folder)) for folder in (output, broken))
    assert clean.failures == ()
    assert "would be" in found.failures[0]
    document = json.loads((broken / "tokenizer.json").read_text())
    document["model"]["merges"] = document["model"]["merges"][:-50]
    (broken / "tokenizer.json").write_text(json.dumps(document))
    assert "is split otherwise" in check.run(engine.subject_of(planned, broken)).failures[0]


def rows_of(planned):
    return read_tensor(planned.result.tensors[INPUT])


def test_the_same_seed_gives_the_same_bits_under_any_number_of_threads(demo, texts, words, tmp_path):
    made = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            init = distill(texts, snippets_per_token=16)
            operation = {"op": "extend_vocab", "tokens": words, "init": init}
            made.append(rows_of(engine.plan(recipe(demo, tmp_path / "out", operation))))
    finally:
        torch.set_num_threads(before)
    assert made[0].equal(made[1])


@pytest.mark.parametrize(
    "operation",
    [
        pytest.param(
            {"op": "extend_vocab", "special_tokens": [{"content": "<|x|>", "init": "mean"}]}, marks=pytest.mark.slow
        ),
        {"op": "learn_tokens", "size": 12},
    ],
    ids=lambda operation: operation["op"],
)
def test_new_tokens_of_other_operations_are_fitted_too(operation, demo, texts, words, tmp_path):
    own = {"texts": str(texts)} if operation["op"] == "learn_tokens" else {"tokens": words}
    init = distill(texts, snippets_per_token=16)
    _, report = applied(demo, tmp_path, {**operation, **own, "init": init})
    assert report["promise"]["measured"] == report["promise"]["strength"] == "bitwise"
    figures = report["figures"][f"operations.0.{operation['op']}"]["distilled"]
    assert figures["tokens"] == (2 if operation["op"] == "extend_vocab" else 12)
    assert report["checks"]["distilled"]["distance"] < report["checks"]["distilled"]["start"]


def test_rows_of_an_encoder_are_fitted(sources, tmp_path):
    """A small BERT with random weights and few positions reads snippets between its [CLS] and [SEP]; its head's bias is behind them."""
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(f"the tool {'and a tool ' * (place % 4)}calls the tool box" for place in range(40)))
    operation = {"op": "extend_vocab", "tokens": ["tool"], "init": distill(path, snippet_len=200, epochs=4)}
    output, report = applied(sources("bert"), tmp_path, operation)
    check = report["checks"]["distilled"]
    assert check["snippets"] >= 4
    assert check["distance"] < check["start"]
    before, after = (
        load_file(place / "model.safetensors")["cls.predictions.bias"] for place in (sources("bert"), output)
    )
    old, new = (AutoTokenizer.from_pretrained(place) for place in (sources("bert"), output))
    pieces = old.encode("tool", add_special_tokens=False)
    assert after[new.convert_tokens_to_ids("tool")] == before.double()[pieces].mean().float()


def test_what_cannot_be_run_or_fitted_is_refused(demo, texts, words, sources, tmp_path):
    def refused(error, message, source, init, tokens=("zqxy",)):
        operation = {"op": "extend_vocab", "tokens": list(tokens), "init": init}
        with pytest.raises(error, match=message):
            engine.prepare(engine.plan(recipe(source, tmp_path / "out", operation)), None)

    refused(InputRejected, "T5ForConditionalGeneration is an encoder-decoder", sources("t5"), distill(texts))
    refused(InputRejected, "distill needs plain weights", quantized(demo, tmp_path / "packed", "gptq"), distill(texts))
    refused(RecipeError, r"operations\.0\.init\.texts: .*nothing\.txt", demo, distill(tmp_path / "nothing.txt"))
    refused(
        RecipeError,
        r"operations\.0\.init\.texts: .*has 0 snippets with a token whose row is fitted",
        demo,
        distill(texts),
    )
    wild = distill(texts, learning_rate=1e3, snippets_per_token=4, epochs=1)
    refused(RecipeError, r"operations\.0\.init: .*a lower learning_rate", demo, wild, words)


def test_the_scheme_is_one_of_whole_operations(demo, texts, tmp_path):
    path = tmp_path / "recipe.json"
    token = {"content": "zqx", "init": distill(texts)}
    path.write_text(json.dumps(recipe(demo, tmp_path / "out", {"op": "extend_vocab", "tokens": [token]})))
    assert_one_line(here("validate", path), 2, "unknown scheme 'distill'")


def test_each_row_has_steps_of_its_own():
    """As torch's Adam on each row alone, whatever the others do."""
    start = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    target = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
    rows = start.clone()
    descent = RowDescent(rows, 0.1)
    for number in range(9):
        places = torch.tensor([0, 2] if number % 3 else [0])
        descent.step(places, rows[places] - target[places])
    wanted = start.clone()
    for place, steps in ((0, 9), (2, 6)):
        row = torch.nn.Parameter(start[place].clone())
        adam = torch.optim.Adam([row], lr=0.1)
        for _ in range(steps):
            row.grad = row.detach() - target[place]
            adam.step()
        wanted[place] = row.detach()
    torch.testing.assert_close(rows, wanted, rtol=1e-5, atol=1e-6)
    assert rows[1].equal(start[1])
