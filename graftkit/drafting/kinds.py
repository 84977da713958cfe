"""The kinds of recipes that `graftkit init` drafts. Imports nothing, so that `--help` can list them."""

from collections.abc import Mapping

#: Name -> what the recipe does, for the help.
KINDS: Mapping[str, str] = {
    "lora": "a LoRA adapter on every linear layer",
    "tools": "tokens for tool calls",
    "chat": "a chat template (ChatML), and the tokens that it needs",
    "pad": "a pad token that is not the end token",
    "reserved": "names for tokens that the vocabulary holds in reserve",
    "classifier": "a head that gives a text or an image one of several labels",
    "ner": "a head that gives each token a label",
    "reward": "a head that gives a text one number",
    "reinit": "fresh top layers",
}

#: What is drafted where nothing is asked for.
USUAL = "lora"
