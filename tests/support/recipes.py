"""Recipes as mappings, and what an applied one gave, loaded as a user loads it."""

import json


def recipe(source, output, *operations, **others):
    """A recipe with these operations; ``others`` are fields of the recipe beside them."""
    return {"version": 1, "base_model": str(source), "output": str(output), "operations": list(operations), **others}


def config_of(directory):
    return json.loads((directory / "config.json").read_text())


def load(directory):
    """The model that the config names, ready to run, and what transformers says of its loading."""
    import transformers

    name = config_of(directory)["architectures"][0]
    model, info = getattr(transformers, name).from_pretrained(directory, output_loading_info=True)
    return model.eval(), info
