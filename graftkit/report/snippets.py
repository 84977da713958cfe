"""Lines to paste into the common trainers' configs: for a checkpoint whose new rows stand in its base, or for an adapter.

transformers and TRL train every class; axolotl, LLaMA-Factory and unsloth only models that generate text; ms-swift those
and sequence classifiers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

#: How the names of the classes end that every trainer trains.
GENERATING = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


def trainer_snippets(
    output: str, architecture: str, modules: list[str], new_ids: list[int], labels: int, new_blocks: Sequence[str] = ()
) -> str:
    """Return what the trainers need to train from ``output``.

    ``modules`` are the last names of the modules with new rows, which peft's ``trainable_token_indices`` takes;
    ``labels`` is the number of a classifier's labels, ``new_blocks`` are the names of blocks that may be trained alone.
    """
    path = json.dumps(output)
    lines = [
        "# transformers Trainer, TRL",
        f"model = {architecture}.from_pretrained({path})",
        f"tokenizer = AutoTokenizer.from_pretrained({path})",
    ]
    if architecture.endswith(GENERATING):
        lines += ["# axolotl", f"base_model: {path}", "# LLaMA-Factory", f"model_name_or_path: {path}"]
    lines += _swift(path, architecture, labels)
    if new_ids and modules:
        rows = dict.fromkeys(sorted(set(modules)), new_ids)
        lines += ["# with peft's LoRA, so that the new rows learn", f"trainable_token_indices={json.dumps(rows)}"]
        lines += _for_trl(modules, architecture)
    return "\n".join([*lines, *_only(new_blocks, architecture)])


def _only(blocks: Sequence[str], architecture: str) -> Iterator[str]:
    """Yield what freezes everything but some blocks."""
    if not blocks:
        return
    yield "# to train the new blocks alone, all else frozen: transformers Trainer, TRL"
    yield f"new_blocks = ({', '.join(json.dumps(f'{block}.') for block in blocks)},)"
    yield "for name, parameter in model.named_parameters():"
    yield "    parameter.requires_grad = name.startswith(new_blocks)"
    if architecture.endswith(GENERATING):
        yield "# the same for axolotl"
        yield f"unfrozen_parameters: {json.dumps([f'^{re.escape(block)}[.]' for block in blocks])}"


def adapter_snippets(base: str, adapter: str, architecture: str, config: Mapping[str, Any], labels: int) -> str:
    """Return what the trainers need to go on training the prepared ``adapter`` on ``base``; none makes one of its own.

    ``config`` is adapter_config.json: another kind than LoRA goes through peft alone, and learnt prompts are only loaded;
    ``labels`` is the number of a classifier's labels.
    """
    path, prepared = json.dumps(base), json.dumps(adapter)
    if config["peft_type"] != "LORA":
        return _peft_alone(path, prepared, architecture, prompt="num_virtual_tokens" in config)
    modules = tuple(config.get("trainable_token_indices") or ())
    lines = [
        "# transformers Trainer, TRL (pass no peft_config)",
        f"model = {architecture}.from_pretrained({path})",
        f"model = PeftModel.from_pretrained(model, {prepared}, is_trainable=True)",
        *_for_trl(modules, architecture),
    ]
    if architecture.endswith(GENERATING):
        lines += [
            "# axolotl",
            f"base_model: {path}",
            "adapter: lora",
            f"lora_model_dir: {prepared}",
            "# LLaMA-Factory",
            f"model_name_or_path: {path}",
            "finetuning_type: lora",
            f"adapter_name_or_path: {prepared}",
            "# unsloth, which would load the base in 4 bits",
            f"model, tokenizer = FastLanguageModel.from_pretrained({prepared}, load_in_4bit=False)",
        ]
    return "\n".join([*lines, *_swift(path, architecture, labels, f" --adapters {prepared}")])


def _peft_alone(path: str, prepared: str, architecture: str, *, prompt: bool) -> str:
    what = (
        "# peft loads learnt prompts for inference alone"
        if prompt
        else "# transformers Trainer, TRL (pass no peft_config)"
    )
    trainable = "" if prompt else ", is_trainable=True"
    load = f"model = PeftModel.from_pretrained(model, {prepared}{trainable})"
    return "\n".join([what, f"model = {architecture}.from_pretrained({path})", load])


def _swift(path: str, architecture: str, labels: int, more: str = "") -> Iterator[str]:
    if architecture.endswith((*GENERATING, "ForSequenceClassification")):
        task = "" if architecture.endswith(GENERATING) else f" --task_type seq_cls --num_labels {labels}"
        yield "# ms-swift"
        yield f"swift sft --model {path}{task}{more}"


def _for_trl(modules: Sequence[str], architecture: str) -> Iterator[str]:
    """Yield what TRL 1.16 needs: it reads the bias of the output table, which peft's wrapper of single rows does not show."""
    if modules and architecture.endswith(GENERATING):
        yield "# TRL, where the output table is one of those whose new rows are trained"
        yield "model.get_output_embeddings().bias = None"
