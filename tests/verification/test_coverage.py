"""What a comparison of outputs covered once is covered still, and what is not covered stands in the verdict's own line."""

import functools
import inspect
import json

import pytest
from support.command import here
from support.coverage import CLASSES, TABLE, measured

import graftkit
from graftkit.verification.outputs import compare_outputs
from graftkit.verification.subject import Subject

COVERED = json.loads(TABLE.read_text(encoding="utf-8"))


def test_the_table_holds_every_family():
    assert list(COVERED) == list(CLASSES)


@pytest.mark.parametrize("name", CLASSES)
def test_nothing_is_lost_that_the_table_covers(name, tmp_path):
    coverage = measured(name, tmp_path / "model")
    assert [item for item in COVERED[name] if item not in coverage.covered] == []
    assert coverage.lost == ()


def returns_none(forward):
    """A forward that drops its cache."""

    @functools.wraps(forward)
    def without(self, *args, **kwargs):
        return forward(self, *args, **{**kwargs, "use_cache": False})

    return without


def ignores_it(forward):
    """A forward that returns a cache, and swallows the one it is given."""

    def deaf(self, input_ids=None, attention_mask=None, use_cache=None, **kwargs):
        kwargs = {name: value for name, value in kwargs.items() if name in ("output_hidden_states", "return_dict")}
        return forward(self, input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache, **kwargs)

    return deaf


def refuses_it(forward):
    """A forward that fails with a cache."""

    def refusing(self, input_ids=None, attention_mask=None, use_cache=None, **kwargs):
        if use_cache:
            raise TypeError("no cache here")
        return forward(self, input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    return refusing


FAULTS = {
    returns_none: "the forward returns no cache",
    ignores_it: "the forward does not take its cache back",
    refuses_it: "TypeError: no cache here",
}


@pytest.fixture(params=FAULTS, ids=lambda fault: fault.__name__)
def reason(request, monkeypatch):
    from transformers import LlamaForCausalLM

    monkeypatch.setattr(LlamaForCausalLM, "forward", request.param(LlamaForCausalLM.forward))
    return FAULTS[request.param]


def test_a_class_that_loses_its_cache_loses_coverage(reason, sources):
    source = sources("llama")
    report = compare_outputs(Subject(source, source))
    assert report.passed
    assert report.cached_decoding == f"not covered: {reason}"
    assert "cached decoding" not in report.coverage.covered
    assert report.coverage.lost == ("cached decoding",)


def test_a_forward_that_takes_its_cache_among_other_arguments_is_covered(sources, monkeypatch):
    from transformers import LlamaForCausalLM

    forward = LlamaForCausalLM.forward

    def open_ended(self, input_ids=None, attention_mask=None, **kwargs):
        return forward(self, input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    monkeypatch.setattr(LlamaForCausalLM, "forward", open_ended)
    assert not {"cache", "past_key_values"} & set(inspect.signature(LlamaForCausalLM.forward).parameters)
    report = compare_outputs(Subject(sources("llama"), sources("llama")))
    assert report.cached_decoding == "covered"
    assert report.coverage.lost == ()


def recipe(source, output, **verify):
    operations = [{"op": "extend_vocab", "special_tokens": ["<|a|>"]}]
    return {"version": 1, "base_model": str(source), "operations": operations, "output": str(output), "verify": verify}


def test_the_verdict_of_a_recipe_says_what_is_lost(reason, sources, tmp_path):
    report = graftkit.apply(recipe(sources("llama"), tmp_path / "out"))
    assert report.verdict.startswith("verified (bitwise): ")
    assert report.verdict.endswith("; not covered: cached decoding")
    assert json.loads((tmp_path / "out" / "graft_report.json").read_text())["not_covered"] == ["cached decoding"]
    assert "Not covered: cached decoding." in (tmp_path / "out" / "graft_report.html").read_text()


def test_the_last_line_of_verify_says_what_is_lost(reason, sources):
    source = str(sources("llama"))
    done = here("verify", source, source)
    assert done.returncode == 0
    assert (
        done.stdout.strip().splitlines()[-1]
        == "verified: B does what A did, on the old vocabulary; not covered: cached decoding"
    )


def test_nothing_is_said_where_nothing_is_lost_or_nothing_applies(sources, tmp_path):
    for family in ("llama", "bert"):
        report = graftkit.apply(recipe(sources(family), tmp_path / family))
        assert "not covered" not in report.verdict
        done = here("verify", sources(family), sources(family))
        assert done.stdout.strip().splitlines()[-1] == "verified: B does what A did, on the old vocabulary"


def test_outputs_that_were_left_out_are_not_covered(sources):
    source = str(sources("llama"))
    done = here("verify", source, source, "--no-outputs")
    assert done.stdout.strip().endswith("on the old vocabulary; not covered: outputs")


def test_ids_that_stood_in_no_probe_are_counted(sources):
    source = sources("llama")
    report = compare_outputs(Subject(source, source), token_budget=64)
    rest = report.ids - report.ids_covered
    assert rest > 0
    assert report.coverage.lost == (f"{rest} of {report.ids} old ids",)


def test_a_padding_that_the_source_refuses_is_lost(sources, monkeypatch):
    from transformers import LlamaForCausalLM

    forward = LlamaForCausalLM.forward

    def strict(self, input_ids=None, attention_mask=None, **kwargs):
        if attention_mask is not None and not attention_mask[:, 0].all():
            raise ValueError("no padding on the left")
        return forward(self, input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    monkeypatch.setattr(LlamaForCausalLM, "forward", strict)
    report = compare_outputs(Subject(sources("llama"), sources("llama")))
    assert report.coverage.lost == ("left padding",)


def test_a_forward_without_hidden_states_or_logits_is_not_covered(sources, monkeypatch):
    from transformers import LlamaForCausalLM
    from transformers.modeling_outputs import CausalLMOutputWithPast

    forward = LlamaForCausalLM.forward

    @functools.wraps(forward)
    def poor(self, *args, **kwargs):
        output = CausalLMOutputWithPast()
        output["scores"] = forward(self, *args, **kwargs).logits
        return output

    monkeypatch.setattr(LlamaForCausalLM, "forward", poor)
    report = compare_outputs(Subject(sources("llama"), sources("llama")))
    assert report.coverage.lost == ("hidden states", "logits", "cached decoding")
