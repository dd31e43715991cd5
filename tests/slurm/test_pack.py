"""Which members train together, by the text of their overrides."""

import tracemalloc
from pathlib import Path

import pytest

from envs.core import UsageError
from slurm import pack


def test_members_that_differ_in_seed_and_hyperparameters_share_a_program() -> None:
    lists = [
        ["data=a", f"seed={seed}", f"algo.hyper.alpha={alpha}", f"algo.static.batch_size={size}"]
        for size in (32, 64)
        for seed in (0, 1)
        for alpha in (1, 2)
    ]
    small, large = pack.programs(lists)
    assert small.shared == ("data=a", "algo.static.batch_size=32")
    assert [*small.members, *large.members] == [tuple(overrides) for overrides in lists]
    assert pack.labels([small, large]) == ["algo.static.batch_size=32", "algo.static.batch_size=64"]
    assert pack.packed_texts(small) == {
        "seed": ["seed=0", "seed=1"],
        "algo.hyper.alpha": ["algo.hyper.alpha=1", "algo.hyper.alpha=2"],
    }


@pytest.mark.parametrize("text", ["seed=1", "+seed=1", "algo.hyper.alpha=2", "++algo.hyper.lr=1", "algo.hyper={lr: 1}"])
def test_packed_keys(text: str) -> None:
    assert pack.is_packed(text)


@pytest.mark.parametrize("text", ["data.seed=1", "algo=a2pr", "algo.hyperx=1", "tuned@algo.hyper=x", "seeds=1"])
def test_other_keys(text: str) -> None:
    assert not pack.is_packed(text)


def test_a_population_is_its_members() -> None:
    (program,) = pack.programs([["algo=bc", "seed=[0, 1]", "run.updates=4"], ["algo=bc", "seed=2", "run.updates=4"]])
    assert program.members == [("algo=bc", f"seed={seed}", "run.updates=4") for seed in (0, 1, 2)]


@pytest.mark.parametrize("again", [["a=1", "seed=1"], ["a=1", "seed=[1,2]"]])
def test_a_member_named_twice_is_refused(again: list[str]) -> None:
    with pytest.raises(UsageError, match="twice: a=1 seed=1"):
        pack.programs([["a=1", "seed=1"], again])


@pytest.mark.parametrize(
    ("members", "at_most", "sizes"), [(5, 2, [1, 2, 2]), (64, 64, [64]), (65, 64, [32, 33]), (3, 1, [1, 1, 1])]
)
def test_groups_are_few_and_alike(members: int, at_most: int, sizes: list[int]) -> None:
    everything: list[pack.Overrides] = [(f"seed={seed}",) for seed in range(members)]
    groups = pack.split(everything, at_most)
    assert [len(group) for group in groups] == sizes
    assert [member for group in groups for member in group] == everything


def test_a_sweep_is_named_by_its_set_of_members() -> None:
    one, two, three = ("a=1", "seed=0"), ("a=1", "seed=1"), ("a=1", "seed=2")
    assert pack.fingerprint([one, two]) == pack.fingerprint([two, one])
    assert len({pack.fingerprint(members) for members in ([one], [one, two], [one, three])}) == 3


def test_a_leaf_that_differs_is_named() -> None:
    first = {"seed": 0, "algo": {"hyper": {"alpha": 1.0}, "static": {"hidden": [1]}}, "run": {"dir": "a"}}
    pack.check_same([first, first | {"seed": 1, "run": {"dir": "b"}}])
    other = first | {"algo": {"hyper": {"alpha": 2.0}, "static": {"hidden": [2]}}}
    with pytest.raises(UsageError, match=r"^algo.static.hidden differs inside a group \(\[1\] and \[2\]\)"):
        pack.check_same([first, first, other])


def test_run_directories_are_unique() -> None:
    pack.check_unique([Path("a"), Path("b")])
    with pytest.raises(UsageError, match="two members have the run directory a"):
        pack.check_unique([Path("a"), Path("b"), Path("a")])


def test_a_hundred_thousand_members_take_little_memory() -> None:
    lists = [
        [f"data=d{data}", f"seed={seed}", f"algo.hyper.alpha={alpha}", "run.updates=10"]
        for data in range(10)
        for seed in range(1000)
        for alpha in range(10)
    ]
    tracemalloc.start()
    programs = pack.programs(lists)
    groups = [group for program in programs for group in pack.split(program.members, 64)]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(programs) == 10
    assert len(groups) == 10 * 157
    assert sum(map(len, groups)) == len(lists)
    assert peak < 100e6
