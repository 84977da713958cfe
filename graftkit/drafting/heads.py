"""Drafts of a head for another task."""

from __future__ import annotations

from typing import Any

from graftkit.architecture.head import find_head, task_architecture
from graftkit.drafting.draft import Draft, Step
from graftkit.drafting.facts import Facts
from graftkit.drafting.vocabulary import pad_step
from graftkit.errors import InputRejected
from graftkit.operations.heads.documents import head_config
from graftkit.recipe import ReplaceHead

#: Tasks that give one of several labels; the first for which transformers has a class is drafted.
CHOOSING = ("sequence_classification", "image_classification", "audio_classification")


def classifier(facts: Facts) -> Draft:
    """A head that gives a text (or image, or sound) one of several labels."""
    fields = {"task": _choosing_task(facts), "labels": ["negative", "neutral", "positive"]}
    comments = {
        "labels": "your labels, in the order of the logits",
        "init": "every label is equally likely at the start; with labelled examples: {scheme: ridge, examples: texts.jsonl}",
    }
    return _draft(facts, "a classifier", {**fields, "init": "zeros"}, comments)


def ner(facts: Facts) -> Draft:
    """A head that gives each token a label."""
    fields = {"task": "token_classification", "labels": ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"]}
    comments = {
        "labels": "your labels, in the order of the logits",
        "init": "every label is equally likely at the start",
    }
    return _draft(facts, "a head that gives each token a label", {**fields, "init": "zeros"}, comments)


def reward(facts: Facts) -> Draft:
    """A head that gives a text one number."""
    comments = {"init": "every reward is zero at the start, so that the loss on pairs begins at ln 2"}
    return _draft(facts, "a reward model", {"task": "reward", "init": "zeros"}, comments)


def _choosing_task(facts: Facts) -> str:
    for task in CHOOSING:
        try:
            task_architecture(facts.checkpoint.config, task)
        except InputRejected:
            continue
        return task
    return CHOOSING[0]


def _draft(facts: Facts, title: str, fields: dict[str, Any], comments: dict[str, str]) -> Draft:
    spec = ReplaceHead.model_validate({**fields, "labels": tuple(fields.get("labels", ()))})
    config = head_config(spec, facts.checkpoint.config, task_architecture(facts.checkpoint.config, spec.task))
    head = find_head(facts.checkpoint, facts.structure, config, language=False)
    comments["op"] = (
        f"the class becomes {head.skeleton.architecture}; {', '.join(head.modules) or 'nothing'} is new, all else stays as it is"
    )
    steps: tuple[Step, ...] = ()
    if head.pools_at_pad and not head.pools_at_eos and not facts.pads:
        facts.require_tokenizer()
        steps = (pad_step(facts),)
        fields = {**fields, "pad_token": facts.wanted_pad}
        comments["pad_token"] = "the head looks for it to find the last token of a text"
    return Draft(title, (*steps, Step("replace_head", fields, comments)))
