"""A population is its members: trained together or alone, on one device or several."""

import json
import os
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from algos import a2pr, runner
from algos.core import Algorithm, Dataset, Spec
from envs import pointmix
from envs.datasets.loader import to_device
from experiments.provenance import tree_sha256
from tests.conftest import ROOT

STATIC = a2pr.Static(actor_hidden=(16, 16), critic_hidden=(16, 16), vae_hidden=16, batch_size=32)
STEPS = 50  # of two updates


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return to_device(pointmix.make_dataset(0, rho=0.3, episodes=20), normalize=True, scale=1.0, shift=0.0)


def hypers(members: int) -> a2pr.Hyper:
    """Members differ in alpha and discount too."""
    rows = [a2pr.Hyper(alpha=1.0 + i, discount=0.9 + 0.01 * i) for i in range(members)]
    return jax.tree.map(lambda *x: jnp.array(x, jnp.float32), *rows)


def trained(how: str, members: list[int], dataset: Dataset, chunks: int = 1) -> runner.Population:
    """The members with these numbers, out of eight, after STEPS steps."""
    algo = a2pr.make(STATIC, Spec(2, 2))
    chosen = jax.tree.map(lambda x: x[np.array(members)], hypers(8))
    mesh = runner.member_mesh(len(members))
    population = runner.shard(runner.init_population(algo, jnp.array(members), chosen, how), mesh)
    chunk = runner.make_chunk(algo, STEPS // chunks, how, mesh)
    for index in range(chunks):
        source = runner.replicate(dataset, mesh)
        population, _ = chunk(population, source, jnp.int32(index * STEPS // chunks))
    return population


def member(population: runner.Population, index: int) -> list[np.ndarray]:
    return [np.asarray(x[index]) for x in jax.tree.leaves(population.state)]


def distance(a: list[np.ndarray], b: list[np.ndarray]) -> float:
    return max(float(np.abs(x.astype(np.float64) - y).max()) for x, y in zip(a, b))


def test_map_equals_single_runs_exactly(dataset: Dataset) -> None:
    together = trained("map", [0, 1, 2], dataset)
    for index in range(3):
        alone = trained("map", [index], dataset)
        assert all(np.array_equal(x, y) for x, y in zip(member(together, index), member(alone, 0)))
    assert distance(member(together, 0), member(together, 1)) > 1e-3  # they are different members


def test_vmap_equals_single_runs_to_float_tolerance(dataset: Dataset) -> None:
    together, alone = trained("vmap", [0, 1, 2], dataset), trained("map", [0, 1, 2], dataset)
    for index in range(3):
        assert distance(member(together, index), member(alone, index)) < 1e-4


def test_chunk_length_does_not_matter(dataset: Dataset) -> None:
    whole, parts = trained("map", [0, 1, 2], dataset), trained("map", [0, 1, 2], dataset, chunks=5)
    assert tree_sha256(whole.state) == tree_sha256(parts.state)


def test_eight_members_on_four_devices_equal_eight_on_one() -> None:
    program = (
        "import json, jax\n"
        "from tests.algos.test_runner import *\n"
        "data = to_device(pointmix.make_dataset(0, rho=0.3, episodes=20), True, 1.0, 0.0)\n"
        "found = trained('map', list(range(8)), data)\n"
        "spread = len({s.device for s in jax.tree.leaves(found.state)[0].addressable_shards})\n"
        "print(json.dumps([len(jax.devices()), spread, tree_sha256(found.state)]))\n"
    )
    answers = {}
    for count in (1, 4):
        flags = f"--xla_force_host_platform_device_count={count}"
        process = subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env=os.environ | {"XLA_FLAGS": flags},
            capture_output=True,
            text=True,
        )
        assert process.returncode == 0, process.stderr
        answers[count] = json.loads(process.stdout)
    assert answers[1][:2] == [1, 1]
    assert answers[4][:2] == [4, 4]
    assert answers[1][2] == answers[4][2]


def test_a_diverged_member_is_frozen_and_the_others_go_on(dataset: Dataset) -> None:
    def step(key: jax.Array, state: jax.Array, source: Dataset, hyper: jax.Array) -> tuple[jax.Array, dict]:
        return state * hyper, {"value": state}

    algo = Algorithm(lambda key, hyper: jnp.float32(1.0), step, lambda key, state, obs, hyper: obs)
    population = runner.init_population(algo, jnp.arange(2), jnp.array([2.0, 1e30]), "map")
    chunk = runner.make_chunk(algo, 1, "map")
    for t in range(3):
        population, _ = chunk(population, dataset, jnp.int32(t))
    assert population.alive.tolist() == [True, False]
    assert population.state.tolist() == [8.0, np.float32(1e30)]  # the last finite state


class Ringed(NamedTuple):
    value: jax.Array
    ring: jax.Array  # (RING,)


RING = 100_000


def ringed(replay: tuple[str, ...]) -> Algorithm:
    """The value is multiplied with the hyperparameter, and written into the ring."""

    def step(key: jax.Array, state: Ringed, source: None, hyper: jax.Array) -> tuple[Ringed, dict]:
        value = state.value * hyper
        return Ringed(value, state.ring.at[jnp.isinf(value) + 1].set(value)), {"value": value}

    def init(key: jax.Array, hyper: jax.Array) -> Ringed:
        return Ringed(jnp.float32(1.0), jnp.zeros(RING))

    return Algorithm(init, step, lambda key, state, obs, hyper: obs, replay=replay)


@pytest.mark.parametrize("how", ["map", "vmap"])
def test_replay_is_not_kept_of_diverged_members(how: str) -> None:
    algo = ringed(("ring",))
    population = runner.init_population(algo, jnp.arange(2), jnp.array([2.0, 1e30]), how)
    chunk = runner.make_chunk(algo, 1, how)
    for t in range(3):
        population, metrics = chunk(population, None, jnp.int32(t))
    assert population.alive.tolist() == [True, False]
    assert population.state.value.tolist() == [8.0, np.float32(1e30)]  # the last finite state
    assert population.state.ring[:, :3].tolist() == [[0.0, 8.0, 0.0], [0.0, np.float32(1e30), np.inf]]
    assert metrics["value"].tolist() == [8.0, np.inf]


def test_replay_alone_does_not_make_a_member_diverge() -> None:
    algo = ringed(("ring",))
    population = runner.init_population(algo, jnp.arange(1), jnp.array([2.0]), "map")
    spoilt = population.state._replace(ring=population.state.ring.at[:, 5].set(jnp.nan))
    after, _ = runner.make_chunk(algo, 1, "map")(population._replace(state=spoilt), None, jnp.int32(0))
    assert after.alive.tolist() == [True]


@pytest.mark.parametrize(("how", "members", "copies"), [("map", 1, 0), ("map", 3, 1), ("vmap", 3, 0)])
def test_replay_lives_once(how: str, members: int, copies: int) -> None:
    def held(replay: tuple[str, ...]) -> float:
        """Rings that the program holds besides its arguments."""
        algo = ringed(replay)
        population = runner.init_population(algo, jnp.arange(members), jnp.ones(members), how)
        analysis = runner.make_chunk(algo, 10, how).lower(population, None, jnp.int32(0)).compile().memory_analysis()
        assert analysis is not None
        results = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
        return (analysis.temp_size_in_bytes + results) / (4 * RING)

    assert held(("ring",)) < copies + 0.1
    assert held(()) > copies + 0.9


def test_states_without_replay() -> None:
    algo, state = ringed(("ring",)), Ringed(jnp.float32(1.0), jnp.zeros(2))
    bare = runner.without_replay(algo, state)
    assert (bare.value, bare.ring) == (1.0, None)
    assert runner.with_replay(algo, bare, state).ring is state.ring
    assert runner.without_replay(ringed(()), state) is state


def test_buffers_are_donated(dataset: Dataset) -> None:
    algo = a2pr.make(STATIC, Spec(2, 2))
    population = runner.init_population(algo, jnp.arange(3), hypers(3), "map")
    leaf = jax.tree.leaves(population.state.actor)[0]
    runner.make_chunk(algo, STEPS, "map", runner.member_mesh(3))(population, dataset, jnp.int32(0))
    assert leaf.is_deleted()
