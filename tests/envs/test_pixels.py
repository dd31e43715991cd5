"""Control tasks in jnp: the contract of environments, physics and rewards; by hand and against dm_control."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs import pixels, registry
from envs.core import UsageError, autoreset
from envs.pixels import acrobot, cartpole, pendulum, pointmass, reacher
from envs.pixels.adapter import pixel_env, state_env
from envs.pixels.core import Body, stop_force, tolerance
from envs.pixels.dmc_host import load_suite

pytestmark = pytest.mark.usefixtures("quick_compilation")

SMALL = "pixels-cartpole-swingup-36"
KEY = jax.random.key(0)
SUITE = {task: task.replace("pointmass", "point_mass").split("-", 1) for task in pixels.TASKS}


def body(*position: float, velocity: Any = None, target: tuple[float, float] = (0.0, 0.0)) -> Body:
    """A body at rest, or moving."""
    still = [0.0] * len(position)
    return Body(jnp.array(position), jnp.array(still if velocity is None else velocity), jnp.array(target))


@pytest.fixture(scope="module")
def small() -> Any:
    """A small environment and an episode's first steps: (env, first state, actions, steps and states)."""
    env = pixels.make(SMALL)
    actions = jax.random.uniform(jax.random.key(1), (6, 1), minval=-1.0, maxval=1.0)

    @jax.jit
    def roll(key):
        def step(state, action):
            state, outcome = env.step(key, state, action, env.params)
            return state, (outcome, state)

        first = env.reset(key, env.params)[0]
        return first, jax.lax.scan(step, first, actions)[1]

    first, (steps, states) = roll(KEY)
    return env, first, actions, steps, states, roll


def test_shapes_types_and_horizon(small):
    env, first, _, steps, *_ = small
    assert env.spec.obs_dim == 36 * 36 * 9
    assert env.spec.action_dim == 1
    assert env.horizon == 500
    assert first.obs.shape == (env.spec.obs_dim,)
    assert steps.obs.dtype == first.obs.dtype == jnp.uint8
    assert steps.reward.dtype == jnp.float32
    assert steps.reward.shape == (6,)
    assert steps.terminated.dtype == steps.truncated.dtype == bool
    assert env.view(steps.obs).shape == (6, 36, 36, 9)
    assert env.view(first.obs).dtype == jnp.uint8
    full = pixels.make("pixels-reacher-hard")
    state, obs = jax.eval_shape(full.reset, KEY, full.params)
    assert obs.shape == (84 * 84 * 9,)
    assert obs.dtype == jnp.uint8
    assert full.spec.action_dim == 2
    _, step = jax.eval_shape(full.step, KEY, state, jnp.zeros(2), full.params)
    assert step.obs.shape == obs.shape
    assert step.obs.dtype == jnp.uint8
    assert step.reward.shape == ()


def test_frames_move_up_the_stack_and_the_newest_is_last(small):
    env, first, _, steps, states, _ = small
    before, seen = np.asarray(env.view(first.obs)), np.asarray(env.view(steps.obs))
    for k in (3, 6):
        np.testing.assert_array_equal(before[..., :3], before[..., k : k + 3])
    np.testing.assert_array_equal(seen[0, ..., :6], before[..., 3:])
    np.testing.assert_array_equal(seen[1:, ..., :6], seen[:-1, ..., 3:])
    paint = jax.jit(jax.vmap(pixels.TASKS["cartpole-swingup"].painter(36)))
    newest = np.asarray(paint(states.body))
    assert np.abs(seen[..., 6:].astype(int) - newest).max() <= 1  # another program may round otherwise
    assert (seen[1:, ..., 6:] != seen[:-1, ..., 6:]).any(axis=(1, 2, 3)).all()


def test_repeated_actions_add_their_rewards(small):
    _, first, actions, steps, states, _ = small
    task = pixels.TASKS["cartpole-swingup"]
    once = state_env("once", task)
    _, rewards = twelve = jax.jit(partial(_states, once))(first.body, jnp.repeat(actions, 2, axis=0))
    np.testing.assert_allclose(steps.reward, rewards.reshape(6, 2).sum(axis=1), atol=1e-6)
    np.testing.assert_allclose(states.body.position[-1], twelve[0].body.position, atol=1e-5)
    assert state_env("four", task, repeat=4).horizon == 250
    assert once.horizon == 1000


def _states(env: Any, start: Body, actions: jax.Array) -> Any:
    """The last state of the state version from a start, and the rewards."""
    state = env.reset(KEY, env.params)[0]._replace(body=start)

    def step(state, action):
        state, outcome = env.step(KEY, state, action, env.params)
        return state, outcome.reward

    return jax.lax.scan(step, state, actions)


def test_episodes_end_by_the_time_limit_alone(small):
    env, first, *_ = small
    late = first._replace(t=jnp.int32(498))
    step = jax.jit(env.step)
    state, outcome = step(KEY, late, jnp.zeros(1), env.params)
    assert not outcome.truncated
    assert not outcome.terminated
    _, outcome = step(KEY, state, jnp.zeros(1), env.params)
    assert outcome.truncated
    assert not outcome.terminated
    _, obs, outcome = jax.jit(partial(autoreset, env))(KEY, state, jnp.ones(1), env.params)
    fresh, last = np.asarray(env.view(obs)), np.asarray(env.view(outcome.obs))
    np.testing.assert_array_equal(fresh[..., :3], fresh[..., 6:])
    assert (last[..., :3] != last[..., 6:]).any()
    assert obs.dtype == jnp.uint8


def test_same_key_same_episode_alone_or_among_others(small):
    *_, steps, states, roll = small
    again = roll(KEY)[1]
    jax.tree.map(np.testing.assert_array_equal, (steps, states), again)
    many = jax.jit(jax.vmap(roll))(jax.random.split(jax.random.key(3), 3))[1]
    alone = roll(jax.random.split(jax.random.key(3), 3)[1])[1]
    np.testing.assert_allclose(many[0].reward[1], alone[0].reward, atol=1e-5)
    assert np.abs(np.asarray(many[0].obs[1]).astype(int) - np.asarray(alone[0].obs)).max() <= 1
    assert (many[0].obs[0] != many[0].obs[1]).any()


def test_actions_beyond_one_are_one():
    env = pixels.make("pointmass-easy-state")
    state, _ = env.reset(KEY, env.params)
    one, three = (env.step(KEY, state, jnp.array([x, -x]), env.params)[1] for x in (1.0, 3.0))
    np.testing.assert_array_equal(one.obs, three.obs)
    assert one.reward == three.reward


@pytest.mark.parametrize("task", pixels.TASKS)
def test_starts_and_observations_of_states(task):
    env = pixels.make(f"{task}-state")
    state, obs = jax.jit(jax.vmap(env.reset, (0, None)))(jax.random.split(KEY, 200), env.params)
    assert obs.shape == (200, env.spec.obs_dim)
    assert obs.dtype == jnp.float32
    assert env.view is None
    position, speed = np.asarray(state.body.position), np.abs(state.body.velocity).max()
    spread = np.abs(position).max(axis=0)
    if task.startswith("cartpole-swingup"):
        assert np.abs(position - [0.0, np.pi]).max() < 0.05
        assert 0 < speed < 0.06
    elif task.startswith("cartpole"):
        assert (spread <= [0.1, 0.034]).all()
        assert (spread > [0.09, 0.03]).all()
        assert 0 < speed < 0.06
    else:
        limit = {"reacher": [np.pi, reacher.WRIST[1]], "pointmass": 0.29}.get(task.split("-")[0], np.pi)
        assert (spread <= limit).all()
        assert (spread > 0.9 * np.asarray(limit)).all()
        assert speed == 0
    far = np.linalg.norm(state.body.target, axis=-1)
    if task.startswith("reacher"):
        assert far.min() >= 0.05
        assert far.max() <= 0.2
        assert np.ptp(far) > 0.14
    else:
        assert not far.any()


def test_tolerance_by_hand():
    x = jnp.array([-3.0, -1.0, 0.0, 1.0, 2.0, 3.0])
    np.testing.assert_array_equal(tolerance(x, -1.0, 1.0), [0, 1, 1, 1, 0, 0])
    np.testing.assert_allclose(tolerance(x, -1.0, 1.0, margin=1.0), [1e-4, 1, 1, 1, 0.1, 1e-4], rtol=1e-5)
    quadratic = tolerance(x, -1.0, 1.0, margin=2.0, at_margin=0.0, shape="quadratic")
    np.testing.assert_allclose(quadratic, [0, 1, 1, 1, 0.75, 0])
    assert float(tolerance(jnp.array(1.0), 0.0, 0.0, 2.0)) == pytest.approx(0.1**0.25)


def test_rewards_where_the_task_is_done_and_where_not():
    none, full = jnp.zeros(1), jnp.ones(1)
    reward = {name: task.reward for name, task in pixels.TASKS.items()}
    assert reward["pendulum-swingup"](body(0.0), full) == 1
    assert reward["pendulum-swingup"](body(0.139), none) == 1
    assert reward["pendulum-swingup"](body(0.141), none) == 0
    assert reward["cartpole-balance"](body(0.0, 0.0), none) == 1
    assert float(reward["cartpole-swingup"](body(0.0, 0.0), full)) == pytest.approx(0.8)
    assert float(reward["cartpole-swingup"](body(0.0, np.pi), none)) == pytest.approx(0.0, abs=1e-6)
    moving = body(2.0, np.pi / 2, velocity=[0.0, 5.0])
    assert float(reward["cartpole-swingup"](moving, none)) == pytest.approx(0.5 * 0.55 * 0.55)
    sparse = reward["cartpole-swingup-sparse"]
    assert sparse(body(0.24, 0.09), none) == 1
    assert sparse(body(0.26, 0.09), none) == sparse(body(0.24, 0.11), none) == 0
    two = jnp.zeros(2)
    for name, near in (("easy", 0.059), ("hard", 0.024)):
        assert reward[f"reacher-{name}"](body(0.0, 0.0, target=(0.24 - near, 0.0)), two) == 1
        assert reward[f"reacher-{name}"](body(0.0, 0.0, target=(0.24 - near - 0.002, 0.0)), two) == 0
    assert reward["pointmass-easy"](body(0.01, 0.01), two) == 1
    assert float(reward["pointmass-easy"](body(0.03, 0.0), two)) == pytest.approx(0.1, rel=1e-4)
    assert (
        reward["acrobot-swingup-sparse"](body(0.0, 0.0), none) == 1 == reward["acrobot-swingup"](body(0.0, 0.0), none)
    )
    bent = body(0.0, np.pi / 2)  # the tip a metre beside the elbow, 2^0.5 from the target
    assert reward["acrobot-swingup-sparse"](bent, none) == 0
    assert float(reward["acrobot-swingup"](bent, none)) == pytest.approx(0.1 ** ((2**0.5 - 0.2) ** 2), rel=1e-4)


def path(task: str, params: Any, start: Body, steps: int, action: float = 0.0) -> Body:
    """The bodies (steps, ...) under a constant action."""

    def step(state, _):
        state = pixels.TASKS[task].advance(state, jnp.full(pixels.TASKS[task].action_dim, action), params)
        return state, state

    return jax.jit(lambda state: jax.lax.scan(step, state, length=steps)[1])(start)


def pendulum_energy(state: Body, params: Any) -> Any:
    inertia = params.mass * params.length**2 + params.ball_inertia
    height = params.length * jnp.cos(state.position[:, 0])
    return inertia * jnp.square(state.velocity[:, 0]) / 2 + params.mass * params.gravity * height


def test_pendulum_keeps_its_energy_without_damping_and_loses_it_with():
    start, params = body(1.0), pendulum.Params()
    free = pendulum_energy(path("pendulum-swingup", params._replace(damping=0.0), start, 1000), params)
    swing = params.mass * params.gravity * params.length
    assert abs(float(free.mean()) - swing * np.cos(1.0)) < 0.02 * swing
    assert float(jnp.ptp(free)) < 0.15 * swing  # a symplectic step: it oscillates and does not drift
    assert abs(float(free[:500].mean() - free[500:].mean())) < 0.005 * swing
    damped = pendulum_energy(path("pendulum-swingup", params, start, 1000), params)
    assert float(damped[-1]) == pytest.approx(-swing, abs=0.02 * swing)


def two_link_energy(state: Body, links: Any) -> Any:
    angle, spin = jnp.cumsum(state.position, axis=1), jnp.cumsum(state.velocity, axis=1)
    direction = jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=-1)  # (T, 2 links, 2)
    sideways = jnp.stack([jnp.cos(angle), -jnp.sin(angle)], axis=-1) * spin[..., None]
    lengths = [(links.first_centre, 0.0), (links.length, links.second_centre)]
    total = 0.0
    masses, inertias = (links.first_mass, links.second_mass), (links.first_inertia, links.second_inertia)
    for i, (mass, inertia) in enumerate(zip(masses, inertias)):
        velocity, place = (sum(lengths[i][j] * x[:, j] for j in (0, 1)) for x in (sideways, direction))
        total = total + mass * (jnp.square(velocity).sum(axis=-1) / 2 + links.gravity * place[:, 1])
        total = total + inertia * jnp.square(spin[:, i]) / 2
    return total


def test_two_links_keep_their_energy_without_damping():
    moving = body(2.5, 0.7, velocity=[1.0, -2.0])
    energy = two_link_energy(path("acrobot-swingup", acrobot.LINKS._replace(damping=0.0), moving, 500), acrobot.LINKS)
    assert float(jnp.ptp(energy)) < 2e-4 * 9.81 * 2
    free = reacher.LINKS._replace(damping=0.0)
    energy = two_link_energy(path("reacher-easy", free, body(0.0, 0.5, velocity=[0.5, 0.2]), 100), free)
    assert float(jnp.ptp(energy) / energy[0]) < 0.02


def test_cartpole_keeps_energy_and_momentum_without_damping():
    params = cartpole.Params(cart_damping=0.0, pole_damping=0.0)
    states = path("cartpole-swingup", params, body(0.0, 2.0), 300)
    angle, (speed, spin) = states.position[:, 1], states.velocity.T
    lever, inertia = 0.1 * 0.5, 0.009424592767 + 0.1 * 0.25
    kinetic = 1.1 * speed**2 / 2 + lever * jnp.cos(angle) * speed * spin + inertia * spin**2 / 2
    energy = kinetic + lever * 9.81 * jnp.cos(angle)
    np.testing.assert_allclose(energy, lever * 9.81 * np.cos(2.0), atol=2e-5)
    np.testing.assert_allclose(1.1 * speed + lever * jnp.cos(angle) * spin, 0.0, atol=2e-5)


def test_soft_stops_hold():
    cart = path("cartpole-balance", cartpole.Params(), body(0.0, 0.0), 1000, action=1.0)
    assert 1.8 < float(cart.position[:, 0].max()) < 2.0  # it arrives at 6 m/s
    assert float(cart.position[-1, 0]) == pytest.approx(1.8, abs=0.01)
    arm = path("reacher-easy", reacher.LINKS, body(0.0, 2.5), 200, action=1.0)
    assert 1.0 < float(arm.position[-1, 1] / reacher.WRIST[1]) < 1.05
    point = path("pointmass-easy", pointmass.Params(), body(0.0, 0.0), 1000, action=-1.0)
    np.testing.assert_allclose(point.position[-1], -0.29, atol=1e-3)
    free = partial(stop_force, mobility=1.0, rest_mobility=1.0, bounds=(-1.0, 1.0), time_constant=0.04)
    zero = jnp.zeros(3)
    np.testing.assert_array_equal(free(zero, jnp.array([-0.999, 0.0, 0.999]), zero), 0.0)
    left, right = free(zero[:2], jnp.array([-1.01, 1.01]), zero[:2])
    assert left > 0
    assert right == -left


@pytest.mark.parametrize("task", pixels.TASKS)
def test_physics_rewards_and_observations_equal_dm_control(task):
    pytest.importorskip("dm_control")
    suite = load_suite()
    domain, name = SUITE[task]
    theirs = suite.load(domain, name.replace("-", "_"), task_kwargs={"random": 0})
    ours = pixels.TASKS[task]
    theirs.reset()
    data, rng = theirs.physics.data, np.random.default_rng(1)
    target = theirs.physics.named.model.geom_pos["target"][:2] if domain == "reacher" else np.zeros(2)
    start = Body(*(jnp.array(x, jnp.float32) for x in (data.qpos, data.qvel, target)))
    actions = np.repeat(rng.uniform(-1.0, 1.0, (10, ours.action_dim)), 10, axis=0).astype(np.float32)
    actions[50:] = 1.0  # into a stop

    def step(state, action):
        state = ours.advance(state, action, ours.params)
        return state, (state.position, ours.reward(state, action), ours.observe(state))

    position, reward, obs = jax.jit(partial(jax.lax.scan, step))(start, actions)[1]
    for t, action in enumerate(actions):
        answer = theirs.step(action)
        seen = np.concatenate([np.ravel(x) for x in answer.observation.values()])
        np.testing.assert_allclose(position[t], data.qpos, atol=2e-4)
        np.testing.assert_allclose(obs[t], seen, atol=5e-3)
        assert float(reward[t]) == pytest.approx(answer.reward, abs=1e-3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: registry.make("pixels-cartpol-swingup"), "'pixels-cartpol-swingup' .*mean 'pixels-cartpole-swingup'"),
        (lambda: registry.make("pixels-pendulum-swingup-state"), "did you mean 'pixels-pendulum-swingup'"),
        (lambda: registry.make("pendulum-swing-state"), "did you mean 'pendulum-swingup-state'"),
        (lambda: registry.make("pixels-reacher-easy-35"), "pixels-reacher-easy-35: .*35 pixels.*at least 36"),
        (lambda: registry.make("pixels-reacher-easy", "mjx"), "backend='mjx' does not apply"),
        (lambda: pixel_env("x", pixels.TASKS["reacher-easy"], stack=0), "x: a stack of 0 .*at least 1"),
        (lambda: pixel_env("x", pixels.TASKS["reacher-easy"], repeat=3), "x: 1000 control steps .*repeats of 3"),
        (lambda: state_env("x", pixels.TASKS["reacher-easy"], repeat=0), "repeats of 0; choose 1, 2"),
    ],
)
def test_mistakes_are_named_in_one_line(make, message):
    with pytest.raises(UsageError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
