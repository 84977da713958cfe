"""What peft calls a model's task, and the modules that a classifier's head is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graftkit.architecture.skeleton import Skeleton

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

#: peft's task type -> transformers' mapping of the classes that it stands for.
TASKS = {
    "CAUSAL_LM": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "SEQ_2_SEQ_LM": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "SEQ_CLS": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "TOKEN_CLS": "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
    "QUESTION_ANS": "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",
}


def task_type(architecture: str) -> str | None:
    """The task type of a class as peft names it; None where peft has no name, and a plain PeftModel serves."""
    from transformers.models.auto import modeling_auto

    for task, mapping in TASKS.items():
        for names in getattr(modeling_auto, mapping).values():
            if architecture in ((names,) if isinstance(names, str) else names):
                return task
    return None


def head_modules(skeleton: Skeleton) -> tuple[str, ...]:
    """Names in memory of the modules of a head that is no language model's: what lies outside the base model.

    Empty for base models and for classes with an output embedding.
    """
    from graftkit.architecture.embeddings import OUTPUT

    model: PreTrainedModel = skeleton.model
    inner = getattr(model, model.base_model_prefix, None)
    if inner is None or skeleton.embedding(OUTPUT) is not None:
        return ()
    children = ((name, child) for name, child in model.named_children() if child is not inner)
    return tuple(name for name, child in children if any(True for _ in child.parameters()))


def towers(skeleton: Skeleton) -> tuple[str, ...]:
    """Names of the models inside that read images or sound: their config is neither the whole's nor the text's."""
    import torch
    from transformers import PreTrainedModel

    config = skeleton.model.config
    known = (type(config), type(config.get_text_config()))
    found: list[str] = []
    for name, module in skeleton.model.named_modules():
        if not isinstance(module, PreTrainedModel) or type(module.config) in known:
            continue
        try:
            reads_text = isinstance(module.get_input_embeddings(), torch.nn.Embedding)
        except (NotImplementedError, AttributeError):
            reads_text = False
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if not inside and not (reads_text and module.main_input_name == "input_ids"):
            found.append(name)
    return tuple(found)


def find_routers(model: PreTrainedModel) -> tuple[str, ...]:
    """Names of the modules that have one output for each expert beside them."""
    found = []
    for path, owner in model.named_modules():
        counts = {name: _experts(child) for name, child in owner.named_children()}
        if not any(counts.values()):
            continue
        for name, child in owner.named_children():
            weight = getattr(child, "weight", None)
            beside = set().union(*(held for other, held in counts.items() if other != name))
            if weight is not None and weight.ndim == 2 and weight.shape[0] in beside:
                found.append(f"{path}.{name}" if path else name)
    return tuple(found)


def _experts(module: nn.Module) -> set[int]:
    """How many experts a module may hold: stacked in a parameter, or listed."""
    import torch

    stacked = {value.shape[0] for value in module.parameters(recurse=False) if value.ndim == 3}
    listed = len(module) if isinstance(module, torch.nn.ModuleList) else 0
    return stacked | ({listed} if listed > 1 else set())
