"""PSEC: what the paper's equations promise; recorded numbers are in tests/parity, scores in tests/envs."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from algos.core import Dataset, Spec, Transition
from algos.losses import polyak
from algos.psec import base, compose, critics, skill
from algos.psec.diffusion import Noise, Schedule, add_noise, draw_noise, make_schedule, reverse_chain
from algos.psec.nets import Net, init_noise_net, init_skill, merge, noise_net, stack
from algos.runner import init_population, make_chunk
from envs.core import UsageError

SPEC = Spec(obs_dim=3, action_dim=2)
NET = Net(hidden=16, blocks=1, time_features=4, time_hidden=(8, 8), dropout=0.0)
SCHEDULE = make_schedule("vp", 5)
BATCH = 12
SKILL = skill.Static(net=NET, max_rank=4, critic_hidden=(8, 8), batch_size=BATCH)
HYPER = skill.Hyper(rank=4, lr=1e-3)
predict = jax.jit(noise_net, static_argnums=0, static_argnames="adapter")
fresh_base = jax.jit(init_noise_net, static_argnums=(1, 2, 3))
fresh_skill = jax.jit(init_skill, static_argnums=2)


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.fixture(scope="module")
def frozen() -> dict:
    return fresh_base(jax.random.key(0), NET, SPEC.obs_dim, SPEC.action_dim)


@pytest.fixture(scope="module")
def skills(frozen: dict) -> dict:
    """Two skills that do something: B is not zero."""
    fresh = [fresh_skill(jax.random.key(i), frozen, 4, 4) for i in (1, 2)]
    filled = [jax.tree.map(lambda x, i=i: x + 0.1 * normal(i, *x.shape), one) for i, one in enumerate(fresh)]
    return stack(filled)


@pytest.fixture(scope="module")
def inputs() -> tuple[jax.Array, jax.Array, jax.Array]:
    return normal(3, BATCH, 2), normal(4, BATCH, 3), jnp.arange(BATCH) % 5


@pytest.fixture(scope="module")
def batch() -> Transition:
    ends = (jnp.arange(BATCH) % 4 == 0).astype(jnp.float32)
    cost = (jnp.arange(BATCH) % 3 == 0).astype(jnp.float32)
    action = jnp.tanh(normal(5, BATCH, 2))
    return Transition(normal(4, BATCH, 3), action, normal(6, BATCH), normal(7, BATCH, 3), ends, 0 * ends, cost)


@pytest.fixture(scope="module")
def dataset(batch: Transition) -> Dataset:
    return Dataset(batch, jnp.zeros(3), jnp.ones(3))


@pytest.fixture(scope="module")
def trained(frozen: dict, dataset: Dataset) -> tuple[skill.State, skill.State, dict]:
    """A fresh skill state, the same after one update, and that update's metrics."""
    algo = skill.make(SKILL, SPEC)
    fresh = jax.jit(algo.init)(jax.random.key(1), HYPER, {"base": frozen})
    after, metrics = jax.jit(algo.step)(jax.random.key(2), fresh, dataset, HYPER)
    return fresh, after, metrics


def zeros_like(tree: dict) -> bool:
    return all(bool((leaf == 0).all()) for leaf in jax.tree.leaves(tree))


def equal(one: dict, other: dict) -> bool:
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x == y).all()), one, other)))


# 1. Schedule.


def test_schedule_of_the_paper() -> None:
    np.testing.assert_allclose(SCHEDULE.beta, [0.195875, 0.458818, 0.635781, 0.754878, 0.835031], atol=1e-6)
    np.testing.assert_allclose(SCHEDULE.alpha_bar, [0.804125, 0.435178, 0.158500, 0.038852, 0.006409], atol=1e-6)


@pytest.mark.parametrize("name", ["vp", "linear", "cosine"])
def test_alpha_bar_decreases(name: str) -> None:
    schedule = make_schedule(name, 20)
    assert (np.diff(schedule.alpha_bar) < 0).all()
    assert 0 < schedule.alpha_bar[-1] < schedule.alpha_bar[0] < 1
    assert (schedule.beta <= 0.9990001).all()


def test_linear_and_cosine_follow_their_formulas() -> None:
    np.testing.assert_allclose(make_schedule("linear", 3).beta, [1e-4, 0.01005, 0.02], rtol=1e-6)
    f = np.cos((np.arange(5) / 4 + 0.008) / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(make_schedule("cosine", 4).beta[:3], 1 - f[1:4] / f[:3], rtol=1e-5)
    assert make_schedule("cosine", 4).beta[3] == np.float32(0.999)


def test_the_true_noise_leads_back_to_the_action() -> None:
    action, noise = 0.9 * jnp.tanh(normal(0, 6, 2)), normal(1, 6, 2)
    last = Schedule(*(constant[:1] for constant in SCHEDULE))
    x = add_noise(SCHEDULE, action, jnp.zeros(6, int), noise)
    back, _ = reverse_chain(last, lambda x, t: noise, Noise(x, jnp.zeros((1, 6, 2))))
    np.testing.assert_allclose(back, action, atol=1e-6)


@pytest.mark.parametrize(("name", "steps", "culprit"), [("square", 5, "schedule=square"), ("vp", 0, "diffusion_steps")])
def test_schedules_that_do_not_exist(name: str, steps: int, culprit: str) -> None:
    with pytest.raises(UsageError, match=culprit):
        make_schedule(name, steps)


# 2. Zero-skill identity.


def test_a_fresh_skill_changes_nothing(frozen: dict, inputs: tuple) -> None:
    plain = predict(NET, frozen, *inputs)
    fresh = stack([fresh_skill(jax.random.key(1), frozen, 4, 4)])
    assert not zeros_like(jax.tree.map(lambda x: x, fresh))
    np.testing.assert_array_equal(predict(NET, frozen, *inputs, fresh, jnp.full((BATCH, 1), 16.0)), plain)


def test_alpha_zero_is_the_base(frozen: dict, skills: dict, inputs: tuple) -> None:
    plain = predict(NET, frozen, *inputs)
    np.testing.assert_array_equal(predict(NET, frozen, *inputs, skills, jnp.zeros((BATCH, 2))), plain)
    assert not np.allclose(predict(NET, frozen, *inputs, skills, jnp.ones((BATCH, 2))), plain)


def test_the_original_activation_mismatch_is_no_identity(frozen: dict, inputs: tuple) -> None:
    fresh = stack([fresh_skill(jax.random.key(1), frozen, 4, 4)])
    other = skill.adapted_net(NET, "swish")
    seen = predict(other, frozen, *inputs, fresh, jnp.full((BATCH, 1), 16.0))
    assert float(jnp.abs(seen - predict(NET, frozen, *inputs)).max()) > 1e-3
    assert skill.adapted_net(NET, "same") == NET


# 3. and 4. The first step, and what gradients reach.


def test_first_step_moves_b_alone(frozen: dict, trained: tuple) -> None:
    fresh, after, _ = trained
    moved = jax.tree.map(lambda x, y: float(jnp.abs(x - y).max()), fresh.factors, after.factors)
    for path, distance in jax.tree_util.tree_leaves_with_path(moved):
        if path[-1].key == "A":
            assert distance < 1e-6, path  # weight decay alone: 1e-7 relative
        else:
            assert distance > 1e-5, path


def test_gradient_of_a_is_exactly_zero_at_first(frozen: dict, batch: Transition) -> None:
    one = fresh_skill(jax.random.key(1), frozen, 4, 4)
    draws = base.draw(jax.random.key(0), NET, batch.action.shape, dropout=False)
    gradient = jax.jit(jax.grad(skill.skill_loss), static_argnums=1)
    grads = gradient(one, SKILL, SCHEDULE, frozen, batch, draws, jnp.ones(BATCH), jnp.float32(16.0))
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        assert bool((leaf == 0).all()) == (path[-1].key == "A"), path


def test_no_gradient_reaches_base_or_critics(trained: tuple, dataset: Dataset) -> None:
    fresh, after, _ = trained
    assert equal(fresh.base, after.base)

    def loss(critic_params: dict) -> jax.Array:
        held = {side: critic._replace(**critic_params[side]) for side, critic in fresh.critics.items()}
        return skill.weights(held, dataset.transitions, SKILL.kinds, HYPER).sum()

    params = {side: {"q_target": c.q_target, "v": c.v} for side, c in fresh.critics.items()}
    assert zeros_like(jax.grad(loss)(params))


def test_a_skill_of_imitation_has_no_critics(frozen: dict, dataset: Dataset) -> None:
    static = dataclasses.replace(SKILL, kinds=("imitation",))
    algo = skill.make(static, SPEC)
    state = jax.jit(algo.init)(jax.random.key(1), HYPER, {"base": frozen})
    assert state.critics == {}
    assert jax.eval_shape(algo.step, jax.random.key(0), state, dataset, HYPER)[0].scale.shape == (1,)


@pytest.fixture(scope="module", params=compose.LEVELS)
def composing(request: pytest.FixtureRequest, trained: tuple, dataset: Dataset) -> tuple:
    """The static, a fresh state of a composition, the same after one update, its algorithm."""
    static = compose.Static(net=NET, level=request.param, hidden=(8,), batch_size=BATCH)
    algo = compose.make(static, SPEC)
    start = {name: getattr(trained[1], name) for name in compose.START}
    fresh = jax.jit(algo.init)(jax.random.key(3), compose.Hyper(), start)
    after, _ = jax.jit(algo.step)(jax.random.key(4), fresh, dataset, compose.Hyper(lr=1e-2))
    return static, fresh, after, algo


def test_composition_learns_the_context_alone(composing: tuple) -> None:
    _, fresh, after, _ = composing
    assert not equal(fresh.context, after.context)
    for name in ("base", "lora", "scale"):
        assert equal(getattr(fresh, name), getattr(after, name))


# 5. and 6. Merging, permuting, swapping.


def test_a_constant_alpha_is_a_merged_network(frozen: dict, skills: dict, inputs: tuple) -> None:
    alpha = jnp.array([1.5, -0.7])
    mixed = predict(NET, frozen, *inputs, skills, jnp.broadcast_to(alpha, (BATCH, 2)))
    np.testing.assert_allclose(mixed, predict(NET, merge(frozen, skills, alpha), *inputs), rtol=1e-4, atol=1e-5)


def test_alpha_of_a_sample_reaches_that_sample_alone(frozen: dict, skills: dict, inputs: tuple) -> None:
    alpha, order = normal(8, BATCH, 2), jnp.arange(BATCH)[::-1]
    mixed = predict(NET, frozen, *inputs, skills, alpha)
    permuted = predict(NET, frozen, *(x[order] for x in inputs), skills, alpha[order])
    np.testing.assert_allclose(permuted, mixed[order], rtol=1e-5, atol=1e-6)
    other = predict(NET, frozen, *inputs, skills, alpha.at[0].add(1.0))
    np.testing.assert_allclose(other[1:], mixed[1:], rtol=1e-6, atol=1e-7)
    assert not np.allclose(other[0], mixed[0])


def test_swapping_skills_with_their_alphas(frozen: dict, skills: dict, inputs: tuple) -> None:
    alpha = normal(8, BATCH, 2)
    swapped = jax.tree.map(lambda x: x[::-1], skills)
    np.testing.assert_allclose(
        predict(NET, frozen, *inputs, swapped, alpha[:, ::-1]),
        predict(NET, frozen, *inputs, skills, alpha),
        rtol=1e-5, atol=1e-6,
    )  # fmt: skip


def test_the_noise_is_affine_in_alpha_of_the_last_layer(frozen: dict, skills: dict, inputs: tuple) -> None:
    last = jax.tree.map(jnp.zeros_like, skills)
    last["trunk"]["out"] = skills["trunk"]["out"]
    at = [predict(NET, frozen, *inputs, last, jnp.full((BATCH, 2), a)) for a in (0.0, 1.0, 3.0)]
    np.testing.assert_allclose(at[2] - at[0], 3.0 * (at[1] - at[0]), rtol=1e-4, atol=1e-5)


def test_skills_of_other_ranks_side_by_side(frozen: dict, inputs: tuple) -> None:
    small, large = (
        jax.tree.map(lambda x: x + 0.1, fresh_skill(jax.random.key(i), frozen, rank, rank))
        for i, rank in ((1, 2), (2, 4))
    )
    both = stack([small, large])
    alpha = normal(9, BATCH, 2)
    only = predict(NET, frozen, *inputs, both, alpha.at[:, 1].set(0.0))
    np.testing.assert_allclose(
        only, predict(NET, frozen, *inputs, stack([small]), alpha[:, :1]), rtol=1e-5, atol=1e-6
    )  # fmt: skip


# Ranks of a population are padded.


def test_a_padded_rank_stays_padded_and_trains_like_its_own_size(frozen: dict, dataset: Dataset) -> None:
    padded_algo, exact_algo = skill.make(SKILL, SPEC), skill.make(dataclasses.replace(SKILL, max_rank=2), SPEC)
    hyper = dataclasses.replace(HYPER, rank=2)
    padded = jax.jit(padded_algo.init)(jax.random.key(1), hyper, {"base": frozen})
    cut = jax.tree.map(_to_rank_two, padded.factors, is_leaf=lambda x: "A" in x)
    exact = jax.jit(exact_algo.init)(jax.random.key(1), hyper, {"base": frozen})
    exact = exact._replace(factors=cut, lora=cut, critics=padded.critics)
    for seed in range(3):
        padded, _ = jax.jit(padded_algo.step)(jax.random.key(seed), padded, dataset, hyper)
        exact, _ = jax.jit(exact_algo.step)(jax.random.key(seed), exact, dataset, hyper)
    for layer in jax.tree.leaves(padded.factors, is_leaf=lambda x: "A" in x):
        assert not layer["A"][..., 2:].any()
        assert not layer["B"][..., 2:, :].any()
    cut = jax.tree.map(_to_rank_two, padded.factors, is_leaf=lambda x: "A" in x)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-6), cut, exact.factors)


def _to_rank_two(layer: dict) -> dict:
    return {"A": layer["A"][..., :2], "B": layer["B"][..., :2, :]}


# 7. and 8. Critics, weights, averages.


def test_critic_targets_at_their_limits() -> None:
    cost, next_v = jnp.array([25.0, -1.0, -1.0]), jnp.array([3.0, 30.0, -5.0])
    ended, going = jnp.zeros(3), jnp.ones(3)
    np.testing.assert_array_equal(critics.cost_target(cost, ended, next_v, 0.99, "hj"), cost)
    np.testing.assert_array_equal(critics.cost_target(cost, ended, next_v, 0.99, "qc"), cost)
    ahead = critics.cost_target(cost, going, next_v, 0.99, "hj")
    assert (ahead >= cost - 1e-5).all()
    np.testing.assert_allclose(ahead, [25.0, 0.01 * -1.0 + 0.99 * 30.0, -1.0], rtol=1e-6)
    np.testing.assert_allclose(critics.cost_target(cost, going, next_v, 0.5, "qc"), [26.5, 14.0, -3.5])
    np.testing.assert_allclose(critics.reward_target(cost, going, next_v, 0.5), [26.5, 14.0, -3.5])


@pytest.mark.parametrize("side", ["reward", "cost"])
def test_an_expectile_of_one_half_is_half_the_squared_error(trained: tuple, batch: Transition, side: str) -> None:
    critic = trained[0].critics[side]
    q = critics.pessimistic(critic, batch, side)
    loss, _ = critics.value_loss(critic.v, batch.obs, q, 0.5, side)
    np.testing.assert_allclose(loss, 0.5 * jnp.square(q - critics.value(critic.v, batch.obs)).mean(), rtol=1e-5)


def test_the_cost_expectile_is_reversed(trained: tuple, batch: Transition) -> None:
    critic = trained[0].critics["cost"]
    above = critics.value(critic.v, batch.obs) + 1.0
    below = above - 2.0
    high, low = (critics.value_loss(critic.v, batch.obs, q, 0.9, "cost")[0] for q in (above, below))
    np.testing.assert_allclose([high, low], [0.1, 0.9], rtol=1e-5)


def test_weights_at_their_limits() -> None:
    hyper = skill.Hyper(reward_temperature=2.0)
    advantage = jnp.array([np.log(100.0) / 2.0 + 1e-3, 40.0, 0.0])
    np.testing.assert_allclose(skill.reward_weight(advantage, hyper), [100.0, 100.0, 1.0])
    qc, vc = jnp.array([1.0, 2.0, 0.0, -9.0]), jnp.array([1.0, 1.0, 1.0, 1.0])
    np.testing.assert_allclose(skill.cost_weight(qc, vc, hyper), [0.0, 0.0, np.e, 100.0], rtol=1e-6)
    vc = jnp.array([2.0, -1.0, -1.0, -1.0])
    feasible = skill.feasible_weight(jnp.zeros(4), jnp.array([1.0, 1.0, -1.0, -9.0]), vc, hyper)
    np.testing.assert_allclose(feasible, [np.e, 0.0, 1.0, 1.0], rtol=1e-6)


def test_weights_use_the_critics_of_before_the_update(trained: tuple, dataset: Dataset) -> None:
    fresh, after, metrics = trained
    algo = skill.make(SKILL, SPEC)
    none_learnt = fresh._replace(critics=after.critics)
    _, other = jax.jit(algo.step)(jax.random.key(2), none_learnt, dataset, HYPER)
    batch_key, _ = jax.random.split(jax.random.key(2))
    rows = skill.relabel(base.clip_action(skill.sample_dataset(batch_key, dataset, BATCH)), HYPER)
    expected = skill.weights(fresh.critics, rows, SKILL.kinds, HYPER).mean(-1)
    np.testing.assert_allclose([metrics["reward_weight"], metrics["cost_weight"]], expected, rtol=1e-5)
    assert not np.isclose(other["reward_weight"], metrics["reward_weight"], rtol=1e-7)


def test_targets_use_the_value_after_its_own_step(trained: tuple, batch: Transition) -> None:
    critic, mask = trained[0].critics["reward"], 1.0 - batch.terminated
    after, _, target = critics.learn_critic(critic, batch, mask, HYPER, "reward")
    with_new = critics.reward_target(batch.reward, mask, critics.value(after.v, batch.next_obs), HYPER.discount)
    with_old = critics.reward_target(batch.reward, mask, critics.value(critic.v, batch.next_obs), HYPER.discount)
    np.testing.assert_allclose(target, with_new, rtol=1e-6)
    assert not np.allclose(target, with_old, rtol=1e-6)


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_moving_averages_at_their_limits(frozen: dict, dataset: Dataset, rate: float) -> None:
    algo = base.make(base.Static(net=NET, batch_size=BATCH), SPEC)
    hyper = base.Hyper(ema_rate=rate)
    fresh = jax.jit(algo.init)(jax.random.key(0), hyper)
    after, _ = jax.jit(algo.step)(jax.random.key(1), fresh, dataset, hyper)
    assert equal(after.base, after.params if rate else fresh.base)
    assert equal(polyak(frozen, frozen, rate), frozen)


def test_timeouts_end_an_episode_unless_asked_otherwise(frozen: dict, batch: Transition) -> None:
    out_of_time = batch._replace(terminated=0 * batch.terminated, truncated=jnp.ones(BATCH))
    over = batch._replace(terminated=jnp.ones(BATCH))
    draws = jax.vmap(lambda k: base.draw(k, NET, batch.action.shape, False))(jax.random.split(jax.random.key(0), 2))
    updated = []
    for bootstrap in (False, True):
        static = dataclasses.replace(SKILL, bootstrap_on_timeout=bootstrap)
        state = jax.jit(skill.make(static, SPEC).init)(jax.random.key(1), HYPER, {"base": frozen})
        learn = jax.jit(partial(skill.learn, static, SCHEDULE))
        updated.append([learn(state, rows, draws, HYPER)[0].critics for rows in (out_of_time, over)])
    assert equal(updated[0][0], updated[0][1])  # a time limit is like a terminal state
    assert not equal(updated[1][0]["reward"].q, updated[1][1]["reward"].q)


# 9. The sampler.


def test_the_last_step_adds_no_noise_and_all_stay_in_bounds(frozen: dict, inputs: tuple) -> None:
    obs = inputs[1]
    noise = draw_noise(jax.random.key(0), SCHEDULE, (BATCH, 2))
    noise_of = lambda x, t: predict(NET, frozen, x, obs, jnp.full(BATCH, t))  # noqa: E731
    actions, (_, after) = reverse_chain(SCHEDULE, noise_of, noise)
    other = noise._replace(steps=noise.steps.at[-1].set(99.0))
    np.testing.assert_array_equal(reverse_chain(SCHEDULE, noise_of, other)[0], actions)
    assert float(jnp.abs(after).max()) <= 1.0
    changed = noise._replace(steps=noise.steps.at[0].add(1.0))
    assert not np.array_equal(reverse_chain(SCHEDULE, noise_of, changed)[0], actions)


def test_one_candidate_is_chosen_either_way(trained: tuple, inputs: tuple) -> None:
    state, obs = trained[1], inputs[1]
    acts = [
        skill.make(dataclasses.replace(SKILL, select=select), SPEC).act(jax.random.key(0), state, obs, HYPER)
        for select in ("first", "cost")
    ]
    np.testing.assert_array_equal(acts[0], acts[1])


def test_the_least_unsafe_candidate_is_chosen(trained: tuple, inputs: tuple) -> None:
    state, obs = trained[1], inputs[1]
    candidates = jnp.tanh(normal(10, 5, BATCH, 2))
    chosen = skill.choose(candidates, obs, state.critics, "cost")
    for i in range(BATCH):
        repeated = jnp.broadcast_to(obs[i], (5, 3))
        cost = critics.q_values(state.critics["cost"].q_target, repeated, candidates[:, i]).max(0)
        np.testing.assert_array_equal(chosen[i], candidates[int(cost.argmin()), i])


@pytest.fixture(scope="module")
def twins(trained: tuple) -> compose.State:
    """A state with the same skill twice."""
    state = trained[1]
    factors = jax.tree.map(lambda x: 0.3 * normal(11, *x.shape[1:]), state.lora)
    both = jax.tree.map(lambda x: jnp.stack([x, x]), factors)
    return compose.State((), state.base, both, jnp.full(2, 0.5), {}, ())


def test_noise_level_with_one_weight_is_that_skill(twins: compose.State, inputs: tuple) -> None:
    obs, noise = inputs[1], draw_noise(jax.random.key(0), SCHEDULE, (BATCH, 2))
    static = compose.Static(net=NET, level="noise")
    weight = jnp.broadcast_to(jnp.array([1.0, 0.0]), (BATCH, 2))
    mixed = compose.composed_actions(static, SCHEDULE, twins, weight, obs, noise, 1.0)
    alone = compose.skill_actions(static, SCHEDULE, twins, obs, noise, 1.0)[0]
    np.testing.assert_allclose(mixed, alone, atol=1e-5)


def test_action_level_of_equal_skills_is_that_skill(twins: compose.State, inputs: tuple) -> None:
    obs, noise = inputs[1], draw_noise(jax.random.key(0), SCHEDULE, (BATCH, 2))
    static = compose.Static(net=NET, level="action")
    half = jnp.full((BATCH, 2), 0.5)
    mixed = compose.composed_actions(static, SCHEDULE, twins, half, obs, noise, 1.0)
    np.testing.assert_allclose(mixed, compose.skill_actions(static, SCHEDULE, twins, obs, noise, 1.0)[0], atol=1e-6)


# What the original code does.


def test_the_original_pull_is_lowest_at_the_cost_skill_alone(composing: tuple, batch: Transition) -> None:
    static, fresh, _, _ = composing
    if static.level != "parameter":
        pytest.skip("a pull of the parameter level")
    constant = dataclasses.replace(static, context="constant")
    draws = base.draw(jax.random.key(0), NET, batch.action.shape, dropout=False)
    pulls = {
        pair: float(
            compose.parameter_loss(
                (), constant, SCHEDULE, fresh, batch, draws, jnp.ones(BATCH),
                compose.Hyper(constant=list(pair), mean_pull=1.0, last_pull=1.0),
            )[1]["pull"]
        )
        for pair in ((0.0, 16.0), (16.0, 0.0), (16.0, 16.0), (0.0, 0.0))
    }  # fmt: skip
    assert pulls[(0.0, 16.0)] == 0.0
    assert pulls[(16.0, 0.0)] == 256.0
    assert pulls[(16.0, 16.0)] == 64.0
    assert pulls[(0.0, 0.0)] == 64.0 + 256.0


def test_frozen_draws_do_not_follow_the_key(composing: tuple, dataset: Dataset) -> None:
    static, fresh, _, _ = composing
    if static.level != "parameter":
        pytest.skip("the same for all levels")
    one_row = jax.tree.map(lambda x: x[:1], dataset.transitions)  # so that batches are all alike
    losses = {}
    for frozen_draws in (True, False):
        algo = compose.make(dataclasses.replace(static, frozen_draws=frozen_draws), SPEC)
        step = jax.jit(algo.step)
        data = dataset._replace(transitions=one_row)
        losses[frozen_draws] = [float(step(jax.random.key(i), fresh, data, compose.Hyper())[1]["loss"]) for i in (0, 1)]
    assert losses[True][0] == losses[True][1]
    assert losses[False][0] != losses[False][1]


def test_same_init_gives_all_skills_the_same_matrices(frozen: dict) -> None:
    for same in (False, True):
        algo = skill.make(dataclasses.replace(SKILL, same_init=same), SPEC)
        factors = jax.jit(algo.init)(jax.random.key(1), HYPER, {"base": frozen}).factors
        assert bool((factors["trunk"]["in"]["A"][0] == factors["trunk"]["in"]["A"][1]).all()) == same


def test_an_mlp_adapter_has_a_relu_between_its_factors(frozen: dict, skills: dict, inputs: tuple) -> None:
    alpha = jnp.ones((BATCH, 2))
    lora, mlp = (predict(NET, frozen, *inputs, skills, alpha, adapter=name) for name in ("lora", "mlp"))
    assert not np.allclose(lora, mlp)
    nothing = jax.tree.map(jnp.zeros_like, skills)
    plain = predict(NET, frozen, *inputs)
    np.testing.assert_allclose(predict(NET, frozen, *inputs, nothing, alpha, adapter="mlp"), plain, atol=1e-6)


@pytest.mark.parametrize("level", compose.LEVELS)
def test_the_base_can_be_mixed_in(trained: tuple, inputs: tuple, level: str) -> None:
    static = compose.Static(net=NET, level=level, context="constant", with_base=True)
    hyper = compose.Hyper(constant=[1.0, 0.0, 0.0])
    algo = compose.make(static, SPEC)
    state = algo.init(jax.random.key(0), hyper, {name: getattr(trained[1], name) for name in compose.START})
    plain = base.make(base.Static(net=NET), SPEC)
    policy = base.State(trained[1].base, trained[1].base, ())
    expected = plain.act(jax.random.key(5), policy, inputs[1], base.Hyper())
    np.testing.assert_allclose(algo.act(jax.random.key(5), state, inputs[1], hyper), expected, atol=1e-6)


def test_size_of_the_paper() -> None:
    paper = fresh_base(jax.random.key(0), Net(), 17, 6)
    count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))  # noqa: E731
    assert count(paper) == 1_643_558
    assert count(fresh_skill(jax.random.key(0), paper, 8, 8)) == 70_376
    assert set(fresh_skill(jax.random.key(0), paper, 8, 8)["trunk"]) == {"in", "out", "block0", "block1", "block2"}


@pytest.mark.parametrize(
    ("make", "culprit"),
    [
        (lambda: Net(activation="gelu"), "activation=gelu"),
        (lambda: Net(dropout=1.0), "dropout=1.0"),
        (lambda: skill.Static(kinds=("speed",)), "kinds=speed"),
        (lambda: skill.Static(kinds=("cost",), acting=1), "acting=1"),
        (lambda: skill.Static(kinds=("imitation",), select="cost"), "select=cost"),
        (lambda: skill.Static(cost_critic="mean"), "cost_critic=mean"),
        (lambda: compose.Static(level="layer"), "level=layer"),
        (lambda: compose.Static(level="noise", weighted=True), "weighted=true"),
    ],
)
def test_choices_that_do_not_exist(make, culprit: str) -> None:
    with pytest.raises(UsageError, match=culprit):
        make()


def test_costs_are_needed_for_a_cost_skill(dataset: Dataset) -> None:
    without = dataset._replace(transitions=dataset.transitions._replace(cost=None))
    algo = type("Algo", (), {"static": SKILL, "hyper": HYPER})
    with pytest.raises(UsageError, match="needs data with costs"):
        skill.check_data(algo, without)
    skill.check_data(algo, dataset)


@pytest.mark.parametrize(("how", "tolerance"), [("map", 0.0), ("vmap", 1e-5)])
def test_members_of_other_ranks_scales_and_weights_train_as_alone(
    frozen: dict, dataset: Dataset, how: str, tolerance: float
) -> None:
    """Every hyperparameter may differ between members: among them the rank, through padding."""
    algo = skill.make(SKILL, SPEC)
    hypers = [
        skill.Hyper(rank=1, lr=1e-3, scale=8.0, expectile=0.6, cost_temperature=0.5),
        skill.Hyper(rank=4, lr=3e-3, scale=16.0, cost_expectile=0.8, reward_temperature=2.0, ema_rate=0.1),
    ]

    def trained_by(chosen: list[skill.Hyper], seeds: list[int]) -> skill.State:
        stacked = jax.tree.map(lambda *x: jnp.array(x, jnp.float32), *chosen)
        start = jax.tree.map(lambda x: jnp.stack([x] * len(seeds)), ({"base": frozen},))
        population = init_population(algo, jnp.array(seeds), stacked, how, start)
        return make_chunk(algo, 3, how)(population, dataset, jnp.int32(0))[0].state

    together = trained_by(hypers, [0, 1])
    alone = [trained_by([hyper], [seed]) for seed, hyper in enumerate(hypers)]
    expected = jax.tree.map(lambda *x: jnp.concatenate(x), *alone)
    check = partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance)
    jax.tree.map(check, together.lora, expected.lora)
    jax.tree.map(check, together.critics, expected.critics)
    assert not together.lora["trunk"]["in"]["A"][0, :, :, 1:].any()
