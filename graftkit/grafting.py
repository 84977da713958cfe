"""Graft: the same as apply, of a model in memory; no weight goes through a file, and nothing is written."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftkit.blame import blame_inputs
from graftkit.checkpoint.adapter import Adapter
from graftkit.checkpoint.held import hold
from graftkit.engine import Progress, counter, figures_of, prepare, run_checks, subject_at
from graftkit.errors import VerificationFailed
from graftkit.planned import Plan
from graftkit.planning import plan_on
from graftkit.recipe import Recipe
from graftkit.recipe.load import places_added, recipe_for_model
from graftkit.report.report import Report
from graftkit.running.forward import undisturbed
from graftkit.running.live.assembling import assemble
from graftkit.running.live.model import LiveModel, open_live, same_weights
from graftkit.running.peft_loading import adapt
from graftkit.running.texts import load_tokenizer
from graftkit.verification.digests import checkpoint_digests
from graftkit.verification.in_memory import check_adapter_in_memory, check_in_memory

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from graftkit.verification.structural import LedgerEntry

#: Documents that a tokenizer is loaded from.
TOKENIZER_DOCUMENTS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "chat_template.jinja",
)


def graft(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    recipe: Recipe | Mapping[str, Any] | str | Path,
    *,
    progress: Progress | None = None,
) -> tuple[Any, Any, Report]:
    """Apply a recipe to a model in memory, verify the result beside it, and return the new model, its tokenizer and the report.

    The new model shares the memory of whatever did not change, and the given one is left as it is: train one of the two. An
    adapter in the recipe makes a `PeftModel`, ready to be trained. The recipe's ``base_model`` and ``output`` count for nothing,
    and may be left out. Hooks of the given model are not taken over to a new one.

    Raises:
        RecipeError: the recipe is wrong, or asks for what this model has no place for.
        InputRejected: the model cannot be worked on: it is sharded (FSDP), has weights on the meta device, is quantized ...
        VerificationFailed: the result does not keep its promise; nothing is returned.
    """
    with tempfile.TemporaryDirectory(prefix="graftkit-") as name, contextlib.ExitStack() as opened:
        folder = Path(name).resolve()
        source = open_live(model, tokenizer, folder / "source")
        opened.callback(source.release)
        parsed, document = recipe_for_model(recipe, source.name)
        with places_added(document):
            planned = plan_on(source.checkpoint, parsed)
            prepare(planned, progress)
            try:
                made = _make(planned, source, folder / "result")
                report = _verified(planned, source, made, progress)
            except VerificationFailed as error:
                blame_inputs(planned, error)
                raise
        opened.callback(made.base.release)
        return _model(made, source), _tokenizer(planned, made, tokenizer), report


@dataclass(frozen=True, slots=True)
class _Made:
    """The new base, which is the given one where that stays as it is, and the adapter with its values."""

    base: LiveModel
    adapter: Adapter | None


def _make(planned: Plan, source: LiveModel, folder: Path) -> _Made:
    base = assemble(planned.result, source, folder) if planned.writes_base else source
    adapter = planned.adapter
    if adapter is not None:
        adapter = Adapter(adapter.config, {name: hold(tensor) for name, tensor in adapter.tensors.items()})
    return _Made(base, adapter)


def _verified(planned: Plan, source: LiveModel, made: _Made, progress: Progress | None) -> Report:
    """The report of what was made.

    Raises:
        VerificationFailed: a check failed.
    """
    count = counter(progress, "compare with the source", planned.bytes_taken_over + planned.bytes_written)
    allow = planned.recipe.allow_nonfinite
    ledger: tuple[LedgerEntry, ...] = ()
    if planned.writes_base:
        ledger = check_in_memory(planned.result, made.base.checkpoint, allow_nonfinite=allow, progress=count)
    if planned.adapter is not None and made.adapter is not None:
        ledger += check_adapter_in_memory(planned.adapter, made.adapter, allow_nonfinite=allow, progress=count)
    subject = replace(
        subject_at(planned, source, made.base, made.adapter, progress=progress),
        digests=lambda _: checkpoint_digests(
            planned.result, weights=False
        ),  # nobody will look for these weights in a file
    )
    return Report(planned, ledger, tuple(run_checks(planned, subject)), figures_of(planned))


def _model(made: _Made, source: LiveModel) -> Any:
    """What the caller gets: the new base, or a peft model on it or on a second model in the memory of the given one."""
    base = same_weights(source.model) if made.base is source else made.base.model
    if made.adapter is None:
        return base
    with undisturbed():
        return adapt(base, made.adapter, trainable=True)


def _tokenizer(planned: Plan, made: _Made, given: Any) -> Any:
    """The tokenizer of the new documents, or the given one where nothing of it changed."""
    before, after = planned.source.documents, planned.result.documents
    changed = any(after.get(name) != before.get(name) for name in TOKENIZER_DOCUMENTS)
    if given is None or not changed:
        return given
    loaded = load_tokenizer(made.base.directory)
    loaded.name_or_path = given.name_or_path
    return loaded
