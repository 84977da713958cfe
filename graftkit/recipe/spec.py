"""What every value of a recipe is: strict, frozen, and with all of its problems reported at once."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Self

from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from graftkit.recipe_file.problems import Path
from graftkit.recipe_file.wording import unknown

#: The type of pydantic errors whose message is already a sentence of ours.
OWN = "recipe"


def problem(message: str) -> PydanticCustomError:
    """Make an error to raise in a validator; ``message`` reaches the user as it is."""
    return PydanticCustomError(OWN, "{message}", {"message": message})


def problems(found: Iterable[tuple[Path, str]], data: object) -> ValidationError:
    """Make an error to raise in a validator for several places below the validated value."""
    return ValidationError.from_exception_data("recipe", [_details(path, problem(text), data) for path, text in found])


class Spec(BaseModel):
    """Base of all recipe values. A subclass checks its fields against each other in :meth:`contradictions`."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)

    @classmethod
    def contradictions(cls, data: Mapping[str, object]) -> Iterator[tuple[Path, str]]:  # noqa: ARG003 - none here
        """Yield the path below this value and the message of each pair of fields that cannot both stand.

        ``data`` is as it was written: nothing in it is validated, so that these problems are reported beside those of
        single fields.
        """
        yield from ()

    @classmethod
    def written_names(cls) -> list[str]:
        """The names of the fields as a recipe writes them."""
        return [field.alias or name for name, field in cls.model_fields.items()]

    def plain(self) -> object:
        """Return the value as a recipe writes it, down to mappings, lists and scalars."""
        return self.plain_fields()

    def plain_fields(self) -> dict[str, object]:
        """Return the fields in their order, less those that are null or empty and so say nothing."""
        written = {field.alias or name: plain(getattr(self, name)) for name, field in type(self).model_fields.items()}
        return {name: value for name, value in written.items() if value not in (None, [], {})}

    @model_validator(mode="wrap")
    @classmethod
    def _report_all_at_once(cls, data: object, handler: ModelWrapValidatorHandler[Self]) -> Self:
        errors: list[InitErrorDetails] = []
        value = None
        try:
            value = handler(data)
        except ValidationError as error:
            errors += [cls._reworded(details) for details in error.errors(include_url=False)]
        if isinstance(data, dict):
            errors += [_details(path, problem(text), data) for path, text in cls.contradictions(data)]
        if value is None or errors:
            raise ValidationError.from_exception_data(cls.__name__, errors)
        return value

    @classmethod
    def _reworded(cls, error: ErrorDetails) -> InitErrorDetails:
        if error["type"] == OWN:
            return _details(error["loc"], problem(error["msg"]), error["input"])
        if error["type"] == "extra_forbidden":
            message = unknown("unknown field", error["loc"][-1], cls.written_names(), all_called="the fields here are")
            return _details(error["loc"], problem(message), error["input"])
        return {"type": error["type"], "loc": error["loc"], "input": error["input"], "ctx": error.get("ctx", {})}


def plain(value: object) -> object:
    """Return ``value`` as a recipe writes it, down to mappings, lists and scalars."""
    match value:
        case Spec():
            return value.plain()
        case Mapping():
            return {name: plain(item) for name, item in value.items()}
        case tuple():
            return [plain(item) for item in value]
        case _:
            return value


def _details(path: Path, error: PydanticCustomError, data: object) -> InitErrorDetails:
    return {"type": error, "loc": path, "input": data}
