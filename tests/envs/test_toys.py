from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from algos.core import Algorithm
from algos.runner import init_population
from envs import registry
from envs.core import Env, UsageError
from envs.datasets import generated
from envs.toys import bandit, eight_modes, pointspeed, two_regions
from experiments.rollout import episode_seeds, make_evaluator

BANDITS = (*eight_modes.SAMPLES, *two_regions.SAMPLES)
SPEEDS = tuple(f"pointspeed-{speed:g}" for speed in pointspeed.SPEEDS)


def env_named(name: str | None) -> Env:
    env = registry.make(str(name))
    assert isinstance(env, Env)
    return env


def step_once(env, state, action):
    return env.step(jax.random.key(0), state, jnp.asarray(action, jnp.float32), env.params)


def test_eight_modes_by_hand():
    env = eight_modes.make()
    state, obs = env.reset(jax.random.key(0), env.params)
    np.testing.assert_array_equal(obs, [1, 1])
    cases = [  # action, reward, cost, right_mode
        ([0.0, 0.8], 7, 0, 1),
        ([-0.5657, 0.5657], 1, 0, 0),
        ([-0.9, 0.1], 2, 0, 0),
        ([-0.6, -0.5], 3, 0, 0),
        ([0.0, -5.0], 4, 0, 0),
        ([0.5, -0.6], 5, 1, 0),
        ([0.8, 0.0], 6, 1, 0),
        ([9.0, 9.0], 7, 1, 0),
        ([0.31, 0.8], 7, 1, 1),  # nearest to mode 0, yet unsafe: the cost is the action's own
        ([0.29, 0.8], 7, 0, 1),
        ([0.29, 0.6], 7, 0, 0),  # the other way round: safe, and nearest to mode 7
    ]
    for action, reward, cost, right in cases:
        _, step = step_once(env, state, action)
        got = (step.reward, step.measures["cost"], step.measures["right_mode"])
        assert tuple(map(float, got)) == (reward, cost, right), action
        assert {x.dtype for x in got} == {jnp.dtype("float32")}
        assert (bool(step.terminated), bool(step.truncated)) == (True, False)


def test_eight_modes_data():
    data = eight_modes.make_dataset("eight-modes", 0)
    assert data.reward.shape == (20_000,)
    mode = np.asarray(eight_modes.nearest_mode(np, np.asarray(data.action)))
    np.testing.assert_allclose(np.bincount(mode) / 20_000, np.full(8, 1 / 8), atol=0.01)
    np.testing.assert_allclose((np.asarray(data.action) - eight_modes.CENTRES[mode]).std(axis=0), 0.06, atol=0.001)
    np.testing.assert_array_equal(data.cost, (mode >= 5).astype(np.float32))
    assert data.reward.mean() == pytest.approx(35 / 8, abs=0.05)
    right = eight_modes.make_dataset("eight-modes-right", 0)
    assert right.reward.shape == (300,)
    assert (right.reward == 7).all()
    np.testing.assert_array_equal(right.cost, np.zeros(300))
    np.testing.assert_allclose(right.action.mean(axis=0), [0.0, 0.8], atol=0.015)


def test_two_regions_by_hand():
    env = two_regions.make()
    for obs, centre in [([-0.3, 0.9], [-0.5, 0.5]), ([0.3, -0.9], [0.5, 0.5])]:
        state = bandit.State(jnp.array(obs))
        _, at_best = step_once(env, state, centre)
        _, aside = step_once(env, state, [centre[0], centre[1] - 0.4])
        _, other = step_once(env, state, [-centre[0], centre[1]])
        np.testing.assert_allclose(at_best.reward, 1.0)
        np.testing.assert_allclose(aside.reward, np.exp(-0.5), rtol=1e-5)
        np.testing.assert_allclose(other.reward, np.exp(-1 / 0.32), rtol=1e-5)
        assert (bool(at_best.terminated), bool(at_best.truncated), at_best.measures) == (True, False, {})
    _, step = step_once(env, bandit.State(jnp.ones(2)), [5.0, 0.5])
    np.testing.assert_allclose(step.reward, np.exp(-0.25 / 0.32), rtol=1e-5)  # the action is clipped to (1, 0.5)


def test_two_regions_data():
    data = {name: jax.tree.map(np.asarray, two_regions.make_dataset(name, 0)) for name in two_regions.SAMPLES}
    left, right = data["two-regions-left"], data["two-regions-right"]
    for skill, centre in [(left, [-0.5, 0.5]), (right, [0.5, 0.5])]:
        for side in (skill.obs[:, 0] < 0, skill.obs[:, 0] > 0):  # a skill does the same everywhere
            np.testing.assert_allclose(skill.action[side].mean(axis=0), centre, atol=0.01)
        assert skill.reward.mean() == pytest.approx(0.5, abs=0.02)
    best = data["two-regions"]
    np.testing.assert_array_equal(best.action[:, 0] < 0, best.obs[:, 0] < 0)
    assert best.reward.mean() > 0.93
    base = data["two-regions-base"]
    quadrant = 2 * (base.action[:, 0] > 0) + (base.action[:, 1] > 0)
    np.testing.assert_allclose(np.bincount(quadrant) / 20_000, np.full(4, 1 / 4), atol=0.01)
    assert abs(np.corrcoef(base.obs[:, 0], base.action[:, 0])[0, 1]) < 0.03
    assert all(x.cost is None and np.abs(x.obs).max() <= 1 for x in data.values())


def test_pointspeed_step_by_hand():
    env = pointspeed.make(1.0)
    obs = jnp.array([1.0, 0.0, 0.0, 1.0, 0.5, 0.0])  # moves along x, has to move along y, wind along x
    state, step = step_once(env, pointspeed.State(obs, jnp.int32(48)), [1.0, 2.0])
    velocity = [1.0 + 0.1 * (-3.0 + 0.5 - 0.3), 0.1 * 6.0]  # left of y is -x; the second thrust is clipped
    np.testing.assert_allclose(step.obs, [*velocity, 0.0, 1.0, 0.5, 0.0], rtol=1e-6)
    np.testing.assert_allclose(step.reward, np.exp(-(0.72**2 + 0.4**2) / 0.5), rtol=1e-5)
    assert (bool(step.terminated), bool(step.truncated)) == (False, False)
    _, step = step_once(env, state, [0.0, 0.0])
    assert (bool(step.terminated), bool(step.truncated)) == (False, True)


def test_pointspeed_starts_everywhere():
    env = pointspeed.make(3.0)
    _, obs = jax.vmap(env.reset, (0, None))(jax.random.split(jax.random.key(0), 2000), env.params)
    np.testing.assert_allclose(np.linalg.norm(obs[:, 2:4], axis=1), 1.0, rtol=1e-5)
    wind = np.linalg.norm(obs[:, 4:], axis=1)
    assert 1.4 < wind.max() <= 1.5 + 1e-5
    assert 1.9 < np.abs(obs[:, :2]).max() <= 2.0
    np.testing.assert_allclose(np.asarray(obs).mean(axis=0), 0.0, atol=0.1)


@pytest.mark.parametrize("speed", pointspeed.SPEEDS)
def test_expert_keeps_the_speed_and_is_near_the_greedy_optimum(speed):
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, 41, dtype=np.float32)] * 2), -1).reshape(-1, 1, 2)
    first = pointspeed._initial(np, rng.random((30, 5), np.float32))

    def greedy(obs):  # the action whose next velocity is the best
        every = np.broadcast_to(obs, (len(grid), *obs.shape))
        reward = pointspeed._advance(np, every, grid, speed)[1]  # (grid, episodes)
        return grid[reward.argmax(axis=0), 0]

    returns = {}
    for name, policy in {"greedy": greedy, "expert": lambda obs: pointspeed.expert(np, obs, speed)}.items():
        obs, rewards = first, []
        for _ in range(pointspeed.HORIZON):
            obs, reward = pointspeed._advance(np, obs, policy(obs), speed)
            rewards.append(reward)
        returns[name] = np.sum(rewards, axis=0)
        np.testing.assert_allclose(obs[:, :2], speed * obs[:, 2:4], atol=0.2)
    assert returns["expert"].mean() > 0.95 * returns["greedy"].mean()


def test_expert_turns_with_the_world():
    obs = np.asarray(pointspeed.make_dataset(0, 1.0, 20).obs)
    cos, sin = np.cos(0.7), np.sin(0.7)
    turned = (obs.reshape(-1, 3, 2) @ np.array([[cos, sin], [-sin, cos]])).reshape(-1, 6)
    action = pointspeed.expert(np, obs, 1.0)
    np.testing.assert_allclose(pointspeed.expert(np, turned, 1.0), action, atol=1e-5)
    assert (np.abs(action) == 1).any()  # its thrusters saturate
    assert np.abs(pointspeed.expert(np, obs, 3.0) - action).mean() > 0.1


@pytest.mark.parametrize("name", BANDITS + SPEEDS)
def test_data_are_steps_of_the_environment(name):
    recipe = generated.TABLE[name]
    env, (data, digest) = env_named(recipe.env), generated.make(recipe, 0)
    state: Any = bandit.State(data.obs)
    if name in SPEEDS:
        steps = np.tile(np.arange(recipe.steps, dtype=np.int32), len(data.reward) // recipe.steps)
        state = pointspeed.State(data.obs, jnp.asarray(steps))
        episodes = jax.tree.map(lambda x: x.reshape(400, 50, *x.shape[1:]), data)
        np.testing.assert_array_equal(episodes.obs[:, 1:], episodes.next_obs[:, :-1])
    _, step = jax.jit(jax.vmap(env.step, (None, 0, 0, None)))(jax.random.key(0), state, data.action, env.params)
    np.testing.assert_allclose(step.obs, data.next_obs, atol=1e-5)
    np.testing.assert_allclose(step.reward, data.reward, atol=1e-5)
    np.testing.assert_array_equal(step.terminated, data.terminated)
    np.testing.assert_array_equal(step.truncated, data.truncated)
    assert (data.cost is None) == ("cost" not in step.measures)
    if data.cost is not None:
        np.testing.assert_array_equal(step.measures["cost"], data.cost)
    assert all(x.dtype == np.float32 for x in data if x is not None)
    assert np.abs(data.action).max() <= 1
    assert generated.make(recipe, 0)[1] == digest != generated.make(recipe, 1)[1]


@pytest.mark.parametrize("names", [SPEEDS, tuple(two_regions.SAMPLES)])
def test_data_sets_of_one_seed_share_no_draws(names):
    first = [generated.make(generated.TABLE[name], 0)[0].obs[0] for name in names]
    assert len(np.unique(np.stack(first), axis=0)) == len(names)


def test_one_program_serves_every_speed():
    env = pointspeed.make(0.0)
    params = pointspeed.Params(jnp.array(pointspeed.SPEEDS))
    obs = jnp.array([1.0, 0.0, 1.0, 0.0, 0.0, 0.0])
    run = jax.vmap(lambda params: env.step(jax.random.key(0), pointspeed.State(obs, jnp.int32(0)), obs[:2] * 0, params))
    error = 0.97 - np.array(pointspeed.SPEEDS)
    np.testing.assert_allclose(run(params)[1].reward, np.exp(-2 * error**2), rtol=1e-4)


POLICIES = {
    "eight-modes": lambda obs: jnp.tile(eight_modes.CENTRES[7], (len(obs), 1)),
    "two-regions": lambda obs: jnp.where(obs[:, :1] < 0, two_regions.CENTRES[0], two_regions.CENTRES[1]),
    "pointspeed-3": lambda obs: pointspeed.expert(jnp, obs, 3.0),
}
EXPECTED = {
    "eight-modes": {"return": (7, 7), "cost": (1, 1), "right_mode": (0, 0)},
    "two-regions": {"return": (1, 1)},
    "pointspeed-3": {"return": (35, 50)},
}


@pytest.mark.parametrize("name", POLICIES)
def test_evaluation(name):
    algo = Algorithm(
        lambda key, hyper: hyper, lambda *_: (None, {}), lambda key, state, obs, hyper: POLICIES[name](obs)
    )
    population = init_population(algo, jnp.arange(2), jnp.zeros(2), "map")
    env = env_named(name)
    evaluate = make_evaluator(algo, env, 8, "map")
    unchanged = (jnp.zeros(env.spec.obs_dim), jnp.ones(env.spec.obs_dim))
    sums = evaluate(population, unchanged, episode_seeds([0, 1], 8, 0, "fixed"))
    assert sums.keys() == EXPECTED[name].keys()
    for measure, (low, high) in EXPECTED[name].items():
        assert sums[measure].shape == (2, 8)
        assert low <= sums[measure].min() <= sums[measure].max() <= high, measure


def test_mistakes_are_named():
    for make, name in [(eight_modes.make_dataset, "two-regions"), (two_regions.make_dataset, "eight-modes")]:
        with pytest.raises(UsageError, match=f"'{name}' is not known here; choose one of"):
            make(name, 0)
    with pytest.raises(UsageError, match="samples=0"):
        eight_modes.make_dataset("eight-modes", 0, 0)
    with pytest.raises(UsageError, match="episodes=0"):
        pointspeed.make_dataset(0, 1.0, 0)
    for speed in (-1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="speed="):
            pointspeed.make(speed)
        with pytest.raises(UsageError, match="speed="):
            pointspeed.make_dataset(0, speed)
    with pytest.raises(UsageError, match="backend='mjx' does not apply to 'two-regions'"):
        registry.make("two-regions", "mjx")
    with pytest.raises(UsageError, match="did you mean 'pointspeed-3'"):
        registry.make("pointspeed-33")
