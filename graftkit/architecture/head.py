"""The head that a task's class puts on a backbone: found by what the class wants and the checkpoint does not have.

No table of heads. The class comes from transformers' auto mappings; the label projection is what changes its shape when the
class is built with other labels; what must be written is what the class has and the checkpoint's backbone does not.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from graftkit.architecture import skeleton as sk
from graftkit.architecture.accounting import Structure
from graftkit.architecture.embeddings import INPUT, OUTPUT
from graftkit.architecture.names import MemoryName
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.errors import InputRejected, printable

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Where transformers lists the classes of each task.
MAPPINGS = {
    "sequence_classification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "reward": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "token_classification": "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
    "question_answering": "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",
    "multiple_choice": "MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES",
    "image_classification": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "audio_classification": "MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES",
    "masked_lm": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "causal_lm": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
}

#: How many labels the second build has more: a prime, so that no other size moves by it for another reason.
STEP = 13

#: Most outputs of a head whose number of outputs is fixed: the start and the end of an answer.
FIXED_OUTPUTS = 2

Part = Literal["projection", "projection_bias", "inner"]


@dataclass(frozen=True, slots=True)
class HeadTensor:
    """A tensor of the new head, on disk and in memory under one name, and whether it makes the logits."""

    name: str
    shape: tuple[int, ...]
    part: Part


@dataclass(frozen=True, slots=True)
class Head:
    """A task's class for a checkpoint, and what becomes of each tensor.

    Attributes:
        skeleton: the class, built with the new labels.
        tensors: what is new, in the order of the class.
        renamed: names on disk of kept tensors, old to new, where the class has another name for them.
        dropped: names on disk of what the class has no place for, or what is made anew under another name.
        pools_at_pad: whether the head looks for the pad token to find the last token of a text.
        pools_at_eos: whether the head looks for the end-of-sequence token.
    """

    skeleton: sk.Skeleton
    tensors: tuple[HeadTensor, ...]
    renamed: Mapping[str, str]
    dropped: tuple[str, ...]
    pools_at_pad: bool
    pools_at_eos: bool

    def tensors_of(self, part: Part) -> tuple[HeadTensor, ...]:
        """The new tensors of one part."""
        return tuple(tensor for tensor in self.tensors if tensor.part == part)

    @property
    def reads_last_position(self) -> bool:
        """Whether the head summarises a text by its last position, padding or not (XLNet, RoFormer)."""
        return any(getattr(module, "summary_type", None) == "last" for module in self.skeleton.model.modules())

    @property
    def modules(self) -> tuple[str, ...]:
        """Names in memory of the outermost modules whose every tensor is new, such as ``classifier``."""
        new = {tensor.name for tensor in self.tensors}
        shapes = self.skeleton.shapes
        whole: list[str] = []
        for tensor in self.tensors:
            steps = tensor.name.split(".")
            paths = (".".join(steps[:count]) for count in range(1, len(steps) + 1))
            found = next(p for p in paths if all(n in new for n in shapes if f"{n}.".startswith(f"{p}.")))
            whole.append(found)
        return tuple(dict.fromkeys(whole))


def task_architecture(config: Mapping[str, Any], task: str) -> str:
    """The class of transformers for ``task`` on this model type, the first where there are several.

    Raises:
        InputRejected: transformers has no such class; the message names the tasks that it has classes for.
    """
    from transformers.models.auto import modeling_auto

    entries = {name: getattr(modeling_auto, table).get(config.get("model_type")) for name, table in MAPPINGS.items()}
    entry = entries[task]
    if not entry:
        known = ", ".join(name for name, value in entries.items() if value) or "none of the tasks"
        raise InputRejected(
            f"config.json: transformers has no class for {task} of model type {printable(config.get('model_type'))!r};"
            f" it has classes for: {known}"
        )
    return entry if isinstance(entry, str) else str(entry[0])


def find_head(checkpoint: Checkpoint, structure: Structure, config: Mapping[str, Any], *, language: bool) -> Head:
    """Find what the class in ``config`` (labels included) needs beside the checkpoint's backbone.

    The head of a ``language`` model keeps the tensors that the checkpoint has; any other head is entirely new.

    Raises:
        InputRejected: the class cannot be built, the checkpoint lacks more of its backbone than a pooler, or it is quantized and the
            class has other names for it.
    """
    architecture = sk.architecture_of(config)
    skeleton = sk.build_skeleton(config, architecture)
    renamed = _canonical_names(skeleton, structure)
    if renamed and skeleton.quantized:
        disk, name = next(iter(renamed.items()))
        raise InputRejected(
            f"{architecture}: calls {printable(disk)!r} {printable(name)!r}, and the base is quantized, whose quantization_config may"
            " speak of tensors by name; give the checkpoint that it was quantized from"
        )
    info = skeleton.loading({renamed.get(name, name): tensor for name, tensor in checkpoint.tensors.items()})
    found = skeleton.memory_names([renamed.get(disk, disk) for disk in checkpoint.tensors])
    memory = {disk: found[renamed.get(disk, disk)] for disk in checkpoint.tensors}
    moved = _moved_by_labels(config, skeleton)
    lost = set(info.missing) | {name for name, *_ in info.mismatched}
    new = lost if language else lost | moved | _outside_backbone(skeleton, backbone_names(structure), memory)
    new = {name for name in new if skeleton.tied.get(name) not in skeleton.shapes}
    _check_backbone(checkpoint, skeleton, lost, {name for name, *_ in info.mismatched} - moved)
    _check_names(skeleton, sorted(new))
    outputs = skeleton.weight_names(OUTPUT) if language else frozenset()
    rows = skeleton.shapes[min(outputs)][0] if outputs else 0
    tensors = tuple(
        HeadTensor(name, shape, _part(name, shape, moved, outputs, rows))
        for name, shape in skeleton.shapes.items()
        if name in new
    )
    gone = [d for d, (key, _) in memory.items() if d not in new and (key in new or key in info.unexpected)]
    renamed = {old: name for old, name in renamed.items() if old not in gone}
    forward = inspect.getsource(type(skeleton.model).forward)
    return Head(skeleton, tensors, renamed, tuple(gone), "pad_token_id" in forward, "eos_token_id" in forward)


def _moved_by_labels(config: Mapping[str, Any], skeleton: sk.Skeleton) -> frozenset[str]:
    count = skeleton.model.config.num_labels
    labels = {"id2label": {str(index): f"LABEL_{index}" for index in range(count + STEP)}}
    try:
        other = sk.build_skeleton({**config, **labels, "num_labels": count + STEP}, skeleton.architecture)
    except InputRejected:
        return frozenset()
    return frozenset(name for name, shape in skeleton.shapes.items() if other.shapes.get(name) != shape)


def backbone_names(structure: Structure) -> frozenset[str]:
    """Names on disk of the checkpoint's own base model: all but its head."""
    prefix = _backbone_prefix(structure.skeleton.model)
    shapes = structure.skeleton.shapes
    return frozenset(d for d, (key, _) in structure.memory.items() if key in shapes and key.startswith(prefix))


def _backbone_prefix(model: PreTrainedModel) -> str:
    """What the names of the base model's tensors begin with; empty where a class is its own base model."""
    return "" if model.base_model is model else f"{model.base_model_prefix}."


def _outside_backbone(
    skeleton: sk.Skeleton, backbone: frozenset[str], memory: Mapping[str, MemoryName]
) -> frozenset[str]:
    """Names in memory of the class's tensors outside its base model that the checkpoint's base model does not give."""
    prefix = _backbone_prefix(skeleton.model)
    if not prefix:
        return frozenset()
    given = {key for disk, (key, _) in memory.items() if disk in backbone}
    return frozenset(name for name in skeleton.shapes if not name.startswith(prefix) and name not in given)


def _check_backbone(checkpoint: Checkpoint, skeleton: sk.Skeleton, lost: set[str], misfits: set[str]) -> None:
    """Refuse a class whose backbone has blocks or shapes that the checkpoint lacks: they would be random. A pooler may be new."""
    prefix = _backbone_prefix(skeleton.model)
    table = skeleton.weight_names(INPUT)
    blocks = sorted(
        name
        for name in lost
        if name in table
        or (prefix and name.startswith(prefix) and (name in misfits or any(map(str.isdigit, name.split(".")))))
    )
    if blocks:
        raise InputRejected(
            f"{checkpoint.name}: {skeleton.architecture} has {len(blocks)} tensors in its backbone that the checkpoint"
            f" lacks, or has in another shape, such as {printable(blocks[0])!r}; a new head cannot stand on them"
        )


def _part(name: str, shape: tuple[int, ...], moved: frozenset[str], outputs: frozenset[str], rows: int) -> Part:
    """Whether a tensor makes the logits: an output table or its bias, one that the labels resize, or else one with few outputs."""
    if rows:
        makes_logits = name in outputs or shape == (rows,)
    elif moved:
        makes_logits = name in moved
    else:
        makes_logits = bool(shape) and shape[0] <= FIXED_OUTPUTS
    if not makes_logits:
        return "inner"
    return "projection" if len(shape) > 1 else "projection_bias"


def _check_names(skeleton: sk.Skeleton, names: list[str]) -> None:
    """Refuse a new tensor that the loader would take for another: it is written under its name in memory."""
    for disk, found in skeleton.memory_names(names).items():
        if found != (disk, False):
            raise InputRejected(
                f"{skeleton.architecture}: transformers would load a new tensor {printable(disk)!r} as {printable(found.name)!r}"
            )


def _canonical_names(skeleton: sk.Skeleton, structure: Structure) -> dict[str, str]:
    """Names on disk of backbone tensors, old to new, where the class keeps its base model under another prefix.

    A checkpoint of a base model has no prefix; some classes (LlamaForQuestionAnswering) have one of their own, which
    transformers' loader does not look through.
    """
    ours, old = _backbone_prefix(skeleton.model), f"{structure.skeleton.model.base_model_prefix}."
    backbone = backbone_names(structure)
    wanted = {disk: f"{ours}{disk.removeprefix(old)}" for disk in structure.memory if disk in backbone}
    plain, moved = skeleton.memory_names(structure.memory), skeleton.memory_names(wanted.values())
    return {
        disk: name
        for disk, name in wanted.items()
        if name != disk and name not in structure.memory and moved[name].name in skeleton.shapes
        and (plain[disk] == moved[name] or plain[disk].name not in skeleton.shapes)
    }  # fmt: skip
