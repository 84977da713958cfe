"""Lines to paste into the common trainers' configs: for a checkpoint whose new rows stand in its base, or for an adapter.

transformers and TRL train every class; LLaMA-Factory and unsloth only models that generate text; axolotl those and reward models;
ms-swift those and sequence classifiers. Where a trainer would do something else than its lines say, a comment says so.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from graftkit.checkpoint.value_head import FILE as VALUE_HEAD

#: So many ids are listed one by one.
LISTED = 10

#: How the names of the classes end that every trainer trains.
GENERATING = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")

#: How those end that give labels of a text, or its reward.
CLASSIFIER = "ForSequenceClassification"

#: How those end whose head gives labels or places of a text.
OF_TEXTS = (CLASSIFIER, "ForTokenClassification", "ForQuestionAnswering", "ForMultipleChoice")

#: A standard deviation that no loss sees, as a recipe writes it: YAML reads 1e-4 as text.
SMALL_STD = "1.0e-4"


@dataclass(frozen=True, slots=True)
class Written:
    """What trainers have to know of a checkpoint that was written.

    ``modules`` are the last names of the modules with new rows, which peft's ``trainable_token_indices`` takes, and ``new_ids`` the ids
    of the rows; ``labels`` is the number of a classifier's labels. ``zero_head`` says that its head is zero, ``sentences`` that the
    folder is one of sentence-transformers, ``value_head`` that a value head lies beside the model; ``new_blocks`` are the names of
    blocks that may be trained alone.
    """

    architecture: str
    modules: tuple[str, ...] = ()
    new_ids: tuple[int, ...] = ()
    labels: int = 2
    zero_head: bool = False
    sentences: bool = False
    new_blocks: tuple[str, ...] = ()
    value_head: bool = False


def trainer_snippets(output: str | None, written: Written) -> str:
    """Return what the trainers need to train from ``output``, which is None where the model is in memory."""
    lines = [] if output is None else list(_loading(json.dumps(output), written))
    if written.new_ids and written.modules:
        lines += _for_new_rows(written)
        lines += _for_trl(written.modules, written.architecture)
    return "\n".join([*lines, *_only(written.new_blocks, written.architecture)])


def dcp_snippet(output: str) -> str:
    """Return what reads a DCP folder into a model of a trainer."""
    return "\n".join(
        (
            "# torch.distributed.checkpoint; the names are those of the state dict of transformers' class",
            "state = model.state_dict()",
            f"torch.distributed.checkpoint.load(state, checkpoint_id={json.dumps(output)})",
            "model.load_state_dict(state)",
        )
    )


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


def _loading(path: str, written: Written) -> Iterator[str]:
    architecture = written.architecture
    if written.sentences:
        yield from ("# sentence-transformers", f"model = SentenceTransformer({path})")
    yield "# transformers Trainer, TRL"
    yield f"model = {architecture}.from_pretrained({path})"
    yield f"tokenizer = AutoTokenizer.from_pretrained({path})"
    if architecture.endswith(GENERATING):
        yield from ("# axolotl", f"base_model: {path}", "# LLaMA-Factory", f"model_name_or_path: {path}")
        if written.value_head:
            yield from _for_a_value_head(path)
    elif architecture.endswith(OF_TEXTS):
        yield from _for_a_reward(path, written)
        yield "# LLaMA-Factory reads this as a model that generates text, with a head of random values: it has no lines for it"
        if architecture.endswith(CLASSIFIER) and written.labels == 1:
            yield "# (it trains rewards on a value head beside lm_head, which replace_head makes with task: value_head)"
    yield from _swift(path, architecture, written.labels)


def _for_a_value_head(path: str) -> Iterator[str]:
    """Yield what reads value_head.safetensors: LLaMA-Factory by itself, TRL not."""
    yield "stage: rm"
    yield f"# or stage: ppo with reward_model: {path} and reward_model_type: full; both read {VALUE_HEAD} of the folder, but with"
    yield f"# adapter_name_or_path that of the adapter's folder: copy {VALUE_HEAD} there"
    yield "# TRL's value-head models, which 1.16 has no more, do not read it by themselves"
    yield f"model = AutoModelForCausalLMWithValueHead.from_pretrained({path})"
    yield f'model.load_state_dict(safetensors.torch.load_file({path} + "/{VALUE_HEAD}"), strict=False)'


def _for_a_reward(path: str, written: Written) -> Iterator[str]:
    """Yield axolotl's lines for a reward model, which is the one classifier that it trains."""
    if written.labels != 1 or not written.architecture.endswith(CLASSIFIER):
        return
    yield from ("# axolotl", f"base_model: {path}", "model_type: AutoModelForSequenceClassification", "num_labels: 1")
    yield "reward_model: true"
    if written.zero_head:
        yield "# axolotl takes a head of zeros for one that was not loaded, and draws another; one that is not zero it keeps, such as"
        yield f"# init: {{scheme: normal, std: {SMALL_STD}}} of replace_head"


def _for_new_rows(written: Written) -> Iterator[str]:
    """Yield how the new rows are trained beside a LoRA, by peft's name for it and by axolotl's."""
    rows = ", ".join(f"{json.dumps(name)}: {ids_in_python(written.new_ids)}" for name in sorted(set(written.modules)))
    yield f"# with peft's LoRA, so that the new rows learn: {_peft_for_rows(len(set(written.modules)) > 1)}"
    yield f"trainable_token_indices={{{rows}}}"
    if written.architecture.endswith(GENERATING):
        yield "# axolotl calls it peft_trainable_token_indices; LLaMA-Factory trains whole tables: additional_target"


def _peft_for_rows(several: bool) -> str:
    return f"peft {'0.18' if several else '0.15'} or later{', for those of an output table of its own' * several}"


def ids_in_python(ids: Sequence[int]) -> str:
    """Ascending ids as a list of Python: one by one where they are few, else ids in a row as a range."""
    if len(ids) <= LISTED:
        return json.dumps(list(ids))
    parts = []
    for _, group in itertools.groupby(enumerate(ids), lambda item: item[1] - item[0]):
        run = [index for _, index in group]
        parts.append(str(run[0]) if len(run) == 1 else f"*range({run[0]}, {run[-1] + 1})")
    return f"[{', '.join(parts)}]"


def adapter_snippets(
    base: str, adapter: str, architecture: str, config: Mapping[str, Any], labels: int, *, value_head: bool = False
) -> str:
    """Return what the trainers need to go on training the prepared ``adapter`` on ``base``; none makes one of its own.

    ``config`` is adapter_config.json: another kind than LoRA goes through peft alone, and learnt prompts are only loaded;
    ``labels`` is the number of a classifier's labels, and ``value_head`` says that a value head lies beside the base.
    """
    path, prepared = json.dumps(base), json.dumps(adapter)
    if config["peft_type"] != "LORA":
        return _peft_alone(path, prepared, architecture, prompt="num_virtual_tokens" in config)
    indices = config.get("trainable_token_indices") or ()
    modules = tuple(indices)
    lines = [
        *(
            [f"# its trained rows need {_peft_for_rows(isinstance(indices, Mapping) and len(indices) > 1)}"]
            if indices
            else []
        ),
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
            *(
                [f"# with stage: rm or ppo it reads {VALUE_HEAD} of that folder: copy the base's there"]
                if value_head
                else []
            ),
            "# unsloth, which would load the base in 4 bits",
            f"model, tokenizer = FastLanguageModel.from_pretrained({prepared}, load_in_4bit=False)",
        ]
    lines += _swift(path, architecture, labels, f" --adapters {prepared}")
    return "\n".join([*lines, *_for_servers(config, architecture)])


def _for_servers(config: Mapping[str, Any], architecture: str) -> Iterator[str]:
    """Yield that an adapter has to be merged for serving, where it holds more than vLLM and llama.cpp take of one."""
    beyond = {
        "DoRA": config.get("use_dora"),
        "trained rows": config.get("trainable_token_indices"),
        "modules that are saved whole": config.get("modules_to_save"),
    }
    held = [what for what, there in beyond.items() if there]
    if held and architecture.endswith(GENERATING):
        yield f"# after training, merge it with merge_adapter: vLLM and llama.cpp take no {' and no '.join(held)} from an adapter"
        if config.get("trainable_token_indices"):
            yield "# (axolotl's merge-lora drops the trained rows)"


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
    if architecture.endswith((*GENERATING, CLASSIFIER)):
        task = "" if architecture.endswith(GENERATING) else f" --task_type seq_cls --num_labels {labels}"
        yield "# ms-swift"
        yield f"swift sft --model {path}{task}{more}"


def _for_trl(modules: Sequence[str], architecture: str) -> Iterator[str]:
    """Yield what TRL 1.16 needs: it reads the bias of the output table, which peft's wrapper of single rows does not show."""
    if modules and architecture.endswith(GENERATING):
        yield "# TRL, where the output table is one of those whose new rows are trained"
        yield "model.get_output_embeddings().bias = None"
