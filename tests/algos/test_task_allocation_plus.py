"""The residual over the greedy rule: what its networks decide, how evolution updates them, what is refused."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from algos import runner
from algos.core import Env, Spec, UsageError
from algos.task_allocation import plus, plus_policy
from algos.task_allocation.greedy import greedy
from envs import allocation, pointmix
from envs.allocation.adapter import contract_env
from envs.allocation.core import to_allocation
from envs.core import TimeStep
from tests.algos.allocation_toy import problem, random_problem, stack

pytestmark = pytest.mark.usefixtures("quick_compilation")
STATIC = plus.Static(hidden=4, pairs=3, episodes=2)
HYPER = plus.Hyper(sigma=0.5, lr=0.01, tau=0.25)
DECIDE = jax.jit(jax.vmap(plus_policy.decide, in_axes=(None, 0)))


def nearby(distances):
    """Equal entities in those distances from a slot that one of them covers."""
    count = len(distances)
    rows = problem(np.ones(count), np.ones((count, 1)), [5.0], [[1.0]])
    places = jnp.stack([jnp.asarray(distances, jnp.float32), jnp.zeros(count)], axis=1)
    return rows._replace(
        entities=jnp.concatenate([rows.entities, places], axis=1),
        slots=jnp.concatenate([rows.slots, jnp.zeros((1, 2))], axis=1),
    )


def toy_env():
    """Two decisions on who goes to a task: the closer the better. It would go on paying after its end."""

    def reset(key, params):
        obs = 50 * jax.random.uniform(key, (4,))
        return (jnp.int32(0), obs), obs

    def step(key, state, action, params):
        t, distance = state[0] + 1, state[1]
        sent = (action > 0).astype(jnp.float32)
        obs = 50 * jax.random.uniform(key, (4,))
        measures = {"gross": params * sent.sum()}
        profit = params * jnp.sum(sent * (50 - distance))
        return (t, obs), TimeStep(obs, profit, t >= 2, jnp.asarray(False), measures)

    return Env("toy", Spec(4, 4), 3, jnp.float32(0.1), reset, step, view=nearby)


ENV = toy_env()
ALGO = plus.make(STATIC, ENV.spec, ENV)
STEP = jax.jit(lambda key, state, hyper: ALGO.step(key, state, ENV.params, hyper))
EARN = jax.jit(lambda key, params: plus.earnings(key, ENV, ENV.params, params))


def policy(scale, hidden=8):
    """Networks whose outputs are drawn at random."""
    params = plus_policy.init(jax.random.key(3), hidden)
    rng = np.random.default_rng(0)
    return {
        name: {**net, "output": jnp.asarray(scale * rng.standard_normal(hidden), jnp.float32)}
        for name, net in params.items()
    }


def constant(name, answer):
    """Networks that answer 0 but for one, which always gives the same answer."""
    params = plus_policy.init(jax.random.key(0), 1)
    net = {"hidden": 0 * params[name]["hidden"], "bias": jnp.full(1, 30.0), "output": jnp.full(1, answer)}
    return params | {name: net}


@cache
def met(name):
    """Problems that greedy teams meet in two episodes."""
    found = allocation.make(name)

    def advance(carry, key):
        state, asked = carry
        teams = to_allocation(greedy(key, asked), len(asked.open))
        state, outcome = found.step(key, state, teams, found.params)
        return (state, outcome.problem), asked

    def play_one(key):
        return jax.lax.scan(advance, found.reset(key, found.params), jax.random.split(key, found.horizon))[1]

    many = jax.jit(jax.vmap(play_one))(jax.random.split(jax.random.key(1), 2))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), many)


@cache
def drawn():
    rng = np.random.default_rng(1)
    return stack([random_problem(rng) for _ in range(200)])


def differing(answers, others):
    return np.mean(np.any(np.asarray(answers) != np.asarray(others), axis=1))


@pytest.mark.parametrize("name", ["material-heldout-8x3", "electric-train-8x3"])
def test_untrained_policy_is_the_greedy_rule(name):
    untrained = plus_policy.init(jax.random.key(0), 8)
    for problems in (met(name), drawn()):
        expected = jax.jit(jax.vmap(partial(greedy, jax.random.key(0))))(problems)
        np.testing.assert_array_equal(DECIDE(untrained, problems), expected)
        assert differing(DECIDE(policy(2.0), problems), expected) > 0.005  # networks are heard


@pytest.mark.parametrize("name", ["pair", "pick"])
def test_network_that_dislikes_distance_sends_the_closest(name):
    asked, params = nearby([30, 10, 20]), constant(name, -1.0)
    distance = {"pair": 0, "pick": 7}[name]
    net = params[name] | {"hidden": params[name]["hidden"].at[distance].set(1.0), "bias": jnp.zeros(1)}
    np.testing.assert_array_equal(plus_policy.decide(params, asked), [0, -1, -1])
    np.testing.assert_array_equal(plus_policy.decide(params | {name: net}, asked), [-1, 0, -1])


def test_order_network_turns_the_order_round():
    asked = problem([1.0], [[1.0]], [3.0, 4.0], [[1.0], [1.0]])
    params = constant("order", -9.0)
    by_reward = params["order"] | {"hidden": params["order"]["hidden"].at[0].set(9.0), "bias": jnp.zeros(1)}
    np.testing.assert_array_equal(plus_policy.decide(params, asked), [1])
    np.testing.assert_array_equal(plus_policy.decide(params | {"order": by_reward}, asked), [0])


def test_no_team_is_sent_at_a_loss():
    asked = problem([5.0], [[1.0]], [4.0], [[1.0]])
    for name in plus_policy.WIDTHS:
        np.testing.assert_array_equal(plus_policy.decide(constant(name, 9.0), asked), [-1])


def pad(problems, entities, slots):
    """Problems with more entities and slots, whose rows look attractive, but which are neither free nor open."""
    more: dict[str, tuple[int, ...]] = {"cost": (entities, slots)}
    more |= dict.fromkeys(("entities", "capability"), (entities, 0))
    more |= dict.fromkeys(("slots", "demand"), (slots, 0))
    more |= dict.fromkeys(("free", "entity_mask"), (entities,))
    more |= dict.fromkeys(("open", "slot_mask", "reward"), (slots,))

    def wider(leaf, by):
        return jnp.pad(leaf, [(0, 0), *((0, n) for n in by)], constant_values=False if leaf.dtype == bool else 9)

    return problems._replace(**{name: wider(getattr(problems, name), by) for name, by in more.items()})


def test_padding_changes_no_decision():
    for problems in (met("material-heldout-8x3"), drawn()):
        answers = np.asarray(DECIDE(policy(1.0), problems))
        padded = DECIDE(policy(1.0), pad(problems, 3, 2))
        np.testing.assert_array_equal(padded, np.pad(answers, [(0, 0), (0, 3)], constant_values=-1))


def test_earnings_are_those_of_one_episode():
    reset_key, step_key = jax.random.split(jax.random.key(5))
    state, obs = ENV.reset(reset_key, ENV.params)
    earned = 0.0
    for key in jax.random.split(step_key, 3)[:2]:  # its third step lies behind the end
        earned += 0.1 * (50 - float(obs[0]))  # of equals the greedy rule takes the first
        state, step = ENV.step(key, state, jnp.asarray([1.0, 0.0, 0.0, 0.0]), ENV.params)
        obs = step.obs
    untrained = plus_policy.init(jax.random.key(0), STATIC.hidden)
    np.testing.assert_allclose(EARN(jax.random.key(5), untrained), [earned, 0.2], rtol=1e-5)


def test_update_follows_the_candidates_that_earned_more():
    """One update against loops over candidates and episodes; Adam's first step is the rate, with the sign."""
    key, state = jax.random.key(11), ALGO.init(jax.random.key(0), HYPER)
    draws = plus.draw(key, STATIC, state.params)
    profits = np.zeros((2, STATIC.pairs))
    for s, sign in enumerate((1, -1)):
        for p in range(STATIC.pairs):
            noise = jax.tree.map(lambda n, p=p: n[p], draws.noise)
            candidate = jax.tree.map(lambda x, n, s=sign: x + s * HYPER.sigma * n, state.params, noise)
            profits[s, p] = np.mean([EARN(key, candidate)[0] for key in draws.episodes])
    difference = profits[0] - profits[1]
    assert difference.any()
    new, metrics = STEP(key, state, HYPER)
    np.testing.assert_allclose(metrics["train_profit"], profits.mean(), rtol=1e-5)
    parts = (state.params, new.params, new.average, draws.noise)
    for before, after, average, noise in zip(*map(jax.tree.leaves, parts)):
        direction = np.tensordot(difference / difference.std(), noise, 1)
        np.testing.assert_allclose(after - before, HYPER.lr * np.sign(direction), atol=1e-4)
        np.testing.assert_allclose(average, 0.75 * before + 0.25 * after, atol=1e-6)


def test_ascent_does_not_depend_on_the_scale_of_rewards():
    noise, profits = jnp.asarray([[1.0, 0.0], [0.0, 1.0]]), jnp.asarray([[9.0, 3.0], [5.0, 7.0]])
    direction = plus.ascent(noise, profits)
    np.testing.assert_allclose(direction, [0.5, -0.5], rtol=1e-4)
    np.testing.assert_allclose(plus.ascent(noise, 100 * profits), direction, rtol=1e-4)
    np.testing.assert_array_equal(plus.ascent(noise, jnp.zeros((2, 2))), 0)


def test_training_finds_out_that_distance_matters():
    """The best of four is on average 10 units away, the first 25: profits of 8 and 5 in two decisions."""
    hyper = plus.Hyper()
    states = [ALGO.init(jax.random.key(1), hyper)]
    for t in range(60):
        states.append(STEP(jax.random.key(t), states[-1], hyper)[0])
    keys = jax.random.split(jax.random.key(9), 500)
    before, after = (jax.vmap(EARN, (0, None))(keys, state.average)[0].mean() for state in (states[0], states[-1]))
    assert before < 5.3
    assert after > 7


def trained(seeds, how):
    hyper = jax.tree.map(lambda x: jnp.full(len(seeds), x, jnp.float32), HYPER)
    population = runner.init_population(ALGO, jnp.asarray(seeds), hyper, how)
    return runner.make_chunk(ALGO, 2, how)(population, ENV.params, jnp.int32(0))[0]


def test_population_is_its_members_alone():
    both, second = trained([0, 1], "vmap"), trained([1], "map")
    assert bool(both.alive.all())
    for many, one in zip(*map(jax.tree.leaves, (both.state, second.state))):
        np.testing.assert_allclose(many[1], one[0], rtol=1e-4, atol=1e-5)
    first, other = (both.state.params["pick"]["output"][i] for i in (0, 1))
    assert (first != 0).any()
    assert (first != other).any()


def test_act_decides_for_any_leading_axes():
    obs = 50 * jax.random.uniform(jax.random.key(0), (2, 3, 4))
    state = ALGO.init(jax.random.key(0), HYPER)._replace(average=policy(1.0, STATIC.hidden))
    act = jax.jit(lambda obs: ALGO.act(jax.random.key(0), state, obs, HYPER))
    actions = act(obs)
    np.testing.assert_array_equal((actions > 0).sum(-1), np.ones((2, 3)))
    assert (actions[..., 0] < 0).any()  # not always the greedy rule's
    np.testing.assert_array_equal(act(obs[1, 2]), actions[1, 2])


def test_refusals():
    other = pointmix.make()
    with pytest.raises(UsageError, match="task_allocation_plus.*env=pointmix"):
        plus.make(STATIC, other.spec, other)
    with pytest.raises(UsageError, match="algo.static.pairs is at least 2, not 1"):
        plus.Static(pairs=1)


@pytest.mark.slow
def test_training_beats_the_greedy_rule_on_held_out_instances():
    """Material with 12 trucks: paired differences of profit on 128 instances of the held-out distribution."""
    names = ("material-train-12x3", "material-heldout-12x3")
    train_env, held_out = (contract_env(allocation.make(name)) for name in names)
    algo, hyper = plus.make(plus.Static(), train_env.spec, train_env), plus.Hyper()
    step = jax.jit(lambda key, state: algo.step(key, state, train_env.params, hyper)[0])
    untrained = state = algo.init(jax.random.key(0), hyper)
    for t in range(30):
        state = step(jax.random.fold_in(jax.random.key(1), t), state)
    keys = jax.random.split(jax.random.key(2), 128)
    earn = jax.jit(lambda params: jax.vmap(lambda k: plus.earnings(k, held_out, held_out.params, params)[0])(keys))
    gain = np.asarray(earn(state.average) - earn(untrained.average))
    assert gain.mean() > 4 * gain.std(ddof=1) / len(gain) ** 0.5
