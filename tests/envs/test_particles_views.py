"""Particle games seen through JaxMARL's and PettingZoo's interfaces, and in pictures."""

from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import ImageColor

from envs import particles
from envs.core import UsageError
from envs.particles.adapter import JaxMARLEnv, PettingZooEnv
from envs.particles.core import flatten
from envs.particles.game import State
from envs.particles.render import EMPTY, KINDS, LINE, TAKEN, draw, film

pytestmark = pytest.mark.usefixtures("quick_compilation")
KEY = jax.random.key(3)


@pytest.fixture(scope="module")
def pacmen() -> PettingZooEnv:
    return PettingZooEnv("pacmen-1x2")


def start(name: str) -> State:
    env = particles.make(name)
    return env.reset(KEY, env.params)[0]


def pixels(picture: np.ndarray, colour: str) -> int:
    return int((picture == ImageColor.getrgb(colour)).all(axis=-1).sum())


def test_jaxmarl_interface_gives_what_the_contract_gives() -> None:
    env, inner = JaxMARLEnv("resource-3"), particles.make("resource-3")
    assert env.agents == ["agent_0", "agent_1", "agent_2"]
    assert env.num_agents == 3
    assert env.observation_space("agent_0").shape == (66,)
    assert env.action_space("agent_2").n == 5

    def episode(key: jax.Array) -> Any:
        def advance(state: State, key: jax.Array) -> Any:
            actions = {name: jnp.int32(i) for i, name in enumerate(env.agents)}
            plain = inner.step(key, state, jnp.eye(5)[:3].ravel(), inner.params)
            alone = env.step_env(key, state, actions)
            obs, state, rewards, dones, infos = env.step(key, state, actions)
            return state, (obs, rewards, dones, infos, state, alone, plain)

        return jax.lax.scan(advance, env.reset(key)[1], jax.random.split(key, 21))[1]

    obs, rewards, dones, infos, state, alone, plain = jax.jit(jax.vmap(episode))(jax.random.split(KEY, 4))
    after, outcome = plain
    seen = np.asarray(jax.vmap(jax.vmap(lambda x: flatten(x, 3)))(after.scene))
    for i, name in enumerate(env.agents):
        np.testing.assert_array_equal(alone[0][name], seen[:, :, i])
        np.testing.assert_array_equal(obs[name][:, :19], seen[:, :19, i])
        np.testing.assert_array_equal(rewards[name], outcome.rewards[:, :, i])
        np.testing.assert_array_equal(dones[name], outcome.truncated)
    assert dones["__all__"].sum(axis=1).tolist() == [1] * 4
    assert dones["__all__"][:, 19].all()
    assert state.t[:, 18:].tolist() == [[19, 0, 1]] * 4
    assert alone[1].t[:, 18:].tolist() == [[19, 20, 1]] * 4
    np.testing.assert_array_equal(obs["agent_0"][:, 19, 2:4], state.scene.position[:, 19, 0])
    assert infos["occupied"].shape == (4, 21, 3)
    assert env.get_avail_actions(state)["agent_1"].tolist() == [1] * 5


def test_weights_and_numbers_are_the_same_actions() -> None:
    env = JaxMARLEnv("resource-3")
    state = start("resource-3")
    one_hot = {name: jnp.eye(5)[i + 1] for i, name in enumerate(env.agents)}
    numbers = {name: i + 1 for i, name in enumerate(env.agents)}
    first, second = (jax.jit(env.step_env)(KEY, state, actions)[1] for actions in (one_hot, numbers))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    with pytest.raises(UsageError, match=r"an action has shape \(3,\); give a number 0..4 or 5 weights"):
        env.step(KEY, state, dict.fromkeys(env.agents, jnp.ones(3)))
    with pytest.raises(UsageError, match="actions need agent_0 to agent_2, see 'agent_1'"):
        env.step(KEY, state, {"agent_0": 0, "agent_2": 0})


@pytest.mark.parametrize("name", ["resource-3+6", "resource-3-in-6"])
@pytest.mark.parametrize("wrapper", [JaxMARLEnv, PettingZooEnv])
def test_dictionaries_need_a_fixed_population(wrapper: Any, name: str) -> None:
    with pytest.raises(UsageError, match="need one population without padding"):
        wrapper(name)


def test_pettingzoo_interface(pacmen: PettingZooEnv) -> None:
    env = pacmen
    assert env.possible_agents == ["agent_0", "agent_1", "agent_2"]
    observations, infos = env.reset(seed=7)
    assert infos == {name: {} for name in env.agents}
    again, _ = env.reset(seed=7)
    other, _ = env.reset()
    for t in range(20):
        for name, obs in observations.items():
            assert env.observation_space(name).contains(obs)
        np.testing.assert_array_equal(again["agent_0"], observations["agent_0"]) if t == 0 else None
        actions = {name: env.action_space(name).sample() for name in env.agents}
        observations, rewards, terminations, truncations, infos = env.step(actions)
        assert set(observations) == set(rewards) == set(infos) == set(env.possible_agents)
        assert all(type(reward) is float for reward in rewards.values())
        assert not any(terminations.values())
        assert list(truncations.values()) == [t == 19] * 3
        mean = infos["agent_0"]["agent_reward"]
        assert mean == pytest.approx(sum(rewards.values()) / 3, abs=1e-5)
    assert (other["agent_0"] != again["agent_0"]).any()
    assert env.agents == []
    assert env.num_agents == 0
    assert env.max_num_agents == 3
    assert isinstance(env.action_space("agent_0"), gymnasium.spaces.Discrete)
    assert env.unwrapped is env
    picture = env.render()
    assert picture.shape == (512, 480, 3)
    assert picture.dtype == np.uint8
    with pytest.raises(UsageError, match="no episode is running; call reset"):
        env.step(actions)
    env.close()


def test_pettingzoo_refuses_what_is_no_action(pacmen: PettingZooEnv) -> None:
    pacmen.reset(seed=0)
    with pytest.raises(UsageError, match="agent_1: 5 is no action; give a number 0..4"):
        pacmen.step({"agent_0": 0, "agent_1": 5, "agent_2": 0})
    with pytest.raises(UsageError, match="actions need agent_0 to agent_2, see 'agent_2'"):
        pacmen.step({"agent_0": 0, "agent_1": 4})
    with pytest.raises(UsageError, match="nothing to draw yet; call reset"):
        PettingZooEnv("resource-2").render()


def test_pictures_show_agents_landmarks_and_relations() -> None:
    game, scene = particles.GAMES["resource"], start("resource-3-in-5").scene
    position = np.zeros((5, 2), np.float32)
    position[:3] = [[0.6, 0.6], [-0.8, -0.8], [0.8, -0.8]]
    landmark = np.array([[0.6, 0.6]] + 5 * [[-0.5, 0.5]], np.float32)
    scene = scene._replace(position=jnp.asarray(position), landmark=jnp.asarray(landmark), size=jnp.full(6, 0.2))
    picture = draw(game, scene)
    assert picture.shape == (512, 480, 3)
    assert picture.dtype == np.uint8
    scale = 480 / (2 * 1.12)  # pixels per unit; discs have a border of a pixel
    assert pixels(picture, KINDS[0]) == pytest.approx(3 * np.pi * (0.05 * scale) ** 2, rel=0.25)  # no padded agents
    ring = 0.2**2 - 0.05**2
    assert pixels(picture, TAKEN) == pytest.approx(np.pi * ring * scale**2, rel=0.15)
    assert pixels(picture, EMPTY) == pytest.approx(np.pi * (0.2 * scale) ** 2, rel=0.15)
    assert pixels(picture[: 32 + 240, 240:], TAKEN) == pixels(picture, TAKEN)  # +x is right, +y is up
    graph = np.zeros((5, 5))
    graph[0, 1], graph[1, 2], graph[2, 1], graph[0, 3] = 0.2, 1.0, 1.0, 9.0
    lines = draw(game, scene, "with relations", graph)
    assert pixels(picture, LINE) == 0
    assert pixels(lines, LINE) > 300
    assert pixels(lines[-80:], LINE) > pixels(lines[:-80], LINE)  # the thicker the heavier


def test_films_keep_the_frame_and_count_rewards() -> None:
    game, scene = particles.GAMES["pacmen"], start("pacmen-2x3").scene
    scenes = jax.tree.map(lambda x: jnp.stack([x, x, x]), scene)
    far = scenes._replace(position=scenes.position.at[2].add(1.0))
    frames = film(game, far, rewards=[1.0, 2.0], graphs=np.ones((3, 5, 5)))
    assert frames.shape == (3, 512, 480, 3)
    np.testing.assert_array_equal(frames[0, 40:], frames[1, 40:])
    assert (frames[0, :32] != frames[1, :32]).any()
    assert (frames[1, 40:] != frames[2, 40:]).any()
    assert all(pixels(frames[0, :32], KINDS[kind]) for kind in (0, 1))  # names of the kinds
    with pytest.raises(UsageError, match="5 rewards do not fit 3 scenes"):
        film(game, far, rewards=np.zeros(5))
