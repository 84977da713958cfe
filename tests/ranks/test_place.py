"""Which of how many processes this is, and who writes which file; no process is started."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graftkit.errors import RecipeError
from graftkit.ranks.assignment import assign
from graftkit.ranks.place import FIRST_PORT, rank_place

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "29500"}
SRUN = {"SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "3", "SLURM_JOB_ID": "41", "SLURM_NTASKS": "3"}


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"WORLD_SIZE": "1", "RANK": "0"},
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "1"},  # a batch script, behind no srun
        {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"},
    ],
)
def test_one_process_is_alone(environment):
    assert rank_place(environment) is None


def test_torchrun_opens_the_port_itself():
    place = rank_place(
        {**TORCHRUN, "RANK": "0", "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "2"}
    )
    assert (place.rank, place.count, place.host, place.port, place.hosts, place.attempt) == (
        0,
        4,
        "a",
        29500,
        False,
        "2",
    )
    assert rank_place({**TORCHRUN, "RANK": "0"}).hosts
    assert not rank_place(TORCHRUN).hosts


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("n1", "n1"), ("n[003-007,9],m1", "n003"), ("n[12,14]-ib,x", "n12-ib"), ("a-1,b[1-2]", "a-1")],
)
def test_srun_names_the_first_machine(nodes, first):
    place = rank_place({**SRUN, "SLURM_STEP_NODELIST": nodes})
    assert (place.rank, place.count, place.host, place.port) == (2, 3, first, FIRST_PORT + 41)


@pytest.mark.parametrize(
    "environment",
    [{**TORCHRUN, "RANK": "4"}, {**TORCHRUN, "RANK": "x"}, {"WORLD_SIZE": "2"}, {**SRUN, "SLURM_PROCID": "3"}],
)
def test_variables_that_cannot_be_right_are_refused(environment):
    with pytest.raises(RecipeError):
        rank_place(environment)


@given(st.lists(st.integers(0, 1 << 40), max_size=40), st.integers(1, 9))
def test_every_file_has_one_rank_and_none_has_much_more_than_its_share(numbers, count):
    sizes = {f"model-{place:05}": number for place, number in enumerate(numbers)}
    files = assign(sizes, count)
    assert sorted(name for held in files for name in held) == sorted(sizes)
    assert files == assign(dict(reversed(sizes.items())), count)
    loads = [sum(sizes[name] for name in held) for held in files]
    fair = max(sum(numbers) / count, max(numbers, default=0))
    assert max(loads) <= 2 * fair
