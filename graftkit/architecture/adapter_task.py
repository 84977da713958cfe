"""What peft calls a model's task, and the modules that a classifier's head is made of."""

from __future__ import annotations

from typing import Any

from graftkit.architecture.skeleton import Skeleton

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

    model: Any = skeleton.model
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


def is_router(model: Any, name: str) -> bool:
    """Whether the module ``name`` has one output for each expert beside it."""
    import torch

    parent, _, last = name.rpartition(".")
    owner = model.get_submodule(parent)
    weight = getattr(getattr(owner, last, None), "weight", None)
    if weight is None or weight.ndim != 2:
        return False
    counts = set()
    for child_name, child in owner.named_children():
        if child_name == last:
            continue
        counts |= {p.shape[0] for p in child.parameters(recurse=False) if p.ndim == 3}
        if isinstance(child, torch.nn.ModuleList) and len(child) > 1:
            counts.add(len(child))
    return weight.shape[0] in counts
