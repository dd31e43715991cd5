"""BARFI and its baselines on a corridor of seven cells: the right end pays, the auxiliary reward calls to the left."""

import dataclasses
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from algos.barfi import actor_critic, learn, objectives, reinforce, replay, rewards, rollout, train
from algos.barfi.common import reward_metrics, running_mean
from algos.barfi.policy import make_actor
from algos.barfi.settings import timetable
from algos.core import UsageError
from algos.runner import init_population, make_chunk
from envs import pointmix
from envs.core import Env, Spec, TimeStep
from tests.algos.toy import assert_close, assert_equal

pytestmark = pytest.mark.usefixtures("quick_compilation")

CELLS, HORIZON = 7, 6


def reset(key, params):
    cell = jax.random.randint(key, (), 1, 6)
    return cell, cell[None].astype(float)


def walk(key, cell, action, params):
    cell = cell + jnp.where(action.argmax() == 1, 1, -1)
    over = (cell <= 0) | (cell >= CELLS - 1)
    reward = jnp.where(cell >= CELLS - 1, 1.0, -0.1)
    left = jnp.where(cell < 3, 1.0, 0.1)
    # Behind the end of an episode nothing finite comes back: none of it may be used.
    spoilt = jnp.where((cell < 0) | (cell >= CELLS), jnp.nan, 0.0)
    measures = {"auxiliary": left + spoilt, "length": jnp.ones(())}
    return cell, TimeStep(cell[None].astype(float) + spoilt, reward + spoilt, over, jnp.zeros((), bool), measures)


def one_hot(obs):
    return jax.nn.one_hot(obs[0].astype(int), CELLS)


ENV = Env("corridor", Spec(1, 2), HORIZON, {}, reset, walk, one_hot)
STATIC = train.Static(first_mul=1, inner_mul=2, hess_mul=3, buffer_size=7, loops=2, lanczos=2)
HYPER = train.Hyper(actor_lr=0.05, gamma_l2=0.25)


def population(module, static, hyper, seeds=(0,), env=ENV, steps=4, how="map"):
    algo = module.make(static, env.spec, env)
    members = jax.tree.map(lambda x: jnp.full(len(seeds), x, jnp.float32), hyper)
    start = init_population(algo, jnp.array(seeds), members, how)
    return make_chunk(algo, steps, how)(start, env.params, jnp.int32(0))


@pytest.fixture(scope="module")
def trained():
    """Two members after four blocks, two of which had an outer step, and the means of their metrics."""
    return population(train, STATIC, HYPER, (3, 4))


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)  # noqa: E731
    mask = jnp.arange(6) < jnp.array([5, 2, 3, 5])[:, None]
    action = jnp.asarray(rng.integers(0, 2, (4, 6)), jnp.int32)
    return objectives.Batch(draw(4, 6, CELLS), action, jnp.ones((4, 6)), draw(4, 6), draw(4, 6), mask.astype(float))


def test_episodes_are_padded_behind_their_end():
    def go_right(key, obs):
        return jnp.int32(1), jnp.array([-1.0, 1.0]), jnp.float32(0.5)

    play = lambda chunk: rollout.rollout(jax.random.key(0), jax.random.key(1), ENV, {}, go_right, chunk)  # noqa: E731
    episode = play(2)
    steps = int(episode.mask.sum())
    start = int(reset(jax.random.key(0), {})[0])
    assert steps == CELLS - 1 - start < HORIZON
    np.testing.assert_array_equal(episode.obs[:steps, 0], np.arange(start, CELLS - 1))
    np.testing.assert_allclose(episode.reward[:steps], [*[-0.1] * (steps - 1), 1.0], rtol=1e-6)
    assert episode.mask.shape == (HORIZON + 1,)
    assert all(not x[steps:].any() for x in jax.tree.leaves(episode))
    for chunk in (4, 10):  # one that leaves a rest, one beyond the horizon
        assert_equal(play(chunk), episode)


def block(first, size=3):
    """Episodes that are told apart by their observation."""
    number = first + jnp.arange(size, dtype=jnp.float32)
    scalar = jnp.broadcast_to(number[:, None], (size, 4))
    return rollout.Trajectory(scalar[..., None], scalar, scalar, scalar, scalar, jnp.ones((size, 4)))


def test_the_newest_episodes_are_apart_from_the_older_ones():
    ring = replay.empty_ring(7, block(0))
    for first in (1, 4, 7):  # nine episodes: the first two are overwritten
        ring = replay.push(ring, block(first))
    newest = replay.newest(ring, 4)
    np.testing.assert_array_equal(newest.trajectories.reward[:, 0], [6, 7, 8, 9])
    drawn = np.asarray(replay.draw(jax.random.key(0), ring, 200).trajectories.reward[:7, 0])
    assert set(drawn) <= set(range(3, 10))
    everything = replay.draw_older(jax.random.key(1), ring, 1, 15, 3)
    kept = everything.share > 0.0
    assert int(kept.sum()) == 4  # of fifteen draws only as many count as there are older ones
    assert set(np.asarray(everything.trajectories.reward[kept, 0])) <= {3, 4, 5, 6}
    assert not everything.trajectories.mask[~kept].any()
    assert float(everything.share.sum()) == pytest.approx(1.0)


def test_draws_reach_every_episode_and_no_other():
    ring = replay.push(replay.push(replay.empty_ring(7, block(0)), block(1)), block(4))
    seen = Counter(
        float(x) for seed in range(20) for x in replay.draw(jax.random.key(seed), ring, 6).trajectories.reward[:, 0]
    )
    assert set(seen) == {1, 2, 3, 4, 5, 6}


def plans(static, last):
    return {
        c: tuple(int(x) for x in timetable(static, jnp.int32(c))) for c in range(static.delta, last + 1, static.delta)
    }


def test_timetable_of_gridworld():
    plan = plans(train.Static(), 174)
    assert all(plan[c] == (0, 1, 0) for c in range(3, 156, 3))
    assert plan[156] == (0, 1, 165)
    assert all(plan[c] == (1, 0, 15) for c in range(159, 175, 3))


def test_timetables_of_the_others():
    plan = plans(train.Static(schedule="mountaincar", first_mul=50), 66)
    assert plan[54] == (0, 1, 0)
    assert plan[57] == (0, 1, 0)
    assert plan[60] == (1, 0, 15)
    plan = plans(train.Static(schedule="halfcheetah", first_mul=30), 45)
    assert all(plan[c] == (0, 0, 0) for c in range(3, 36, 3))
    assert plan[36] == (0, 0, 45)
    assert plan[39] == plan[42] == (1, 0, 15)
    plan = plans(train.Static(hypergrad="unrolled"), 12)
    assert plan == {3: (0, 0, 0), 6: (1, 0, 0), 9: (1, 0, 0), 12: (1, 0, 0)}
    assert plans(train.Static(hypergrad="none"), 159)[159] == (0, 0, 15)


def objective_parts(batch, theta, omega):
    """Surrogate, entropy, outer gradient and mixed derivative of a batch."""
    form = objectives.Form(make_actor(ENV).policy)
    inner = lambda t, w: objectives.inner_objective(t, w, batch, form)  # noqa: E731
    outer_gradient = jax.grad(objectives.outer_objective)(theta, batch, form)
    mixed = jax.grad(lambda w: jax.jvp(lambda t: inner(t, w), (theta,), (theta,))[1])(omega)
    return (inner(theta, omega), outer_gradient, mixed), objectives.mean_entropy(theta, batch, form.policy)


def test_padding_has_no_influence_but_its_length(batch):
    theta = make_actor(ENV).init(jax.random.key(0))["head"]
    omega = rewards.Omega(rewards.init_phi(jax.random.key(1), CELLS), jnp.float32(1.0))
    parts = jax.jit(objective_parts)
    scaled, entropy = parts(batch, theta, omega)

    spoil = lambda x: x + 7.0 * (1.0 - batch.mask.reshape(4, 6, *[1] * (x.ndim - 2)))  # noqa: E731
    others = {name: spoil(getattr(batch, name)) for name in ("features", "primary", "auxiliary")}
    spoilt = batch._replace(**others, action=jnp.where(batch.mask > 0.0, batch.action, 0))
    assert_close(parts(spoilt, theta, omega), (scaled, entropy))

    longer = jax.tree.map(lambda x: jnp.concatenate([x, jnp.zeros_like(x[:, :3])], 1), batch)
    shrunk, same_entropy = parts(longer, theta, omega)
    assert_close(shrunk, jax.tree.map(lambda x: x * 6 / 9, scaled))
    np.testing.assert_allclose(same_entropy, entropy, rtol=1e-5)


def test_shaping_telescopes(batch):
    """With a potential of 0 behind the end: G of r + γΦ' - Φ is G of r less Φ, on steps of the episode."""
    shaped = rewards.reward_to_go(objectives.potential_reward(batch, 0.9, 2.0), batch.mask, 0.9)
    expected = objectives.potential_returns(batch, 0.9, 2.0)
    assert float(jnp.abs(expected).max()) > 1.0
    np.testing.assert_allclose(jnp.where(batch.mask > 0.0, shaped, 0.0), expected, rtol=1e-5, atol=1e-5)


def test_without_outer_steps_it_is_replayed_reinforce_on_the_true_reward():
    """φ = (0, 1, 0), ψ frozen: equal parameters bit for bit."""
    static = train.Static(
        schedule="halfcheetah", first_mul=0, inner_mul=2, buffer_size=7, hypergrad="none", phi_start="primary"
    )
    psi = float(np.log(0.9 / 0.1))
    ours, _ = population(train, static, train.Hyper(actor_lr=0.05, psi0=psi))
    gamma = float(jax.nn.sigmoid(jnp.float32(psi)))
    plain = reinforce.Static(reward="primary", data="replay", inner_mul=2, buffer_size=7)
    theirs, _ = population(reinforce, plain, reinforce.Hyper(actor_lr=0.05, discount=gamma))
    start = train.make(static, ENV.spec, ENV).init(jax.random.split(jax.random.key(0))[0], HYPER)
    moved = ours.state.learner.policy["head"]["kernel"][0] - start.learner.policy["head"]["kernel"]
    assert float(jnp.abs(moved).max()) > 0.1
    assert_equal(ours.state.ring, theirs.state.ring)
    assert_equal(ours.state.learner.policy, theirs.state.learner.policy)


def test_training_follows_the_timetable(trained):
    population_, metrics = trained
    np.testing.assert_allclose(metrics["outer_steps"], 2 / 4)
    assert population_.alive.all()
    assert int(population_.state.ring.episodes[0]) == 12
    assert (metrics["train_length"] >= 1.0).all()
    assert (metrics["train_length"] <= HORIZON).all()
    assert float(metrics["hypergradient"].min()) > 0.0
    assert not metrics["diverging"].any()
    # Two steps of RMSProp, the first of ten times the rate.
    assert (jax.nn.sigmoid(4.6) - metrics["gamma"] > 1e-5).all()


def test_mean_multipliers_are_of_the_steps_played(trained):
    state = jax.tree.map(lambda x: x[0], trained[0].state)
    block = replay.newest(state.ring, 3).trajectories
    found = reward_metrics(state.learner.omega, jax.vmap(jax.vmap(one_hot))(block.obs), block.mask, "one")
    cells, phi = np.asarray(block.obs[..., 0], int)[np.asarray(block.mask) > 0.0], state.learner.omega.phi
    expected = (np.asarray(phi["weight"])[:, cells] + np.asarray(phi["bias"])[:, None]).mean(-1)
    expected[1] = 1.0  # STATIC learns no multiplier of the true reward
    np.testing.assert_allclose([found[f"phi{i}_mean"] for i in (1, 2, 3)], expected, rtol=1e-5)


def test_members_do_not_depend_on_each_other(trained):
    for i, seed in enumerate((3, 4)):
        alone, _ = population(train, STATIC, HYPER, (seed,))
        assert_equal(jax.tree.map(lambda x: x[0], alone.state), jax.tree.map(lambda x, i=i: x[i], trained[0].state))
    batched, metrics = population(train, STATIC, HYPER, (3, 4), how="vmap")
    assert_close(batched.state.learner.policy, trained[0].state.learner.policy, rtol=1e-3, atol=1e-4)
    assert_close(metrics, trained[1], rtol=1e-2, atol=1e-4)


def test_a_diverging_series_is_reported():
    _, metrics = population(train, STATIC, dataclasses.replace(HYPER, neumann_alpha=1e3))
    np.testing.assert_allclose(metrics["diverging"], metrics["outer_steps"])


def test_the_reward_can_be_learnt_through_unrolled_steps():
    static = dataclasses.replace(STATIC, hypergrad="unrolled", clip_norm=1.0, running_baselines=True)
    after, metrics = population(train, static, HYPER)
    assert after.alive.all()
    assert float(metrics["hypergradient"][0]) > 0.0
    start = train.make(static, ENV.spec, ENV).init(jax.random.split(jax.random.key(0))[0], HYPER)
    weight = after.state.learner.omega.phi["weight"][0]
    assert bool((weight[0] != start.learner.omega.phi["weight"][0]).any())


@pytest.fixture(scope="module")
def ring_and_learner(trained):
    state = jax.tree.map(lambda x: x[0], trained[0].state)
    return state.ring, state.learner


def changed(ring, index):
    """The ring with other rewards in one of its rows."""
    part = ring.trajectories
    return ring._replace(trajectories=part._replace(reward=part.reward.at[index].mul(-3.0)))


def test_a_naive_step_sees_two_episodes_and_the_auxiliary_reward(ring_and_learner):
    ring, learner = ring_and_learner
    method = learn.Method(STATIC, make_actor(ENV))
    step = jax.jit(lambda ring, w: learn.naive_step(learner, ring, method, dataclasses.replace(HYPER, aux_weight=w)))
    head = lambda ring, w=1.0: np.asarray(step(ring, w).policy["head"]["kernel"])  # noqa: E731
    latest = (int(ring.episodes) - 1 - np.arange(3)) % 7
    assert np.any(head(changed(ring, latest[0])) != head(ring))
    assert np.any(head(changed(ring, latest[1])) != head(ring))
    np.testing.assert_array_equal(head(changed(ring, latest[2])), head(ring))
    assert np.any(head(ring, 5.0) != head(ring))


def test_the_auxiliary_reward_and_the_older_reach_the_outer_step_through_the_learnt_reward_alone(ring_and_learner):
    ring, learner = ring_and_learner
    method = learn.Method(dataclasses.replace(STATIC, hypergrad="identity"), make_actor(ENV))

    @jax.jit
    def direction(ring, learner):
        return learn.implicit_direction(jax.random.key(0), learner, ring, method, HYPER)[1]

    # The newest episodes enter through the true reward's gradient alone: their auxiliary reward is not seen.
    auxiliary = ring.trajectories.auxiliary
    latest = (int(ring.episodes) - 1 - np.arange(3)) % 7
    newer = ring._replace(trajectories=ring.trajectories._replace(auxiliary=auxiliary.at[latest].mul(5.0)))
    assert_equal(direction(newer, learner), direction(ring, learner))
    older = ring._replace(trajectories=ring.trajectories._replace(auxiliary=auxiliary.at[(latest - 3) % 7].mul(5.0)))
    assert bool((direction(older, learner).phi["weight"] != direction(ring, learner).phi["weight"]).any())


def test_running_baselines_begin_at_none():
    baseline = (jnp.zeros(()), jnp.zeros(()))
    baseline = running_mean(baseline, jnp.array([1.0, 3.0]), 0.1)
    assert (float(baseline[0]), float(baseline[1])) == (2.0, 1.0)
    assert float(running_mean(baseline, jnp.array([12.0]), 0.1)[0]) == pytest.approx(3.0)


@pytest.mark.parametrize("data", ["newest", "all"])
def test_reinforce_uses_the_episodes_it_says(ring_and_learner, data):
    ring, learner = ring_and_learner
    static = reinforce.Static(data=data)
    start = reinforce.Learner(learner.policy, learner.optim.policy, (jnp.zeros(()), jnp.zeros(())))

    @jax.jit
    def after(ring):
        hyper = reinforce.Hyper()
        return reinforce.improve_on_block(jax.random.key(0), start, ring, make_actor(ENV), static, hyper).policy["head"]

    newest, before = (int(ring.episodes) - 1) % 7, (int(ring.episodes) - 2) % 7
    moved = [bool((after(changed(ring, i))["kernel"] != after(ring)["kernel"]).any()) for i in (newest, before)]
    assert moved == [True, data == "all"]


def test_the_actor_critic_trains_both_with_their_own_rates():
    heads = {}
    for rates in ((0.0, 0.01), (0.01, 0.0)):
        after, _ = population(actor_critic, actor_critic.Static(), actor_critic.Hyper(*rates), steps=2)
        start = actor_critic.make(actor_critic.Static(), ENV.spec, ENV).init(
            jax.random.split(jax.random.key(0))[0], actor_critic.Hyper()
        )
        pairs = zip(after.state.nets, start.nets)
        heads[rates] = [bool((a["head"]["kernel"][0] != b["head"]["kernel"]).any()) for a, b in pairs]
    assert heads == {(0.0, 0.01): [False, True], (0.01, 0.0): [True, False]}


def drift(key, state, action, params):
    over = jnp.zeros((), bool)
    measures = {"auxiliary": -jnp.square(action).sum(), "length": jnp.ones(())}
    return state + 0.1 * action, TimeStep(state + 0.1 * action, action.sum(), over, over, measures)


DRIFT = Env("drift", Spec(2, 2, 0.5), 4, {}, lambda key, params: (jax.random.normal(key, (2,)),) * 2, drift)


def test_the_gaussian_actor_is_that_of_the_formulas():
    actor = make_actor(DRIFT)
    policy = actor.init(jax.random.key(0))
    obs = jax.random.normal(jax.random.key(1), (5, 2))
    x = np.maximum(obs @ policy["body"]["kernel"] + policy["body"]["bias"], 0.0)
    mean = -0.5 + 1.0 / (1.0 + np.exp(-(x @ policy["head"]["kernel"] + policy["head"]["bias"])))
    features = actor.features(policy["body"], obs)
    np.testing.assert_allclose(actor.mode(policy["head"], features), mean, rtol=1e-5, atol=1e-6)
    action = actor.sample(jax.random.key(2), policy["head"], features)
    density = stats.norm.logpdf(np.asarray(action), mean, 0.1).sum(-1)
    np.testing.assert_allclose(actor.policy.log_prob(policy["head"], features, action), density, rtol=1e-3)
    np.testing.assert_allclose(
        actor.policy.entropy(policy["head"], features), 2 * stats.norm(scale=0.1).entropy(), rtol=1e-5
    )


def test_scalar_multipliers_and_learnt_features():
    """HalfCheetah's form: every episode from the same start, baselines, clipping, three scalars as the reward."""
    static = train.Static(
        schedule="halfcheetah", first_mul=1, inner_mul=1, hess_mul=2, buffer_size=6, loops=1, lanczos=2,
        phi_state_dependent=False, optimiser="adam", clip_norm=1.0, running_baselines=True, same_start=True,
    )  # fmt: skip
    after, metrics = population(train, static, train.Hyper(entropy_weight=0.0, gamma_lr=0.0), env=DRIFT, steps=3)
    assert after.alive.all()
    obs = after.state.ring.trajectories.obs[0, :, 0]
    np.testing.assert_array_equal(obs, np.broadcast_to(obs[0], obs.shape))
    assert float(after.state.learner.inner_baseline[1][0]) == 1.0
    np.testing.assert_allclose(metrics["gamma"], jax.nn.sigmoid(4.6), rtol=1e-6)
    assert float(jnp.abs(after.state.learner.omega.phi["bias"][0] - 1.0).max()) > 1e-3


def test_evaluations_take_the_most_probable_action():
    algo = train.make(STATIC, ENV.spec, ENV)
    state = algo.init(jax.random.key(0), HYPER)
    head = {"kernel": jnp.zeros((CELLS, 2)).at[3, 1].set(0.5).at[2, 0].set(0.5), "bias": jnp.zeros(2)}
    state = state._replace(learner=state.learner._replace(policy={"body": {}, "head": head}))
    obs = jnp.array([[[2.0], [3.0]]])
    np.testing.assert_array_equal(algo.act(jax.random.key(0), state, obs, HYPER), [[[1.0, -1.0], [-1.0, 1.0]]])
    sampled = train.make(dataclasses.replace(STATIC, acting="sampled"), ENV.spec, ENV)
    drawn = sampled.act(jax.random.key(0), state, jnp.full((50, 1), 3.0), HYPER)
    assert 5 < int((drawn[:, 0] > 0.0).sum()) < 35


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"hypergrad": "newton"}, "hypergrad=newton must be one of neumann"),
        ({"schedule": "cartpole"}, "schedule=cartpole"),
        ({"phi2_mode": "two"}, "phi2_mode=two"),
        ({"optimiser": "sgd"}, "optimiser=sgd"),
        ({"delta": 0}, "delta is at least 1"),
        ({"loops": -1}, "loops is at least 0"),
        ({"clip_norm": 0.0}, "clip_norm=0.0 must be positive"),
        ({"buffer_size": 3, "on_set_extra": 1}, "buffer_size=3 is less than the 4 newest"),
        ({"neumann_step": "auto", "lanczos": 0}, "neumann_step=auto"),
        ({"phi_start": "primary", "phi_state_dependent": False}, "phi_start=primary"),
    ],
)
def test_settings_that_make_no_sense_are_refused(setting, words):
    with pytest.raises(UsageError, match=words):
        train.Static(**setting)


@pytest.mark.parametrize("module", [train, reinforce, actor_critic])
def test_environments_that_do_not_fit_are_refused(module):
    with pytest.raises(UsageError, match="auxiliary reward, env=pointmix has none"):
        module.make(module.Static(), pointmix.make().spec, pointmix.make())
    with pytest.raises(UsageError, match="horizon 0"):
        module.make(module.Static(), ENV.spec, dataclasses.replace(ENV, horizon=0))


def test_other_refusals():
    with pytest.raises(UsageError, match="neumann_alpha=0.0 must be positive"):
        train.Hyper(neumann_alpha=0.0)
    with pytest.raises(UsageError, match="env=drift has no features"):
        train.make(train.Static(), DRIFT.spec, DRIFT)
    with pytest.raises(UsageError, match="reward=oracle"):
        reinforce.Static(reward="oracle")


def test_the_outer_step_comes_before_the_inner_ones(trained):
    state, key = jax.tree.map(lambda x: x[0], trained[0].state), jax.random.key(5)
    after, _ = jax.jit(lambda s: train.make(STATIC, ENV.spec, ENV).step(key, s, {}, HYPER))(state)
    method = learn.Method(STATIC, make_actor(ENV))
    outer = jax.jit(
        lambda learner, ring: learn.outer_step(jax.random.split(key, 3)[1], learner, ring, method, HYPER)[0]
    )
    before, swapped = (
        outer(state.learner, after.ring),
        outer(state.learner._replace(policy=after.learner.policy), after.ring),
    )
    assert_close(after.learner.omega, before.omega)
    far = jnp.abs(swapped.omega.phi["weight"] - before.omega.phi["weight"]).max()
    assert float(far) > 1e-4
