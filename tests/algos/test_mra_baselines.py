"""What MRA is compared with: one policy for all games, Reptile, MADDPG; for MAAC see test_mra_maac."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from algos.core import Env, Metrics, UsageError
from algos.mra import learn, maac, maddpg, play, reptile, train
from algos.mra.learn import Draws, Learner, MetaDraws
from algos.mra.objectives import Batch
from algos.mra.settings import UNIMODAL, Hyper, Static
from envs import particles, pointmix
from experiments.config import Config, DataConfig, EnvConfig, RunConfig, algo_schema
from experiments.task import make_task
from tests.algos.mra_games import draw_batch, draw_numbers, draw_obs, fresh, width

pytestmark = pytest.mark.usefixtures("quick_compilation")
SMALL: dict[str, Any] = {"envs": 4, "batch_size": 8, "buffer_size": 200, "cycle_steps": 20, "cycle_updates": 3}
WORLD = play.world_of("mra_maddpg", particles.make("resource-2+3"))._replace(width=width(1))


def moved(before: Any, after: Any) -> bool:
    """Whether any number differs; without a program to compile for each shape."""
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    return any((np.asarray(x) != np.asarray(y)).any() for x, y in pairs)


def of_owner(tree: Any, owner: int) -> Any:
    return jax.tree.map(lambda x: np.asarray(x)[owner], tree)


def test_the_relation_network_learns_with_the_policy_where_asked_to() -> None:
    static = Static(batch_size=5, **UNIMODAL)
    start, batch, draws = fresh(static), draw_batch(3, 3), draw_numbers(3, 3, static)
    batch = batch._replace(skill=jnp.zeros_like(batch.action))

    @jax.jit
    def steps(learner: Learner, batch: Batch, draws: tuple[Draws, MetaDraws]) -> tuple[Learner, Learner]:
        first, _ = learn.policy_step(learner, batch, draws[0].action, static, Hyper())
        return first, learn.meta_step(first, batch, draws[1], static, Hyper())[0]

    first, last = steps(start, batch, draws)
    changed = {name for name in Learner._fields[:-1] if moved(getattr(start, name), getattr(first, name))}
    assert changed == {"policy", "relation_net"}
    assert moved(start.optim.relation, first.optim.relation)
    assert not moved((first.relation_net, first.optim.relation), (last.relation_net, last.optim.relation))
    assert not moved(last.policy, last.target_policy)


def test_stored_graphs_teach_the_relation_network_nothing() -> None:
    with pytest.raises(UsageError, match="algo.static.relation=policy .* set algo.static.graphs=recompute"):
        Static(relation="policy")


class OfGames(NamedTuple):
    """Reptile on two populations, compiled, and its state at first and after an iteration without a move."""

    env: Env
    static: reptile.Static
    step: Callable[..., Any]
    start: train.State
    still: train.State
    metrics: Metrics


@pytest.fixture(scope="module")
def of_games() -> OfGames:
    env, static, hyper = particles.make("resource-2+3"), reptile.Static(inner_cycles=2, **SMALL), reptile.Hyper()
    algo = reptile.make(static, env.spec, env)
    start = jax.jit(algo.init)(jax.random.key(0), hyper)
    step = jax.jit(lambda key, state, hyper: algo.step(key, state, env.params, hyper))
    return OfGames(env, static, step, start, *step(jax.random.key(1), start, replace(hyper, step_size=0.0)))


def test_reptile_makes_all_updates_of_its_copies_whatever_its_step(of_games: OfGames) -> None:
    # 80 environment steps of each game, an outer step every 40.
    assert of_games.metrics["cycles"] == 2
    for name in ("policy", "critic", "relation_net", "target_policy", "target_critic"):
        assert not moved(getattr(of_games.start.learner, name), getattr(of_games.still.learner, name))
    updates = 2 * 2 * SMALL["cycle_updates"]
    assert of_games.still.learner.optim.policy[1].count.tolist() == [updates, updates]


def test_reptiles_step_falls_to_zero(of_games: OfGames) -> None:
    hyper = reptile.Hyper(step_size=0.5, decay_episodes=8.0)
    ahead, metrics = of_games.step(jax.random.key(1), of_games.start, hyper)
    # Episodes of each game by the two steps: 2 and 4.
    assert metrics["step_size"] == pytest.approx(0.5 * (1 - 2 / 8 + 1 - 4 / 8) / 2)
    for name in ("policy", "critic", "relation_net"):
        assert moved(getattr(of_games.start.learner, name), getattr(ahead.learner, name))
    assert not moved(ahead.learner.policy, ahead.learner.target_policy)
    done, metrics = of_games.step(jax.random.key(2), ahead, replace(hyper, decay_episodes=4.0))
    assert metrics["step_size"] == 0.0
    assert not moved(ahead.learner.policy, done.learner.policy)


def test_reptile_goes_a_share_of_the_way_to_the_copy(of_games: OfGames) -> None:
    start = of_games.start.learner
    copy = jax.tree.map(lambda x: np.asarray(x) + 1, start)
    out = jax.jit(reptile.towards)(start, copy, 0.25)
    for name in ("policy", "critic", "relation_net", "target_policy", "target_critic"):
        pairs = zip(*(jax.tree.leaves(getattr(x, name)) for x in (start, out)), strict=True)
        for before, after in pairs:
            np.testing.assert_allclose(after, np.asarray(before) + 0.25, atol=1e-6)
    for name in ("task_encoder", "task_predictor", "optim"):
        assert not moved(getattr(start, name), getattr(out, name))


@pytest.fixture(scope="module")
def three() -> maddpg.Learner:
    """Three agents of their own, one of them without a place in games of two."""
    return jax.jit(lambda key: maddpg.init_learner(key, maddpg.Static(), WORLD))(jax.random.key(0))


compiled = jax.jit(maddpg.update)


def update(learner: maddpg.Learner, batch: Batch) -> maddpg.Learner:
    numbers = draw_numbers(3, 3, Static(skills=1))[0].action
    draws = maddpg.Draws(numbers, jnp.full(numbers.shape, 0.5))
    return compiled(learner, batch, draws, maddpg.Hyper())[0]


def test_an_agent_learns_from_its_own_reward(three: maddpg.Learner) -> None:
    batch = draw_batch(2, 3)
    ends = [update(three, batch._replace(reward=batch.reward.at[:, 1].add(by))) for by in (0.0, 1.0)]
    differ = [moved(*(of_owner((end.actor, end.critic), owner) for end in ends)) for owner in range(3)]
    assert differ == [False, True, False]


def test_agents_that_do_not_play_stay_as_they_are(three: maddpg.Learner) -> None:
    learner = three
    for n in (3, 2):  # the game of three leaves momentum behind
        before, learner = learner, update(learner, draw_batch(n, 3))
        trained = (learner.actor, learner.critic, learner.actor_optim, learner.critic_optim)
        start = (before.actor, before.critic, before.actor_optim, before.critic_optim)
        for part, old in zip(trained, start, strict=True):
            assert [moved(of_owner(old, k), of_owner(part, k)) for k in range(3)] == [True, True, n == 3]


def test_targets_follow_slowly(three: maddpg.Learner) -> None:
    end = update(three, draw_batch(3, 3))
    for new, old, target in zip(*map(jax.tree.leaves, (end.critic, three.critic, end.target_critic)), strict=True):
        np.testing.assert_allclose(target, old + 0.01 * (new - old), atol=1e-7)


def test_a_value_depends_on_the_others_by_their_actions_alone(three: maddpg.Learner) -> None:
    critic, obs = of_owner(three.critic, 0), draw_obs(0, 3, 3)
    action = np.eye(5, dtype=np.float32)[np.zeros((5, 3), int)]
    other = np.eye(5, dtype=np.float32)[np.array([[0, 3, 0]] * 5)]
    values = jax.jit(maddpg.values)
    pairs = ((action, action), (other, action), (action, other))
    base, own, others = (np.asarray(values(critic, obs, *pair)) for pair in pairs)
    assert ((own != base) == [False, True, False]).all()
    assert ((others != base) == [True, False, True]).all()


def test_every_agent_learns_an_action_of_its_own(three: maddpg.Learner) -> None:
    """Games of one step where agent i is paid for action i + 1."""
    hyper = maddpg.Hyper(actor_lr=1e-2, critic_lr=1e-2, l2=0.0)
    draw, wanted, batch, learner = np.random.default_rng(0), np.arange(1, 4), draw_batch(3, 3), three
    batch = batch._replace(terminated=jnp.ones(5))
    for _ in range(200):
        action = draw.integers(0, 5, (5, 3), np.int32)
        reward = (action == wanted).astype(np.float32)
        batch = batch._replace(action=jnp.asarray(action), reward=jnp.asarray(reward))
        numbers = draw.gumbel(size=(5, 3, 5)), draw.uniform(size=(5, 3, 5))
        draws = maddpg.Draws(*(jnp.asarray(x, jnp.float32) for x in numbers))
        learner, _ = compiled(learner, batch, draws, hyper)
    probs = jax.nn.softmax(jax.jit(maddpg.all_logits)(learner.actor, batch.obs, np.eye(3)))
    assert (np.asarray(probs)[:, np.arange(3), wanted].mean(0) > 0.8).all()


def test_shared_parameters_play_and_learn_in_every_population() -> None:
    env = particles.make("resource-2+3")
    algo = maddpg.make(maddpg.Static(share=True, **SMALL), env.spec, env)
    start = jax.jit(algo.init)(jax.random.key(0), maddpg.Hyper())
    assert {x.shape[0] for x in jax.tree.leaves(start.learner)} == {1}
    assert all(x.size for x in jax.tree.leaves(start))  # checkpoints refuse empty arrays
    end, metrics = jax.jit(algo.step)(jax.random.key(1), start, env.params, maddpg.Hyper())
    assert metrics["cycles"] == 4
    assert {"agent_reward_2", "agent_reward_3", "critic_loss", "policy_loss"} <= set(metrics)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((end, metrics)))
    assert end.learner.actor_optim[1].count.tolist() == [2 * 4 * SMALL["cycle_updates"]]
    assert moved(start.learner.actor, end.learner.actor)


def test_agents_of_their_own_are_refused_in_other_populations() -> None:
    algo = algo_schema("mra_maddpg")(static=maddpg.Static(**SMALL))
    config = Config(algo, DataConfig(name="none"), EnvConfig(name="resource-2", also=["resource-3"]), RunConfig(), 0)
    with pytest.raises(UsageError, match="env.also=resource-3 .* choose one of the same shapes"):
        make_task(config)


@pytest.mark.parametrize(("module", "name"), [(reptile, "mra_reptile"), (maddpg, "mra_maddpg"), (maac, "mra_maac")])
def test_mistakes_are_refused(module: Any, name: str) -> None:
    env = pointmix.make()
    with pytest.raises(UsageError, match=f"algo={name} learns in particle games, not env=pointmix"):
        module.make(module.Static(), env.spec, env)
    with pytest.raises(UsageError, match="algo.static.buffer_size=10 is less than a batch of 1024"):
        module.Static(buffer_size=10)
    with pytest.raises(UsageError, match="algo.static.reward_statistics=all must be one of per_slot, per_kind"):
        module.Static(reward_statistics="all")


def test_reptile_needs_a_cycle() -> None:
    with pytest.raises(UsageError, match="algo.static.inner_cycles is at least 1, not 0"):
        reptile.Static(inner_cycles=0)
