"""The chat template, wherever a checkpoint keeps one."""

import pytest

from graftkit.checkpoint.tokenizer import set_chat_template
from graftkit.errors import RecipeError

NEW = "{% for m in messages %}<|{{ m.role }}|>{{ m.content | tojson }}{% endfor %}"


def test_a_checkpoint_without_one_gets_a_file():
    assert set_chat_template({"tokenizer_config.json": {}}, NEW) == {"chat_template.jinja": NEW}


def test_every_copy_is_replaced():
    documents = {
        "tokenizer_config.json": {"chat_template": "old", "a": 1},
        "chat_template.json": {"chat_template": "old"},
        "processor_config.json": {"processor_class": "LlavaProcessor"},
    }
    assert set_chat_template(documents, NEW) == {
        "chat_template.jinja": NEW,
        "tokenizer_config.json": {"chat_template": NEW, "a": 1},
        "chat_template.json": {"chat_template": NEW},
    }
    assert documents["tokenizer_config.json"]["chat_template"] == "old"


def test_of_named_templates_the_default_is_replaced_and_the_others_stay_visible():
    tool = {"name": "tool_use", "template": "tools"}
    config = {"chat_template": [tool, {"name": "default", "template": "old"}]}
    changed = set_chat_template({"tokenizer_config.json": config}, NEW)
    assert changed == {"tokenizer_config.json": {"chat_template": [{"name": "default", "template": NEW}, tool]}}


def test_the_same_template_changes_nothing():
    assert set_chat_template({"chat_template.jinja": NEW}, NEW) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{% for m in messages %}\n{{ m }", r"line 2: unexpected '}'"),
        ("a\nb\n{% endfor %}", "line 3: Encountered unknown tag 'endfor'"),
        ("{{ a | nofilter }}", "line 1: No filter named 'nofilter'"),
    ],
)
def test_a_template_that_does_not_compile_names_the_line(text, message):
    with pytest.raises(RecipeError, match=message):
        set_chat_template({}, text)


def test_what_transformers_adds_to_jinja_compiles():
    text = (
        "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{% generation %}{{ m.content }}"
        "{% endgeneration %}{% endfor %}{{ raise_exception('no') }}{{ strftime_now('%d') }}"
    )
    assert set_chat_template({}, text) == {"chat_template.jinja": text}
