"""The whole command, killed at system calls that change the disk: the old output, the new one, or none, and the next run succeeds."""

import json
import random
import shutil
from pathlib import Path

import pytest
from support.adapters import make_adapter
from support.scenes import OLD, Scene, files_of, state_of
from support.strace import at_point, needs_strace, points_of
from support.tried import tried

TOKENS = {"op": "extend_vocab", "special_tokens": ["<|new|>"]}
LORA = {"op": "add_lora", "r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
POOLING = [{"idx": 0, "name": "0", "path": ""}, {"idx": 1, "name": "1", "path": "1_Pooling"}]

#: What is written differs most: one file, an exchange, an adapter alone, many files in folders that are not there, a merge, and rows behind it.
SCENES = ("new", "replaced", "adapter", "many files", "merged")


@pytest.fixture
def scene(demo, sources, tmp_path_factory):
    """The scene of a name."""

    def find(name):
        if name in ("new", "replaced"):
            return Scene({"model": demo}, [TOKENS], replaces=name == "replaced")
        if name == "adapter":
            return Scene({"model": demo}, [LORA])
        if name == "many files":
            return Scene({"model": many_files(sources, tmp_path_factory)}, [TOKENS], output="some/where/out")
        base = sources("llama")
        _, adapter = make_adapter(
            tmp_path_factory.mktemp("made"), "LlamaForCausalLM", base=base, target_modules=["q_proj"]
        )
        merge = {"op": "merge_adapter", "adapter": "PLACE/adapter"}
        return Scene({"model": base, "adapter": adapter}, [merge, TOKENS], replaces=True)

    return find


def many_files(sources, tmp_path_factory):
    """A base in many shards, with a template and a folder that come along."""
    base = shutil.copytree(sources("llama", shard_size="20KB"), tmp_path_factory.mktemp("many") / "base")
    (base / "modules.json").write_text(json.dumps(POOLING))
    (base / "1_Pooling").mkdir()
    (base / "1_Pooling" / "config.json").write_text(
        '{"word_embedding_dimension": 32, "pooling_mode_mean_tokens": true}'
    )
    (base / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    assert len(list(base.glob("*.safetensors"))) > 4
    return base


class Killing:
    """A scene that is laid out and killed as often as wanted; ``points`` are where, ``new`` is what comes of a clean run."""

    def __init__(self, scene, warm, tmp_path):
        self.scene, self.warm, self.place = scene, warm, tmp_path / "run"
        self.output = self.place / scene.output
        warm.learn(*scene.lay(tmp_path / "learned"))
        self.points = points_of(warm, scene.lay(self.place), self.place, tmp_path / "log")
        self.new = state_of(self.output)
        self.names = set(files_of(self.place))
        assert {"fsync", "mkdir", "renameat2"} <= {call for call, _, _ in self.points}

    def kill(self, point):
        """Kill the command there, and see that nothing is torn and that the next run leaves what a clean one leaves; whether the output was new."""
        arguments = self.scene.lay(self.place)
        old = state_of(self.output)
        done = at_point(self.warm, arguments, point, "signal=KILL")
        assert done.code == -9, (point, done.code, done.said)
        found = state_of(self.output)
        assert found in (old, self.new), f"torn after a kill at {point}"
        if found == self.new and not self.scene.replaces:
            shutil.rmtree(self.output)
        again = self.warm.run(*arguments)
        assert (again.code, again.said) == (0, ""), (point, again.code, again.said)
        assert state_of(self.output) == self.new, point
        assert set(files_of(self.place)) == self.names, point
        assert not list(self.place.glob(".*")), point
        assert self.scene.inputs_are_whole(self.place), point
        return found == self.new


@needs_strace
@pytest.mark.parametrize("name", ["new", "replaced"])
def test_killed_here_and_there_the_output_is_whole_and_the_next_run_succeeds(name, scene, warm, tmp_path):
    killing = Killing(scene(name), warm, tmp_path)
    rename = max(place for place, point in enumerate(killing.points) if point[0] == "renameat2")
    before, behind = killing.points[: rename + 1], killing.points[rename + 1 :]
    assert not killing.kill(before[-1])
    assert not killing.kill(random.Random(name).choice(before))
    assert killing.kill(behind[0])


@needs_strace
@pytest.mark.slow
@pytest.mark.parametrize("name", SCENES)
def test_killed_anywhere_the_output_is_whole_and_the_next_run_succeeds(name, scene, warm, tmp_path):
    killing = Killing(scene(name), warm, tmp_path)
    with tried(f"killed at every write-class call: {name}") as codes:
        seen = [killing.kill(point) for point in killing.points]
        codes[-9] += len(seen)
    assert set(seen) == {False, True}


def test_what_is_torn_is_told_from_what_is_whole(demo, warm, tmp_path):
    scene = Scene({"model": demo}, [LORA])
    done = warm.run(*scene.lay(tmp_path / "run"))
    assert done.code == 0, done.said
    whole = state_of(tmp_path / "run" / "out")
    assert whole[1:] == (True, True)
    for name in files_of(tmp_path / "run" / "out"):
        path = Path(tmp_path / "run" / "out" / name)
        raw = path.read_bytes()
        path.write_bytes(raw[: len(raw) // 2])
        assert state_of(tmp_path / "run" / "out") != whole, name
        path.write_bytes(raw)
    (tmp_path / "run" / "out" / "old.txt").write_text(OLD["old.txt"])
    assert state_of(tmp_path / "run" / "out") != whole
