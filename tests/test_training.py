"""One recipe gives a base with new rows and an adapter beside it; trainers train it, it is merged, and it loads without peft."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file

import graftkit

pytestmark = pytest.mark.numerical

ROOT = Path(__file__).parent.parent
STEPS = 20
TOOLS = ["<|tool_call|>", "<|tool_result|>"]
LABELS = ["files", "network", "other"]
VOCABULARY = {"op": "extend_vocab", "special_tokens": TOOLS, "roles": {"pad_token": "<|pad|>"}}
HEAD = {"op": "replace_head", "task": "sequence_classification", "labels": LABELS, "init": "zeros"}
LORA = {"op": "add_lora", "r": 8, "lora_alpha": 16}


def made(place, *operations):
    recipe = {"version": 1, "base_model": str(ROOT / "recipes/models/demo-lm"), "operations": list(operations)}
    return graftkit.apply({**recipe, "output": str(place / "out")})


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    place = tmp_path_factory.mktemp("language-model")
    return place / "out", made(place, VOCABULARY, LORA)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    place = tmp_path_factory.mktemp("classifier")
    return place / "out", made(place, VOCABULARY, HEAD, LORA)


def loaded(output, kind):
    tokenizer = transformers.AutoTokenizer.from_pretrained(output)
    model = getattr(transformers, kind).from_pretrained(output)
    return tokenizer, PeftModel.from_pretrained(model, output / "adapter", is_trainable=True)


def settings(place, kind=transformers.TrainingArguments, **fields):
    return kind(
        output_dir=str(place / "run"), max_steps=STEPS, per_device_train_batch_size=4, learning_rate=1e-2, report_to=[],
        save_strategy="no", disable_tqdm=True, use_cpu=True, bf16=False, seed=0, logging_strategy="no", **fields,
    )  # fmt: skip


def calls():
    return [f"{TOOLS[0]} read the file {n} {TOOLS[1]} it has {n} lines" for n in range(24)]


def merged(output, place):
    """Merge what was trained by the real command line; return its folder."""
    recipe = {"version": 1, "base_model": str(output), "output": str(place / "merged")}
    recipe["operations"] = [{"op": "merge_adapter", "adapter": str(place / "trained")}]
    (place / "merge.yaml").write_text(json.dumps(recipe))
    command = [sys.executable, "-m", "graftkit", "apply", str(place / "merge.yaml")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return place / "merged"


def rows_of(folder, new):
    """Old and new rows of the tables, by name."""
    tensors = load_file(folder / "model.safetensors")
    tables = {name: tensors[name] for name in ("model.embed_tokens.weight", "lm_head.weight") if name in tensors}
    old = [row for row in range(2048) if row not in new]
    return {name: (table[old], table[sorted(new)]) for name, table in tables.items()}


def check_rows(before, after, new, trained):
    """Every old row is as it was, to the bit; every one of ``trained`` has moved in every table."""
    for name, (old, fresh) in rows_of(before, new).items():
        kept, learned = rows_of(after, new)[name]
        assert torch.equal(old.view(torch.int16), kept.view(torch.int16))
        moved = dict(zip(sorted(new), (fresh != learned).any(1).tolist(), strict=True))
        assert all(moved[row] for row in trained), (name, moved)


def test_trl_s_sft_trains_the_new_rows_and_the_merged_model_needs_no_peft(language_model, tmp_path):
    output, report = language_model
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    before = {path.name: path.read_bytes() for path in output.glob("*.safetensors")}
    tokenizer, model = loaded(output, "AutoModelForCausalLM")
    line = next(line for line in report.snippets.splitlines() if line.startswith("model.get_output_embeddings()"))
    exec(line, {"model": model})  # noqa: S102 - the line that users are told to paste
    trainer = trl.SFTTrainer(
        model, args=settings(tmp_path, trl.SFTConfig, max_length=64), processing_class=tokenizer,
        train_dataset=datasets.Dataset.from_dict({"text": calls()}),
        eval_dataset=datasets.Dataset.from_dict({"text": calls()[:8]}),
    )  # fmt: skip
    start = trainer.evaluate()["eval_loss"]
    assert trainer.train().global_step == STEPS
    end = trainer.evaluate()["eval_loss"]
    assert end < start / 3
    trainer.save_model(str(tmp_path / "trained"))
    assert {path.name: path.read_bytes() for path in output.glob("*.safetensors")} == before
    new = {report.plan.new_tokens[token]: token for token in (*TOOLS, "<|pad|>")}
    check_rows(output, merged(output, tmp_path), set(new), [row for row, token in new.items() if token in TOOLS])
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    ids = tokenizer(calls()[:8], padding=True, return_tensors="pt")
    labels = ids["input_ids"].masked_fill(ids["attention_mask"] == 0, -100)
    with torch.no_grad():
        assert float(plain(**ids, labels=labels).loss) == pytest.approx(end, rel=0.25)


def test_trl_stops_at_the_wrapped_output_table_without_the_printed_line(language_model, tmp_path):
    output, _ = language_model
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    tokenizer, model = loaded(output, "AutoModelForCausalLM")
    trainer = trl.SFTTrainer(
        model, args=settings(tmp_path, trl.SFTConfig, max_length=64), processing_class=tokenizer,
        train_dataset=datasets.Dataset.from_dict({"text": calls()}),
    )  # fmt: skip
    with pytest.raises(AttributeError, match="bias"):
        trainer.train()


class Rows(torch.utils.data.Dataset):
    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


def test_the_trainer_trains_new_rows_head_and_adapter_and_they_merge(classifier, tmp_path):
    output, report = classifier
    tokenizer, model = loaded(output, "AutoModelForSequenceClassification")
    model.config.use_cache = False
    texts = ["{} open the file {n}", "{} connect to the host {n}", "{} a tuple of {n}"]
    rows = [{**tokenizer(texts[n % 3].format(TOOLS[n % 2], n=n)), "labels": n % 3} for n in range(24)]
    trainer = transformers.Trainer(
        model, settings(tmp_path), train_dataset=Rows(rows), eval_dataset=Rows(rows), processing_class=tokenizer,
        data_collator=transformers.DataCollatorWithPadding(tokenizer),
    )  # fmt: skip
    assert trainer.evaluate()["eval_loss"] == pytest.approx(math.log(3), abs=1e-2)
    assert trainer.train().global_step == STEPS
    end = trainer.evaluate()["eval_loss"]
    assert end < math.log(3) / 3
    trainer.save_model(str(tmp_path / "trained"))
    keys = load_file(tmp_path / "trained/adapter_model.safetensors").keys()
    assert keys == load_file(output / "adapter/adapter_model.safetensors").keys()
    new = {report.plan.new_tokens[token] for token in (*TOOLS, "<|pad|>")}
    check_rows(output, merged(output, tmp_path), new, [report.plan.new_tokens[token] for token in TOOLS])
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    batch = tokenizer.pad([{k: v for k, v in row.items() if k != "labels"} for row in rows], return_tensors="pt")
    with torch.no_grad():
        found = plain(**batch, labels=torch.tensor([row["labels"] for row in rows])).loss
    assert float(found) == pytest.approx(end, abs=0.1)


def test_the_printed_lines_name_what_was_written(language_model, classifier):
    output, report = language_model
    adapter = json.dumps(str(output / "adapter"))
    for line in (
        f"model = PeftModel.from_pretrained(model, {adapter}, is_trainable=True)", "adapter: lora",
        f"lora_model_dir: {adapter}", "finetuning_type: lora", f"adapter_name_or_path: {adapter}",
        f'swift sft --model "{output}" --adapters {adapter}',
        f"model, tokenizer = FastLanguageModel.from_pretrained({adapter}, load_in_4bit=False)",
    ):  # fmt: skip
        assert line in report.snippets.splitlines()
    output, report = classifier
    assert "get_output_embeddings" not in report.snippets
    assert "lora_model_dir" not in report.snippets
    assert (
        f'swift sft --model "{output}" --task_type seq_cls --num_labels 3 --adapters "{output}/adapter"'
        in report.snippets
    )
