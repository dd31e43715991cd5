"""Packed sweeps end as unpacked ones do, byte for byte; what cannot be trained is named and stops nothing else."""

import copy
import itertools
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from envs.core import UsageError
from experiments import config as schema
from hydra_plugins.adaptax_launcher.config import LauncherConf
from slurm import launch, memory, submit, sweep, worker
from tests.conftest import ROOT

Command = Callable[..., subprocess.CompletedProcess]

SMALL = [
    "algo=bc", "data=pointmix-random-expert-0.1", "algo.static.hidden=[16,16]", "algo.static.batch_size=32",
    "run.updates=4", "run.eval_every=4", "run.save_every=4", "run.eval_episodes=2", "run.members=map",
]  # fmt: skip


@pytest.fixture
def composing() -> Iterator[None]:
    schema.register()
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3", job_name="train"):
        yield


def planned(lists: list[list[str]], count: list[int] | None = None) -> list[launch.Planned]:
    def composed(overrides: Any) -> DictConfig:
        if count is not None:
            count.append(1)
        return compose("config", list(overrides))

    return launch.plan_programs(lists, composed)


def written_plan(tmp_path: Path, lists: list[list[str]]) -> Path:
    """A sweep's directory with its plan, as the launcher writes it."""
    master = compose("config", [f"hydra.sweep.dir={tmp_path}/sweeps"], return_hydra_config=True)
    folder, plan = launch.make_plan(master, LauncherConf(), planned(lists))
    sweep.write(folder / sweep.PLAN, plan)
    return folder


def small(tmp_path: Path, *own: str) -> list[str]:
    return [*SMALL, f"run.root={tmp_path}/runs", *own]


def run_files(root: Path) -> dict[str, bytes]:
    """What must not depend on how a sweep was launched: metrics, Hydra's records, and of the result what was learnt."""
    files = {
        str(path.relative_to(root)): path.read_bytes()
        for pattern in ("**/.hydra/*", "**/metrics.csv", "**/curve.png")
        for path in root.glob(pattern)
    }
    for path in root.glob("**/result.json"):
        result = json.loads(path.read_text())
        kept = {key: result[key] for key in ("seed", "score", "return", "config", "parameters_sha256", "diverged_at")}
        files[str(path.relative_to(root))] = json.dumps(kept).encode()
    return files


def test_a_packed_sweep_equals_the_unpacked_multirun(command: Command, tmp_path: Path) -> None:
    asked = ["-m", *small(tmp_path), "seed=0,1", "algo.hyper.actor_lr=0.001,0.01"]
    assert command("experiments.train", *asked).returncode == 0
    runs = tmp_path / "runs"
    unpacked = run_files(runs)
    shutil.rmtree(runs)

    first = command("experiments.train", *asked, "hydra/launcher=local")
    assert first.returncode == 0, first.stderr
    assert "4 members, 1 program, 1 job, about 0.01 GB\n" in first.stdout
    assert run_files(runs) == unpacked
    assert sum(name.endswith("overrides.yaml") for name in unpacked) == 4
    (folder,) = (runs / "sweeps").iterdir()
    told = json.loads((folder / "groups" / "0.json").read_text())
    assert (told["state"], told["lives"]) == ("done", 1)
    assert [member["error"] for member in told["members"]] == [None] * 4

    again = command("experiments.train", *asked, "hydra/launcher=local")
    assert again.returncode == 0, again.stderr
    assert "nothing to submit" in again.stdout
    assert json.loads((folder / "groups" / "0.json").read_text()) == told


def test_through_submitit_a_bad_member_fails_alone(command: Command, tmp_path: Path) -> None:
    asked = small(tmp_path, "seed=[0,1]")
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        occupied, free = (schema.run_dir(m) for m in schema.members(schema.to_config(compose("config", asked))))
    occupied.mkdir(parents=True)
    (occupied / "thesis.txt").write_text("not a run")
    done = command("experiments.train", "-m", *asked, "hydra/launcher=slurm_local", "hydra.launcher.name=pair")
    assert done.returncode == 1
    assert done.stderr.startswith("failed: ")
    assert f"seed=0: {occupied} exists and is no run of ours" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert (free / "result.json").exists()
    folder = tmp_path / "runs" / "sweeps" / "pair"
    told = sweep.read_group(folder, 0)
    assert told is not None
    assert told["state"] == "failed"
    assert told["job"] == json.loads((folder / sweep.PLAN).read_text())["jobs"]["0"]
    assert [Path(member["dir"]) for member in told["members"]] == [occupied, free]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hydra/launcher=slurm"], "no sbatch on this machine"),
        (["hydra/launcher=slrum"], "there is no such"),
        (["hydra/launcher=local", "hydra.sweep.dir={file}/sweeps"], "cannot be written"),
    ],
)
def test_mistakes_end_in_one_line(
    command: Command, tmp_path: Path, arguments: list[str], message: str, pointmix_file: Path
) -> None:
    shown = [text.format(file=pointmix_file) for text in arguments]
    nothing = {"PATH": ""} if "no sbatch" in message else {}
    done = command("experiments.train", "-m", *small(tmp_path), "seed=0,1", *shown, **nothing)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "runs" / "bc").exists()


@pytest.mark.usefixtures("composing")
def test_one_composition_for_each_program_however_many_members(tmp_path: Path) -> None:
    keys = itertools.product((0, 1), range(5000), range(10))
    lists = [small(tmp_path, f"data.seed={s}", f"seed={n}", f"algo.hyper.actor_lr=0.{a + 1}") for s, n, a in keys]
    compositions: list[int] = []
    found = planned(lists, compositions)
    assert [len(one.program.members) for one in found] == [50_000, 50_000]
    assert len(compositions) == 2
    assert {len(group) for one in found for group in one.groups} <= {63, 64}


@pytest.mark.usefixtures("composing")
def test_limits_of_a_group(tmp_path: Path) -> None:
    def sizes(*own: str) -> list[int]:
        (one,) = planned([small(tmp_path, f"seed={seed}", *own) for seed in range(10)])
        return [len(group) for group in one.groups]

    assert sizes() == [10]
    assert sizes("run.pack=off") == [1] * 10
    assert sizes("run.max_members=4") == [3, 3, 4]
    (one,) = planned([small(tmp_path)])
    assert one.member_bytes is not None
    assert sizes(f"run.memory_gb={4.5 * one.member_bytes / 1e9}") == [3, 3, 4]
    with pytest.raises(UsageError, match="run.memory_gb=1e-06: one member alone"):
        sizes("run.memory_gb=1e-6")


@pytest.mark.usefixtures("composing")
def test_memory_is_estimated_without_the_data(tmp_path: Path) -> None:
    def estimate(*asked: str) -> tuple[int | None, int]:
        config = schema.to_config(compose("config", list(asked)))
        return memory.per_member(config), memory.shared(config)

    a2pr, nothing = estimate("algo=a2pr", "data=hopper-medium-v2", f"data.path={ROOT}")
    assert a2pr is not None
    assert 20e6 < a2pr < 200e6
    assert nothing == 0
    bc, embedded = estimate("algo=bc", "data=embedded")
    assert bc is not None
    assert bc < a2pr / 10
    assert embedded > 1e5
    sac, _ = estimate("algo=sac", "data=none", "env=hopper")
    assert sac is not None
    assert sac > a2pr  # its replay buffer
    with pytest.raises(UsageError, match="there is no such file"):
        estimate("algo=bc", "data=custom", "data.path=/no/such.hdf5")


@pytest.mark.usefixtures("composing")
@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ([["seed=0"], ["seed=x"]], "seed=x: a seed must be an integer"),
        ([["algo.hyper.actor_lr=1"], ["algo.hyper.actor_lr=abc"]], "algo.hyper.actor_lr=abc: "),
        ([["+algo.hyper.lr=1", "seed=0"], ["+algo.hyper.lr=1", "seed=1"]], "lr"),
        ([["run.chunk=1"], ["run.chunk=2"]], "two members have the run directory"),
        ([["run.dir=here", "seed=0"], ["run.dir=here", "seed=1"]], "two members have the run directory here"),
    ],
)
def test_bad_sweeps_are_refused_before_anything_runs(tmp_path: Path, lists: list[list[str]], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        planned([small(tmp_path, *own) for own in lists])


@pytest.mark.usefixtures("composing")
def test_a_name_belongs_to_one_sweep(tmp_path: Path) -> None:
    master = compose("config", [f"hydra.sweep.dir={tmp_path}"], return_hydra_config=True)
    options = LauncherConf(name="mine")
    one, two = (planned([small(tmp_path, f"seed={seed}") for seed in seeds]) for seeds in ((0, 1), (0, 2)))
    folder, plan = launch.make_plan(master, options, one)
    sweep.write(folder / sweep.PLAN, plan)
    backwards = planned([small(tmp_path, f"seed={seed}") for seed in (1, 0)])
    assert launch.make_plan(master, options, backwards)[1] == json.loads(json.dumps(plan))
    with pytest.raises(UsageError, match="holds another sweep"):
        launch.make_plan(master, options, two)


def prepared(tmp_path: Path, *lists: list[str]) -> list[worker.Member]:
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        plan = sweep.read_plan(written_plan(tmp_path, [small(tmp_path, *own) for own in lists]))
    return worker.prepare(plan, sweep.members_of(plan, 0))


def test_a_leaf_that_follows_the_seed_is_refused_by_the_job(tmp_path: Path) -> None:
    follows = "data.seed=${seed}"
    members = prepared(tmp_path, ["seed=0", follows], ["seed=1", follows])
    assert len(members) == 2
    assert all(str(member.error).startswith("data.seed differs inside a group (0 and 1)") for member in members)


def test_equal_values_in_other_words_are_one_run(tmp_path: Path) -> None:
    texts = ["0.1", "0.2", "0.20"]
    members = prepared(tmp_path, *([f"algo.hyper.actor_lr={text}"] for text in texts))
    assert all("two members have the run directory" in str(member.error) for member in members)


def test_a_member_that_cannot_be_composed_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEARNING_RATE", "0.1")
    rates = ["0.001", "${oc.env:LEARNING_RATE}"]
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        folder = written_plan(tmp_path, [small(tmp_path, f"algo.hyper.actor_lr={rate}") for rate in rates])
    monkeypatch.delenv("LEARNING_RATE")
    monkeypatch.chdir(tmp_path)
    assert worker.run(folder, 0) == 1
    told = sweep.read_group(folder, 0)
    assert told is not None
    good, bad = told["members"]
    assert (Path(good["dir"]) / "result.json").exists()
    assert good["error"] is None
    assert "LEARNING_RATE" in bad["error"]
    assert "\n" not in bad["error"]
    assert sweep.errors(folder, [0]) == [(" ".join(bad["overrides"]), bad["error"])]


def test_a_requeued_job_goes_on_with_what_it_began_afresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        folder = written_plan(tmp_path, [small(tmp_path, "run.fresh=true")])
    monkeypatch.chdir(tmp_path)
    states = []
    for job in ("7", "7", "8"):
        monkeypatch.setenv("SLURM_JOB_ID", job)
        assert worker.run(folder, 0) == 0
        states.append((sweep.read_group(folder, 0) or {})["lives"])
        states.append(len(list((tmp_path / "runs" / "bc").glob("*/*/seed0*"))))
    assert states == [1, 1, 2, 1, 3, 2]  # lives, directories: the second life of job 7 set nothing aside


def test_a_job_that_says_nothing_is_marked_as_failed(tmp_path: Path) -> None:
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        folder = written_plan(tmp_path, [small(tmp_path, "seed=[0,1]")])
    plan = sweep.read_plan(folder)
    sweep.mark_failed(folder, plan, 0, "killed")
    told = copy.deepcopy(sweep.read_group(folder, 0))
    assert told is not None
    assert told["state"] == "failed"
    assert [member["error"] for member in told["members"]] == ["killed", "killed"]
    assert submit.running(folder, plan, [0]) == []


@pytest.mark.usefixtures("composing")
def test_a_process_for_each_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = written_plan(tmp_path, [small(tmp_path, f"data.seed={seed}") for seed in range(5)])
    started: list[tuple[int, str | None, bool]] = []

    def start(folder: Path, index: int, gpu: str | None, alone: bool) -> subprocess.Popen:
        started.append((index, gpu, alone))
        return subprocess.Popen(["sh", "-c", f"exit {75 if index == 2 else 3}"])

    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    monkeypatch.setattr(submit, "_start", start)
    assert submit.run_here(folder, sweep.read_plan(folder), list(range(5)))  # group 2 was interrupted
    assert started[:2] == [(0, "4", False), (1, "7", False)]
    assert len(started) < 5
    assert [error for _, error in sweep.errors(folder, [0, 1])] == ["its process ended with status 3"] * 2
    assert sweep.read_group(folder, 2) is None


def test_a_worker_of_no_sweep_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is no sweep directory: plan\.json"):
        worker.main([str(tmp_path), "0"])
    with pytest.raises(UsageError, match="usage"):
        worker.main([str(tmp_path)])
