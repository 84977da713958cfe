"""Adapters that were really trained: by transformers' Trainer or TRL's SFTTrainer, on text that ships with the project."""

import contextlib
import io
import json
import shutil
import warnings
from dataclasses import dataclass, field
from pathlib import Path

from support.tiny import build

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "recipes" / "models" / "demo-lm"
TEXTS = ROOT / "recipes" / "examples" / "docstrings.jsonl"

#: Longest text in tokens, and texts in a batch.
LENGTH, BATCH = 32, 4


@dataclass(frozen=True)
class Training:
    """What is trained, and how.

    ``config`` holds fields of LoraConfig, ``whole`` trains the model itself; ``narrow`` factors are held and stored in the base's
    dtype. ``epsilon`` is Adam's: at its default, float16 rounds it to zero.
    """

    class_name: str = "demo"
    dtype: str = "bfloat16"
    config: dict = field(default_factory=dict)
    rate: float = 1e-4
    steps: int = 20
    trainer: str = "Trainer"
    narrow: bool = False
    epsilon: float = 1e-8
    whole: bool = False


@dataclass(frozen=True)
class Trained:
    """Folders of a base and of what was trained on it: an adapter, or with ``whole`` a fine-tuned checkpoint."""

    base: Path
    adapter: Path
    class_name: str


def make_base(class_name, dtype, directory):
    """Write the demo model or a small random one in ``dtype``; return the name of its class."""
    import torch
    import transformers

    if class_name != "demo":
        build(class_name, directory, dtype=dtype)
        return class_name
    if dtype == "bfloat16":
        shutil.copytree(DEMO, directory)
        return "LlamaForCausalLM"
    model = transformers.AutoModelForCausalLM.from_pretrained(DEMO, dtype=getattr(torch, dtype))
    model.save_pretrained(directory)
    for path in DEMO.glob("tokenizer*"):
        shutil.copy(path, directory)
    return "LlamaForCausalLM"


def train(training, directory, base=None):
    """Train on ``base``, made at ``directory/base`` unless given, and save what was trained at ``directory/trained``.

    The random numbers are the same each time; what the trainer prints is swallowed.
    """
    import torch
    import transformers

    directory = Path(directory)
    if base is None:
        base = directory / "base"
        make_base(training.class_name, training.dtype, base)
    name = json.loads((base / "config.json").read_text())["architectures"][0]
    with _quiet(), torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, name).from_pretrained(base)
        model.config.use_cache = False
        if model.config.is_encoder_decoder:
            model.config.decoder_start_token_id = 0
        if not training.whole:
            model = _adapted(model, training)
        trainer = _trainer(model, training, base, directory)
        trainer.train()
        model.config.use_cache = True
        trainer.save_model(str(directory / "trained"))
    return Trained(base, directory / "trained", name)


def _adapted(model, training):
    from peft import LoraConfig, get_peft_model

    tasks = {"CausalLM": "CAUSAL_LM", "SequenceClassification": "SEQ_CLS", "ConditionalGeneration": "SEQ_2_SEQ_LM"}
    task = next((task for ending, task in tasks.items() if type(model).__name__.endswith(ending)), None)
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, "task_type": task, **training.config})
    return get_peft_model(model, config, autocast_adapter_dtype=not training.narrow)


def _trainer(model, training, base, directory):
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.convert_ids_to_tokens(0)
    entries = [json.loads(line) for line in TEXTS.read_text().splitlines()]
    settings = {
        "output_dir": str(directory / "run"), "max_steps": training.steps, "learning_rate": training.rate,
        "per_device_train_batch_size": BATCH, "report_to": [], "save_strategy": "no", "disable_tqdm": True,
        "use_cpu": True, "seed": 0, "logging_strategy": "no", "adam_epsilon": training.epsilon, "bf16": False,
    }  # fmt: skip
    if training.trainer == "SFTTrainer":
        import datasets
        import trl

        datasets.disable_progress_bars()
        return trl.SFTTrainer(
            model, trl.SFTConfig(**settings, max_length=LENGTH), processing_class=tokenizer,
            train_dataset=datasets.Dataset.from_dict({"text": [entry["text"] for entry in entries]}),
        )  # fmt: skip
    kind = type(model.get_base_model() if hasattr(model, "peft_config") else model).__name__
    rows, collate = _examples(kind, entries, tokenizer)
    return transformers.Trainer(
        model, transformers.TrainingArguments(**settings), train_dataset=rows, processing_class=tokenizer,
        data_collator=collate,
    )  # fmt: skip


def _examples(kind, entries, tokenizer):
    """A list of examples, and what makes batches of them, for a class of this name."""
    import transformers

    rows = [dict(tokenizer(entry["text"], truncation=True, max_length=LENGTH)) for entry in entries]
    for row in rows:
        row.pop("token_type_ids", None)
    if kind.endswith("SequenceClassification"):
        labels = sorted({entry["label"] for entry in entries})
        labelled = [
            {**row, "labels": labels.index(entry["label"]) % 2} for row, entry in zip(rows, entries, strict=True)
        ]
        return labelled, transformers.DataCollatorWithPadding(tokenizer)
    if kind.endswith("ForConditionalGeneration"):
        return [{**row, "labels": row["input_ids"]} for row in rows], transformers.DataCollatorForSeq2Seq(tokenizer)
    if kind.endswith("MaskedLM"):
        tokenizer.mask_token = tokenizer.mask_token or tokenizer.convert_ids_to_tokens(3)
        return rows, transformers.DataCollatorForLanguageModeling(tokenizer, seed=0)
    return rows, transformers.DataCollatorForLanguageModeling(tokenizer, mlm=False)


def other_tensors(made):
    """Names of the tensors that training changed and that are no linear's weight."""
    from safetensors.torch import load_file

    before, after = (load_file(folder / "model.safetensors") for folder in (made.base, made.adapter))
    linear = ("proj.weight", "lm_head.weight", "c_attn.weight", "c_fc.weight", "c_proj.weight")
    return [name for name, value in before.items() if not name.endswith(linear) and not value.equal(after[name])]


@contextlib.contextmanager
def _quiet():
    import datasets
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity(50)
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
