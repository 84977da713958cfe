"""The recipes with adapters, each through the command line, then loaded as a trainer does it."""

import json
from pathlib import Path

import pytest
from support.command import here

pytestmark = pytest.mark.numerical


def loaded(output):
    import transformers
    from peft import PeftModel

    config = json.loads((output / "adapter/adapter_config.json").read_text())
    base = config["base_model_name_or_path"]
    architecture = json.loads((Path(base) / "config.json").read_text())["architectures"][0]
    model = getattr(transformers, architecture).from_pretrained(base)
    return PeftModel.from_pretrained(model, output / "adapter", is_trainable=True), config


@pytest.mark.parametrize("name", ["lora", "pissa_exact", "tools_lora", "classifier_lora", "eva"])
def test_the_recipe_gives_an_adapter_that_a_trainer_loads(name, tmp_path):
    done = here("apply", f"recipes/{name}.yaml", "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    for words in ("base with adapter", "gradients at step 0", "PeftModel.from_pretrained", "--adapters"):
        assert words in done.stdout
    model, config = loaded(tmp_path / "out")
    trained = [key for key, parameter in model.named_parameters() if parameter.requires_grad]
    assert any("lora_B" in key for key in trained)
    written = name in ("tools_lora", "classifier_lora")
    assert ("config and tokenizer stay as they are" in done.stdout) != written
    assert (tmp_path / "out/config.json").exists() == written
    if name == "pissa_exact":
        assert (config["r"], config["lora_alpha"], config.get("init_lora_weights", True)) == (16, 16, True)
    if name == "tools_lora":
        assert config["trainable_token_indices"]
        assert any("trainable_tokens_delta" in key for key in trained)
    if name == "classifier_lora":
        assert config["task_type"] == "SEQ_CLS"
        assert "score" in config["modules_to_save"]
        assert any("modules_to_save" in key for key in trained)


def test_the_recipe_of_another_kind_gives_an_adapter_that_peft_loads(tmp_path):
    done = here("apply", "recipes/oft.yaml", "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "gradients at step 0" in done.stdout
    assert "lora_model_dir" not in done.stdout
    model, config = loaded(tmp_path / "out")
    assert config["peft_type"] == "OFT"
    assert any("oft_R" in name for name, value in model.named_parameters() if value.requires_grad)
