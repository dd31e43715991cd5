"""MAAC: its attention, baseline and losses with and without padding, learning, and what it refuses."""

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from algos.core import UsageError
from algos.mra import maac, nets, play
from algos.mra.learn import Draws
from algos.mra.objectives import Batch, advantages
from envs import particles
from tests.algos.mra_games import Static as Drawn
from tests.algos.mra_games import draw_batch, draw_numbers, filled, width

pytestmark = pytest.mark.usefixtures("quick_compilation")
KINDS = 2
STATIC, HYPER = maac.Static(hidden=8, heads=2), maac.Hyper(attention_penalty=0.1)
WORLD = play.world_of("mra_maac", particles.make("pacmen-1x2"))._replace(width=width(KINDS))
ORDER = np.array([2, 0, 1])


class Seen(NamedTuple):
    """All that a batch leads to."""

    log_probs: jax.Array  # (B, N, 5)
    values: jax.Array  # (B, N, 5)
    target: jax.Array  # (B, N)
    graph: jax.Array  # (heads, B, N, N)
    losses: Any
    grads: Any


@pytest.fixture(scope="module")
def learner() -> maac.Learner:
    """With targets of their own."""
    start = jax.eval_shape(lambda: maac.init_learner(jax.random.key(0), STATIC, WORLD))
    parts = {name: filled(getattr(start, name), i) for i, name in enumerate(maac.Learner._fields[:4])}
    optims = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (start.actor_optim, start.critic_optim))
    return maac.Learner(**parts, actor_optim=optims[0], critic_optim=optims[1])


@jax.jit
def everything(learner: maac.Learner, batch: Batch, draws: Draws) -> Seen:
    target = maac.td_target(learner, batch, draws.next_action, STATIC, HYPER)
    of_critic = jax.value_and_grad(maac.critic_loss, has_aux=True)
    critic = of_critic(learner.critic, batch, target, STATIC, HYPER)
    of_actor = jax.value_and_grad(maac.actor_loss, has_aux=True)
    actor = of_actor(learner.actor, learner.critic, batch.obs, draws.action, STATIC, HYPER)
    values, attention = maac.values(learner.critic, batch.obs, batch.action, STATIC.heads)
    log_probs = jax.nn.log_softmax(nets.attentive_logits(learner.actor, batch.obs))
    return Seen(log_probs, values, target, attention.graph, (critic[0], actor[0]), (critic[1], actor[1]))


update = jax.jit(lambda learner, batch, draws, hyper: maac.update(learner, batch, draws, STATIC, hyper))


def draws_of(slots: int) -> Draws:
    return draw_numbers(3, slots, Drawn(skills=1))[0]


def close(found: Any, wanted: Any, tolerance: float = 2e-6) -> None:
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=tolerance)


def test_padding_changes_nothing(learner: maac.Learner) -> None:
    alone = everything(learner, draw_batch(3, 3, KINDS), draws_of(3))
    padded = everything(learner, draw_batch(3, 5, KINDS), draws_of(5))
    close((padded.losses, padded.grads), (alone.losses, alone.grads))
    for name in ("log_probs", "values", "target"):
        close(getattr(padded, name)[:, :3], getattr(alone, name))
    close(padded.graph[..., :3, :3], alone.graph)


def test_agents_attend_to_others_that_exist_alone(learner: maac.Learner) -> None:
    graph = np.asarray(everything(learner, draw_batch(3, 5, KINDS), draws_of(5)).graph)
    close(graph[..., :3, :].sum(-1), np.ones((2, 5, 3)))
    assert (graph[..., 3:] == 0.0).all()
    assert (graph[..., 3:, :] == 0.0).all()
    assert (graph.diagonal(axis1=-2, axis2=-1) == 0.0).all()
    assert np.abs(graph[0] - graph[1]).max() > 1e-3  # heads of their own


def test_permuting_agents_permutes_what_is_theirs_and_no_loss(learner: maac.Learner) -> None:
    batch, draws = draw_batch(3, 3, KINDS), draws_of(3)
    obs, next_obs = (jax.tree.map(lambda x: x[:, ORDER], x) for x in (batch.obs, batch.next_obs))
    moved = batch._replace(obs=obs, next_obs=next_obs, action=batch.action[:, ORDER], reward=batch.reward[:, ORDER])
    before, after = everything(learner, batch, draws), everything(learner, moved, Draws(*(x[:, ORDER] for x in draws)))
    close((after.losses, after.grads), (before.losses, before.grads))
    for name in ("log_probs", "values", "target"):
        close(getattr(after, name), getattr(before, name)[:, ORDER])
    close(after.graph, before.graph[:, :, ORDER][..., ORDER])


def test_advantages_of_an_agents_own_actions_have_no_mean_under_its_policy(learner: maac.Learner) -> None:
    """The value of an action is that of the joint action with it, whatever the agent did: then the mean is exact."""
    batch, draws = draw_batch(3, 3, KINDS), draws_of(3)
    seen = everything(learner, batch, draws)
    mean = jnp.zeros(5)
    for action in range(5):
        other = everything(learner, batch._replace(action=batch.action.at[:, 1].set(action)), draws)
        close(other.values[:, 1], seen.values[:, 1], 0.0)
        assert np.abs(other.values[:, ::2] - seen.values[:, ::2]).max() > 1e-4 or (batch.action[:, 1] == action).all()
        mean += jnp.exp(seen.log_probs[:, 1, action]) * advantages(other.values, seen.log_probs)[:, 1, action]
    close(mean, np.zeros(5))
    assert np.abs(seen.values[:, 1] - seen.values[:, 1, :1]).max() > 1e-2


def test_nothing_is_expected_after_the_end(learner: maac.Learner) -> None:
    batch = draw_batch(3, 3, KINDS)  # its second row ends
    target = np.asarray(everything(learner, batch, draws_of(3)).target)
    same = target == np.asarray(batch.reward)
    assert same[1].all()
    assert not same[[0, 2, 3, 4]].any()


def test_targets_follow_slowly(learner: maac.Learner) -> None:
    end, _ = update(learner, draw_batch(3, 3, KINDS), draws_of(3), replace(HYPER, tau=0.25))
    for name in ("actor", "critic"):
        wanted = jax.tree.map(
            lambda x, y: 0.25 * x + 0.75 * y, getattr(end, name), getattr(learner, f"target_{name}")
        )  # fmt: skip
        close(getattr(end, f"target_{name}"), wanted)


def test_every_kind_learns_an_action_of_its_own(learner: maac.Learner) -> None:
    """Games of one step where agents of kind k are paid for action k + 1."""
    hyper = maac.Hyper(actor_lr=3e-3, critic_lr=1e-2, l2=0.0, reward_scale=5.0)
    draw, wanted, batch = np.random.default_rng(0), np.array([1, 2, 1]), draw_batch(3, 3, KINDS)
    batch, losses = batch._replace(terminated=jnp.ones(5)), []
    before = everything(learner, batch, draws_of(3)).log_probs
    for _ in range(200):
        action = draw.integers(0, 5, (5, 3), np.int32)
        batch = batch._replace(action=jnp.asarray(action), reward=jnp.asarray(action == wanted, jnp.float32))
        draws = Draws(*(jnp.asarray(draw.gumbel(size=(5, 3, 5)), jnp.float32) for _ in range(2)))
        learner, metrics = update(learner, batch, draws, hyper)
        losses.append(float(metrics["critic_loss"]))
    after = everything(learner, batch, draws_of(3)).log_probs
    chosen = [np.exp(np.asarray(x))[:, np.arange(3), wanted].mean(0) for x in (before, after)]
    assert (chosen[0] < 0.6).all()
    assert (chosen[1] > 0.8).all()
    assert np.mean(losses[-20:]) < 0.2 * np.mean(losses[:20])


def test_it_plays_and_learns_in_several_populations_and_acts_in_others() -> None:
    env, other = particles.make("resource-2+3"), particles.make("resource-4")
    static = maac.Static(hidden=8, heads=2, envs=4, batch_size=8, buffer_size=200, cycle_steps=20, cycle_updates=3)
    algo, hyper = maac.make(static, env.spec, env), maac.Hyper()
    start = jax.jit(algo.init)(jax.random.key(0), hyper)
    assert all(x.size for x in jax.tree.leaves(start))  # checkpoints refuse empty arrays
    end, metrics = jax.jit(algo.step)(jax.random.key(1), start, env.params, hyper)
    assert metrics["cycles"] == 4
    assert {"agent_reward_2", "agent_reward_3", "critic_loss", "policy_loss", "policy_entropy"} <= set(metrics)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((end, metrics)))
    assert end.learner.actor_optim[1].count == 2 * 4 * static.cycle_updates
    obs = jnp.ones((6, other.spec.obs_dim))
    action = jax.jit(algo.act)(jax.random.key(2), end, obs, hyper, jnp.ones((6, 4, 1)))
    assert action.shape == (6, other.spec.action_dim)
    maac.check_other(env, other)


def test_values_of_two_agents_are_of_the_one_other(learner: maac.Learner) -> None:
    graph = everything(learner, draw_batch(2, 3, KINDS), draws_of(3)).graph
    close(graph[..., :2, :2], np.broadcast_to(1.0 - np.eye(2), (2, 5, 2, 2)), 0.0)


def test_heads_share_the_width() -> None:
    with pytest.raises(UsageError, match="algo.static.hidden=10 is no multiple of algo.static.heads=4: set one that"):
        maac.Static(hidden=10)
    with pytest.raises(UsageError, match="algo.static.heads is at least 1, not 0"):
        maac.Static(heads=0)
