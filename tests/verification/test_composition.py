"""The recipe's promise is what all of its operations keep, and a weaker measurement fails."""

import json
import re
import shutil

import numpy as np
import pytest
from support.families import ROWS, build

import graftkit
from graftkit.checkpoint.safetensors_header import read_header
from graftkit.engine import plan
from graftkit.verification.composition import compose, measured_class, weaker_than_promised
from graftkit.verification.outputs import compare_outputs
from graftkit.verification.promises import Promise, PromiseClass, Scope
from graftkit.verification.registry import verify
from graftkit.verification.subject import Subject

LOGITS = Promise(PromiseClass.BITWISE, "logits", "old ids", ("one kernel",))
HIDDEN = Promise(PromiseClass.BITWISE, "hidden states", "every input")
ANEW = Promise(PromiseClass.INTENTIONAL, "a layer made anew", "every input")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return build("llama", tmp_path_factory.mktemp("llama") / "source", tokens=ROWS)


def test_the_narrowest_observable_wins_among_equals():
    for order in ([0, 1], [1, 0]):
        parts = [(LOGITS, Scope.EVERYTHING), (HIDDEN, Scope.BACKBONE)]
        found = compose([parts[index] for index in order])
        assert (found.strength, found.observable) == (PromiseClass.BITWISE, "hidden states")
        assert found.domain == "old ids"
        assert found.assumptions == ("one kernel",)


def test_the_weakest_class_wins():
    assert compose([(LOGITS, Scope.EVERYTHING), (ANEW, Scope.MEASURE)]).observable == "a layer made anew"


def test_a_new_head_behind_new_tokens_promises_no_old_logits(source, tmp_path):
    grow = {"op": "extend_vocab", "special_tokens": ["<|a|>"], "roles": {"pad_token": "<pad>"}}
    head = {"op": "replace_head", "task": "sequence_classification", "labels": ["x", "y"]}
    operations = [{**grow, "roles": {}}, head]
    found = plan({"version": 1, "base_model": str(source), "operations": operations, "output": str(tmp_path / "o")})
    assert "logits over the old ids" not in found.promise.observable
    assert found.promise.observable.startswith("hidden states of the backbone")
    assert found.promise.domain == "sequences of old token ids"


def flipped_copy(source, target):
    """A copy of the source with one bit of one weight flipped."""
    shutil.copytree(source, target)
    tensor = read_header(target / "model.safetensors").tensors["model.layers.1.mlp.down_proj.weight"]
    words = np.memmap(tensor.path, np.uint32, "r+", tensor.offset, tensor.nbytes // 4)
    words[5] ^= 1 << 12
    words.flush()
    return target


def test_a_weaker_measurement_fails(source, tmp_path):
    target = flipped_copy(source, tmp_path / "flipped")
    clean, flipped = (compare_outputs(Subject(source, other)) for other in (source, target))
    assert measured_class(clean, LOGITS) is PromiseClass.BITWISE
    assert measured_class(flipped, LOGITS) is PromiseClass.INTENTIONAL
    assert not list(weaker_than_promised(LOGITS, clean))
    assert not list(weaker_than_promised(ANEW, flipped))
    (failure,) = weaker_than_promised(LOGITS, flipped)
    assert re.match(r"outputs: promised was bitwise, measured is intentional: .* differs by", failure)


def test_a_weaker_measurement_is_a_failure_of_the_outputs(source, tmp_path):
    """The one loop says so too, of a result whose outputs may differ and that was promised to be bitwise."""
    target = flipped_copy(source, tmp_path / "flipped")
    findings = {finding.name: finding for finding in verify(Subject(source, target, LOGITS))}
    assert any("measured is intentional" in failure for failure in findings["outputs"].failures)
    assert [finding.failures for finding in verify(Subject(source, source, LOGITS))] == []


def test_both_classes_stand_in_the_report(source, tmp_path):
    operation = {"op": "extend_vocab", "special_tokens": ["<|a|>"]}
    recipe = {"version": 1, "base_model": str(source), "operations": [operation], "output": str(tmp_path / "out")}
    report = graftkit.apply(recipe)
    stored = json.loads((tmp_path / "out" / "graft_report.json").read_text())["promise"]
    assert stored["strength"] == "bitwise"
    assert stored["measured"] in ("bitwise", "rounded")
    assert any(check == "promise" and figure == "bitwise promised" for check, _, figure in report.rows())
