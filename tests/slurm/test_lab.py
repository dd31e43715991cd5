"""The one-machine cluster of slurm/lab.sh does what a cluster does, and cleans up behind itself."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import submitit

from tests.slurm.conftest import SCRIPT, Lab, lab_env, running_lab, wait_until

# A job that ends at once in its second life and waits to be interrupted in its first.
TWO_LIVES = 'echo life ${SLURM_RESTART_COUNT:-0}\n[ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] || sleep 300'
STUCK = "trap '' TERM; while true; do sleep 1; done"  # a job that TERM does not end
APPEND = "--open-mode=append"  # else the second life overwrites the first one's output
WHOLE_N1 = ("--nodelist=n1", "--exclusive")


def test_srun_runs_a_command_and_returns_its_exit_status(lab: Lab) -> None:
    assert lab.run("srun", "true").returncode == 0
    assert lab.run("srun", "bash", "-c", "exit 3").returncode == 3


def test_job_on_three_nodes(lab: Lab) -> None:
    job = lab.sbatch("srun bash -c 'echo $SLURMD_NODENAME $SLURM_PROCID'", "--nodes=3")
    assert lab.wait_state(job, "COMPLETED") == {job: "COMPLETED"}
    rows = [line.split() for line in lab.output(job).splitlines()]
    assert sorted(node for node, _ in rows) == ["n1", "n2", "n3"]
    assert sorted(rank for _, rank in rows) == ["0", "1", "2"]


def test_gpus_are_counted(lab: Lab) -> None:
    seen = lab.check("srun", "--gpus-per-node=2", "bash", "-c", "echo $SLURM_GPUS_ON_NODE")
    assert seen.split() == ["2"]


def test_array_keeps_to_its_throttle(lab: Lab) -> None:
    job = lab.sbatch("date +%s%N; sleep 0.7; date +%s%N", "--array=0-4%2")
    assert set(lab.wait_state(job, "COMPLETED")) == {f"{job}_{k}" for k in range(5)}
    spans = [tuple(map(int, lab.output(f"{job}_{k}").split())) for k in range(5)]
    together = [sum(begin <= start < end for begin, end in spans) for start, _ in spans]
    assert max(together) == 2  # three nodes of four CPUs would have taken all five


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("--mem=99999999", "Memory"),
        ("--partition=lunar", "partition"),
        ("--nodes=4", "Node"),
        ("--gpus-per-node=3", "configuration"),
        ("--cpus-per-task=5", "CPU"),
    ],
)
def test_impossible_requests_are_rejected_at_submission(lab: Lab, option: str, reason: str) -> None:
    result = lab.run("sbatch", option, "--wrap=true", cwd=lab.directory)
    assert result.returncode != 0
    assert reason in result.stderr
    assert lab.check("squeue", "--noheader") == ""


@pytest.fixture
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place for another cluster; `tmp_path` holds the test's name, which makes it too long for sockets."""
    return tmp_path_factory.mktemp("lab")


@pytest.fixture(scope="module")
def interrupted(lab: Lab) -> dict[str, str]:
    """Jobs that lost their first life, by cause; all at once, as each must wait before its second."""
    lab.set_grace(0)
    jobs = {
        "preemption": lab.sbatch(TWO_LIVES, APPEND, *WHOLE_N1),
        "scontrol requeue": lab.sbatch(TWO_LIVES, APPEND, "--nodelist=n2"),
        "crashed node": lab.sbatch(TWO_LIVES, APPEND, "--nodelist=n3"),
    }
    for job in jobs.values():
        lab.wait_output(job, "life 0")
    high = lab.sbatch("true", "--partition=high", *WHOLE_N1)
    lab.check("scontrol", "requeue", jobs["scontrol requeue"])
    lab.crash_node("n3")
    assert lab.check("sinfo", "--noheader", "--nodes=n3", "--partition=low", "--format=%T").startswith("down")
    lab.up()
    jobs["exit status 75"] = lab.sbatch(TWO_LIVES.replace("sleep 300", "exit 75"), APPEND, "--nodelist=n2")
    lab.wait_state(high, "COMPLETED")
    return jobs


@pytest.mark.parametrize("cause", ["preemption", "scontrol requeue", "crashed node", "exit status 75"])
def test_interrupted_job_runs_again(lab: Lab, interrupted: dict[str, str], cause: str) -> None:
    job = interrupted[cause]
    lab.wait_state(job, "COMPLETED")
    assert [line for line in lab.output(job).splitlines() if line.startswith("life")] == ["life 0", "life 1"]
    assert lab.job(job)["Restarts"] == "1"


def test_failed_job_does_not_run_again(lab: Lab) -> None:
    job = lab.sbatch("exit 74")
    lab.wait_state(job, "FAILED")
    assert lab.job(job)["Restarts"] == "0"
    assert lab.job(job)["ExitCode"] == "74:0"


def test_running_job_survives_the_controller(lab: Lab) -> None:
    job = lab.sbatch("until [ -e go ]; do sleep 0.1; done; echo life ${SLURM_RESTART_COUNT:-0}", APPEND)
    lab.wait_state(job, "RUNNING")
    lab.wait_saved()
    lab.kill("slurmctld")
    assert lab.script("status").returncode == 1
    lab.up()
    assert lab.script("status").returncode == 0
    (lab.directory / "jobs" / "go").touch()
    lab.wait_state(job, "COMPLETED")
    assert lab.output(job) == "life 0\n"


def test_sacct_stand_in_agrees_with_squeue(lab: Lab, tmp_path: Path) -> None:
    job = lab.sbatch("exit $SLURM_ARRAY_TASK_ID", "--array=0-1", "--job-name=odd|name")
    lab.wait_state(job, {"COMPLETED", "FAILED"})
    ask = ("sacct", "-o", "JobID,State,NodeList", "--parsable2")
    header, *rows = lab.check(*ask, "-j", f"{job}_0", "-j", f"{job}_1").splitlines()
    assert header == "JobID|State|NodeList"
    assert [row.split("|")[:2] for row in rows] == [[f"{job}_0", "COMPLETED"], [f"{job}_1", "FAILED"]]
    assert all(row.split("|")[2] in ("n1", "n2", "n3") for row in rows)
    assert lab.check(*ask, "-j", job).splitlines() == [header, *rows]
    assert lab.check(*ask, "-j", "999999").splitlines() == [header]
    assert lab.check("sacct", "-n", "-o", "JobName", "-j", f"{job}_1") == "odd|name\n"
    unknown = lab.run("sacct", "-o", "JobID,Mood")
    assert unknown.returncode == 2
    assert "Mood" in unknown.stderr
    (tmp_path / "slurm.conf").write_text("Fortune=1\n")
    assert lab.run("sacct", env=lab.env | {"SLURM_CONF": str(tmp_path / "slurm.conf")}).returncode != 0


def test_submitit_learns_of_a_killed_job(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", lab.env["PATH"])
    monkeypatch.setenv("SLURM_CONF", lab.env["SLURM_CONF"])
    executor = submitit.SlurmExecutor(folder=lab.directory / "submitit")
    job = executor.submit(os.kill, 0, signal.SIGKILL)  # its own process group: no result is ever written
    lab.wait_state(job.job_id, "FAILED")
    assert job.watcher.get_state(job.job_id, mode="force") == "FAILED"
    assert job.done(force_check=True)


def test_two_labs_side_by_side_and_down_leaves_no_process(directory: Path) -> None:
    with ExitStack() as stack:
        one, two = (stack.enter_context(running_lab(directory / name, nodes=1, cpus=2)) for name in ("one", "two"))
        for cluster in (one, two):
            running = [cluster.sbatch(STUCK) for _ in range(2)]
            waiting = cluster.sbatch(STUCK)  # for a CPU
            for job in running:
                cluster.wait_state(job, "RUNNING")
            assert cluster.squeue(waiting) == {waiting: "PENDING"}
        held = one.sbatch("true", "--hold")
        assert held in one.squeue()
        assert held not in two.squeue()

        assert one.script("down").returncode == 0
        assert one.processes() == []
        assert one.script("down").returncode == 0  # nothing left to do

        two.kill("slurmctld")  # nobody can be asked to cancel its jobs now
        assert len(two.processes()) > 4
        assert two.script("down").returncode == 0
        assert two.processes() == []


@pytest.mark.slow
def test_down_ends_a_helper_that_hangs(directory: Path) -> None:
    with running_lab(directory / "hanging", nodes=1, cpus=2) as cluster:
        helper = next(p for p in cluster.processes() if (p / "comm").read_text() == "slurmscriptd\n")
        os.kill(int(helper.name), signal.SIGSTOP)
        assert cluster.script("down").returncode == 0
        wait_until(lambda: cluster.processes() == [], 10, lambda: f"gone: {cluster.processes()}")


@pytest.mark.skipif(os.getuid() != 0, reason="as this user, every other test shows it")
@pytest.mark.usefixtures("lab")
def test_lab_needs_no_root() -> None:
    user = pwd.getpwnam("nobody")
    place = Path(tempfile.mkdtemp(prefix="lab"))  # pytest's own directories are closed to others
    os.chown(place, user.pw_uid, user.pw_gid)
    owner: dict[str, Any] = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": (), "cwd": place}
    cluster = Lab(place, lab_env(place, nodes=2))
    try:
        up = cluster.run("bash", "-s", "up", input=SCRIPT.read_text(), **owner)
        assert up.returncode == 0, up.stderr
        options = ("--parsable", "--output=out", "--nodes=2", "--wrap=srun --nodes=2 id -un")
        job = cluster.check("sbatch", *options, **owner)
        cluster.wait_state(job.strip(), "COMPLETED")
        assert (place / "out").read_text() == "nobody\nnobody\n"
    finally:
        cluster.run("bash", "-s", "down", input=SCRIPT.read_text(), **owner)
        left = cluster.processes()
        shutil.rmtree(place)
    assert left == []


def test_daemons_listen_on_loopback_only(lab: Lab) -> None:
    first = int(lab.env["LAB_PORT"])
    listening = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        rows = [line.split() for line in Path(table).read_text().splitlines()[1:]] if Path(table).exists() else []
        addresses = [row[1].split(":") for row in rows if row[3] == "0A"]
        listening |= {(host, int(port, 16)) for host, port in addresses if first <= int(port, 16) <= first + 3}
    assert listening == {("0100007F", first + k) for k in range(4)}


def test_env_gives_a_shell_the_cluster(lab: Lab) -> None:
    assert lab.script("env").stdout.splitlines() == [
        f"export SLURM_CONF={lab.env['SLURM_CONF']}",
        f'export PATH={SCRIPT.parent}/bin:"$PATH"',
    ]
    bare = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    shell = f'eval "$({SCRIPT} env)"; sinfo --noheader --format=%D:%P; sacct --noheader --jobs=999999'
    result = lab.run("bash", "-c", shell, env=bare | {"LAB_DIR": str(lab.directory)})
    assert result.stdout.split() == ["3:low*", "3:high"]


def refusal(verb: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run lab.sh, which must fail with one line."""
    result = subprocess.run(
        [shutil.which("bash") or "bash", str(SCRIPT), verb],
        env=os.environ | env, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert result.returncode != 0
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    return result


def test_missing_programs_are_named_with_the_apt_line(tmp_path: Path) -> None:
    result = refusal("up", PATH="/nonexistent", LAB_DIR=str(tmp_path / "lab"))
    assert result.returncode == 3
    assert "sbatch" in result.stderr
    assert "apt-get install -y --no-install-recommends slurmctld slurmd slurm-client munge" in result.stderr
    assert not (tmp_path / "lab").exists()


def test_tests_are_skipped_without_slurm_unless_it_is_required(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = Lab(tmp_path / "lab", os.environ | {"PATH": "/nonexistent", "LAB_DIR": str(tmp_path / "lab")})
    monkeypatch.delenv("REQUIRE_SLURM", raising=False)
    with pytest.raises(pytest.skip.Exception, match="apt-get install"):
        absent.up()
    monkeypatch.setenv("REQUIRE_SLURM", "1")
    with pytest.raises(pytest.fail.Exception, match="apt-get install"):
        absent.up()


@pytest.mark.parametrize(
    "setting", ["LAB_NODES=0", "LAB_CPUS=many", "LAB_GPUS=-1", "LAB_GRACE=1.5", "LAB_PORT=65534", "LAB_DIR=/tmp/a b"]
)
@pytest.mark.usefixtures("lab")
def test_bad_settings_are_named(tmp_path: Path, setting: str) -> None:
    name, value = setting.split("=")
    result = refusal("up", **{"LAB_DIR": str(tmp_path / "lab"), name: value})
    assert result.returncode == 2
    assert setting in result.stderr


def test_misuse_is_refused(lab: Lab, tmp_path: Path) -> None:
    other = str(tmp_path / "other")
    settings = {name: value for name, value in lab.env.items() if name.startswith("LAB_")}
    assert refusal("upp").returncode == 2
    assert "lab.sh up" in refusal("status", LAB_DIR=other).stderr
    assert "lab.sh up" in refusal("env", LAB_DIR=other).stderr
    assert "other settings" in refusal("up", **(settings | {"LAB_NODES": "2"})).stderr
    assert lab.script("up").returncode == 0  # with its own settings there is nothing to do
    (tmp_path / "thesis.txt").write_text("mine")
    assert "holds other things" in refusal("up", LAB_DIR=str(tmp_path)).stderr
    assert "too long" in refusal("up", LAB_DIR=f"/tmp/{'x' * 80}").stderr
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        assert f"port {port}" in refusal("up", LAB_DIR=other, LAB_PORT=port, LAB_NODES="1").stderr


def test_a_lab_that_does_not_come_up_shows_its_logs_and_stops(lab: Lab, directory: Path) -> None:
    broken = Lab(directory, lab.env | {"LAB_DIR": str(directory), "LAB_EXTRA": "Fortune=1"})
    broken.env["LAB_PORT"] = str(int(lab.env["LAB_PORT"]) + 10)
    with pytest.raises(pytest.fail.Exception, match="unrecognized key: Fortune"):
        broken.up()
    assert broken.processes() == []


def test_32_nodes_run_an_array_of_256_of_which_some_are_killed(directory: Path) -> None:
    with running_lab(directory, nodes=32, cpus=1) as cluster:
        job = cluster.sbatch("((SLURM_ARRAY_TASK_ID % 20 != 7)) || kill -KILL $$", "--array=0-255")
        states = cluster.wait_state(job, {"COMPLETED", "FAILED"}, timeout=120)
    assert {key for key, state in states.items() if state == "FAILED"} == {f"{job}_{k}" for k in range(7, 256, 20)}
    assert len(states) == 256
