"""Faults in tokenizer files: where each goes, and how it is planted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from graftkit.selftest.copies import edit_json, set_value
from graftkit.selftest.subject import NotApplicable, Subject, first

FILE, CONFIG = "tokenizer.json", "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"


def merge(subject: Subject) -> str:
    """A merge that most texts use."""
    merges = subject.document(FILE).get("model", {}).get("merges")
    if not merges:
        raise NotApplicable("the tokenizer has no merges")
    return f"merge {min(2, len(merges) - 1)}"


def drop_merge(directory: Path, _: Subject, place: str) -> None:
    """Lose one merge."""
    index = int(place.split()[1])
    edit_json(directory, FILE, lambda tokenizer: tokenizer["model"]["merges"].pop(index))


def two_letters(subject: Subject) -> str:
    """Two letters whose pair is no token, with a merge to come before all others."""
    model = subject.document(FILE).get("model", {})
    if not model.get("merges") or subject.tokenizer.gaps:
        raise NotApplicable("the tokenizer has no merges, or no dense ids")
    letters = [token for token in model["vocab"] if len(token) == 1 and token.isalpha()]
    pairs = (f"{a} {b}" for a in letters for b in letters if subject.tokenizer.id_of(a + b) is None)
    return str(first(pairs, "every pair of letters is a token"))


def early_merge(directory: Path, subject: Subject, place: str) -> None:
    """Give the pair a piece of its own behind the others, and a merge before theirs."""
    pair = place.split()

    def change(tokenizer: dict[str, Any]) -> None:
        model = tokenizer["model"]
        as_text = isinstance(model["merges"][0], str)
        model["merges"].insert(0, place if as_text else pair)
        model["vocab"] |= {entry.content: entry.index for entry in subject.tokenizer.added}
        model["vocab"]["".join(pair)] = subject.tokenizer.size

    edit_json(directory, FILE, change)


def normalizer(subject: Subject) -> str:
    """The normalizer."""
    subject.document(FILE)
    return "normalizer"


def other_normalizer(directory: Path, subject: Subject, place: str) -> None:
    """Lose the normalizer, or fold case where there is none."""
    set_value(directory, FILE, place, None if subject.document(FILE).get(place) else {"type": "Lowercase"})


def two_entries(subject: Subject) -> str:
    """Two neighbours in the vocabulary."""
    model = subject.document(FILE).get("model", {})
    added = {entry.index for entry in subject.tokenizer.added}
    plain = [index for index in sorted(subject.tokenizer.tokens) if index not in added]
    if not isinstance(model.get("vocab"), dict) or len(plain) < 8:
        raise NotApplicable("the vocabulary is not a mapping of at least eight tokens")
    return f"ids {plain[-2]} and {plain[-1]}"


def swap_entries(directory: Path, _: Subject, place: str) -> None:
    """Exchange the ids of two tokens."""
    one, other = (int(word) for word in place.split() if word.isdigit())

    def change(tokenizer: dict[str, Any]) -> None:
        vocab = tokenizer["model"]["vocab"]
        names = {index: token for token, index in vocab.items()}
        vocab[names[one]], vocab[names[other]] = other, one

    edit_json(directory, FILE, change)


def added_token(subject: Subject) -> str:
    """The last added token."""
    subject.document(FILE)
    return str(first((entry.content for entry in reversed(subject.tokenizer.added)), "no added tokens"))


def drop_added(directory: Path, _: Subject, content: str) -> None:
    """Lose an added token where it stands: in text it falls apart."""

    def change(tokenizer: dict[str, Any]) -> None:
        tokenizer["added_tokens"] = [entry for entry in tokenizer["added_tokens"] if entry["content"] != content]
        vocab = tokenizer["model"].get("vocab")
        if isinstance(vocab, dict):
            vocab.pop(content, None)

    edit_json(directory, FILE, change)
    if (directory / CONFIG).exists():
        edit_json(directory, CONFIG, lambda config: _forget(config, content))


def _forget(config: dict[str, Any], content: str) -> None:
    decoder = config.get("added_tokens_decoder")
    if isinstance(decoder, dict):
        config["added_tokens_decoder"] = {k: v for k, v in decoder.items() if v.get("content") != content}
    for key in [key for key, value in config.items() if value == content]:
        del config[key]


def role(subject: Subject) -> str:
    """A role that generation or padding goes by."""
    subject.document(CONFIG)
    roles = ("eos_token", "sep_token", "pad_token", "bos_token", "cls_token")
    named = (role for role in roles if role in subject.tokenizer.special)
    return str(first(named, "the tokenizer has no roles"))


def move_role(directory: Path, subject: Subject, place: str) -> None:
    """Give the role to another old token, in every file alike."""
    was = subject.tokenizer.special[place]
    content = next(token for index, token in sorted(subject.tokenizer.tokens.items(), reverse=True) if token != was)
    index = subject.tokenizer.id_of(content)
    set_value(directory, CONFIG, place, content)
    for name in ("config.json", "generation_config.json"):
        if isinstance(subject.checkpoint.documents.get(name), dict):
            set_value(directory, name, f"{place}_id", index)
    if "special_tokens_map.json" in subject.checkpoint.documents:
        set_value(directory, "special_tokens_map.json", place, content)


def template(subject: Subject) -> str:
    """The chat template."""
    documents = subject.checkpoint.documents
    inside = subject.checkpoint.documents.get(CONFIG, {}).get("chat_template")
    if TEMPLATE not in documents and not inside:
        raise NotApplicable("no chat template")
    return TEMPLATE if TEMPLATE in documents else CONFIG


def lose_template(directory: Path, _: Subject, place: str) -> None:
    """Lose the chat template, as a save that does not know its file does."""
    (directory / TEMPLATE).unlink(missing_ok=True)
    if place == CONFIG or (directory / CONFIG).exists():
        edit_json(directory, CONFIG, lambda config: config.pop("chat_template", None))


def template_file(subject: Subject) -> str:
    """The file of a chat template, be there one or not."""
    subject.document(CONFIG)
    return TEMPLATE


def name_of_a_template(directory: Path, _: Subject, place: str) -> None:
    """Write a file's name where the template belongs."""
    (directory / place).write_text("chatml.jinja", encoding="utf-8")


def pad_of_its_own(subject: Subject) -> str:
    """The pad token, where there is an eos token that it could be."""
    subject.document(CONFIG)
    roles = subject.tokenizer.special
    if "eos_token" not in roles or roles.get("pad_token") == roles["eos_token"]:
        raise NotApplicable("no eos_token, or one that pads already")
    return "pad_token"


def pad_with_eos(directory: Path, subject: Subject, place: str) -> None:
    """Let the eos token pad, in every file alike."""
    content = subject.tokenizer.special["eos_token"]
    set_value(directory, CONFIG, place, content)
    for name in ("config.json", "generation_config.json"):
        if isinstance(subject.checkpoint.documents.get(name), dict):
            set_value(directory, name, f"{place}_id", subject.tokenizer.id_of(content))


def framed_by(subject: Subject) -> str:
    """A token that could be put in front of every text."""
    names = (subject.tokenizer.special.get(role) for role in ("mask_token", "unk_token", "bos_token", "eos_token"))
    return str(first((name for name in names if name), "the tokenizer has no roles"))


def frame(directory: Path, subject: Subject, content: str) -> None:
    """Put one more token in front of every text."""
    index = subject.tokenizer.id_of(content)
    sequence = {"Sequence": {"id": "A", "type_id": 0}}
    piece = {"SpecialToken": {"id": content, "type_id": 0}}
    set_value(directory, FILE, "post_processor", {
        "type": "TemplateProcessing",
        "single": [piece, sequence],
        "pair": [piece, sequence, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {content: {"id": content, "ids": [index], "tokens": [content]}},
    })  # fmt: skip


def side(subject: Subject) -> str:
    """The side on which batches are padded."""
    subject.document(CONFIG)
    return "padding_side"


def other_side(directory: Path, subject: Subject, place: str) -> None:
    """Pad on the other side."""
    left = subject.document(CONFIG).get(place) == "left"
    set_value(directory, CONFIG, place, "right" if left else "left")
