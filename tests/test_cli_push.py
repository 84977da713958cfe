"""`apply --push-to-hub`: the output is uploaded behind its commit, over real HTTP, by the protocol for large files that is not Xet."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.hub import COMMIT, TOKEN, Repository, Uploads, commands, hub


@dataclass
class Setting:
    """A hub that takes uploads, and a process that runs commands against it."""

    run: Any
    home: Path
    uploads: Uploads

    def recipe(self, base="org/tiny"):
        """Write a recipe that makes an adapter and changes the base; gives its path and its output."""
        place = self.home / f"recipe-{len(list(self.home.iterdir()))}.json"
        operations = [{"op": "extend_vocab", "tokens": ["zqx"]}]
        document = {"version": 1, "base_model": base, "operations": operations, "verify": {"outputs": False}}
        place.write_text(json.dumps({**document, "output": str(place.with_suffix(""))}))
        return str(place), place.with_suffix("")


@pytest.fixture(scope="module")
def running(demo, tmp_path_factory):
    home, uploads = tmp_path_factory.mktemp("home"), Uploads(TOKEN)
    with hub(uploads, tiny=Repository(demo)) as endpoint, commands(endpoint, home, HF_TOKEN=TOKEN) as run:
        yield Setting(run, home, uploads)


@pytest.fixture
def setting(running):
    running.uploads.fault, running.uploads.private = "", None
    for kept in (running.uploads.files, running.uploads.objects, running.uploads.asked):
        kept.clear()
    return running


@pytest.mark.parametrize("options", [[], ["--public"]])
def test_the_output_is_uploaded_whole(setting, options):
    path, output = setting.recipe()
    code, out, err = setting.run("apply", path, "--push-to-hub", "org/made", *options)
    assert (code, err) == (0, "")
    assert setting.uploads.private == (not options)
    assert setting.uploads.files == {
        str(file.relative_to(output)): file.read_bytes() for file in output.rglob("*") if file.is_file()
    }
    assert {"README.md", "model.safetensors", "graft_report.json"} <= setting.uploads.files.keys()
    assert out.rstrip().endswith(f"/org/made/commit/{COMMIT}")


@pytest.mark.parametrize("fault", ["repository", "object", "commit"])
def test_an_upload_that_fails_leaves_what_was_committed(setting, fault):
    path, output = setting.recipe()
    setting.uploads.fault = fault
    code, out, err = setting.run("apply", path, "--push-to-hub", "org/made")
    assert code == 7
    assert f"written to {output}" in out.replace("\n", "")
    assert err == (
        f"graftkit: {output}: in place and whole; not uploaded: org/made: the hub refuses access (403); run `hf auth login`,"
        f" or set HF_TOKEN to a token that may; to try again: hf upload org/made {output} . --private\n"
    )
    assert (output / "model.safetensors").is_file()
    assert setting.uploads.files == {}
    setting.uploads.fault = ""
    code, out, err = setting.run("apply", path, "--if-changed", "--push-to-hub", "org/made")
    assert (code, err) == (0, "")
    assert f"up to date: {output}\nuploaded to " in out
    assert setting.uploads.files["model.safetensors"] == (output / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--public"], "--public: is for --push-to-hub; leave it out"),
        (["--push-to-hub", "org/made", "--dry-run"], "--push-to-hub: nothing is written with --dry-run; leave one out"),
        (["--push-to-hub", "a/b/c"], "--push-to-hub: 'a/b/c' is not a hub id, such as org/name"),
    ],
)
def test_what_cannot_be_meant_is_refused_first(setting, options, says):
    path, output = setting.recipe()
    assert setting.run("apply", path, *options) == [2, "", f"graftkit: {says}\n"]
    assert not output.exists()
    assert setting.uploads.asked == []


def test_a_local_base_is_refused_before_anything_is_written(setting, demo):
    path, output = setting.recipe(base=str(demo))
    code, out, err = setting.run("apply", path, "--push-to-hub", "org/made")
    assert (code, out) == (2, "")
    assert err.startswith(f"graftkit: --push-to-hub: the base is the folder {demo}, and the hub refuses a model card")
    assert not output.exists()


def test_without_a_token_or_offline_nothing_is_begun(tmp_path):
    for variables, says in (
        ({}, "there is no token; run `hf auth login`, or set HF_TOKEN to one that may write"),
        ({"HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set; unset it to upload"),
    ):
        with commands("http://127.0.0.1:9", tmp_path, **variables) as run:
            path, output = Setting(run, tmp_path, Uploads(TOKEN)).recipe()
            answer = run("apply", path, "--push-to-hub", "org/made")
        assert answer == [2, "", f"graftkit: --push-to-hub: {says}\n"]
        assert not output.exists()
