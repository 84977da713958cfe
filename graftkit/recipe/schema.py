"""The JSON Schema of recipes, for editors."""

from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import core_schema

from graftkit.recipe.recipe import Recipe
from graftkit.recipe.spec import plain

Field = core_schema.ModelField | core_schema.DataclassField | core_schema.TypedDictField


class _Generator(GenerateJsonSchema):
    """What a person may write: defaults in their short form, and ``op`` and ``scheme``, which name a spec, required."""

    def field_title_should_be_set(self, schema: object) -> bool:  # noqa: ARG002
        """Leave titles out: they would only repeat the names."""
        return False

    def field_is_required(self, field: Field, total: bool) -> bool:
        """Require literal fields of a single value: they tell specs apart."""
        inner = field["schema"].get("schema")
        names_the_spec = isinstance(inner, dict) and inner.get("type") == "literal" and len(inner["expected"]) == 1
        return names_the_spec or super().field_is_required(field, total)

    def encode_default(self, dft: object) -> object:
        """Write defaults as a recipe does."""
        return plain(dft)


def json_schema() -> dict[str, object]:
    """Return the JSON Schema (draft 2020-12) of recipes, with a description at every field."""
    schema = Recipe.model_json_schema(schema_generator=_Generator)
    return {"$schema": _Generator.schema_dialect, **schema, "title": "graftkit recipe"}
