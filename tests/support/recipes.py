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


def apply_by_command(source, place, *operations):
    """Run a recipe by the command line, in this process; return how it ended and where its output would be."""
    from support.command import here

    place.mkdir(exist_ok=True)
    (place / "recipe.yaml").write_text(json.dumps(recipe(source, place / "out", *operations)))
    return here("apply", place / "recipe.yaml"), place / "out"


def applied(source, place, *operations):
    """The folder and the report of a recipe that must succeed by the command line."""
    done, output = apply_by_command(source, place, *operations)
    assert done.returncode == 0, done.stderr
    return output, json.loads((output / "graft_report.json").read_text())


def save(like, place, tensors):
    """Write these tensors into one file, with the documents of the checkpoint ``like`` beside them."""
    import shutil

    from safetensors.torch import save_file

    place.mkdir()
    for path in like.glob("*.json"):
        if "index" not in path.name and path.name != "graft_report.json":
            shutil.copy(path, place)
    save_file(
        {name: value.contiguous() for name, value in tensors.items()}, place / "model.safetensors", {"format": "pt"}
    )


def assert_equal_in_float64(report):
    """By what the report holds: the printed row may be broken into lines, which depends on the figures beside it."""
    lens = report["checks"]["lens"]
    assert lens["outputs"]
    assert not lens["failures"]
