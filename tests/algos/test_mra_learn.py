"""MRA's losses and steps: padding, permutations, who learns from what, targets, the relation reward."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from algos.core import Metrics
from algos.mra import learn, nets, objectives
from algos.mra.learn import Draws, Learner, MetaDraws
from algos.mra.objectives import Batch, Networks
from algos.mra.settings import Hyper, Static
from tests.algos.mra_games import EVERY_SWITCH, SIZE, STATIC, draw_batch, draw_numbers, fresh

pytestmark = pytest.mark.usefixtures("quick_compilation")
HYPER = Hyper()
LEARNT = {
    "critic": {"critic"},
    "policy": {"policy"},
    "relation": {"relation_net"},
    "task": {"task_encoder", "task_predictor"},
}


def graph_of(batch: Batch) -> jax.Array:
    assert batch.graph is not None
    return batch.graph


def labelled(batch: Batch) -> Batch:
    return jax.tree.map(lambda x: x[None], batch)


@partial(jax.jit, static_argnames="static")
def everything(learner: Learner, batch: Batch, draws: tuple[Draws, MetaDraws], static: Static) -> tuple[Any, Any]:
    """What belongs to agents (B, N, ...), and what does not: losses and gradients."""
    (draw, meta), obs, relation = draws, batch.obs, learner.relation_net
    graphs = objectives.batch_graphs(relation, batch, static)
    target = objectives.td_target(
        learner.target_policy, learner.target_critic, batch, graphs, draw.next_action, static, HYPER
    )
    log_probs = nets.task_log_probs(learner.task_encoder, obs.counts[0], HYPER.skill_divisor)
    drawn = nets.relation_graph(relation, obs, objectives.draw_skill(log_probs, meta.relation.skill))
    of_agents = {
        "logits": nets.policy_logits(learner.policy, obs, graphs[0]),
        "outputs": nets.critic_outputs(learner.critic, obs, batch.action, graphs[0]),
        "target": target.value,
    }
    losses = {
        "critic": jax.value_and_grad(objectives.critic_loss, has_aux=True)(
            learner.critic, batch, graphs[0], target.value, static
        ),
        "policy": jax.value_and_grad(objectives.policy_loss, has_aux=True)(
            learner.policy, learner.critic, obs, graphs[0], draw.action, static, HYPER
        ),
        "relation": jax.value_and_grad(objectives.relation_loss, has_aux=True)(
            relation, Networks(learner.policy, learner.target_policy), obs, log_probs, meta.relation, static
        ),
        "task": jax.value_and_grad(objectives.task_loss, has_aux=True)(
            (learner.task_encoder, learner.task_predictor), relation, labelled(batch), meta.task, static, HYPER
        ),
    }
    return (of_agents, drawn), losses


def close(ours: Any, expected: Any, atol: float = 1e-6) -> None:
    """Every leaf, relative to the largest entry of the expected one where that is above 1."""
    leaves = zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True)
    for x, y in leaves:
        np.testing.assert_allclose(x, y, atol=atol * max(1.0, float(jnp.abs(y).max())))


CASES = [(STATIC, 1, 24), (EVERY_SWITCH, 2, 4)]


@pytest.mark.parametrize(("static", "kinds", "slots"), CASES)
def test_padded_agents_change_nothing(static: Static, kinds: int, slots: int) -> None:
    n, learner = 3, fresh(static, kinds)
    (agents, graph), losses = everything(learner, draw_batch(n, n, kinds), draw_numbers(n, n, static), static)
    (more, wider), again = everything(learner, draw_batch(n, slots, kinds), draw_numbers(n, slots, static), static)
    close(jax.tree.map(lambda x: x[:, :n], {"a": more["logits"], "b": more["outputs"]}), {
        "a": agents["logits"], "b": agents["outputs"]
    })  # fmt: skip
    close(more["target"][:, :n], agents["target"])
    close(wider[:, :n, :n], graph)
    assert float(jnp.abs(wider).sum()) == pytest.approx(SIZE * n, rel=1e-5)
    close(again, losses, 2e-6)


@pytest.mark.parametrize(("static", "kinds"), [(STATIC, 1), (EVERY_SWITCH, 2)])
def test_permuting_agents_permutes_what_is_theirs_and_no_loss(static: Static, kinds: int) -> None:
    n, order, learner = 3, jnp.array([2, 0, 1]), fresh(static, kinds)
    batch, draws = draw_batch(n, n, kinds), draw_numbers(n, n, static)
    (agents, graph), losses = everything(learner, batch, draws, static)

    def moved(x: jax.Array, axis: int = 1) -> jax.Array:
        return jnp.take(x, order, axis)

    obs, next_obs = (jax.tree.map(moved, x) for x in (batch.obs, batch.next_obs))
    assert batch.skill is not None
    permuted = batch._replace(
        obs=obs, next_obs=next_obs, action=moved(batch.action), reward=moved(batch.reward),
        graph=moved(moved(graph_of(batch)), 2), skill=moved(batch.skill),
    )  # fmt: skip
    draw, meta = draws
    relation = meta.relation._replace(
        skill=moved(meta.relation.skill, 0), resample=moved(meta.relation.resample), action=moved(meta.relation.action)
    )
    numbers = Draws(*map(moved, draw)), MetaDraws(relation, moved(meta.task))
    (again, permuted_graph), equal = everything(learner, permuted, numbers, static)
    close(again, jax.tree.map(moved, agents))
    close(permuted_graph, moved(moved(graph), 2))
    close(equal, losses, 2e-6)


class Steps(NamedTuple):
    """Learners after each kind of step from the same start, and after both parts of a cycle."""

    critic: Learner
    policy: Learner
    relation: Learner
    task: Learner
    update: Learner
    cycle: Learner


@jax.jit
def take_steps(learner: Learner, batch: Batch, draws: tuple[Draws, MetaDraws]) -> tuple[Steps, list[Metrics]]:
    (draw, meta), fixed = draws, (STATIC, HYPER)
    ends = [
        learn.critic_step(learner, batch, draw.next_action, *fixed),
        learn.policy_step(learner, batch, draw.action, *fixed),
        learn.relation_step(learner, batch, meta.relation, *fixed),
        learn.task_step(learner, labelled(batch), meta.task, *fixed),
        learn.update(learner, batch, draw, *fixed),
    ]
    ends.append(learn.meta_step(ends[-1][0], batch, meta, *fixed))
    return Steps(*(learner for learner, _ in ends)), [metrics for _, metrics in ends]


@pytest.fixture(scope="module")
def start() -> Learner:
    return fresh(STATIC)


@pytest.fixture(scope="module")
def taken(start: Learner) -> tuple[Steps, list[Metrics]]:
    return take_steps(start, draw_batch(3, 4), draw_numbers(3, 4, STATIC))


def same(x: Any, y: Any) -> bool:
    return jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b), x, y))


@pytest.mark.parametrize("step", LEARNT)
def test_each_step_changes_its_own_networks_and_optimiser_only(step: str, start: Learner, taken: Any) -> None:
    after, fields = getattr(taken[0], step), [name for name in Learner._fields if name != "optim"]
    assert {name for name in fields if not same(getattr(after, name), getattr(start, name))} == LEARNT[step]
    groups = start.optim._fields
    assert {name for name in groups if not same(getattr(after.optim, name), getattr(start.optim, name))} == {step}


def test_targets_rest_during_updates_and_are_bitwise_copies_after_a_cycle(start: Learner, taken: Any) -> None:
    steps, metrics = taken
    targets = lambda learner: (learner.target_policy, learner.target_critic)  # noqa: E731
    assert same(targets(steps.update), targets(start))
    assert same(targets(steps.cycle), (steps.cycle.policy, steps.cycle.critic))
    assert same((steps.cycle.policy, steps.cycle.critic), (steps.update.policy, steps.update.critic))
    assert all(np.isfinite(x) for names in metrics for x in names.values())


def test_the_policys_loss_teaches_the_critic_nothing_and_targets_are_constants() -> None:
    learner, batch = fresh(STATIC), draw_batch(3, 3)
    draw, graph = draw_numbers(3, 3, STATIC)[0], graph_of(batch)

    @jax.jit
    def slopes(learner: Learner) -> Any:
        def policy(critic: Any) -> jax.Array:
            return objectives.policy_loss(learner.policy, critic, batch.obs, graph, draw.action, STATIC, HYPER)[0]

        def target(policy: Any, critic: Any) -> jax.Array:
            fixed = (batch, (graph, graph), draw.next_action, STATIC, HYPER)
            return objectives.td_target(policy, critic, *fixed).value.sum()

        return jax.grad(policy)(learner.critic), jax.grad(target, (0, 1))(learner.target_policy, learner.target_critic)

    assert all((x == 0.0).all() for x in jax.tree.leaves(slopes(learner)))


def test_targets_are_rewards_where_nothing_follows() -> None:
    learner, batch = fresh(STATIC), draw_batch(3, 3)
    noise, graphs = draw_numbers(3, 3, STATIC)[0].next_action, (graph_of(batch), graph_of(batch))
    compiled = jax.jit(objectives.td_target, static_argnums=5)

    def target(static: Static, **hyper: float) -> objectives.Target:
        return compiled(learner.target_policy, learner.target_critic, batch, graphs, noise, static, Hyper(**hyper))

    np.testing.assert_array_equal(target(STATIC, discount=0.0, reward_scale=float("inf")).value, batch.reward)
    found = target(STATIC, discount=0.5, reward_scale=2.0)
    decay = 0.5 * (1.0 - batch.terminated[:, None])
    np.testing.assert_allclose(
        found.value, batch.reward + decay * found.next_q - found.log_prob / 2.0, atol=1e-6
    )  # fmt: skip
    discounted = target(Static(discount_entropy=True), discount=0.5, reward_scale=2.0).value
    np.testing.assert_allclose(
        discounted, batch.reward + decay * (found.next_q - found.log_prob / 2.0), atol=1e-6
    )  # fmt: skip
    assert float(jnp.abs(target(Static(next_action_obs="current")).log_prob - found.log_prob).max()) > 1e-3


def test_the_sum_of_values_is_regressed_or_each_value() -> None:
    learner, batch = fresh(STATIC), draw_batch(3, 4)
    shift = jnp.array([0.7, -0.7, 0.0, 9.0])

    compiled = jax.jit(objectives.critic_loss, static_argnums=4)

    def loss(static: Static, target: jax.Array) -> float:
        return float(compiled(learner.critic, batch, graph_of(batch), target, static)[0])

    zero = jnp.zeros((SIZE, 4))
    assert loss(STATIC, zero + shift) == pytest.approx(loss(STATIC, zero), rel=1e-5)
    per_agent = Static(critic_loss="per_agent")
    assert abs(loss(per_agent, zero + shift) - loss(per_agent, zero)) > 0.1


def test_games_of_all_populations_go_through_one_program_and_are_clipped_by_their_own() -> None:
    slots, traces = 5, []

    @jax.jit
    def step(learner: Learner, batch: Batch, draws: Draws) -> Learner:
        traces.append(batch)
        return learn.critic_step(learner, batch, draws.next_action, STATIC, HYPER)[0]

    for n in (2, 3, 5):
        batch, draws = draw_batch(n, slots, seed=n), draw_numbers(n, slots, STATIC, seed=n)[0]
        after = step(fresh(STATIC), batch._replace(reward=1e4 * batch.reward), draws)
        _, moments, _ = after.optim.critic
        assert float(optax.tree.norm(moments.mu)) == pytest.approx(0.1 * 10.0 * n, rel=1e-2)
    assert len(traces) == 1


def test_gradients_are_clipped_as_a_whole() -> None:
    grads = {"a": jnp.array([3.0, 4.0])}
    clipped, norm = learn.clip(grads, 1.0)
    assert float(norm) == 5.0
    np.testing.assert_allclose(clipped["a"], [0.6, 0.8], rtol=1e-5)
    np.testing.assert_array_equal(learn.clip(grads, 6.0)[0]["a"], grads["a"])


@partial(jax.jit, static_argnames="static")
def relation_grad(learner: Learner, batch: Batch, draws: MetaDraws, static: Static) -> tuple[jax.Array, Any]:
    """The relation loss and its gradient where all skills are alike probable."""
    log_probs = jnp.log(jnp.full(static.skills, 1.0 / static.skills))
    networks, obs = Networks(learner.policy, learner.target_policy), batch.obs
    loss = partial(objectives.relation_loss, draws=draws.relation, static=static)
    (value, _), grads = jax.value_and_grad(loss, has_aux=True)(learner.relation_net, networks, obs, log_probs)
    return value, grads


@pytest.mark.parametrize(("n", "skills"), [(2, 3), (3, 1)])
def test_the_relation_reward_is_zero_where_skills_cannot_matter(n: int, skills: int) -> None:
    static = Static(skills=skills, resamples=2)
    value, grads = relation_grad(fresh(static), draw_batch(n, 3), draw_numbers(n, 3, static)[1], static)
    assert value == 0.0
    assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(grads)) < 1e-7


def test_the_relation_reward_is_zero_where_all_skills_are_equal() -> None:
    static = Static(skills=3, resamples=2)
    learner, rest = fresh(static), (draw_batch(3, 3), draw_numbers(3, 3, static)[1], static)
    alike = jax.tree.map(lambda x: jnp.tile(x[..., :16], 3) if x.shape[-1] == 48 else x, learner.relation_net)
    value, grads = relation_grad(learner._replace(relation_net=alike), *rest)
    assert value == 0.0
    assert float(jnp.abs(grads["other_proj"]["fc1"]["kernel"]).max()) < 1e-7  # what all skills share
    assert abs(float(relation_grad(learner, *rest)[0])) > 1e-4


def test_the_mean_over_skills_counts_repeated_ones_and_the_own_one_if_asked_for() -> None:
    each, counts = jnp.log(jnp.array([0.5, 0.2, 0.9])), jnp.array([2.0, 1.0, 0.0])
    own = each[2]
    assert float(objectives.log_mean(each, own, counts, False)) == pytest.approx(np.log(1.2 / 3), rel=1e-5)
    assert float(objectives.log_mean(each, own, counts, True)) == pytest.approx(np.log(2.1 / 4), rel=1e-5)
    slope = jax.grad(objectives.log_mean)(each, own, counts, False)
    np.testing.assert_allclose(slope, [1.0 / 1.2, 0.2 / 1.2, 0.0], rtol=1e-5)
