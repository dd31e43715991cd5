"""What does not fit into memory is refused before any of it is taken."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest

from algos import bc, sac
from algos.drqv2 import train as drqv2
from algos.task_allocation import transfer
from envs import pointmix, registry
from envs.core import Env, Spec, UsageError
from experiments import config as schema
from experiments import memory
from experiments.config import Config, DataConfig, EnvConfig, RunConfig, algo_schema
from experiments.loop import train
from tests.conftest import Train

ENV = pointmix.make()
ROWS = 1_000_000
ROW = 4 * (2 * ENV.spec.obs_dim + ENV.spec.action_dim + 3)  # bytes: 36


def a_sac(how: str) -> tuple[Config, Any]:
    static = sac.Static(hidden=(8, 8), buffer_capacity=ROWS)
    config = Config(algo_schema("sac")(static=static), DataConfig("none"), EnvConfig("pointmix"), RunConfig(), [0])
    return config, SimpleNamespace(algo=sac.make(static, ENV.spec, ENV), spec=ENV.spec, env=ENV, how=how)


def test_what_begins_from_other_runs_is_measured_without_them() -> None:
    env = registry.make("rbf-train-12x3")
    assert isinstance(env, Env)
    static = transfer.Static(hidden=8)
    algo = algo_schema("task_allocation_transfer")(static=static)
    config = Config(algo, DataConfig("none"), EnvConfig(env.name), RunConfig(), [0], ["runs/rbf"])
    replay, rest = memory.member_bytes(config, transfer.make(static, env.spec, env), env.spec, env)
    assert replay == 0
    assert rest > 4 * 8 * 8


def limit(patch: pytest.MonkeyPatch, free: float | None) -> None:
    patch.setattr(memory, "host_bytes", lambda: None if free is None else int(free))


@pytest.mark.parametrize(
    ("how", "members", "held", "told"),
    [
        ("map", 1, 1, "1,000,000 rows x 36 bytes x 1 member = 36.0 MB"),
        ("map", 3, 4, "1,000,000 rows x 36 bytes x 3 members and a copy of one = 144.0 MB"),
        ("vmap", 3, 3, "1,000,000 rows x 36 bytes x 3 members = 108.0 MB"),
    ],
)
def test_replay_is_told_and_refused_beyond_the_limit(
    how: str, members: int, held: int, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    config, task = a_sac(how)
    replay, rest = memory.member_bytes(config, task.algo, task.spec, None)
    state = jax.eval_shape(task.algo.init, jax.random.key(0), config.algo.hyper)
    assert replay == ROWS * ROW + 4 == memory.tree_bytes(state.buffer)
    assert replay + rest == memory.tree_bytes(state)

    limit(monkeypatch, held * (replay + rest))
    memory.check(config, task, members)
    assert capsys.readouterr().err.startswith(f"replay: {told} of this machine's memory, which has ")
    limit(monkeypatch, held * (replay + rest) - 1)
    with pytest.raises(UsageError, match=r"^algo.static.buffer_capacity=1000000 is too much, a replay of ") as refused:
        memory.check(config, task, members)
    assert told in str(refused.value)
    assert ("fewer seeds" in str(refused.value)) == (members > 1)
    assert not capsys.readouterr().err
    limit(monkeypatch, None)  # a machine that does not say
    memory.check(config, task, members)
    memory.check(config, task, 0)


class Device:
    def __init__(self, free: int = 73 * 10**6):
        self.free = free

    def memory_stats(self) -> dict[str, int]:
        return {"bytes_limit": 7 * 10**6 + self.free, "bytes_in_use": 7 * 10**6}

    def __str__(self) -> str:
        return "cuda:0"


def devices(patch: pytest.MonkeyPatch, *devices: Device) -> None:
    patch.setattr(memory.jax, "local_devices", lambda: list(devices))
    patch.setattr(memory.jax, "local_device_count", lambda: len(devices))


def test_an_accelerator_has_a_memory_of_its_own(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    config, task = a_sac("vmap")
    devices(monkeypatch, Device(), Device())
    limit(monkeypatch, 0)
    memory.check(config, task, 3)
    told = "replay: 1,000,000 rows x 36 bytes x 2 members a device = 72.0 MB of cuda:0, which has 73.0 MB left\n"
    assert capsys.readouterr().err == told
    with pytest.raises(UsageError, match="x 3 members a device = 108.0 MB of cuda:0, which has 73.0 MB left"):
        memory.check(config, task, 5)


def a_drqv2(frames_in: str, prefetch: int = 0) -> tuple[Config, Any]:
    static = drqv2.Static(
        batch_size=4, feature_dim=4, hidden_dim=8, encoder="identity", stack=1, buffer_capacity=ROWS,
        frames_in=frames_in, prefetch=prefetch,
    )  # fmt: skip
    config = Config(algo_schema("drqv2")(static=static), DataConfig("none"), EnvConfig("pointmix"), RunConfig(), [0])
    return config, SimpleNamespace(algo=drqv2.make(static, ENV.spec, ENV), spec=ENV.spec, env=ENV, how="vmap")


def test_frames_in_the_hosts_memory_are_counted_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Of a row of 36 bytes, the frame has 8: two numbers."""
    config, task = a_drqv2("device")
    devices(monkeypatch, Device(30 * 10**6), Device(30 * 10**6))
    with pytest.raises(UsageError, match=r"36.0 MB of cuda:0, .*: make it smaller, set algo.static.frames_in=host$"):
        memory.check(config, task, 1)

    config, task = a_drqv2("host")
    replay, rest, on_host = memory.member_parts(config, task.algo, task.spec, ENV)
    assert on_host == 8 * ROWS
    assert replay - on_host == 28 * ROWS + 12
    batch = 4 * 4 * (2 + 2 + 1 + 1 + 2)
    ahead = memory.member_parts(*((c := a_drqv2("host", 2))[0], c[1].algo, ENV.spec, ENV))
    assert ahead == (replay + 2 * batch, rest, on_host)

    limit(monkeypatch, 8 * ROWS)
    memory.check(config, task, 1)
    told = "replay: 1,000,000 rows x 8 bytes x 1 member = 8.0 MB of this machine's memory, which has 8.0 MB left\n"
    assert capsys.readouterr().err == told
    limit(monkeypatch, 2 * 8 * ROWS - 1)  # of the host, which both devices share
    with pytest.raises(
        UsageError, match=r"16.0 MB of this machine's memory, .*: make it smaller, or train fewer seeds"
    ):
        memory.check(config, task, 2)
    devices(monkeypatch, Device(20 * 10**6))
    with pytest.raises(
        UsageError, match=r"^algo=drqv2: the states of 1 member take 28.0 MB of cuda:0, which has 20.0 "
    ):
        memory.check(config, task, 1)


def test_populations_without_replay_are_refused_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    spec, static = Spec(2, 2), bc.Static(hidden=(8, 8))
    config = Config(algo_schema("bc")(static=static), DataConfig("embedded"), EnvConfig(), RunConfig(), [0])
    task: Any = SimpleNamespace(algo=bc.make(static, spec), spec=spec, env=ENV, how="vmap")
    memory.check(config, task, 5)
    assert not capsys.readouterr().err
    limit(monkeypatch, 1000)
    with pytest.raises(UsageError, match=r"^algo=bc: the states of 5 members take [\d.]+ kB of this machine's memory,"):
        memory.check(config, task, 5)


def test_a_run_is_refused_before_it_writes(run_train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, 30e6)
    root = tmp_path / "runs"
    status, text = run_train("algo=sac", "data=none", "env=pointmix", "seed=[0,1]", f"run.root={root}")
    assert status == 2
    assert len(text.splitlines()) == 1
    assert "algo.static.buffer_capacity=1000000 is too much" in text
    assert not root.exists()


def a_machine(root: Path, available: int, cgroup: str, files: dict[str, str]) -> Path:
    files = {"proc/meminfo": f"MemTotal: 99999 kB\nMemAvailable: {available} kB\n", "proc/self/cgroup": cgroup} | files
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


V2 = {
    "sys/fs/cgroup/job/memory.max": "5000000\n",
    "sys/fs/cgroup/job/memory.current": "2000000\n",
    "sys/fs/cgroup/job/memory.stat": "anon 1500000\ninactive_file 500000\n",
    "sys/fs/cgroup/job/step/memory.max": "max\n",
    "sys/fs/cgroup/job/step/memory.current": "1000000\n",
}
V1 = {
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "4000000\n",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": "1000000\n",
}


@pytest.mark.parametrize(
    ("available", "cgroup", "files", "expected"),
    [
        (8_000, "", {}, 8_192_000),  # no cgroups
        (8_000, "0::/job/step\n", V2, 3_500_000),  # limited further up; files read can be dropped
        (3_000, "0::/job/step\n", V2, 3_072_000),  # the machine itself has less
        (8_000, "4:memory:/seen/from/outside\n0::/\n", V1, 3_000_000),  # a container's own is at the top
        (8_000, "0::/job\n", {"sys/fs/cgroup/job/memory.max": "no number"}, 8_192_000),
        (8_000, "0::/job\n", V2 | {"sys/fs/cgroup/job/memory.current": "9000000\n"}, 0),
    ],
)
def test_memory_of_the_machine(
    tmp_path: Path, available: int, cgroup: str, files: dict[str, str], expected: int
) -> None:
    assert memory.host_bytes(a_machine(tmp_path, available, cgroup, files)) == expected


def test_memory_of_other_systems(tmp_path: Path) -> None:
    assert (memory.host_bytes(tmp_path) or 0) > 1e8  # all that is built in


def test_a_run_goes_on_with_its_replay(tmp_path: Path) -> None:
    static = sac.Static(hidden=(8, 8), batch_size=8, buffer_capacity=50, warmup=4)  # which has wrapped by then

    def run(name: str, stop: bool = False) -> list[str]:
        root = str(tmp_path / name)
        settings = RunConfig(updates=90, eval_every=30, save_every=30, chunk=30, eval_episodes=2, root=root)
        config = Config(algo_schema("sac")(static=static), DataConfig("none"), EnvConfig("pointmix"), settings, [0, 1])
        results = train(schema.members(config), on_evaluation=lambda update, *_: stop and update == 60)
        return [result.get("parameters_sha256", "none yet") for result in results]

    whole = run("whole")
    assert run("parts", stop=True) == ["none yet", "none yet"]
    assert run("parts") == whole
    assert whole[0] != whole[1]
