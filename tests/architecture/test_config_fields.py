"""adapter_config.json holds what differs from peft's defaults, and says the same as all fields do."""

import json

import pytest
from peft import LoraConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from support.command import here
from support.recipes import applied

from graftkit.architecture.peft.config_fields import ALWAYS, config_fields, with_defaults, without_defaults

LORA = {"op": "add_lora", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}

#: What LoraConfig took in peft 0.13, the oldest that the written file is meant for.
OLDEST = {
    "peft_type", "task_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "r", "target_modules", "lora_alpha",
    "lora_dropout", "fan_in_fan_out", "bias", "use_rslora", "modules_to_save", "init_lora_weights", "layers_to_transform",
    "layers_pattern", "rank_pattern", "alpha_pattern", "megatron_config", "megatron_core", "loftq_config", "use_dora", "layer_replication",
}  # fmt: skip


def saved(config):
    """The JSON of a config, as peft saves it."""
    values = {name: sorted(value) if isinstance(value, set) else value for name, value in config.to_dict().items()}
    return json.loads(json.dumps(values))


@pytest.mark.parametrize(
    "fields", [{}, {"use_rslora": True, "rank_pattern": {"q": 3}}, {"trainable_token_indices": [5]}]
)
def test_what_is_left_out_is_what_peft_fills_in(fields):
    whole = saved(LoraConfig(r=4, target_modules=["q"], **fields))
    written = without_defaults(whole)
    assert written.keys() == {*ALWAYS, *fields, *({"inference_mode"} if whole["inference_mode"] else ())}
    assert with_defaults(written) == with_defaults(whole)
    again = saved(LoraConfig(**{name: value for name, value in written.items() if name != "peft_type"}))
    assert again == whole


@pytest.mark.parametrize("kind", sorted(str(getattr(kind, "value", kind)) for kind in PEFT_TYPE_TO_CONFIG_MAPPING))
def test_every_kind_has_its_defaults(kind):
    assert "peft_type" in config_fields(kind)
    filled = with_defaults({"peft_type": kind})
    assert filled.keys() <= {*config_fields(kind)}
    assert without_defaults({**filled, "peft_type": kind}).keys() <= {*ALWAYS}


def test_an_old_peft_knows_every_field_and_one_saved_again_is_the_same_adapter(demo, tmp_path):
    output, _ = applied(demo, tmp_path, LORA)
    path = output / "adapter/adapter_config.json"
    written = json.loads(path.read_text())
    assert written.keys() <= OLDEST
    path.write_text(
        json.dumps(saved(LoraConfig(**{name: value for name, value in written.items() if name != "peft_type"})))
    )
    done = here("verify", demo, "--adapter", output / "adapter", "--no-outputs")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    path.write_text(json.dumps({**written, "use_dora": True}))
    done = here("verify", demo, "--adapter", output / "adapter", "--no-outputs")
    assert done.returncode == 4
    assert "use_dora is True, was False" in done.stdout
