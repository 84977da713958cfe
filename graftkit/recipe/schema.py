"""The JSON Schema of recipes, for editors."""

from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from graftkit.recipe.recipe import Recipe
from graftkit.recipe.spec import plain


class _Generator(GenerateJsonSchema):
    """What a person may write: defaults in their short form, and ``op`` and ``scheme``, which name a spec, required."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002
        """No titles: they would only repeat the names."""
        return False

    def field_is_required(self, field: Any, total: bool) -> bool:
        """A literal field with a default tells specs apart."""
        names_the_spec = field["schema"].get("schema", {}).get("type") == "literal"
        return names_the_spec or super().field_is_required(field, total)

    def encode_default(self, dft: Any) -> Any:
        """As a recipe writes it."""
        return plain(dft)


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of recipes, a description at every field."""
    schema = Recipe.model_json_schema(schema_generator=_Generator)
    return {"$schema": _Generator.schema_dialect, **schema, "title": "graftkit recipe"}
