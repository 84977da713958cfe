"""Tokenizer files as values: read them, add and rename tokens, give roles, set a chat template, all by editing JSON.

Nothing goes through ``save_pretrained``, which drops files and keys. Documents are mappings from a path relative to the
checkpoint to the parsed JSON (or the text of other files); they are never changed in place, and what does not change
is shared with the given ones.
"""

from graftkit.checkpoint.tokenizer.additions import NewToken, add_tokens
from graftkit.checkpoint.tokenizer.chat_template import set_chat_template
from graftkit.checkpoint.tokenizer.class_note import class_note
from graftkit.checkpoint.tokenizer.files import NO_TOKENIZER, TokenizerFiles, find_tokenizer, read_tokenizer
from graftkit.checkpoint.tokenizer.notes import tokenizer_notes
from graftkit.checkpoint.tokenizer.renaming import Renamed, Renaming, rename_tokens
from graftkit.checkpoint.tokenizer.template_notes import conversation_notes, template_notes

__all__ = [
    "NO_TOKENIZER",
    "NewToken",
    "Renamed",
    "Renaming",
    "TokenizerFiles",
    "add_tokens",
    "class_note",
    "conversation_notes",
    "find_tokenizer",
    "read_tokenizer",
    "rename_tokens",
    "set_chat_template",
    "template_notes",
    "tokenizer_notes",
]
