"""Forwards of several probes at the same time: one computes here while another waits for a block elsewhere, to the bits of one after the other."""

import threading
import time

import pytest
import torch
from support.direct_line import bits
from support.families import FAMILIES, build
from support.process_line import ProcessLine
from support.tiny import build as build_tiny

from graftkit.errors import StorageFault
from graftkit.running.forward import undisturbed
from graftkit.running.reference import run_source
from graftkit.running.split import crew as crew_of
from graftkit.running.split.crew import Crew
from graftkit.running.split.forwards_at_once import Turn, Turns, run_at_once
from graftkit.running.split.interrupts import CannotSplit, LineBroken
from graftkit.running.split.owner import BlockOwner
from graftkit.running.split.state import state_beside_blocks
from graftkit.running.split.together import together


@pytest.fixture(scope="module")
def line():
    with ProcessLine(3) as line:
        yield line


@pytest.fixture
def crew(line):
    line.renew()
    return Crew(line)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    place = tmp_path_factory.mktemp("at_once") / "llama"
    build_tiny("LlamaForCausalLM", place, config_overrides={"num_hidden_layers": 12})
    return place


def outputs(place, crew):
    with undisturbed():
        return bits(run_source(place, None, 0, None, {}, lambda _: None, crew=crew))


@pytest.fixture
def made(monkeypatch):
    """The turns of forwards that were under way at the same time."""
    made = []
    monkeypatch.setattr(crew_of, "Turns", lambda ranks: made.append(Turns(ranks)) or made[-1])
    return made


@pytest.mark.parametrize("family", FAMILIES)
def test_the_bits_of_one_process(family, crew, tmp_path, made):
    build(family, tmp_path)
    assert outputs(tmp_path, crew) == outputs(tmp_path, None)
    assert made


def wait_in_a_block(began, ran):
    """Let the owner here wait in one block, once ``began`` is there, until ``ran`` is, and write there whether it came."""
    run = BlockOwner._run

    def run_slowly(self, *about, **given):
        if began.exists():
            BlockOwner._run, end = run, time.monotonic() + 60
            while not ran.exists() and time.monotonic() < end:
                time.sleep(0.01)
            began.write_text("waited" if ran.exists() else "nothing came")
        return run(self, *about, **given)

    BlockOwner._run = run_slowly


def test_rank_0_runs_a_block_of_one_probe_while_another_rank_runs_one_of_another(
    llama, line, crew, made, monkeypatch, tmp_path
):
    """Where one probe comes after the other, rank 0 waits as well, and never runs the block that the owner waits for."""
    began, ran = tmp_path / "began", tmp_path / "ran"
    line.everywhere(wait_in_a_block, began, ran)
    call = crew_of.PassingOn.__call__

    def call_seen(self, *args, **kwargs):
        found = call(self, *args, **kwargs)
        if made:
            (ran if began.exists() else began).touch()
        return found

    monkeypatch.setattr(crew_of.PassingOn, "__call__", call_seen)
    outputs(llama, crew)
    assert began.read_text() == "waited"
    assert all(rank["processor_seconds"] > 0 for rank in crew.figures()["ranks"])


def make_noisy(is_noisy):
    """Let feed-forward layers of Llama draw random numbers here, or no more."""
    from transformers.models.llama.modeling_llama import LlamaMLP

    if is_noisy:
        LlamaMLP.plain = LlamaMLP.forward
        LlamaMLP.forward = lambda self, x: self.plain(x) + torch.randn(x.shape)
    else:
        LlamaMLP.forward = LlamaMLP.plain


@pytest.fixture
def noise(line):
    """Random numbers in every block, in every process."""
    make_noisy(True)
    line.everywhere(make_noisy, True)
    yield
    make_noisy(False)
    line.everywhere(make_noisy, False)


def test_random_numbers_of_each_forward_are_its_own(llama, crew, noise, made):
    assert outputs(llama, crew) == outputs(llama, None)
    assert made


def test_a_model_that_keeps_state_runs_one_probe_after_the_other(llama, crew, made, monkeypatch):
    from transformers.models.llama.modeling_llama import LlamaModel

    before = LlamaModel.forward

    def forward(self, *args, **kwargs):
        self.calls = getattr(self, "calls", 0) + 1
        return before(self, *args, **kwargs)

    monkeypatch.setattr(LlamaModel, "forward", forward)
    assert outputs(llama, crew) == outputs(llama, None)
    assert not made


def test_a_model_that_changes_later_is_run_by_one_process(llama, crew, made, monkeypatch):
    from transformers.models.llama.modeling_llama import LlamaModel

    before, calls = LlamaModel.forward, []

    def forward(self, *args, **kwargs):
        calls.append(None)
        if len(calls) == 3:
            self.is_late = True
        return before(self, *args, **kwargs)

    monkeypatch.setattr(LlamaModel, "forward", forward)
    alone = outputs(llama, None)
    calls.clear()
    assert together(crew, "outputs", lambda crew: outputs(llama, crew)) == alone
    assert made
    assert "a forward changes the model" in crew.figures()["run_by_rank_0_alone"]


@pytest.mark.parametrize(
    "error", [CannotSplit("it is round"), LineBroken(StorageFault("gone")), ValueError("no such thing")]
)
def test_what_one_raises_is_raised_in_its_place_and_none_is_left(error):
    turns, ended = Turns([1]), []

    def run(number):
        with turns.asking(1):
            if number == 2:
                raise error
        ended.append(number)
        return number

    found = []
    with (
        pytest.raises(type(error), match=str(error)),
        run_at_once(turns, [lambda n=n: run(n) for n in range(6)], 3) as outcomes,
    ):
        found.extend(outcome() for outcome in outcomes)
    assert found == [0, 1]
    assert set(ended) <= {0, 1, 3, 4}
    assert threading.active_count() < 20
    with turns.computing():
        pass


def test_none_is_left_where_a_signal_comes_while_they_are_under_way():
    """A signal is raised in the main thread, which waits for the first of them; those that wait for another rank end behind its answer."""
    turns, answered = Turns([1]), threading.Event()

    def run():
        with turns.asking(1), turns.resting():
            answered.wait()

    def answer_later():
        end = time.monotonic() + 20
        while not turns._is_cancelled and time.monotonic() < end:
            time.sleep(0.01)
        answered.set()

    before = set(threading.enumerate())
    answering = threading.Thread(target=answer_later)
    answering.start()
    with pytest.raises(KeyboardInterrupt), run_at_once(turns, [lambda: "first", run, run], 3) as outcomes:
        next(outcomes)
        raise KeyboardInterrupt
    left = [thread for thread in set(threading.enumerate()) - before if thread.name == "forward"]
    answering.join()
    assert not left


def test_a_model_that_gets_another_value_in_the_place_of_one_has_changed():
    """Also where the new one is made where the old one lay in memory."""
    model = torch.nn.Linear(1, 1)
    model.cache = torch.zeros(3)
    before = state_beside_blocks(model)
    assert state_beside_blocks(model) == before
    model.cache = None
    model.cache = torch.zeros(3)
    assert state_beside_blocks(model) != before


def test_of_those_that_wait_the_earliest_forward_has_the_turn():
    turn, order, threads = Turn(), [], []
    turn.take(7)
    for place in (4, 2, 3, 5):

        def work(place=place):
            turn.take(place)
            order.append(place)
            turn.give()

        threads.append(threading.Thread(target=work))
        threads[-1].start()
        while len(turn._waiting) < len(threads):
            pass
    assert not order
    assert turn.is_wanted_before(7)
    assert not turn.is_wanted_before(2)
    turn.give()
    for thread in threads:
        thread.join()
    assert order == [2, 3, 4, 5]
