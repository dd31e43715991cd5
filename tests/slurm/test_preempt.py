"""A signal costs at most a chunk, leaves the way the scheduler needs, and changes no byte of the result."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from algos import bc
from envs.core import UsageError
from experiments import loop, results
from experiments.checkpoint import Checkpoints
from experiments.config import Config, DataConfig, EnvConfig, RunConfig, algo_schema, members, run_dir
from experiments.interrupt import EX_TEMPFAIL, Interrupt, Pace
from experiments.log import MetricsFile
from experiments.loop import train
from slurm import preempt
from slurm.preempt import Action
from tests.conftest import ROOT

JOB = {"SLURM_JOB_ID": "17"}
TERM, USR2, INT = signal.SIGTERM, signal.SIGUSR2, signal.SIGINT
DATA = "pointmix-random-expert-0.1"


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.fixture(autouse=True)
def _in_a_shell(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No SLURM around these tests, and no handler left over."""
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.delenv(preempt.NOTICE_VARIABLE, raising=False)
    before = {number: signal.getsignal(number) for number in (TERM, USR2, INT)}
    yield
    after = {number: signal.signal(number, handler) for number, handler in before.items()}
    assert after == before


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Put a `scontrol` in front on the PATH that notes its arguments in a file, then runs the given shell line."""

    def install(line: str) -> Path:
        program, called = tmp_path / "bin" / "scontrol", tmp_path / "called"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\necho "$@" >> {called}\n{line}\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
        return called

    return install


@pytest.mark.parametrize(
    ("environment", "number", "handled_before", "expected"),
    [
        ({}, None, False, Action.LEAVE),  # the deadline
        ({}, INT, False, Action.LEAVE),
        ({}, TERM, False, Action.LEAVE),
        ({}, USR2, False, Action.LEAVE),
        ({}, USR2, True, Action.HAND_ON),  # submitit on this machine
        ({}, TERM, True, Action.LEAVE),
        (JOB, None, False, Action.LEAVE),
        (JOB, INT, False, Action.LEAVE),
        (JOB, TERM, False, Action.WAIT),
        (JOB, TERM, True, Action.WAIT),  # submitit ignores SIGTERM
        (JOB, USR2, False, Action.REQUEUE),
        (JOB, USR2, True, Action.HAND_ON),
    ],
)
def test_what_a_signal_asks_for(environment: dict, number: int | None, handled_before: bool, expected: Action) -> None:
    assert preempt.action(environment, number, handled_before) is expected


def test_the_notice_is_read_from_the_environment() -> None:
    assert preempt.notice({}) == 120
    assert preempt.notice({preempt.NOTICE_VARIABLE: "45.5"}) == 45.5


@pytest.mark.parametrize("text", ["", "soon", "0", "-3", "nan", "inf"])
def test_a_notice_that_is_none_is_refused(text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(preempt.NOTICE_VARIABLE, text)
    with pytest.raises(UsageError, match=preempt.NOTICE_VARIABLE):
        train(members(configured(tmp_path)))
    assert not list(tmp_path.iterdir())


class TestLeaving:
    @pytest.fixture(autouse=True)
    def _waits_are_recorded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.waits: list[bool] = []
        monkeypatch.setattr(preempt, "wait", lambda until: self.waits.append(until()))

    def leave(self, *numbers: int) -> int:
        with Interrupt() as guard:
            with guard.postponed():
                assert not guard.requested
                for number in numbers:
                    send(number)
                assert guard.requested
            with pytest.raises(SystemExit) as leaving:
                guard.leave("stopped")
        return leaving.value.code

    @pytest.mark.parametrize("number", [INT, TERM, USR2])
    def test_in_a_shell(self, number: int) -> None:
        assert self.leave(number) == EX_TEMPFAIL
        assert not self.waits

    def test_a_requeue(self, scontrol: Callable, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
        monkeypatch.setenv("SLURM_JOB_ID", "17")
        called = scontrol("kill -TERM $PPID; kill -TERM $$")  # as SLURM does to the whole step; neither may die of it
        assert self.leave(USR2) == EX_TEMPFAIL
        assert called.read_text() == "requeue 17\n"
        assert "warning" not in capfd.readouterr().err

    def test_a_requeue_that_is_refused_is_told(self, scontrol, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
        monkeypatch.setenv("SLURM_JOB_ID", "17")
        scontrol("echo Requested operation is presently disabled >&2; exit 1")
        assert self.leave(USR2) == EX_TEMPFAIL
        assert "requeue 17: Requested operation is presently disabled\n" in capsys.readouterr().err

    def test_no_scontrol(self, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
        monkeypatch.setenv("SLURM_JOB_ID", "17")
        monkeypatch.setenv("PATH", "")
        assert self.leave(USR2) == EX_TEMPFAIL
        assert "scontrol" in capsys.readouterr().err

    def test_the_handler_before_is_called(self, scontrol, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SLURM_JOB_ID", "17")
        called, seen = scontrol("true"), []

        def submitit(number: int, frame: object) -> None:
            seen.append(number)
            raise SystemExit(-1)

        before = signal.signal(USR2, submitit)
        try:
            assert self.leave(USR2) == -1
        finally:
            signal.signal(USR2, before)
        assert seen == [USR2]
        assert not called.exists()

    def test_sigterm_in_a_job_waits(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SLURM_JOB_ID", "17")
        assert self.leave(TERM) == EX_TEMPFAIL
        assert self.waits == [False]

    def test_usr2_while_waiting_requeues(self, scontrol, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SLURM_JOB_ID", "17")
        called = scontrol("true")

        def wait(until: Callable[[], bool]) -> None:
            assert not until()
            send(USR2)
            assert until()

        monkeypatch.setattr(preempt, "wait", wait)
        assert self.leave(TERM) == EX_TEMPFAIL
        assert called.exists()

    @pytest.mark.parametrize("numbers", [(USR2, TERM), (TERM, USR2)])
    def test_usr2_wins(self, numbers: tuple, scontrol, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SLURM_JOB_ID", "17")
        called = scontrol("true")
        assert self.leave(*numbers) == EX_TEMPFAIL
        assert called.exists()
        assert not self.waits

    def test_a_second_ctrl_c_is_at_once(self) -> None:
        with Interrupt() as guard, guard.postponed():
            send(INT)
            with pytest.raises(KeyboardInterrupt):
                send(INT)

    def test_with_nothing_to_save_at_once(self) -> None:
        with Interrupt(), pytest.raises(KeyboardInterrupt):
            send(INT)
        with Interrupt(), pytest.raises(SystemExit) as leaving:
            send(TERM)
        assert leaving.value.code == EX_TEMPFAIL


def test_waiting_ends() -> None:
    slept: list[float] = []
    preempt.wait(until=lambda: len(slept) == 3, sleep=slept.append)
    assert len(slept) == 3
    preempt.wait(until=lambda: False, sleep=slept.append)
    assert sum(slept) == pytest.approx(preempt.WAIT_SECONDS + 3)


@pytest.mark.parametrize(
    ("chunk", "save", "notice", "expected"),
    [
        (1.0, 1.0, 120, 1000),
        (50.0, 10.0, 120, 1000),  # just fits
        (61.0, 0.0, 120, 500),
        (600.0, 10.0, 120, 50),  # 30 s where 50 s are left
        (50.0, 59.0, 120, 100),  # most goes to the save: no less than a twentieth of the notice
        (50.0, 500.0, 120, 100),
        (1e9, 0.0, 120, 4),  # two iterations
    ],
)
def test_a_chunk_fits_the_notice(chunk: float, save: float, notice: float, expected: int) -> None:
    clock = iter([0.0, chunk, 1e6, 1e6 + save])
    pace = Pace(notice, lambda: next(clock))
    assert pace.fitting(1000, 2) == 1000  # nothing is known yet
    with pace.chunk():
        pass
    with pace.save():
        pass
    assert pace.fitting(1000, 2) == expected


def test_one_iteration_only_where_there_is_no_other() -> None:
    pace = Pace(120, iter([0.0, 1e9]).__next__)
    with pace.chunk():
        pass
    assert [pace.fitting(iterations * 3, 3) // 3 for iterations in (1, 2, 7, 9)] == [1, 2, 7, 3]


def configured(root: Path, **run: object) -> Config:
    algo = algo_schema("bc")(static=bc.Static(hidden=(16, 16), batch_size=32))
    settings = {"updates": 120, "eval_every": 40, "save_every": 120, "chunk": 20, "eval_episodes": 3}
    return Config(algo, DataConfig(name=DATA), EnvConfig(), RunConfig(**(settings | run | {"root": str(root)})), [0, 1])  # type: ignore[arg-type]


def outcome(config: Config) -> list[tuple]:
    """What no signal may change, of every member."""
    told = []
    for member in members(config):
        result = json.loads((run_dir(member) / "result.json").read_text())
        metrics = (run_dir(member) / "metrics.csv").read_bytes()
        told.append((result["parameters_sha256"], result["score"], result["return"], metrics))
    return told


def lives(config: Config) -> set[int]:
    return {json.loads((run_dir(member) / "result.json").read_text())["lives"] for member in members(config)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[tuple]:
    config = configured(tmp_path_factory.mktemp("whole"))
    train(members(config))
    assert lives(config) == {1}
    return outcome(config)


def interrupted(config: Config) -> set[int]:
    """Train until it leaves with status 75; the newest checkpoints."""
    with pytest.raises(SystemExit) as leaving:
        train(members(config))
    assert leaving.value.code == EX_TEMPFAIL
    return {Checkpoints(run_dir(member)).steps()[0] for member in members(config)}


def when_advanced(monkeypatch: pytest.MonkeyPatch, update: int, *numbers: int) -> None:
    """Send signals right after the chunk that ends at `update`, once."""
    left = list(numbers)

    def advance(self: object, done: int) -> None:
        while done == update and left:
            send(left.pop(0))

    monkeypatch.setattr(loop.Display, "advance", advance)


@pytest.mark.parametrize("number", [INT, TERM, USR2])
def test_in_training(number: int, whole: list[tuple], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configured(tmp_path)
    when_advanced(monkeypatch, 60, number)
    assert interrupted(config) == {60}
    train(members(config))
    assert outcome(config) == whole
    assert lives(config) == {2}


@pytest.mark.parametrize("update", [40, 120])
def test_before_an_evaluation_which_is_done_afterwards(
    update: int, whole: list[tuple], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured(tmp_path)
    when_advanced(monkeypatch, update, USR2)
    assert interrupted(config) == {update}
    rows = [MetricsFile(run_dir(member)).rows() for member in members(config)]
    assert {row["update"] for member in rows for row in member} == set(range(40, update, 40))
    evaluate, calls = loop._evaluate, []

    def killed(*args: Any) -> None:  # after the row was written, as kill -9 may
        calls.append(evaluate(*args))
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "_evaluate", killed)
    with pytest.raises(KeyboardInterrupt):
        train(members(config))
    monkeypatch.setattr(loop, "_evaluate", evaluate)
    train(members(config))
    assert len(calls) == 1
    assert outcome(config) == whole
    assert lives(config) == {3}


def test_two_signals_and_more_while_saving(whole: list[tuple], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configured(tmp_path)
    when_advanced(monkeypatch, 20, TERM, USR2)
    save = Checkpoints.save

    def disturbed(self: Checkpoints, *args: Any) -> None:
        send(TERM)
        save(self, *args)
        send(USR2)

    monkeypatch.setattr(Checkpoints, "save", disturbed)
    assert interrupted(config) == {20}
    monkeypatch.setattr(Checkpoints, "save", save)
    train(members(config))
    assert outcome(config) == whole


def test_while_saving_leaves_after_that_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configured(tmp_path, save_every=40)
    save = Checkpoints.save

    def disturbed(self: Checkpoints, *args: Any) -> None:
        send(USR2)
        save(self, *args)

    monkeypatch.setattr(Checkpoints, "save", disturbed)
    assert interrupted(config) == {40}


def test_chunks_are_shortened_and_stay_so(
    whole: list[tuple], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """Every chunk of this clock takes ten seconds: 20 updates do not fit a notice of 18 s, nor do 10."""
    seconds = iter(range(0, 10**6, 10))
    monkeypatch.setattr(loop, "Pace", lambda notice: Pace(notice, lambda: next(seconds)))
    monkeypatch.setenv(preempt.NOTICE_VARIABLE, "18")
    config = configured(tmp_path)
    when_advanced(monkeypatch, 36, USR2)
    assert interrupted(config) == {36}
    told = [line for line in capsys.readouterr().err.splitlines() if "too long" in line]
    assert [line.split(": ")[1] for line in told] == ["10 from here on", "2 from here on"]
    assert told[0].startswith("a chunk of 20 updates takes 10 s and a save 0 s, too long for a notice of 18 s")
    train(members(config))
    assert not [line for line in capsys.readouterr().err.splitlines() if "too long" in line]
    ours = outcome(config)
    assert [one[:3] for one in ours] == [one[:3] for one in whole]  # parameters, score and return to the last bit


def test_a_job_in_a_shell(whole: list[tuple], tmp_path: Path) -> None:
    """The command itself, a real signal at a moment of its own, and the same command again."""
    config = configured(tmp_path)
    run = dataclasses.asdict(config.run)
    settings = [
        f"run.{key}={run[key]}" for key in ("updates", "eval_every", "save_every", "chunk", "eval_episodes", "root")
    ]
    command = [
        sys.executable, "-m", "experiments.train", "algo=bc", f"data={DATA}", "seed=[0,1]", "setting=single",
        "algo.static.hidden=[16,16]", "algo.static.batch_size=32", *settings,
    ]  # fmt: skip
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    folders = [run_dir(member) for member in members(config)]
    deadline = time.monotonic() + 120
    while not all((folder / results.LIVES).exists() for folder in folders) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(USR2)
    _, said = process.communicate(timeout=120)
    assert process.returncode == EX_TEMPFAIL, said
    assert "the same command goes on" in said
    assert subprocess.run(command, cwd=ROOT, capture_output=True, timeout=120).returncode == 0
    assert outcome(config) == whole
    assert lives(config) == {2}
