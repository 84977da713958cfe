"""What has no end, panics or has another type than it should ends with one line, soon: whatever the file, whichever the command."""

import json
import os
import shutil

import pytest
from support.adapters import make_adapter
from support.command import assert_one_line, here
from support.recipes import recipe

TOKENS = {"op": "extend_vocab", "special_tokens": ["<|a|>"]}
LORA = {"op": "add_lora", "r": 4}


@pytest.fixture
def model(demo, tmp_path):
    return shutil.copytree(demo, tmp_path / "model")


def write(path, *operations, source, **others):
    path.write_text(json.dumps(recipe(source, path.parent / "out", *operations, **others)))
    return path


def edit(path, **changes):
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **changes}))


def split(regex):
    return {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}}


def growing(times):
    steps = [{"type": "Replace", "pattern": {"String": "a"}, "content": "aaaaaaaaaaaaaaaa"}] * times
    return {"normalizer": {"type": "Sequence", "normalizers": steps}}


UNUSABLE = {
    "backtracks": (split("(.*)*(.*)*(.*)*x"), "tokenizer.json: pre_tokenizer: the tokenizers library cannot use it"),
    "backtracks slowly": (split("(?:a?){24}a{24}b|(a|a)*c"), "tokenizer.json: pre_tokenizer: "),
    "grows": (growing(12), "tokenizer.json: normalizer: "),
    "a charsmap of nothing": ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, "normalizer: "),
    "no such type": ({"normalizer": {"type": "Replace \x1b[31m"}}, "the tokenizers library cannot read it"),
    "no model": ({"model": {}}, "tokenizer.json"),
    "a list": (None, "tokenizer.json: is not a JSON object"),
}


@pytest.mark.parametrize("operation", [TOKENS, LORA], ids=lambda operation: operation["op"])
@pytest.mark.parametrize(("damage", "words"), UNUSABLE.values(), ids=UNUSABLE)
def test_tokenizers_that_cannot_be_used(model, tmp_path, operation, damage, words):
    if damage is None:
        (model / "tokenizer.json").write_text("[1]")
    else:
        edit(model / "tokenizer.json", **damage)
    assert_one_line(here("apply", write(tmp_path / "r.yaml", operation, source=model), "-q"), 3, words)
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_that_panics_at_a_text(model, tmp_path):
    odd = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "zz", "type_id": 0}}], "pair": [], "special_tokens": {}}  # fmt: skip
    edit(model / "tokenizer.json", post_processor=odd)
    assert_one_line(
        here("apply", write(tmp_path / "r.yaml", LORA, source=model), "-q"), 3, "tokenizers library cannot use it"
    )


def test_a_normalizer_that_leaves_nothing_is_no_fault(model, tmp_path):
    edit(model / "tokenizer.json", normalizer={"type": "Replace", "pattern": {"Regex": "."}, "content": ""})
    assert here("apply", write(tmp_path / "r.yaml", LORA, source=model), "-q").returncode == 0


@pytest.mark.parametrize(
    "name", ["tokenizer_config.json", "special_tokens_map.json", "chat_template.json", "generation_config.json"]
)
def test_documents_of_another_type(model, tmp_path, name):
    (model / name).write_text("[1]")
    for operation in (TOKENS, LORA):
        assert_one_line(
            here("plan", write(tmp_path / "r.yaml", operation, source=model)), 3, f"{name}: is not a JSON object"
        )


@pytest.mark.parametrize("name", ["PreTrainedModel", "LlamaPreTrainedModel"])
def test_base_classes_are_no_models(model, tmp_path, name):
    edit(model / "config.json", architectures=[name])
    assert_one_line(here("plan", write(tmp_path / "r.yaml", TOKENS, source=model)), 3, name)


def test_expressions_that_an_adapter_brings_have_a_budget(tmp_path):
    base, folder = make_adapter(tmp_path, "LlamaForCausalLM", target_modules=["q_proj"])
    edit(folder / "adapter_config.json", target_modules="(([a-z_.0-9]+)+)+!")
    path = write(tmp_path / "r.yaml", {"op": "merge_adapter", "adapter": str(folder)}, source=base)
    assert_one_line(here("plan", path), 3, "takes more than 5 seconds")
    done = here("verify", "--adapter", folder, base)
    assert (done.returncode, done.stderr) == (4, "")
    assert "takes more than 5 seconds" in done.stdout
    given = {**LORA, "target_modules": "(([a-z_.0-9]+)+)+!"}
    assert_one_line(here("plan", write(tmp_path / "r.yaml", given, source=base)), 2, "takes more than 5 seconds")


@pytest.mark.parametrize("number", [10**12, -(10**12)])
def test_numbers_that_peft_would_count_to(demo, tmp_path, number):
    """peft looks for a divisor of the width, one number after the other."""
    operation = {"op": "add_adapter", "peft_type": "OFT", "target_modules": ["q_proj"]}
    operation["config"] = {"oft_block_size": number}
    assert_one_line(
        here("plan", write(tmp_path / "r.yaml", operation, source=demo)), 2, "oft_block_size is out of bounds"
    )
    base, folder = make_adapter(tmp_path, "LlamaForCausalLM", target_modules=["q_proj"])
    edit(folder / "adapter_config.json", lora_alpha=number)
    path = write(tmp_path / "r.yaml", {"op": "merge_adapter", "adapter": str(folder)}, source=base)
    assert_one_line(here("plan", path), 3, "lora_alpha is out of bounds")
    done = here("verify", "--adapter", folder, base)
    assert (done.returncode, done.stderr) == (4, "")
    assert "lora_alpha is out of bounds" in done.stdout


def test_names_in_an_adapter_s_config_that_no_encoding_has(tmp_path):
    base, folder = make_adapter(tmp_path, "LlamaForCausalLM", target_modules=["q_proj"])
    path = write(tmp_path / "r.yaml", {"op": "merge_adapter", "adapter": str(folder)}, source=base)
    edit(folder / "adapter_config.json", target_modules=["\ud800"])
    assert_one_line(here("plan", path), 3, "'\\ud800'")
    edit(folder / "adapter_config.json", target_modules=["q_proj"], revision="\ud800", rank_pattern={"\ud800": 3})
    done = here("plan", path)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_length_that_no_text_has(model, tmp_path):
    edit(model / "tokenizer_config.json", model_max_length=0)
    assert_one_line(here("plan", write(tmp_path / "r.yaml", TOKENS, source=model)), 3, "model_max_length: 0 is not")


def test_a_template_nested_without_end(demo, tmp_path):
    deep = {"op": "extend_vocab", "chat_template": "{{" + "(" * 200 + "1" + ")" * 200 + "}}"}
    assert_one_line(
        here("plan", write(tmp_path / "r.yaml", deep, source=demo)), 2, "chat_template: is nested too deeply"
    )


MESSAGES = "{% for message in messages %}{{ message.content }}{% endfor %}"
UNBOUNDED = {
    "time": MESSAGES + "{% for a in range(99999) %}" * 4 + "{{ messages[0].content }}" + "{% endfor %}" * 4,
    "memory": MESSAGES + "{{ messages[0].role * 10**10 }}",
    "memory of a token": MESSAGES + "{{ eos_token * 10**10 }}",
    "memory when it is compiled": MESSAGES + "{% if no %}{{ 'x' * 10**10 }}{% endif %}",
    "time when it is compiled": MESSAGES + "{% if no %}{{ 7 ** 10000000000 }}{% endif %}",
}


@pytest.mark.parametrize("template", UNBOUNDED.values(), ids=UNBOUNDED)
def test_a_template_without_a_bound(demo, tmp_path, template):
    path = write(tmp_path / "r.yaml", {"op": "extend_vocab", "chat_template": template}, source=demo)
    assert_one_line(here("plan", path), 2, "chat_template: takes more than 5 seconds or 1 GiB of memory")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ eos_token * 10**7 }}", "chat_template: makes a value of"),
        ("{% if no %}{{ 'x' * 10**9 }}{% endif %}", "chat_template: makes a value of 1,000,000,000 characters"),
        ("{{ 7 ** 10000 }}", "chat_template: Jinja and Python cannot compile it: Exceeds the limit"),
    ],
)
def test_a_template_of_large_values(demo, tmp_path, template, words):
    operation = {"op": "extend_vocab", "chat_template": MESSAGES + template}
    assert_one_line(here("plan", write(tmp_path / "r.yaml", operation, source=demo)), 2, words)


def test_a_template_without_a_bound_that_another_wrote(demo, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(demo, other)
    (other / "chat_template.jinja").write_text(UNBOUNDED["memory"])
    done = here("verify", demo, other, "--no-outputs")
    assert done.returncode == 4
    assert "the chat template takes more than 5 seconds or 1 GiB of memory for a short conversation" in done.stdout


def head(path):
    init = {"scheme": "ridge", "examples": str(path)}
    return {
        "op": "replace_head",
        "task": "sequence_classification",
        "labels": ["no", "yes"],
        "pad_token": "</s>",
        "init": init,
    }


EXAMPLES = {
    "a long line": ('{"text": "' + "a" * (9 << 20) + '", "label": "no"}', ":1: is longer than 8,388,608 characters"),
    "a label that is no text": ('{"text": "a", "label": ["no"]}', ":1: the label '['no']' is none of the recipe's"),
    "nested": ("[" * 100_000, ":1: is not JSON"),
}


@pytest.mark.parametrize(("text", "words"), EXAMPLES.values(), ids=EXAMPLES)
def test_examples(demo, tmp_path, text, words):
    (tmp_path / "a.jsonl").write_text(text)
    assert_one_line(
        here("plan", write(tmp_path / "r.yaml", head(tmp_path / "a.jsonl"), source=demo)), 2, f"a.jsonl{words}"
    )


def test_pipes_and_devices_are_not_waited_for(demo, tmp_path):
    os.mkfifo(tmp_path / "a.jsonl")
    os.mkfifo(tmp_path / "a.jinja")
    for operation, name in (
        (head(tmp_path / "a.jsonl"), "a.jsonl"),
        ({"op": "extend_vocab", "chat_template": {"file": str(tmp_path / "a.jinja")}}, "a.jinja"),
        ({"op": "extend_vocab", "chat_template": {"file": "/dev/zero"}}, "/dev/zero"),
        ({**LORA, "init_lora_weights": "eva", "examples": str(tmp_path / "a.jsonl")}, "a.jsonl"),
    ):
        done = here("plan", write(tmp_path / "r.yaml", operation, source=demo))
        assert_one_line(done, 2, f"{name}: is not a regular file")
    os.mkfifo(tmp_path / "graft_report.json")
    assert_one_line(here("report", tmp_path), 3, "graft_report.json: is not a regular file")


def test_a_report_nested_without_end(tmp_path):
    (tmp_path / "graft_report.json").write_text('{"a":' * 2000 + "1" + "}" * 2000)
    assert_one_line(here("report", tmp_path), 3, "graft_report.json: is nested more than 64 levels deep")


def test_a_long_value_is_one_short_line(model):
    edit(model / "config.json", architectures=["x" * 1_000_000])
    done = here("inspect", model)
    assert_one_line(done, 3, "xxx…xxx")
    assert len(done.stderr) < 2100
    assert done.stderr.endswith("is not a model class of transformers\n")


@pytest.mark.parametrize(("key", "value"), [("num_hidden_layers", 9999), ("num_labels", 10**9)])
def test_numbers_in_a_config_that_no_checkpoint_has(model, tmp_path, key, value):
    edit(model / "config.json", **{key: value})
    assert_one_line(here("plan", write(tmp_path / "r.yaml", TOKENS, source=model)), 3, f"config.json: {key} is {value}")


@pytest.mark.parametrize("operation", [{**LORA, "r": 10**9}, {"op": "replace_head", "num_labels": 10**9}])
def test_numbers_in_a_recipe_that_nobody_means(demo, tmp_path, operation):
    operation = {"task": "sequence_classification", **operation} if operation["op"] == "replace_head" else operation
    assert_one_line(here("plan", write(tmp_path / "r.yaml", operation, source=demo)), 2, "must be at most")


def test_a_header_nested_without_end(model):
    path = model / "model.safetensors"
    raw = path.read_bytes()
    header = raw[8 : 8 + int.from_bytes(raw[:8], "little")].replace(b'"BF16"', b"[" * 700 + b"]" * 700, 1)
    path.write_bytes(len(header).to_bytes(8, "little") + header + raw[8 + int.from_bytes(raw[:8], "little") :])
    assert_one_line(here("inspect", model), 3, "unknown dtype")


def test_values_that_are_not_finite_are_the_input_s_fault(tmp_path):
    base, folder = make_adapter(tmp_path, "LlamaForCausalLM", target_modules=["q_proj"])
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "adapter_model.safetensors")
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    for op in ({"op": "merge_adapter"}, {"op": "resize_adapter", "r": 2}):
        path = write(tmp_path / "r.yaml", {**op, "adapter": str(folder)}, source=base)
        assert_one_line(here("apply", path, "-q"), 3, str(folder))
        assert not (tmp_path / "out").exists()
