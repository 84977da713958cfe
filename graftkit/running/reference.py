"""What the source gives on its probes: the reference that the result is compared with."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from graftkit.architecture.embeddings import INPUT, embedding_of
from graftkit.architecture.skeleton import one_line
from graftkit.errors import InputRejected, VerificationFailed, few
from graftkit.running.coverage import CACHED, Coverage, applying, coverage
from graftkit.running.forward import (
    Loaded,
    can_cache,
    keep_freed_memory,
    largest_position,
    load,
    refusal,
    release,
    run,
)
from graftkit.running.inputs import find_inputs, patches_of, takes_images
from graftkit.running.paging.share import part_of
from graftkit.running.paging.skeleton import split_large_tables
from graftkit.running.place import Place, folder_of
from graftkit.running.probes import (
    FEWEST_IMAGES,
    KEPT_BYTES,
    MOST_IMAGES,
    POSITIONS,
    Budget,
    Probe,
    make_image_probes,
    make_probes,
    split,
)
from graftkit.running.remembered import recall
from graftkit.running.split.together import forwards

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from graftkit.running.split.crew import Crew

Step = Callable[[float], None]


@dataclass(frozen=True, slots=True)
class Reference:
    """What the source gave: its outputs by probe, what it was fed (``extra_inputs``, beside ids), and what it would not do."""

    architecture: str
    dtype: str
    unexpected: frozenset[str]
    mismatched: frozenset[str]
    live: int
    parts: list[Probe]
    extra_inputs: frozenset[str]
    names: dict[str, tuple[str, ...]]
    kept: dict[str, dict[str, Tensor]]
    not_kept: int
    skipped: dict[str, str]
    cached: str
    coverage: Coverage


@contextlib.contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Note under ``name`` how long the body took."""
    start = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - start, 3)


def run_source(
    source: Place,
    drawn: Sequence[int] | None,
    seed: int,
    tokens: int | None,
    seconds: dict[str, float],
    step: Step,
    *,
    backbone: bool = False,
    part: str = "",
    paged: bool = False,
    crew: Crew | None = None,
) -> Reference:
    """Load the source, run it (or its ``backbone``, the module ``part``) on its probes, and let it go: only its outputs remain.

    Raises:
        InputRejected: it does not load, or its load misses tensors, so that its outputs are random.
        VerificationFailed: the forward needs inputs that cannot be made.
    """

    def make() -> Reference:
        with timed(seconds, "load source"):
            old = load_source(source, backbone=backbone, part=part, paged=paged, lent=True, crew=crew)
            split_large_tables(old.model)
            keep_freed_memory(old)
        try:
            return run_loaded(old, source, drawn, seed, tokens, seconds, step, backbone=backbone, crew=crew)
        finally:
            release(old.model)

    asked = (folder_of(source), drawn if drawn is None else tuple(drawn), seed, tokens, backbone, part, paged)
    found = recall(asked, make)
    return replace(found, kept=dict(found.kept))  # whoever compares takes out what was compared


def load_source(
    source: Place, *, backbone: bool, part: str = "", paged: bool = False, lent: bool = False, crew: Crew | None = None,
    whole_tables: bool = False,
) -> Loaded:  # fmt: skip
    """Load the source, whole or without its head (the module ``part`` of it alone), in memory, ``paged`` in, or ``lent``.

    See :func:`~graftkit.running.forward.load`. A ``crew`` loads it together, see
    :meth:`~graftkit.running.split.crew.Crew.load` on ``whole_tables``.

    Raises:
        InputRejected: it does not load, or its load misses tensors, so that its outputs are random.
    """
    try:
        old = load(source, paged=paged, lent=lent) if crew is None else crew.load(source, whole_tables=whole_tables)
    except VerificationFailed as error:
        raise InputRejected(str(error)) from error
    old = old.backbone(part) if backbone else old
    if old.missing:
        raise InputRejected(f"{source.name}: tensors are missing and random at every load: {few(old.missing)}")
    return old


def run_loaded(
    old: Loaded,
    place: Place,
    drawn: Sequence[int] | None,
    seed: int,
    tokens: int | None,
    seconds: dict[str, float],
    step: Step,
    *,
    backbone: bool = False,
    crew: Crew | None = None,
) -> Reference:
    """Run a loaded model on its probes over the ids ``drawn``, with texts of the tokenizer at ``place`` where there is one.

    Raises:
        VerificationFailed: the forward needs inputs that cannot be made.
    """
    probes, budget, live, rows = plan_probes(old.model, place, drawn, seed, tokens)
    with timed(seconds, "run source"):
        return _collect(old, probes, budget, live, rows, step, backbone=backbone, crew=crew)


def plan_probes(
    model: PreTrainedModel, source: Place, drawn: Sequence[int] | None, seed: int, tokens: int | None
) -> tuple[list[Probe], Budget, int, int]:
    """The probes of a model over the ids ``drawn``, or all; their budget, how many ids that are, and the rows of its table.

    Of a model that takes images alone, how many images there are, and how many labels.
    """
    if embedding_of(model, INPUT) is None and takes_images(model):
        return _plan_images(model, tokens)
    rows, width, item_bytes = _table(model)
    old = range(rows) if drawn is None else drawn
    budget = _budget(model, rows, width, item_bytes, tokens)
    pad = getattr(model.config.get_text_config(), "pad_token_id", None)
    pad = pad if isinstance(pad, int) and pad in old else old[0]
    positions = min(largest_position(model) or POSITIONS, budget.tokens)
    return make_probes(folder_of(source), old, positions, budget, seed, pad), budget, len(old), rows


def _plan_images(model: PreTrainedModel, tokens: int | None) -> tuple[list[Probe], Budget, int, int]:
    """As :func:`plan_probes`; a token of an image is a patch of it."""
    rows = max(int(getattr(model.config, "num_labels", 1)), 1)
    patches = patches_of(model)
    hidden = patches * (getattr(model.config, "hidden_size", None) or rows)
    budget = _budget(model, rows, hidden, model.dtype.itemsize, tokens)
    count = min(max(min(budget.tokens // patches, budget.kept), FEWEST_IMAGES), MOST_IMAGES)
    return make_image_probes(count), budget, count, rows


def _table(model: PreTrainedModel) -> tuple[int, int, int]:
    """Rows and columns of the input embedding, and bytes of one element of the model's outputs."""
    table = embedding_of(model, INPUT)
    if table is None:
        raise VerificationFailed(
            f"outputs: {type(model).__name__} has no input embedding and is fed {model.main_input_name}, which cannot be"
            " made; leave out what runs the model: --no-outputs, or verify: {outputs: false} without lens, signal and first_step"
        )
    rows, width = table.weight.shape
    return rows, width, model.dtype.itemsize


def _budget(model: PreTrainedModel, rows: int, width: int, item_bytes: int, tokens: int | None) -> Budget:
    text = model.config.get_text_config()
    layers = getattr(text, "num_hidden_layers", None) or 12
    layers = sum(layers.values()) if isinstance(layers, dict) else layers  # LXMERT: by kind of input
    sides = 2 if model.config.is_encoder_decoder else 1
    hidden = max(getattr(text, "hidden_size", None) or width, width)
    return Budget.of(model.num_parameters(), rows, sides * (layers + 1) * hidden * item_bytes, item_bytes, tokens)


def _collect(
    old: Loaded,
    probes: list[Probe],
    budget: Budget,
    live: int,
    rows: int,
    step: Step,
    *,
    backbone: bool,
    crew: Crew | None,
) -> Reference:
    """Run the source on every probe that it takes, and keep what fits; the first probe finds out what it must be fed."""
    first, *others = [part for probe in probes for part in split(probe, budget.forward)]
    before = None if crew is None else crew.state_of(old.model)
    extra_inputs, outputs = find_inputs(old.model, lambda tried: run(old.model, first, tried))
    names, kept, skipped = {}, {}, {}
    room, not_kept = KEPT_BYTES, 0
    applies = applying(old.model, backbone=backbone)
    reason = "a base model alone does not generate" if backbone else can_cache(old.model, extra_inputs)
    parts = [first, *(part for part in others if not part.steps or reason is None)]
    runs = [partial(run, old.model, part, extra_inputs) for part in parts[1:]]
    with forwards(crew, old.model, runs, [bool(part.steps) for part in parts[1:]], before) as outcomes:
        for index, part in enumerate(parts):
            try:
                if index:
                    with part_of(step, index, len(parts), (old.pager, 1)):
                        outputs = next(outcomes)()
            except Exception as error:  # noqa: BLE001 - what the source refuses is left out of the comparison, and said
                if part.steps:
                    reason = refusal(error)
                else:
                    skipped[part.name] = one_line(error)
                continue
            names[part.name] = tuple(outputs)
            kept[part.name], room, left = _keep(outputs, part, rows, room)
            not_kept += left
            step((index + 1) / len(parts))
    ran = [part for part in parts if part.name in kept]
    word = "covered" if reason is None else "not covered" if CACHED in applies else "does not apply"
    return Reference(
        type(old.model).__name__, old.dtype, old.unexpected, old.mismatched, live, ran, extra_inputs, names, kept, not_kept, skipped,
        f"{word}: {reason}" if reason else word,
        coverage(applies, ran, frozenset().union(*names.values()), live, not_kept),
    )  # fmt: skip


def _keep(outputs: dict[str, Tensor], part: Probe, rows: int, room: int) -> tuple[dict[str, Tensor], int, int]:
    """What is kept of a probe's outputs within ``room`` bytes, the room left, and how many outputs did not fit.

    Logits first, then hidden states from the last layer down: a difference in an early layer shows in the later ones.
    """
    wanted = {k: v for k, v in outputs.items() if not (part.hidden_only and v.shape[-1] == rows and "hidden" not in k)}
    plain = [name for name in wanted if "hidden_states" not in name]
    order = plain + [name for name in reversed(wanted) if "hidden_states" in name]
    fitting = set()
    for name in order:
        nbytes = wanted[name].numel() * wanted[name].element_size()
        if nbytes <= room:
            fitting.add(name)
            room -= nbytes
    return {name: value for name, value in wanted.items() if name in fitting}, room, len(wanted) - len(fitting)
