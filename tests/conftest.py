"""Settings for all tests: a compilation cache kept between runs, a small data set, quick commands."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

import jax  # noqa: E402
import numpy as np  # noqa: E402
from hydra.core.global_hydra import GlobalHydra  # noqa: E402

from envs import pointmix  # noqa: E402
from envs.datasets.hdf5 import write_d4rl  # noqa: E402
from experiments.cli import guarded  # noqa: E402

Train = Callable[..., tuple[int, str]]  # arguments of the training command -> (exit status, stderr)

MANY_MAPS = 15_000

# Narrow networks on PointMix: a training run of seconds.
NARROW = [
    "algo.static.actor_hidden=[16,16]",
    "algo.static.critic_hidden=[16,16]",
    "algo.static.vae_hidden=16",
    "algo.static.batch_size=32",
]


@pytest.fixture(scope="session")
def pointmix_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The PointMix data set as a file in D4RL's layout."""
    rows = pointmix.make_dataset(0, rho=0.1, episodes=60)
    path = tmp_path_factory.mktemp("data") / "pointmix.hdf5"
    arrays = {
        "observations": np.asarray(rows.obs),
        "actions": np.asarray(rows.action),
        "rewards": np.asarray(rows.reward),
        "terminals": np.asarray(rows.terminated) > 0,
        "timeouts": np.asarray(rows.truncated) > 0,
    }
    write_d4rl(path, arrays, {"env": "pointmix", "max_episode_steps": 30})
    return path


@pytest.fixture(scope="module")
def quick_compilation() -> Iterator[None]:
    """What the module compiles is run for a few steps: optimising it would take longer than it saves."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module", autouse=True)
def few_memory_maps() -> Iterator[None]:
    """Every compiled program takes several memory maps, of which Linux gives a process 65,530: drop them in time."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MANY_MAPS:
        jax.clear_caches()


@pytest.fixture(scope="session")
def command() -> Callable[..., subprocess.CompletedProcess]:
    """Run `python -m MODULE ARGS` as a user would, from the project's root."""

    def run(module: str, *args: str, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", module, *args],
            cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=600,
        )  # fmt: skip

    return run


def call(run: Callable[[], object], *args: str) -> int:
    """Run a command of Hydra's in this process; its exit status."""
    GlobalHydra.instance().clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["command", *args])
        return guarded(run)


@pytest.fixture
def run_train(capsys: pytest.CaptureFixture) -> Train:
    """The training command in this process."""
    from experiments import train  # not above: it imports for seconds, and most tests do without

    def run(*args: str) -> tuple[int, str]:
        capsys.readouterr()
        status = call(train.run, *args)
        return status, capsys.readouterr().err.strip()

    return run
