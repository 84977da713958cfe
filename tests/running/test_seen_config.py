"""The loader's config is that of the file: where transformers would take the defaults of the class for it, the system is blamed."""

import pytest
import transformers

from graftkit.errors import StorageFault
from graftkit.running.seen_config import read_config


def test_a_config_that_transformers_does_not_see_is_an_error(tmp_path):
    plain = transformers.LlamaConfig.from_pretrained(tmp_path)
    assert plain.hidden_size * plain.num_hidden_layers == 4096 * 32  # seven billion parameters, for no file at all
    with pytest.raises(
        StorageFault, match=f"{tmp_path.name}/config.json: cannot be seen any more; nothing was written"
    ):
        read_config(transformers.LlamaConfig, tmp_path)


@pytest.mark.parametrize("values", [{}, {"hidden_size": 32, "architectures": ["LlamaForCausalLM"]}])
def test_a_config_that_is_there_is_the_one_that_is_read(tmp_path, values):
    transformers.LlamaConfig(**values).save_pretrained(tmp_path)
    found = read_config(transformers.LlamaConfig, tmp_path)
    assert found.to_dict() == transformers.LlamaConfig.from_pretrained(tmp_path).to_dict()
    assert found.hidden_size == values.get("hidden_size", 4096)
