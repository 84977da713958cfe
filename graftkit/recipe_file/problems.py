"""Where a recipe's values stand, and the list of what is wrong with them."""

from dataclasses import dataclass, field

from graftkit.errors import printable
from graftkit.recipe_file.paths import RecipeFolder

#: The keys and indices that lead to a value of a recipe.
Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value was written.

    ``origin`` is what a message begins with: ``recipe.yaml:6``, or an override. ``order`` sorts problems: overrides
    follow lines. ``text`` is a plain scalar as it was written, None for all else.
    """

    origin: str
    order: tuple[int, int]
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, at ``path`` in the recipe."""

    place: Place
    path: Path
    message: str

    def line(self) -> str:
        """Say ``recipe.yaml:6: operations.0.ranks: unknown field``, fit for a terminal."""
        return printable(": ".join(part for part in (self.place.origin, dotted(self.path), self.message) if part))


@dataclass(slots=True)
class Document:
    """Plain values, the place of each, and the problems found so far. Values from a library user have no places, and no folder."""

    data: object
    places: dict[Path, Place] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    folder: RecipeFolder | None = None

    def place(self, path: Path) -> Place:
        """Return the place of ``path``, or of the closest value around it that was written."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.places:
                return self.places[path[:end]]
        return Place("", (0, 0))

    def add(self, path: Path, message: str, place: Place | None = None) -> None:
        """Note a problem at ``path``, or elsewhere when ``place`` says where."""
        self.problems.append(Problem(place or self.place(path), path, message))

    def located(self, problem: str) -> str:
        """``problem``, which begins with a dotted path, behind the place where that was written."""
        steps = problem.partition(": ")[0].split(".")
        origin = self.place(tuple(int(step) if step.isdigit() else step for step in steps)).origin
        return f"{printable(origin)}: {problem}" if origin else problem

    def looked(self, message: str) -> str:
        """``message``, with where it was looked for a path in it that leads nowhere."""
        return message + printable(self.folder.looked(message)) if self.folder else message

    def lines(self) -> list[str]:
        """Return every problem as a line, in the order of the recipe's lines."""
        ordered = sorted(self.problems, key=lambda problem: problem.place.order)
        return list(dict.fromkeys(problem.line() for problem in ordered))


def dotted(path: Path) -> str:
    """Write ``path`` as ``operations.0.init``."""
    return ".".join(str(step) for step in path)
