import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from algos import sac
from algos.core import UsageError
from envs.core import Spec
from tests.algos import toy

HYPER = sac.Hyper()
STATIC = sac.Static((8, 8), 16, num_envs=3, updates_per_iteration=2, buffer_capacity=96, warmup=30)
ALGO, NETS = sac.make(STATIC, toy.SPEC, toy.ENV), sac.make_nets(STATIC, toy.SPEC)
LEARN = jax.jit(partial(sac.learn, NETS))


@pytest.fixture(scope="module")
def agent():
    return toy.scattered_targets(toy.member(ALGO, HYPER).agent)


@pytest.fixture(scope="module")
def step():
    return jax.jit(lambda key, state: ALGO.step(key, state, toy.ENV.params, HYPER))


def run(step, iterations, start=None):
    """The states after 0, 1, ... iterations, and the last metrics."""
    states, metrics = [toy.member(ALGO, HYPER) if start is None else start], {}
    for t in range(iterations):
        state, metrics = step(jax.random.key(t), states[-1])
        states.append(state)
    return states, metrics


def numpy_policy(actor, obs, noise):
    """Action and log density by the plain change of variables, in float64."""
    mean, log_std = (np.asarray(x, np.float64) for x in NETS.actor.apply(actor, obs))
    u = mean + np.exp(log_std) * np.asarray(noise)
    log_prob = stats.norm.logpdf(u, mean, np.exp(log_std)) - np.log(1.0 - np.tanh(u) ** 2)
    return jnp.asarray(np.tanh(u), jnp.float32), log_prob.sum(-1)


def min_q(critic, obs, action):
    """The smaller of the two critics' values."""
    each = toy.twins(critic)
    return jnp.minimum(*(NETS.critic.apply(p, obs, action) for p in each))


def test_update_is_that_of_the_formulas(agent):
    agent = agent._replace(log_alpha=jnp.log(0.3))
    batch, draws = toy.random_batch(), sac.draw(jax.random.key(3), STATIC, toy.SPEC)
    # Rates so large that a network before its step cannot be mistaken for the same after it.
    hyper = sac.Hyper(critic_lr=0.01, actor_lr=0.02, alpha_lr=0.03)
    new, metrics = LEARN(agent, batch, draws, hyper)

    next_action, next_log_prob = numpy_policy(agent.actor, batch.next_obs, draws.target)
    soft_v = np.asarray(min_q(agent.target_critic, batch.next_obs, next_action)) - 0.3 * next_log_prob
    y = np.asarray(batch.reward + 0.99 * (1.0 - batch.terminated) * soft_v, np.float32)

    def critic_loss(critic):
        each = toy.twins(critic)
        return sum(jnp.mean((NETS.critic.apply(p, batch.obs, batch.action) - y) ** 2) for p in each)

    np.testing.assert_allclose(metrics["critic_loss"], critic_loss(agent.critic), rtol=1e-4)
    toy.assert_first_adam_step(
        new.critic, agent.critic, new.optim.critic, jax.jit(jax.grad(critic_loss))(agent.critic), 0.01
    )

    action, log_prob = numpy_policy(agent.actor, batch.obs, draws.actor)
    loss = (0.3 * log_prob - np.asarray(min_q(new.critic, batch.obs, action))).mean()
    np.testing.assert_allclose(metrics["actor_loss"], loss, rtol=1e-4)

    def actor_loss(actor):
        mean, log_std = NETS.actor.apply(actor, batch.obs)
        u = mean + jnp.exp(log_std) * draws.actor
        density = -0.5 * draws.actor**2 - log_std - 0.5 * jnp.log(2 * jnp.pi) - jnp.log(1 - jnp.tanh(u) ** 2)
        return jnp.mean(0.3 * density.sum(-1) - min_q(new.critic, batch.obs, jnp.tanh(u)))

    toy.assert_first_adam_step(
        new.actor, agent.actor, new.optim.actor, jax.jit(jax.grad(actor_loss))(agent.actor), 0.02
    )
    direction = np.sign(log_prob.mean() - toy.SPEC.action_dim)  # d/d log α of -α (log π + H̄), negated
    np.testing.assert_allclose(new.log_alpha - agent.log_alpha, 0.03 * direction, rtol=1e-3)
    mixed = jax.tree.map(lambda x, y: 0.005 * x + 0.995 * y, new.critic, agent.target_critic)
    toy.assert_close(new.target_critic, mixed)


def test_temperature_rises_only_while_the_entropy_is_too_low(agent):
    batch, draws = toy.random_batch(), sac.draw(jax.random.key(3), STATIC, toy.SPEC)
    for scale, sign in ((20.0, -1.0), (-20.0, 1.0)):  # targets of -40 and 40 nats
        new, _ = LEARN(agent, batch, draws, sac.Hyper(target_entropy_scale=scale))
        assert jnp.sign(new.log_alpha - agent.log_alpha) == sign


def test_temperature_loss_equals_the_formula():
    loss, slope = jax.value_and_grad(sac.temperature_loss)(jnp.log(0.5), jnp.float32(1.5), jnp.float32(-2.0))
    assert loss == pytest.approx(-0.5 * (1.5 - 2.0))
    assert slope == pytest.approx(0.25)


def test_target_entropy_keeps_its_distance_from_the_uniform_policy():
    gaps = [3 * np.log(2 * m) - sac.target_entropy(Spec(1, 3, m), HYPER) for m in (0.4, 1.0, 5.0)]
    np.testing.assert_allclose(gaps, 3 * (np.log(2) + 1.0), rtol=1e-5)


def test_successors_of_terminal_rows_do_not_matter(agent):
    batch, draws = toy.random_batch(), sac.draw(jax.random.key(3), STATIC, toy.SPEC)
    moved = jnp.where(batch.terminated[:, None] > 0, 5.0, batch.next_obs)
    critics = [LEARN(agent, b, draws, HYPER)[0].critic for b in (batch, batch._replace(next_obs=moved))]
    toy.assert_equal(critics[0], critics[1])


def test_behaviour_is_stochastic_and_evaluation_is_its_centre(agent):
    obs = toy.random_batch().obs
    sample = jax.vmap(lambda k: sac.sample_action(k, NETS, agent.actor, obs))
    actions = sample(jax.random.split(jax.random.key(0), 4001))
    assert jnp.abs(actions).max() < 1.0
    # tanh keeps the order, so that the median of the actions is the tanh of the Gaussian's mean
    np.testing.assert_allclose(jnp.median(actions, 0), sac.mean_action(NETS, agent.actor, obs), atol=0.06)


def test_buffer_rows_are_the_environments_interleaved(step):
    state = run(step, 32)[0][-1]  # 96 rows: full, not yet wrapped
    rows = jax.tree.map(np.asarray, state.buffer.transitions)
    assert state.buffer.count == 96
    for i in range(3):
        mine = jax.tree.map(lambda x: x[i::3], rows)  # noqa: B023
        move = np.clip(mine.obs + 0.15 * mine.action, -1.0, 1.0)
        np.testing.assert_allclose(mine.next_obs, move, atol=1e-6)
        np.testing.assert_array_equal(np.flatnonzero(mine.truncated), [29])
        goes_on = np.flatnonzero(mine.truncated[:-1] == 0)
        np.testing.assert_array_equal(mine.obs[goes_on + 1], mine.next_obs[goes_on])
        assert (mine.obs[30] != mine.next_obs[29]).all()  # after a reset
    assert not rows.terminated.any()
    later, _ = step(jax.random.key(99), state)
    toy.assert_equal(later.buffer.transitions.obs[:3], state.obs)  # the oldest block is overwritten
    toy.assert_equal(later.buffer.transitions.obs[3:], state.buffer.transitions.obs[3:])


def with_constant_policy(state):
    """The state with a policy that leaves no doubt about who chose an action: almost always tanh(±0.5)."""
    actor = jax.tree.map(jnp.zeros_like, state.agent.actor)
    actor["params"]["MLP_0"]["Dense_2"]["bias"] = jnp.array([0.5, -0.5, -20.0, -20.0])
    return state._replace(agent=state.agent._replace(actor=actor))


def test_warm_up_collects_uniform_actions_and_leaves_the_agent_alone(step):
    start = with_constant_policy(toy.member(ALGO, HYPER))
    states, metrics = run(step, 9, start)
    toy.assert_equal(states[9].agent, start.agent)
    assert not np.any(jax.tree.leaves(metrics))
    trained, metrics = step(jax.random.key(9), states[9])  # the 30th transition
    assert trained.agent.optim.critic[0].count == trained.agent.optim.actor[0].count == 2
    assert metrics["critic_loss"] > 0.0
    actions = np.asarray(trained.buffer.transitions.action[:30]).ravel()
    assert stats.kstest(actions, stats.uniform(-1, 2).cdf).pvalue > 1e-3


def test_policy_acts_after_the_warm_up(step):
    state = with_constant_policy(run(step, 10)[0][-1])
    later, _ = step(jax.random.key(10), state)
    actions = later.buffer.transitions.action[30:33]
    np.testing.assert_allclose(actions, np.tanh([[0.5, -0.5]] * 3), atol=1e-5)


def test_one_update_for_each_environment_step_by_default():
    static = dataclasses.replace(STATIC, updates_per_iteration=None)
    assert sac.make(static, toy.SPEC, toy.ENV).updates_per_step == 3
    assert ALGO.updates_per_step == 2


@pytest.mark.parametrize("wrong", [{"buffer_capacity": 100}, {"num_envs": 0}, {"updates_per_iteration": 0}])
def test_impossible_sizes_are_refused(wrong):
    with pytest.raises(UsageError, match=rf"algo\.static\.{next(iter(wrong))}"):
        dataclasses.replace(STATIC, **wrong)


def test_batched_members_equal_members_in_turn(step):
    stack = lambda *trees: jax.tree.map(lambda *x: jnp.stack(x), *trees)  # noqa: E731
    states, _ = run(step, 9)
    fresh, ready = states[0], states[9]  # one member waits, the other trains
    lone = stack(step(jax.random.key(0), fresh)[0], step(jax.random.key(1), ready)[0])
    keys = jax.vmap(jax.random.key)(jnp.arange(2))
    batched, metrics = jax.jit(jax.vmap(step))(keys, stack(fresh, ready))
    toy.assert_close(batched.agent, lone.agent, rtol=1e-3, atol=1e-5)
    toy.assert_close(batched.buffer, lone.buffer, rtol=1e-4, atol=1e-4)
    assert metrics["critic_loss"][0] == 0.0 < metrics["critic_loss"][1]


def test_learns_to_reach_the_goal():
    static = sac.Static((32, 32), 64, 4, updates_per_iteration=1, buffer_capacity=8_000, warmup=400)
    algo = sac.make(static, toy.SPEC, toy.ENV)
    hyper = sac.Hyper(discount=0.95, actor_lr=1e-3, critic_lr=1e-3, alpha_lr=1e-3)
    trained, metrics = toy.train(algo, hyper, toy.ENV.params, 2000)
    assert (toy.returns(algo, trained) > -15.0).all()
    assert toy.random_return() < -25.0
    assert (metrics["temperature"] < 1.0).all()
