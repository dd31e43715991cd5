"""Particle games: physics, rewards, padding, populations, refusals, scripted players' levels."""

import functools
from collections.abc import Callable
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs import particles
from envs.core import Env, UsageError, autoreset, measure_names
from envs.particles import resource, scripted
from envs.particles.core import (
    ACTIONS,
    Dynamics,
    Scene,
    advance,
    clean,
    contact_force,
    control_force,
    flatten,
    inside,
    per_kind,
)  # fmt: skip
from envs.particles.game import Game, Games, State, make_env, step

pytestmark = pytest.mark.usefixtures("quick_compilation")
KEY = jax.random.key(0)
move = jax.jit(advance, static_argnames="dynamics")
contact = jax.jit(contact_force, static_argnames="dynamics")
POPULATIONS = {"resource": (5,), "treasure": (5,), "pacmen": (2, 3)}
BATCH = 64


@functools.cache
def scenes(game: Game, counts: tuple[int, ...], crowd: float = 0.5) -> Scene:
    """BATCH random scenes of agents and landmarks in [-crowd, crowd]^2."""
    total, landmarks, rng = sum(counts), len(game.sizes), np.random.default_rng(0)
    position, velocity, landmark = (rng.uniform(-crowd, crowd, (BATCH, n, 2)) for n in (total, total, landmarks))
    rows = game.sizes, np.ones(total), np.repeat(np.arange(len(counts)), counts)
    return _scene(position, velocity, landmark, *(np.tile(row, (BATCH, 1)) for row in rows))


def scene_of(game: Game, position: Any, landmark: Any, kind: Any = 0) -> Scene:
    """One scene at rest; landmarks that are not told lie far away."""
    position, places = np.array(position), np.full((len(game.sizes), 2), 50.0)
    places[: len(landmark)] = np.reshape(landmark, (-1, 2))
    ones = np.ones(len(position))
    return _scene(position, 0 * position, places, game.sizes, ones, np.asarray(kind) * ones)


def _scene(*fields: Any) -> Scene:
    return Scene(*(jnp.asarray(np.asarray(x, np.float32)) for x in fields))


def stay(scene: Scene, game: Game, key: jax.Array = KEY) -> tuple[Scene, Any]:
    """A step in which nobody does anything."""
    state, outcome = jax.jit(functools.partial(step, game=game))(
        key, State(scene, jnp.int32(0)), jnp.zeros(len(scene.mask) * ACTIONS)
    )
    return state.scene, outcome


def one_hot(numbers: Any) -> jax.Array:
    return jnp.asarray(np.eye(ACTIONS, dtype=np.float32)[np.asarray(numbers)])


def drawn_actions(total: int) -> jax.Array:
    return one_hot(np.random.default_rng(1).integers(0, ACTIONS, (BATCH, total)))


@functools.cache
def batch_step(name: str) -> Callable[..., Any]:
    """Steps of many scenes, one key for all."""

    def run(scene: Scene, action: jax.Array) -> tuple[Scene, Any]:
        state, outcome = step(KEY, State(scene, jnp.int32(0)), action, particles.GAMES[name])
        return state.scene, outcome

    return jax.jit(jax.vmap(run))


def test_an_agent_at_rest_moves_by_its_new_velocity() -> None:
    scene = scene_of(resource.GAME, [[0.0, 0.0]], [])
    for number, direction in enumerate(([0, 0], [1, 0], [-1, 0], [0, 1], [0, -1])):
        action = one_hot([number])
        after = move(scene, action, Dynamics())
        np.testing.assert_allclose(after.velocity[0], 0.5 * np.array(direction), atol=1e-7)
        np.testing.assert_allclose(after.position[0], 0.05 * np.array(direction), atol=1e-7)
        late = move(scene, action, Dynamics(integrator="position_first", action_sign=-1.0))
        np.testing.assert_allclose(late.velocity[0], -0.5 * np.array(direction), atol=1e-7)
        np.testing.assert_array_equal(late.position[0], 0.0)
    last = scene
    for _ in range(60):
        last = move(last, one_hot([1]), Dynamics())
    np.testing.assert_allclose(last.velocity[0], [2.0, 0.0], atol=1e-5)


def test_speed_limit_clamp_mass_and_force_of_each_kind() -> None:
    dynamics = Dynamics((0.05, 0.1), (1.0, 2.0), (2.0, 8.0), (0.15, 9.0), bound=1.0)
    scene = scene_of(resource.GAME, [[0.0, 0.0], [0.97, 0.0]], [], [0.0, 1.0])
    after = move(scene, one_hot([3, 1]), dynamics)
    np.testing.assert_allclose(after.velocity, [[0.0, 0.15], [0.4, 0.0]], atol=1e-6)  # 0.1 * 2 capped; 0.1 * 8 / 2
    np.testing.assert_allclose(after.position, [[0.0, 0.015], [1.0, 0.0]], atol=1e-6)


def test_contact_forces_are_opposite_short_and_safe_where_agents_coincide() -> None:
    scene = jax.tree.map(itemgetter(0), scenes(resource.GAME, (12,), crowd=0.15))
    force = contact(scene, Dynamics())
    assert float(jnp.abs(force).max()) > 1
    np.testing.assert_allclose(jnp.sum(force, axis=0), 0.0, atol=1e-4)
    apart = scene_of(resource.GAME, [[0.0, 0.0], [0.121, 0.0]], [])
    assert 0 < float(jnp.abs(contact(apart, Dynamics())).max()) < 1e-6
    near = apart._replace(position=jnp.array([[0.0, 0.0], [0.09, 0.0]]))
    np.testing.assert_allclose(contact(near, Dynamics()), [[-1.0, 0.0], [1.0, 0.0]], atol=1e-3)  # 100 * 0.01
    mixed = near._replace(kind=jnp.array([0.0, 1.0]))
    assert not contact(mixed, Dynamics((0.05, 0.05), kinds_collide=False)).any()
    same = apart._replace(position=jnp.zeros((2, 2)))

    def pushed(position: jax.Array) -> jax.Array:
        return jnp.sum(contact(same._replace(position=position), Dynamics()) ** 2)

    assert not contact(same, Dynamics()).any()
    assert jnp.isfinite(jax.jit(jax.grad(pushed))(same.position)).all()


def simple_spread_step(p: np.ndarray, v: np.ndarray, a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """JaxMARL's integration written anew from its published constants (agents of radius 0.15, continuous actions)."""
    force = 5.0 * np.stack([a[:, 2] - a[:, 1], a[:, 4] - a[:, 3]], axis=1)
    for i in range(len(p)):
        for j in range(len(p)):
            if i != j:
                gap = np.sqrt(((p[i] - p[j]) ** 2).sum())
                overlap = 1e-3 * np.logaddexp(0.0, -(gap - 0.3) / 1e-3)
                force[i] += 100.0 * overlap * (p[i] - p[j]) / gap
    return p + 0.1 * v, 0.75 * v + 0.1 * force


def test_position_first_is_the_integration_of_simple_spread() -> None:
    rng = np.random.default_rng(0)
    p, v, contacts = rng.uniform(-0.15, 0.15, (3, 2)), np.zeros((3, 2)), 0
    dynamics = Dynamics(radius=(0.15,), integrator="position_first", action_sign=-1.0)
    with jax.enable_x64(True):
        for _ in range(25):
            action = rng.uniform(0, 1, (3, 5))
            scene = Scene(*map(jnp.asarray, (p, v, p, np.ones(3), np.ones(3), np.zeros(3))))
            after = move(scene, jnp.asarray(action), dynamics)
            contacts += int(np.linalg.norm(p[0] - p[1]) < 0.3)
            p, v = simple_spread_step(p, v, action)
            np.testing.assert_allclose(after.position, p, atol=1e-12)
            np.testing.assert_allclose(after.velocity, v, atol=1e-12)
    assert contacts


def test_resource_rewards_sum_to_the_occupied_sizes() -> None:
    scene = scenes(resource.GAME, (5,))
    after, outcome = batch_step("resource")(scene, drawn_actions(5))
    gap = np.linalg.norm(np.asarray(after.position)[:, :, None] - np.asarray(after.landmark)[:, None], axis=-1)
    taken = (gap < 0.05 + np.asarray(scene.size)[:, None]).any(axis=1)  # (BATCH, L)
    total = (10.0 * np.asarray(resource.SIZES) * taken).sum(axis=1)
    assert 0.2 < taken.mean() < 0.8
    np.testing.assert_allclose(outcome.rewards.sum(axis=1), total, rtol=1e-5)
    np.testing.assert_allclose(outcome.reward, total, rtol=1e-5)
    np.testing.assert_allclose(outcome.measures["occupied"], total / 10.5, rtol=1e-5)
    np.testing.assert_allclose(outcome.measures["agent_reward"], total / 5, rtol=1e-5)


def test_a_lone_occupant_earns_exactly_double() -> None:
    shared = scene_of(resource.GAME, [[0.2, 0.0], [-0.2, 0.0], [9.0, 9.0]], 5 * [[70.0, 70.0]] + [[0.0, 0.0]])
    alone = shared._replace(position=shared.position.at[1].set(-9.0))
    earned = jax.jit(functools.partial(resource.rewards, dynamics=Dynamics()))
    first, second = earned(shared), earned(alone)
    np.testing.assert_allclose(first, [1.5, 1.5, 0.0])
    assert float(second[0]) == 2 * float(first[0])
    edge = scene_of(resource.GAME, [[0.25, 0.0], [0.5, 0.0]], 4 * [[70.0, 70.0]] + [[0.0, 0.0]])
    exact = edge._replace(size=jnp.full(6, 0.5))
    touching = inside(exact, Dynamics(radius=(0.0,)))[:, 4]
    assert touching.tolist() == [True, False]  # the border is outside


def test_a_treasure_is_shared_and_appears_elsewhere() -> None:
    game = particles.GAMES["treasure"]
    scene = scene_of(game, [[0.0, 0.0], [0.1, 0.1], [3.0, 0.0]], [[0.05, 0.05], [3.0, 1.0]])
    after, outcome = stay(scene, game)
    near = 0.1 * np.array([np.sqrt(0.005), np.sqrt(0.005), 1.0])
    np.testing.assert_allclose(outcome.rewards, np.array([2.5, 2.5, 0.0]) - near, atol=1e-6)
    assert float(outcome.measures["taken"]) == 1
    assert (np.abs(after.landmark[0]) <= 0.95).all()
    assert (after.landmark[0] != scene.landmark[0]).all()
    np.testing.assert_array_equal(after.landmark[1:], scene.landmark[1:])


def test_ghosts_share_a_catch_and_pacmen_a_dot() -> None:
    game = particles.GAMES["pacmen"]
    place = [[0.0, 0.12], [0.0, -0.12], [0.0, 0.0], [0.8, 0.0], [0.8, 0.12]]  # two ghosts, three Pac-Men
    scene = scene_of(game, place, [[0.8, 0.06], [0.0, 0.0]], [0.0, 0, 1, 1, 1])
    scene = scene._replace(velocity=scene.velocity.at[2].set(1e-6))
    after, outcome = stay(scene, game)
    position, landmark = np.asarray(after.position), np.asarray(after.landmark)
    assert (landmark[1] == 0).all()  # who is caught eats nothing
    assert (np.abs(landmark[0]) <= 0.9).all()
    assert (np.abs(position[2]) <= 1).all()
    assert np.abs(position[2]).max() > 0.01
    assert not np.asarray(after.velocity)[2].any()
    to = [np.linalg.norm(position[i] - position[2:], axis=1).min() for i in (0, 1)]
    to += [np.linalg.norm(position[i] - landmark, axis=1).min() for i in (2, 3, 4)]
    expected = np.array([2.5, 2.5, -5.0, 1.0, 1.0]) - 0.1 * np.array(to)
    np.testing.assert_allclose(outcome.rewards, expected, atol=1e-5)
    measures = {name: float(x) for name, x in outcome.measures.items()}
    assert (measures["caught"], measures["eaten"]) == (1, 1)
    assert measures["ghost_reward"] == pytest.approx(expected[:2].mean(), abs=1e-5)
    assert measures["pacman_reward"] == pytest.approx(expected[2:].mean(), abs=1e-5)


@pytest.mark.parametrize("name", POPULATIONS)
@pytest.mark.parametrize("garbage", [np.nan, 0.01, 1e9])
def test_padding_changes_nothing_whatever_it_holds(name: str, garbage: float) -> None:
    counts = POPULATIONS[name]
    total, more = sum(counts), 3
    scene, action = scenes(particles.GAMES[name], counts), drawn_actions(total)

    def padded(x: jax.Array, value: float) -> jax.Array:
        return jnp.concatenate([x, jnp.full((BATCH, more, *x.shape[2:]), value)], axis=1)

    wide = scene._replace(
        position=padded(scene.position, garbage), velocity=padded(scene.velocity, garbage),
        mask=padded(scene.mask, 0.0), kind=padded(scene.kind, garbage),
    )  # fmt: skip
    plain, outcome = batch_step(name)(scene, action)
    after, wide_outcome = batch_step(name)(wide, padded(action, garbage))
    np.testing.assert_allclose(wide_outcome.rewards[:, :total], outcome.rewards, atol=1e-6)
    np.testing.assert_array_equal(wide_outcome.rewards[:, total:], 0.0)
    np.testing.assert_allclose(wide_outcome.reward, outcome.reward, atol=1e-5)
    for measure, value in outcome.measures.items():
        np.testing.assert_allclose(wide_outcome.measures[measure], value, atol=1e-6)
    for field in ("position", "velocity"):
        np.testing.assert_allclose(getattr(after, field)[:, :total], getattr(plain, field), atol=1e-6)
        np.testing.assert_array_equal(getattr(after, field)[:, total:], 0.0)
    np.testing.assert_array_equal(after.landmark, plain.landmark)


def test_padding_changes_no_gradient() -> None:
    scene = jax.tree.map(itemgetter(0), scenes(resource.GAME, (4,), crowd=0.1))
    force = drawn_actions(4)[0]

    def far(action: jax.Array, scene: Scene) -> jax.Array:
        return jnp.sum(jnp.square(advance(scene, action, Dynamics()).position))

    mask = jnp.array([1.0, 1, 1, 0])
    spoilt = scene._replace(mask=mask, position=scene.position.at[3].set(jnp.nan))
    three = jax.tree.map(itemgetter(slice(3)), scene)._replace(landmark=scene.landmark, size=scene.size)
    slope = jax.jit(jax.grad(far))
    grad = slope(force, spoilt)
    np.testing.assert_allclose(grad[:3], slope(force[:3], three), atol=1e-6)
    np.testing.assert_array_equal(grad[3], 0.0)


@pytest.mark.parametrize("name", POPULATIONS)
def test_permuting_agents_permutes_what_becomes_of_them(name: str) -> None:
    counts = POPULATIONS[name]
    order = np.array([3, 0, 4, 2, 1])
    scene, action = scenes(particles.GAMES[name], counts), drawn_actions(5)

    def permuted(x: jax.Array) -> jax.Array:
        return x[:, order]

    fields = ("position", "velocity", "kind")
    other = scene._replace(**{field: permuted(getattr(scene, field)) for field in fields})
    plain, outcome = batch_step(name)(scene, action)
    after, other_outcome = batch_step(name)(other, permuted(action))
    # Where those who were caught begin anew belongs to the slot.
    same = np.asarray(outcome.measures.get("caught", jnp.zeros(BATCH)) == 0)
    assert same.sum() >= 5
    for x, y in ((other_outcome.rewards, outcome.rewards), (after.position, plain.position)):
        np.testing.assert_allclose(np.asarray(x)[same], np.asarray(permuted(y))[same], atol=1e-5)
    np.testing.assert_allclose(np.asarray(other_outcome.reward)[same], np.asarray(outcome.reward)[same], atol=1e-5)


def test_official_observation_of_two_agents_by_hand() -> None:
    scene = scene_of(
        particles.GAMES["pacmen"], [[1.0, 2.0], [3.0, 5.0], [8.0, 8.0]], [[4.0, 4.0]], np.array([0.0, 1, 1])
    )
    scene = scene._replace(velocity=jnp.array([[0.1, 0.2], [0.3, 0.4], [0.0, 0.0]]))
    scene = scene._replace(landmark=scene.landmark[:1], size=scene.size[:1])
    first = [0.1, 0.2, 1, 2, 2, 3, 0.3, 0.4, 1, -1, 0.03, 0, 1, 3, 2, 0.03, 1, 0]
    second = [0.3, 0.4, 3, 5, -2, -3, 0.1, 0.2, 3, 2, 0.03, 1, 0, 1, -1, 0.03, 0, 1]
    np.testing.assert_allclose(flatten(scene, 2, kinds=2), [first, second], atol=1e-6)
    plain = [first[:11] + first[13:16], second[:11] + second[13:16]]
    np.testing.assert_allclose(flatten(scene, 2), plain, atol=1e-6)


LEVELS = {  # mean reward of an agent and step over at least 300 episodes, for 3, 6 and 12 agents
    "no-op": (0.533, 0.466, 0.397),
    "random": (0.447, 0.420, 0.346),
    "nearest": (1.418, 1.081, 0.706),
    "largest": (1.060, 0.624, 0.369),
    "dispersed": (1.811, 1.233, 0.716),
}
LEVEL_ERROR = (0.024, 0.011, 0.011)  # at most, their standard errors


@pytest.mark.parametrize("name", LEVELS)
def test_scripted_players_reach_their_levels(name: str) -> None:
    """Three populations and many episodes in one program. Levels were measured on another implementation."""
    env, controller, episodes = particles.make("resource-3+6+12"), scripted.CONTROLLERS[name], 400

    def episode(key: jax.Array, games: Games) -> jax.Array:
        def advance(carry: tuple[State, jax.Array], key: jax.Array) -> tuple[tuple[State, jax.Array], jax.Array]:
            state, obs = carry
            action = controller(key, env.view(obs))  # type: ignore[misc]
            state, outcome = env.step(key, state, action.ravel(), games)
            return (state, outcome.obs), outcome.measures["agent_reward"]

        return jax.lax.scan(advance, env.reset(key, games), jax.random.split(key, env.horizon))[1].mean()

    games = Games(env.params.counts[:, None])  # (3, 1, 1)
    play = jax.jit(jax.vmap(jax.vmap(episode, (0, None)), (None, 0)))
    ours = np.asarray(play(jax.random.split(KEY, episodes), games))  # (3, episodes)
    error = np.sqrt(ours.var(axis=1) / episodes + np.square(LEVEL_ERROR))
    assert (np.abs(ours.mean(axis=1) - LEVELS[name]) <= 3 * error).all(), ours.mean(axis=1)


def rollout(env: Env, keys: jax.Array, length: int) -> tuple[Any, Any]:
    """(E, T) of states after the step and automatic reset, and of steps."""

    def one(key: jax.Array) -> Any:
        def advance(carry: Any, key: jax.Array) -> Any:
            state, obs = carry
            act_key, key = jax.random.split(key)
            action = jax.random.uniform(act_key, (env.spec.action_dim,), minval=-1)
            state, obs, outcome = autoreset(env, key, state, action, env.params)
            return (state, obs), ((state, obs), outcome)

        return jax.lax.scan(advance, env.reset(key, env.params), jax.random.split(key, length))[1]

    return jax.jit(jax.vmap(one))(keys)


@pytest.mark.parametrize(
    ("name", "agents"),
    [("resource-3+5", 5), ("treasure-2-in-4", 4), ("pacmen-1x3+3x1+2x2-in-3x3", 6)],
)
def test_rollouts_through_the_contract(name: str, agents: int) -> None:
    env = particles.make(name)
    (states, obs), steps = rollout(env, jax.random.split(KEY, 16), 45)
    assert (env.name, env.horizon) == (name, 20)
    assert obs.shape == (16, 45, env.spec.obs_dim)
    assert env.spec.action_dim == 5 * agents
    assert obs.dtype == steps.reward.dtype == steps.rewards.dtype == jnp.float32
    jax.tree.map(np.testing.assert_array_equal, env.view(obs), states.scene)  # type: ignore[misc]
    np.testing.assert_array_equal(steps.truncated, np.broadcast_to(np.arange(1, 46) % 20 == 0, (16, 45)))
    assert not steps.terminated.any()
    np.testing.assert_allclose(steps.rewards.sum(axis=-1), steps.reward, atol=1e-4)
    assert jnp.isfinite(steps.obs).all()
    assert set(measure_names(env)) == set(steps.measures)
    assert {x.dtype for x in steps.measures.values()} == {jnp.dtype("float32")}
    scene = states.scene
    kinds = [((scene.kind == h) & (scene.mask > 0)).sum(axis=-1) for h in range(env.params.counts.shape[1])]
    played = {tuple(row) for row in np.stack(kinds, axis=-1).reshape(-1, len(kinds)).tolist()}
    assert played == {tuple(row) for row in env.params.counts.tolist()}
    assert (np.diff(scene.mask, axis=-1) <= 0).all()  # real agents come first
    first = jax.tree.map(lambda x: x[:, :19], scene)
    assert (first.mask == first.mask[:, :1]).all()  # the same ones during an episode


def test_a_traced_game_is_chosen_and_padding_keeps_the_start() -> None:
    env, alone = particles.make("resource-3+9+24"), particles.make("resource-9")
    state, _ = jax.jit(lambda t: env.reset(KEY, Games(jax.lax.dynamic_slice_in_dim(env.params.counts, t, 1))))(1)
    same, _ = alone.reset(KEY, alone.params)
    assert float(state.scene.mask.sum()) == 9
    np.testing.assert_array_equal(state.scene.position[:9], same.scene.position)
    np.testing.assert_array_equal(state.scene.landmark, same.scene.landmark)
    jax.tree.map(np.testing.assert_array_equal, clean(state.scene), state.scene)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resource-1", "nobody to relate to; have at least 2"),
        ("resource-3+1-in-6", "nobody to relate to"),
        ("resource-9-in-6", "above the padded maximum 6"),
        ("pacmen-2x4-in-4x2", "2x4 is above the padded maximum 4x2"),
        ("pacmen-0x4", "leaves out a kind"),
        ("pacmen-6", "'6' is no population of pacmen, which is ghosts x pacmen"),
        ("resource-3x3", "'3x3' is no population of resource"),
        ("resource-3+2x4", "'2x4' is no population of resource"),
        ("resource-3-in-2x4", "'2x4' is no population of resource"),
        ("resource-3+6+3", "there twice"),
        ("resorce-3", "did you mean 'resource-3'"),
        ("resource-many", "is not known; did you mean"),
        ("resource-3+pacmen-2x4", "mixes games; join populations of one game by +, such as resource-3+9"),
        ("resource", "did you mean 'resource-3'"),
    ],
)
def test_names_that_cannot_be_played_are_refused(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message.replace("+", r"\+")) as refused:
        particles.make(name)
    assert "\n" not in str(refused.value)
    assert name in str(refused.value)


def test_other_refusals_and_names() -> None:
    assert all(map(particles.is_name, particles.NAMES))
    assert not any(map(particles.is_name, ("hopper-medium-v2", "rbf-a", "resourceful-3")))
    with pytest.raises(UsageError, match="integrator='euler' is not known; choose one of velocity_first"):
        Dynamics(integrator="euler")
    with pytest.raises(UsageError, match="4 is above the padded maximum of 3 agents"):
        make_env(resource.GAME, [(4,)], agents=3)
    with pytest.raises(UsageError, match="population 4x4 needs numbers of: agents"):
        make_env(resource.GAME, [(4, 4)])
    with pytest.raises(UsageError, match="is not known"):
        particles.game_of("hopper")


def test_forces_are_those_of_each_kind() -> None:
    kind = jnp.array([0.0, 1.0, 2.0, 1.0])
    np.testing.assert_array_equal(per_kind((3.0, 5.0, 7.0), kind), [3, 5, 7, 5])
    scene = scene_of(resource.GAME, jnp.zeros((4, 2)), [], kind)
    action = jnp.tile(jnp.array([0.1, 0.5, 0.2, 0.0, 1.0]), (4, 1))
    force = control_force(scene, action, Dynamics(force=(3.0, 5.0, 7.0)))
    np.testing.assert_allclose(force, np.array([3, 5, 7, 5])[:, None] * [0.3, -1.0], rtol=1e-6)
