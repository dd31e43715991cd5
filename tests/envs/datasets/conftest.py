"""Small recorded data shared by the data set tests."""

import numpy as np
import pytest


def record(rows=60, obs_dim=11, action_dim=3, seed=0, episode=10):
    """Arrays in D4RL's layout: a timeout every `episode` rows, a terminal amid every third one."""
    rng = np.random.default_rng(seed)
    row = np.arange(rows)
    states = rng.normal(1.0, 2.0, (rows + 1, obs_dim)).astype(np.float32)
    terminals = row % (3 * episode) == episode // 2
    return {
        "observations": states[:-1],
        "next_observations": states[1:],
        "actions": rng.uniform(-1, 1, (rows, action_dim)).astype(np.float32),
        "rewards": rng.normal(size=rows).astype(np.float32),
        "terminals": terminals,
        "timeouts": row % episode == episode - 1,
    }


@pytest.fixture
def make_arrays():
    return record


@pytest.fixture
def arrays():
    return record()


@pytest.fixture(autouse=True)
def no_outside_world(monkeypatch, tmp_path):
    """Every cache is a fresh folder, and no proxy stands before 127.0.0.1."""
    monkeypatch.setenv("ADAPTAX_DATA", str(tmp_path / "cache"))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("ADAPTAX_MIRRORS", raising=False)
