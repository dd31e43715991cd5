"""`slurm.status` on made-up sweeps: every state, torn files, no squeue, thousands of members."""

import builtins
import json
import os
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments import results
from slurm import status, sweep
from tests.conftest import ROOT

HEADER = "update,score,return_mean,return_std,diverged,loss\n"
CONFIG = "algo:\n  name: bc\n  static:\n    updates: 7\nrun:\n  updates: 400\n  eval_every: 100\nseed: 0\n"


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status.time, "sleep", lambda seconds: None)


def squeue_says(monkeypatch: pytest.MonkeyPatch, folder: Path, text: str, code: int = 0) -> None:
    """Put a squeue on an otherwise empty PATH."""
    program = folder / "bin" / "squeue"
    program.parent.mkdir(exist_ok=True)
    stream = ">&2" if code else ""
    program.write_text(
        f"#!/bin/sh\nwhile read -r line; do echo \"$line\" {stream}; done <<'END'\n{text}\nEND\nexit {code}\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))


class Sweep:
    """A sweep directory of groups of members; run directories appear with what is written to them."""

    def __init__(self, folder: Path, groups: list[int], launcher: str = "slurm", age: float = 3600):
        self.folder, self.groups = folder / "runs" / "sweeps" / "bc-1234", groups
        seeds = iter(range(sum(groups)))
        self.members = [[["algo=bc", f"seed={next(seeds)}"] for _ in range(size)] for size in groups]
        self.jobs = {str(index): f"12_{index}" for index in range(len(groups))}
        listed = [{"index": index, "members": members} for index, members in enumerate(self.members)]
        plan = {"launcher": launcher, "jobs": self.jobs if launcher == "slurm" else {}, "groups": listed}
        (self.folder / "groups").mkdir(parents=True)
        (self.folder / "logs").mkdir()
        (self.folder / "plan.json").write_text(json.dumps(plan))
        then = (self.folder / "plan.json").stat().st_mtime - age
        os.utime(self.folder / "plan.json", (then, then))

    def dir(self, seed: int) -> Path:
        return self.folder.parents[1] / "bc" / f"seed{seed}"

    def told(self, index: int, state: str, errors: dict[int, str] | None = None, **changes: Any) -> None:
        """Write a group's file, as its worker does."""
        members = []
        for overrides in self.members[index]:
            seed = int(overrides[1].removeprefix("seed="))
            members.append({"overrides": overrides, "dir": str(self.dir(seed)), "error": (errors or {}).get(seed)})
        note = {"index": index, "job": f"12_{index}", "host": "n1", "pid": 1, "lives": 1, "state": state}
        (self.folder / "groups" / f"{index}.json").write_text(json.dumps(note | {"members": members} | changes))

    def trained(self, seed: int, metrics: str, lives: int = 1) -> None:
        folder = self.dir(seed)
        (folder / ".hydra").mkdir(parents=True)
        (folder / ".hydra" / "config.yaml").write_text(CONFIG)
        (folder / "metrics.csv").write_text(metrics)
        (folder / results.LIVES).write_text("a life\n" * lives)

    def finished(self, seed: int, **changes: Any) -> None:
        self.trained(seed, HEADER + "400,55.5,1,1,0,0.25\n")
        result = {"updates": 400, "score": {"last": 55.5, "best": 60.0}, "diverged_at": None, "lives": 2} | changes
        (self.dir(seed) / "result.json").write_text(json.dumps(result))

    def log(self, name: str, text: str) -> None:
        (self.folder / "logs" / name).write_text(text)

    def rows(self) -> dict[str, status.Row]:
        return {row.name: row for row in status.read_sweep(self.folder)[0]}


@pytest.fixture
def varied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    """Every state that there is, on a cluster."""
    made = Sweep(tmp_path, [6, 1, 2, 1, 1])
    squeue_says(
        monkeypatch, tmp_path, "12_0|RUNNING|None\n12_1|PENDING|Resources\n12_4|PENDING|BeginTime\n13|RUNNING|None"
    )
    made.told(0, "running", {5: "run.chunk=0 must be at least 1"})
    made.finished(0)
    made.finished(1, diverged_at=120, score={"last": -3.25})
    made.trained(2, HEADER + "100,7.5,1,1,0,0.1\n200,12.25,1,1,0,0.1\n300,99,1", lives=3)  # torn by a kill
    made.trained(3, HEADER + "100,-1.5,1,1,1,nan\n")
    made.told(2, "running")  # and its job is gone
    made.trained(7, HEADER)
    made.log("12_2_0_log.err", "updates\nslurmstepd: error: Detected 1 oom_kill event\n\n")
    made.log("12_2_0_log.out", "something else\n")
    made.told(3, "failed", {9: "data.path=x.hdf5 is not there"})
    made.told(4, "running")  # in an earlier life: it waits to go on
    made.trained(10, HEADER + "100,5,1,1,0,0.1\n", lives=2)
    return made


def test_every_state(varied: Sweep) -> None:
    rows = varied.rows()
    R = status.Row
    assert rows == {
        "seed=0": R("seed=0", "done", 400, 400, 55.5, 2),
        "seed=1": R("seed=1", "diverged", 400, 400, -3.25, 2, "at update 120"),
        "seed=2": R("seed=2", "running", 200, 400, 12.25, 3, going=True),
        "seed=3": R("seed=3", "diverged", 100, 400, -1.5, 1, going=True),
        "seed=4": R("seed=4", "running", 0, 400, going=True),
        "seed=5": R("seed=5", "failed", 0, 400, note="run.chunk=0 must be at least 1"),
        "seed=6": R("seed=6", "pending", note="pending: Resources", going=True),
        "seed=7": R("seed=7", "lost", 0, 400, None, 1, "slurmstepd: error: Detected 1 oom_kill event"),
        "seed=8": R("seed=8", "lost", 0, 400, None, 0, "slurmstepd: error: Detected 1 oom_kill event"),
        "seed=9": R("seed=9", "failed", 0, None, note="data.path=x.hdf5 is not there"),
        "seed=10": R("seed=10", "pending", 100, 400, 5.0, 2, "pending: BeginTime", going=True),
    }


def test_the_table(varied: Sweep, capsys) -> None:
    assert status.main([str(varied.folder)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["member", "state", "updates", "score", "lives"]
    assert lines[3].split() == ["seed=2", "running", "200/400", "12.2", "3"]
    assert lines[-1] == "11 members: 1 done, 2 pending, 2 running, 2 diverged, 2 lost, 2 failed"
    assert len(lines) == 13


def test_finished_or_going_on_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    made = Sweep(tmp_path, [1, 1])
    squeue_says(monkeypatch, tmp_path, "12_1|RUNNING|None")
    made.told(0, "done")
    made.finished(0, diverged_at=3)
    assert status.main([str(made.folder)]) == 0
    assert "1 running, 1 diverged" in capsys.readouterr().out


def test_a_job_that_says_done_without_a_result_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Sweep(tmp_path, [1])
    squeue_says(monkeypatch, tmp_path, "")
    made.told(0, "done")
    assert made.rows()["algo=bc seed=0"].state == "failed"


def test_of_an_earlier_submission_nothing_is_believed_but_the_results(tmp_path: Path, monkeypatch) -> None:
    made = Sweep(tmp_path, [2])
    squeue_says(monkeypatch, tmp_path, "12_0|RUNNING|None")
    made.told(0, "failed", {0: "it failed then", 1: "it failed too"}, job="7_0")
    made.finished(0)
    assert [row.state for row in made.rows().values()] == ["done", "running"]


@pytest.mark.parametrize(("age", "state"), [(5, "pending"), (100, "lost")])
def test_what_was_never_submitted(age: float, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Sweep(tmp_path, [1], age=age)
    plan = json.loads((made.folder / "plan.json").read_text()) | {"jobs": {}}
    then = (made.folder / "plan.json").stat().st_mtime
    (made.folder / "plan.json").write_text(json.dumps(plan))
    os.utime(made.folder / "plan.json", (then, then))
    squeue_says(monkeypatch, tmp_path, "")
    (row,) = made.rows().values()
    assert (row.state, "submitted" in row.note) == (state, True)


def test_without_squeue_the_files_are_believed(varied: Sweep, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("PATH", "")
    states = [row.state for row in varied.rows().values()]
    assert states[6:] == ["pending", "running", "running", "failed", "running"]
    assert status.main([str(varied.folder)]) == 1
    assert not capsys.readouterr().err


def test_a_controller_that_does_not_answer_is_told(varied: Sweep, tmp_path: Path, monkeypatch, capsys) -> None:
    squeue_says(monkeypatch, tmp_path, "slurm_load_jobs error: Unable to contact slurm controller", 1)
    assert varied.rows()["seed=7"].state == "running"
    assert status.main([str(varied.folder)]) == 1
    assert "Unable to contact slurm controller" in capsys.readouterr().err


def test_jobs_that_squeue_has_forgotten_are_gone(varied: Sweep, tmp_path: Path, monkeypatch) -> None:
    squeue_says(monkeypatch, tmp_path, "slurm_load_jobs error: Invalid job id specified", 1)
    states = [row.state for row in varied.rows().values()]
    assert states == ["done", "diverged", "lost", "lost", "lost", "failed", "lost", "lost", "lost", "failed", "lost"]


def test_a_job_missing_for_a_moment_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    made = Sweep(tmp_path, [1])
    squeue_says(monkeypatch, tmp_path, "")
    line = "12_0|PENDING|BeginTime"
    monkeypatch.setattr(status.time, "sleep", lambda seconds: squeue_says(monkeypatch, tmp_path, line))
    assert status.main([str(made.folder)]) == 0
    assert "1 pending" in capsys.readouterr().out


def test_on_this_machine_processes_are_looked_at(tmp_path: Path) -> None:
    made = Sweep(tmp_path, [1, 1, 1, 1], launcher="local")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    code = [sys.executable, "-c", "print(flush=True); input()", str(made.folder)]
    sleeper = subprocess.Popen(code, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert sleeper.stdout is not None
    sleeper.stdout.readline()  # it has started
    made.told(0, "running", host=socket.gethostname(), pid=sleeper.pid)
    made.told(1, "running", host=socket.gethostname(), pid=ended.pid)
    made.told(2, "running", host=socket.gethostname(), pid=os.getpid())  # a number that was given away since
    made.log("2.log", "killed\n")
    rows = list(made.rows().values())
    sleeper.communicate(b"\n")
    assert [row.state for row in rows] == ["running", "lost", "lost", "pending"]
    assert "process is gone" in rows[1].note
    assert rows[2].note == "killed"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_torn_files_are_survived(content: bytes, varied: Sweep) -> None:
    (varied.dir(0) / "result.json").write_bytes(content)
    for path in (varied.dir(2) / "metrics.csv", varied.dir(2) / ".hydra" / "config.yaml"):
        path.write_bytes(content)
    (varied.folder / "groups" / "3.json").write_bytes(content)
    rows = varied.rows()
    assert rows["seed=0"].state == "failed"
    assert "result.json cannot be read" in rows["seed=0"].note
    assert (rows["seed=2"].state, rows["seed=2"].done) == ("running", 0)
    assert rows["seed=9"].state == "lost"


@pytest.mark.parametrize("content", [None, "", "{", "[]", "{}", '{"groups": 1, "jobs": 2}'])
def test_what_is_no_sweep_is_refused_in_one_line(content: str | None, tmp_path: Path, command: Callable) -> None:
    if content is not None:
        (tmp_path / "plan.json").write_text(content)
    with pytest.raises(status.Mistake, match=r"no sweep directory: plan\.json"):
        status.main([str(tmp_path)])


def test_the_command(varied: Sweep, tmp_path: Path, command: Callable) -> None:
    assert command("slurm.status", str(varied.folder)).returncode == 1
    for wrong in ([str(tmp_path / "nowhere")], [], [str(varied.folder), "--wach"]):
        done = command("slurm.status", *wrong)
        assert done.returncode == 2
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
        assert not done.stdout


def test_watching_ends_with_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    made = Sweep(tmp_path, [2], launcher="local")
    steps = iter([lambda: made.finished(0), lambda: made.finished(1)])
    made.told(0, "running")
    monkeypatch.setattr(status.time, "sleep", lambda seconds: next(steps)())
    assert status.main([str(made.folder), "--watch"]) == 0
    summaries = [line for line in capsys.readouterr().out.splitlines() if "members:" in line]
    assert summaries == ["2 members: 2 running", "2 members: 1 done, 1 running", "2 members: 2 done"]


def test_it_starts_without_jax() -> None:
    code = "import sys, slurm.status; print(sorted({'jax', 'numpy', 'hydra', 'submitit', 'yaml'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_names_of_files_are_those_that_training_writes() -> None:
    assert (status.LIVES, sweep.RESULT) == (results.LIVES, results.RESULT)


def test_ten_thousand_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """Every member costs a few files of a few blocks, however long its metrics are."""
    made = Sweep(tmp_path, [100] * 100)
    squeue_says(monkeypatch, tmp_path, "\n".join(f"12_{index}|RUNNING|None" for index in range(99)))
    long = HEADER + "".join(f"{update},1.5,1,1,0,0.1\n" for update in range(100, 50_000))
    for index in range(100):
        made.told(index, "running")
    for seed in range(10_000):
        made.finished(seed) if seed % 2 else made.trained(seed, HEADER + "100,1.5,1,1,0,0.1\n")
    for seed in range(0, 10_000, 1000):
        (made.dir(seed) / "metrics.csv").write_text(long)
    opened: Counter[str] = Counter()
    blocks: list[int] = []

    def counting(path: Any, *args: Any, **kwargs: Any) -> Any:
        file = real(path, *args, **kwargs)
        opened[Path(path).name] += 1
        read = file.read
        if Path(path).name == "metrics.csv":
            file = _Counted(file, read, blocks)
        return file

    real = builtins.open
    monkeypatch.setattr(status, "open", counting, raising=False)
    rows, _ = status.read_sweep(made.folder)
    states = Counter(row.state for row in rows)
    assert states == {"done": 5000, "running": 4950, "lost": 50}
    assert rows[1000].done == 49_999
    assert opened["metrics.csv"] == opened[".lives"] == 5000
    assert opened["config.yaml"] == 100
    assert max(blocks) <= status.BLOCK
    lines = status.table(rows, every=False)
    assert len(lines) <= status.LIMIT + 3
    assert "(9,950 more members: --all)" in lines
    assert lines[-1] == "10,000 members: 5,000 done, 4,950 running, 50 lost"
    assert len(status.table(rows, every=True)) == 10_002


class _Counted:
    """A file that notes how much is read at once."""

    def __init__(self, file: Any, read: Callable, blocks: list[int]):
        self.file, self._read, self.blocks = file, read, blocks

    def __enter__(self) -> "_Counted":
        return self

    def __exit__(self, *exc: object) -> None:
        self.file.close()

    def seek(self, *args: int) -> None:
        self.file.seek(*args)

    def read(self, *args: int) -> bytes:
        found = self._read(*args)
        self.blocks.append(len(found))
        return found
