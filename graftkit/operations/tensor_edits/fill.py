"""The step that fills tensors by a scheme, those that are there or new ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graftkit.architecture.parameters import layout_of
from graftkit.architecture.skeleton import Skeleton, build_skeleton
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.computed import computed
from graftkit.checkpoint.reading import TAGS, torch_dtype
from graftkit.checkpoint.tensors import LazyTensor, Zeros
from graftkit.errors import RecipeError, printable
from graftkit.initializers.fans import LINEAR, Layout, fans
from graftkit.initializers.make import make
from graftkit.initializers.seeding import generator_for
from graftkit.operations.tensor_edits.selection import require_floating, require_free, select
from graftkit.operations.tensor_edits.stepped import Place, Stepped
from graftkit.operations.weights.facts import model_facts
from graftkit.recipe.tensor_steps import Fill
from graftkit.recipe.weight_schemes import is_zero

if TYPE_CHECKING:
    from torch import Tensor

#: Schemes whose values do not depend on which axes are inputs and outputs.
_WITHOUT_FANS = ("zeros", "ones", "constant", "normal", "trunc_normal", "uniform")


def fill(step: Fill, checkpoint: Checkpoint, place: Place) -> Stepped:
    """Fill tensors; each is seeded by its own name.

    Raises:
        RecipeError: an expression fits no tensor, a new name is taken, or the scheme needs a matrix.
    """
    if step.shape is None or step.dtype is None:
        names = list(select(step.tensors, checkpoint.tensors))
        require_floating(names, checkpoint.tensors)
        wanted = {name: (checkpoint.tensors[name].dtype, checkpoint.tensors[name].shape) for name in names}
    else:
        require_free({name: name for name in step.tensors}, checkpoint.tensors, field="tensors")
        wanted = dict.fromkeys(step.tensors, (TAGS[step.dtype], step.shape))
    skeleton = build_skeleton(checkpoint.config)
    made: dict[str, LazyTensor] = {
        name: _filled(step.init, name, dtype, shape, skeleton, place.seed) for name, (dtype, shape) in wanted.items()
    }
    sampled = {} if _is_one_value(step.init) else made
    return Stepped(checkpoint.with_tensors(made), sampled=sampled)


def _is_one_value(scheme: Any) -> bool:
    return scheme.scheme in ("zeros", "ones", "constant")


def _filled(
    scheme: Any, name: str, dtype: str, shape: tuple[int, ...], skeleton: Skeleton, seed: tuple[int, ...]
) -> LazyTensor:
    if is_zero(scheme):
        return Zeros(dtype, shape)
    layout = _layout(skeleton, name, shape)
    if scheme.scheme not in _WITHOUT_FANS:
        try:
            fans(shape, layout)
        except ValueError as error:
            raise RecipeError(f"{printable(name)!r}: {error}", field="init") from error
    facts = model_facts(skeleton)

    def values() -> Tensor:
        return make(scheme, shape, torch_dtype(dtype), layout, generator_for(*seed, name), facts)

    return computed(dtype, shape, values)


def _layout(skeleton: Skeleton, name: str, shape: tuple[int, ...]) -> Layout:
    """How the class lays the tensor out, where it has one of that name and shape; else as a linear layer does."""
    known = skeleton.memory_names([name])[name]
    if known.converted or skeleton.shapes.get(known.name) != shape:
        return LINEAR
    return layout_of(skeleton, known.name) or LINEAR
