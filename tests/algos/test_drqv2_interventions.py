"""Interventions on DrQ-v2 that happen now and then: what each changes, what it leaves alone, and when."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from algos.buffers import NStepBatch
from algos.core import UsageError
from algos.drqv2 import interventions, learn, nets
from algos.drqv2.fau import fraction_active
from algos.drqv2.learn import Agent, Draws
from algos.drqv2.settings import Hyper, Static
from tests.algos import toy

pytestmark = pytest.mark.usefixtures("quick_compilation")
SIZES = Static(batch_size=16, feature_dim=10, hidden_dim=256)
STATIC = Static(16, 10, 256, l2_init=True, reset=True, perturb=True, redo=True, inject="critic")
IMAGE, ACTIONS, LR = (17, 17, 3), 3, 1e-3
KEY = jax.random.key(9)
# Nothing is due at step 7 and update 7.
HYPER = Hyper(lr=LR, reset_interval=40.0, perturb_period=30.0, redo_period=20.0, redo_threshold=0.0, inject_at=1e6)
LEARN = jax.jit(learn.learn)
INTERVENE = jax.jit(partial(interventions.intervene, static=STATIC))


class Start(NamedTuple):
    """An agent after its first update, and what that was made with."""

    agent: Agent
    batch: NStepBatch
    draws: Draws


@pytest.fixture(scope="module")
def start() -> Start:
    @jax.jit
    def make() -> Start:
        keys = jax.random.split(jax.random.key(0), 6)
        images = [jax.random.randint(k, (16, *IMAGE), 0, 256).astype(jnp.uint8) for k in keys[:2]]
        action = jax.random.uniform(keys[2], (16, ACTIONS), minval=-1.0)
        batch = NStepBatch(images[0], action, jax.random.normal(keys[3], (16,)), jnp.full(16, 0.97), images[1])
        return Start(learn.init_agent(keys[4], STATIC, IMAGE, ACTIONS), batch, learn.draw(keys[5], 16, ACTIONS))

    agent, batch, draws = make()
    return Start(LEARN(agent, batch, draws, 0, HYPER)[0], batch, draws)


def intervene(start: Start, steps: int = 7, updates: int = 7, agent: Agent | None = None, **changes: float) -> Agent:
    """The agent, by default that of the start, after what is due then."""
    hyper = Hyper(**(vars(HYPER) | changes))
    return INTERVENE(KEY, agent or start.agent, start.batch, steps, updates, hyper=hyper)


@jax.jit
def outputs(agent: Agent, batch: NStepBatch) -> dict[str, Any]:
    """What the networks put out, their hidden layers included."""
    features, hidden, _ = nets.encoder(agent.encoder, batch.obs)
    q, critic_hidden = nets.critic(agent.critic, features, batch.action)
    target_q, _ = nets.critic(agent.target_critic, features, batch.action)
    mean, actor_hidden = nets.actor(agent.actor, features)
    layers = {"encoder": hidden, "actor": actor_hidden, "critic": critic_hidden}
    return {"q": q, "target_q": target_q, "mean": mean, "hidden": layers}


def with_bias(layers: Any, name: str, units: Any, value: float) -> Any:
    """The layers with another bias of some units of one of them."""
    return layers | {name: layers[name] | {"bias": layers[name]["bias"].at[..., units].set(value)}}


def test_nothing_happens_when_nothing_is_due(start):
    toy.assert_equal(intervene(start), start.agent)
    off = interventions.intervene(
        KEY, start.agent._replace(resets=None, injected=None), start.batch, 40, 60, SIZES, HYPER
    )
    toy.assert_equal(off.critic, start.agent.critic)


def test_reset_brings_activity_back_and_leaves_the_encoder(start):
    agent, heads, policy = start.agent, start.agent.critic["heads"], start.agent.actor["policy"]
    drained = agent._replace(
        critic=agent.critic | {"heads": with_bias(heads, "dense1", slice(None), -1e3)},
        actor=agent.actor | {"policy": with_bias(policy, "dense1", slice(None), -1e3)},
    )
    new = intervene(start, steps=41, agent=drained)
    assert new.resets == 1
    toy.assert_equal((new.encoder, new.optim.encoder), (agent.encoder, agent.optim.encoder))
    toy.assert_equal(new.target_critic, new.critic)
    toy.assert_equal(new.initial, learn.trained(new.critic))
    assert not any(np.any(x) for x in jax.tree.leaves((new.optim.actor, new.optim.critic)))

    before, after = (LEARN(x, start.batch, start.draws, 0, HYPER)[1] for x in (drained, new))
    for name in ("actor", "critic"):
        assert before[f"fau_{name}"] < 0.3
        assert 0.45 < after[f"fau_{name}"] < 0.55
    assert after["fau_encoder"] == before["fau_encoder"]
    assert after["l2_init"] == 0.0


def test_resets_are_made_once_each_and_no_more_than_asked_for(start):
    once = intervene(start, steps=41)
    toy.assert_equal(intervene(start, steps=79, agent=once), once)
    again = intervene(start, steps=80, agent=once)
    assert again.resets == 2
    # the key is the same: only what had been trained in between would differ
    toy.assert_equal(again.critic, once.critic)
    toy.assert_equal(intervene(start, steps=400, agent=once, resets=1.0), once)


def test_perturbed_critic_is_the_mixture(start):
    agent = start.agent
    same = intervene(start, updates=30, perturb_keep=1.0, perturb_fresh=0.0)
    toy.assert_equal(same, agent)
    fresh = intervene(start, updates=30, perturb_keep=0.0, perturb_fresh=1.0)
    kernel = fresh.critic["trunk"]["dense"]["kernel"]
    np.testing.assert_allclose(kernel.T @ kernel, np.eye(10), atol=1e-5)
    assert np.abs(kernel - agent.critic["trunk"]["dense"]["kernel"]).max() > 0.1
    mixed = intervene(start, updates=30, perturb_keep=0.7, perturb_fresh=0.2)
    expected = jax.tree.map(lambda x, y: 0.7 * x + 0.2 * y, learn.trained(agent.critic), learn.trained(fresh.critic))
    toy.assert_close(learn.trained(mixed.critic), expected)
    assert mixed.q_change is not None
    assert mixed.q_change > 0.0
    toy.assert_equal(mixed._replace(critic=agent.critic, q_change=agent.q_change), agent)


def test_redo_below_every_score_is_the_identity(start):
    toy.assert_equal(intervene(start, updates=20, redo_threshold=-1.0), start.agent)


DEAD = [3, 17]


def kill(agent: Agent) -> Agent:
    """Units 3 and 17 of some layers are dead."""
    encoder = with_bias(with_bias(agent.encoder, "conv2", DEAD, -1e3), "conv4", DEAD, -1e3)
    policy = with_bias(agent.actor["policy"], "dense1", DEAD, -1e3)
    heads = with_bias(agent.critic["heads"], "dense0", DEAD, -1e3)
    return agent._replace(
        encoder=encoder, actor=agent.actor | {"policy": policy}, critic=agent.critic | {"heads": heads}
    )


def dead_units(agent: Agent, batch: NStepBatch, net: str, layer: int) -> tuple[np.ndarray, np.ndarray]:
    """Units of a layer that are dead, some by themselves, and those that are not, in either head."""
    hidden = np.asarray(outputs(agent, batch)["hidden"][net][layer])
    active = np.max(hidden > 0.0, axis=tuple(range(int(net == "critic"), hidden.ndim - 1)))
    dead, alive = ~active, active
    if net == "critic":
        dead, alive = dead.any(0), alive.all(0)
    assert dead[DEAD].all()
    return np.flatnonzero(dead), np.flatnonzero(alive)


def test_redo_recycles_dead_units_and_changes_no_output(start):
    agent = kill(start.agent)
    new = intervene(start, updates=20, agent=agent)
    before, after = outputs(agent, start.batch), outputs(new, start.batch)
    for name in ("q", "target_q", "mean"):
        np.testing.assert_allclose(after[name], before[name], atol=1e-5)
    # both dead channels, both units of a head, and so on are active again in the layers they are in
    for net, layer in (("encoder", 1), ("encoder", 3), ("actor", 1), ("critic", 0)):
        old, alive = (x["hidden"][net][layer][..., jnp.array(DEAD)] for x in (before, after))
        assert not old.any()
        assert alive.any()


def test_redo_draws_inputs_anew_and_silences_outputs(start):
    agent = kill(start.agent)
    new = intervene(start, updates=20, agent=agent)
    dead, alive = dead_units(agent, start.batch, "encoder", 1)
    conv, old = new.encoder["conv2"], agent.encoder["conv2"]
    assert (conv["bias"][dead] == 0.0).all()
    columns = conv["kernel"].reshape(-1, 32)[:, dead]
    np.testing.assert_allclose(columns.T @ columns, 2.0 * np.eye(len(dead)), atol=1e-5)
    assert np.abs(conv["kernel"] - old["kernel"])[..., dead].max(axis=(0, 1, 2)).min() > 0.01
    np.testing.assert_array_equal(conv["kernel"][..., alive], old["kernel"][..., alive])
    assert not new.encoder["conv3"]["kernel"][:, :, dead].any()

    def channels(params):
        return np.asarray(params["trunk"]["dense"]["kernel"]).reshape(-1, 32, 10)  # positions, channels, width

    dead, alive = dead_units(agent, start.batch, "encoder", 3)
    for name in ("actor", "critic", "target_critic"):
        ours, before = channels(getattr(new, name)), channels(getattr(agent, name))
        assert len(ours) == 4
        assert not ours[:, dead].any()
        np.testing.assert_array_equal(ours[:, alive], before[:, alive])
    assert not new.critic["heads"]["dense1"]["kernel"][:, np.array(DEAD)].any()
    assert not new.actor["policy"]["dense2"]["kernel"][np.array(DEAD)].any()
    toy.assert_equal(new.target_critic["heads"], agent.target_critic["heads"])


def test_redo_clears_moments_of_what_it_changed_alone(start):
    agent = kill(start.agent)
    new = intervene(start, updates=20, agent=agent)
    _, alive = dead_units(agent, start.batch, "critic", 0)
    heads, old = new.optim.critic["heads"][0], agent.optim.critic["heads"][0]
    assert heads.count == old.count == 1
    for now, then in ((heads.mu, old.mu), (heads.nu, old.nu)):
        assert np.any(then["dense0"]["kernel"][..., DEAD])
        assert not np.any(now["dense0"]["kernel"][..., DEAD])
        assert not np.any(now["dense0"]["bias"][..., DEAD])
        assert not np.any(now["dense1"]["kernel"][:, np.array(DEAD)])
        # neither of a dead unit nor fed by one
        np.testing.assert_array_equal(now["dense0"]["kernel"][:, :, alive], then["dense0"]["kernel"][:, :, alive])
    trunk = np.asarray(new.optim.actor[0].mu["trunk"]["dense"]["kernel"]).reshape(4, 32, 10)
    before = np.asarray(agent.optim.actor[0].mu["trunk"]["dense"]["kernel"]).reshape(4, 32, 10)
    dead, alive = dead_units(agent, start.batch, "encoder", 3)
    assert before[:, alive].any()
    assert not trunk[:, dead].any()
    np.testing.assert_array_equal(trunk[:, alive], before[:, alive])


def test_units_are_dormant_relative_to_their_layer():
    hidden = jnp.array([[0.0, 0.01, 1.0, 0.0], [0.0, 0.01, 3.0, -4.0]])  # means 0, 0.01, 2, 2; of all 1.0025
    np.testing.assert_array_equal(interventions.dormant(hidden, 0.0), [True, False, False, False])
    np.testing.assert_array_equal(interventions.dormant(hidden, 0.025), [True, True, False, False])
    images = jnp.stack([hidden, 3.0 * hidden], 1)  # channels over positions
    np.testing.assert_array_equal(interventions.dormant(images, 0.025), [True, True, False, False])
    assert interventions.dormant(jnp.zeros((2, 4)), 0.0).all()


def test_heads_to_be_injected_do_nothing_before(start):
    agent, batch = start.agent, start.batch
    plain = agent._replace(critic=learn.trained(agent.critic), target_critic=learn.trained(agent.target_critic))
    toy.assert_equal(outputs(agent, batch), outputs(plain, batch))
    assert not agent.injected


@pytest.fixture(scope="module")
def injected(start) -> Agent:
    return intervene(start, agent=start.agent._replace(target_critic=scattered(start.agent)), inject_at=7.0)


def scattered(agent: Agent) -> Any:
    """A target critic whose heads have left the online ones."""
    heads = jax.tree.map(lambda x: 0.9 * x + 0.01, agent.target_critic["heads"])
    return agent.target_critic | {"heads": heads}


def test_injection_changes_no_value(start, injected):
    before = start.agent._replace(target_critic=scattered(start.agent))
    old, new = outputs(before, start.batch), outputs(injected, start.batch)
    for name in ("q", "target_q"):
        assert np.abs(new[name] - old[name]).max() < 1e-5
    toy.assert_equal(injected.critic["fixed"]["base"], before.critic["heads"])
    toy.assert_equal(injected.target_critic["fixed"]["base"], before.target_critic["heads"])
    kernel = injected.critic["heads"]["dense1"]["kernel"]
    assert np.abs(kernel - before.critic["heads"]["dense1"]["kernel"]).max() > 0.1
    toy.assert_equal(intervene(start, steps=30, agent=injected, inject_at=7.0), injected)


def test_only_the_injected_heads_learn(start, injected):
    @jax.jit
    def slope(critic):
        features, *_ = nets.encoder(injected.encoder, start.batch.obs)
        return jax.grad(lambda critic: nets.critic(critic, features, start.batch.action)[0].sum())(critic)

    grads = slope(injected.critic)
    assert not any(np.any(x) for x in jax.tree.leaves(grads["fixed"]))
    assert all(np.any(x) for x in jax.tree.leaves((grads["heads"], grads["trunk"]["dense"])))

    new, metrics = LEARN(injected, start.batch, start.draws, 8, HYPER)
    toy.assert_equal(new.critic["fixed"], injected.critic["fixed"])
    # Adam's count begins with the injection: each entry's first step is the learning rate.
    assert (new.optim.critic["heads"][0].count, new.optim.critic["trunk"][0].count) == (1, 2)
    moved = np.abs(new.critic["heads"]["dense1"]["kernel"] - injected.critic["heads"]["dense1"]["kernel"])
    assert np.median(moved[moved > 0.0]) == pytest.approx(LR, rel=1e-2)
    expected = float(fraction_active(outputs(injected, start.batch)["hidden"]["critic"]))
    assert metrics["fau_critic"] == pytest.approx(expected, abs=0.02)  # of shifted images, and the heads that learn


def test_injection_into_the_actor_takes_its_own_initial_policy():
    static = Static(16, 10, 32, inject="actor", inject_from="initial_copy")

    @jax.jit
    def run():
        agent = learn.init_agent(KEY, static, IMAGE, ACTIONS)
        learnt = jax.tree.map(lambda x: x + 0.05, agent.actor["policy"])
        before = agent._replace(actor=agent.actor | {"policy": learnt})
        after = interventions.inject(static, before)
        features = jax.random.normal(KEY, (8, nets.feature_size(17, 17)))
        return agent, after, [nets.actor(x.actor, features)[0] for x in (agent, before, after)]

    agent, after, (first, before, mean) = run()
    assert np.abs(before - first).max() > 1e-3
    np.testing.assert_allclose(mean, before, atol=1e-5)
    toy.assert_equal(after.actor["policy"], agent.actor["policy"])
    toy.assert_equal(after.critic, agent.critic)


def test_members_are_reset_at_their_own_steps(start):
    static = Static(16, 10, 32, reset=True)
    hypers = jax.tree.map(lambda x: jnp.array([x, x]), HYPER)
    hypers.reset_interval = jnp.array([30.0, 50.0])

    @jax.jit
    def run(hypers):
        agent = learn.init_agent(KEY, static, IMAGE, ACTIONS)
        make = lambda hyper: interventions.intervene(KEY, agent, start.batch, 31, 7, static, hyper)  # noqa: E731
        return agent, jax.vmap(make)(hypers)

    agent, agents = run(hypers)
    first, second = toy.twins(agents)
    toy.assert_equal(second, agent)
    assert first.resets == 1
    assert first.q_change > 0.1
    assert np.abs(first.actor["trunk"]["dense"]["kernel"] - second.actor["trunk"]["dense"]["kernel"]).max() > 0.1
    toy.assert_equal(first.encoder, second.encoder)


@pytest.mark.parametrize("name", ["reset_interval", "perturb_period", "redo_period"])
def test_periods_below_one_are_refused(name):
    wrong: dict[str, Any] = {name: 0.5}
    with pytest.raises(UsageError, match=rf"^algo\.hyper\.{name}=0\.5 must be at least 1$"):
        Hyper(**wrong)


def test_options_that_do_not_exist_or_fit_are_refused():
    with pytest.raises(UsageError, match=r"^algo\.static\.inject=twice must be one of none, critic, actor$"):
        Static(inject="twice")
    with pytest.raises(UsageError, match=r"^algo\.static\.inject_from=x must be one of fresh, initial_copy$"):
        Static(inject_from="x")
    with pytest.raises(UsageError, match=r"^algo\.static\.redo .* set one of them to false$"):
        Static(redo=True, crelu=True)
    with pytest.raises(UsageError, match=r"^algo\.static\.crelu=true .* or take algo=drqv2$"):
        interventions.check_measurable(Static(crelu=True))
    interventions.check_measurable(Static(redo=True))
