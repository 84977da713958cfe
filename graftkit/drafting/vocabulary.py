"""Drafts that change the vocabulary: a pad token, tokens for tools, a chat template, names for reserved tokens."""

from __future__ import annotations

from typing import Any

from graftkit.drafting.draft import Draft, Step
from graftkit.drafting.facts import RESERVED, TOOLS, Facts
from graftkit.errors import RecipeError, few, plural, printable

TOOL_TOKENS = ("<|tool_call|>", "<|tool_result|>")
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"

#: The format that ChatML describes: each turn between two markers, behind the name of who speaks.
CHATML = f"""\
{{% for message in messages %}}
{TURN_START}{{{{ message['role'] }}}}
{{{{ message['content'] }}}}{TURN_END}
{{% endfor %}}
{{% if add_generation_prompt %}}
{TURN_START}assistant
{{% endif %}}
"""

NOT_TRAINED = (
    "training has to reach the new rows: it does where the whole model trains; an adapter trains them only where its"
    " trainable_token_indices name them, for which apply prints the line"
)


def pad(facts: Facts) -> Draft:
    """A pad token of its own."""
    facts.require_tokenizer()
    if facts.pads:
        raise RecipeError(
            f"no pad token is needed: tokenizer and config pad with {printable(facts.pad)!r} (id {facts.configured_pad}), which"
            " is not the end token"
        )
    return Draft("a pad token of its own, in the tokenizer and in every config", (pad_step(facts),))


def pad_step(facts: Facts) -> Step:
    """The operation that gives tokenizer and configs a pad token."""
    return Step("extend_vocab", {"roles": {"pad_token": facts.wanted_pad}}, {"roles": pad_comment(facts)})


def pad_comment(facts: Facts) -> str:
    """Why the pad token is to be this one."""
    if facts.pad is not None:
        return "pad_token: the tokenizer's own, which config.json does not name yet"
    found, wanted = facts.tokenizer.special.get("pad_token"), facts.wanted_pad
    now = "there was none" if found is None else "it was the end token, which hides the ends of texts from the loss"
    how = "this one is new" if facts.tokenizer.id_of(wanted) is None else "the vocabulary has this one already"
    return f"pad_token: {now}; {how}"


def tools(facts: Facts) -> Draft:
    """Tokens for tool calls."""
    _require_generating(facts, "makes no tool calls")
    known = list(facts.special_tokens_like(TOOLS))
    if known:
        raise RecipeError(f"the tokenizer has tokens for tools already: {few(known)}")
    fields: dict[str, Any] = {"special_tokens": list(TOOL_TOKENS)}
    comments = {
        "op": NOT_TRAINED,
        "special_tokens": "what marks a call and its result in your conversations",
        "init": "each new row is the mean of all trained rows; describe takes the words of the token's name instead",
    }
    if reserved := list(facts.special_tokens_like(RESERVED)):
        comments["special_tokens"] += (
            f"; {plural(len(reserved), 'token')} in reserve ({few(reserved[:2])}, ...) could be named so instead: --for reserved"
        )
    return Draft("tokens for tool calls", (_with_pad(facts, fields, comments),))


def chat(facts: Facts) -> Draft:
    """A chat template for a model that has none."""
    _require_generating(facts, "holds no conversation")
    if facts.has_template:
        raise RecipeError(
            "the checkpoint has a chat template already; graftkit inspect names its markers that are no tokens"
        )
    fields: dict[str, Any] = {}
    comments = {
        "op": NOT_TRAINED,
        "chat_template": "ChatML; a template of your own in a file: chat_template: {file: template.jinja}",
    }
    if facts.tokenizer.id_of(TURN_START) is None:
        fields["special_tokens"] = [TURN_START]
    ended = facts.tokenizer.special.get("eos_token")
    instead = "" if ended is None else f", in place of {printable(ended)}"
    ends = f"eos_token: generation stops at the end of a turn from now on{instead}"
    step = _with_pad(facts, fields, comments, {"eos_token": TURN_END}, ends)
    fields = {**step.fields, "chat_template": CHATML}
    return Draft("a chat template, and the tokens that it needs", (Step(step.op, fields, comments),))


def reserved(facts: Facts) -> Draft:
    """Names for tokens that are kept in reserve."""
    facts.require_tokenizer()
    known = list(facts.special_tokens_like(RESERVED))
    if len(known) < len(TOOL_TOKENS):
        there = plural(len(known), "special token") if known else "no special tokens"
        raise RecipeError(
            f"the tokenizer has {there} in reserve (called reserved or unused); --for tools adds new ones"
        )
    free = [token for token in TOOL_TOKENS if facts.tokenizer.id_of(token) is None]
    if not free:
        raise RecipeError(f"the tokenizer has {' and '.join(TOOL_TOKENS)} already")
    names = dict(zip(known, free, strict=False))
    comments = {
        "op": f"{plural(len(known), 'token')} in reserve ({few(known)}): the tables keep their size",
        "names": "old name: new name",
        "init": "rows in reserve were never trained: the new ones start as the words of the new names; training has to reach them",
    }
    return Draft(
        "names for tokens that the vocabulary holds in reserve",
        (Step("rename_tokens", {"names": names, "init": "describe"}, comments),),
    )


def _with_pad(
    facts: Facts,
    fields: dict[str, Any],
    comments: dict[str, str],
    roles: dict[str, str] | None = None,
    roles_comment: str = "",
) -> Step:
    """extend_vocab with ``fields`` and ``roles``, and with a pad token where the model has none to use."""
    given = dict(roles or {})
    sentences = [roles_comment] if roles_comment else []
    if not facts.pads:
        given["pad_token"] = facts.wanted_pad
        sentences.append(pad_comment(facts))
    if given:
        comments["roles"] = "\n".join(sentences)
    return Step("extend_vocab", {**fields, **({"roles": given} if given else {}), "init": "mean"}, comments)


def _require_generating(facts: Facts, so: str) -> None:
    facts.require_tokenizer()
    if not facts.generates:
        raise RecipeError(f"{facts.architecture} writes no text, so it {so}")
