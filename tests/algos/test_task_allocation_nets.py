"""Two-stage task allocation, what is learnt: the promises of the paper's equations, masks, switches, bad settings."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from algos.losses import polyak
from algos.task_allocation import manager, nets, preassign, worker
from algos.task_allocation.myopic import teams_of
from algos.task_allocation.nets import OFFICIAL, Hyper, Sizes, Static
from envs.core import UsageError

N, T, D, BATCH, HIDDEN = 5, 3, 4, 3, 8
SIZES = Sizes(N, T, D, D)
HYPER = Hyper(actor_lr=1e-3, critic_lr=1e-3)
STATIC = Static(hidden=HIDDEN, batch_size=BATCH, buffer_size=6, start_size=3)
PEAKED = Static(**{**vars(STATIC), "entropy": "official"})
RECORDED = Static(**{**vars(STATIC), **OFFICIAL})
select = jax.jit(manager.select, static_argnums=(0, 4, 6))
learn = jax.jit(preassign.learn, static_argnums=0)
learn_manager = jax.jit(manager.learn, static_argnums=0)


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def bools(*rows: str) -> jax.Array:
    return jnp.array([[mark == "1" for mark in row] for row in rows])


def switched(**switches: Any) -> Static:
    return Static(**{**vars(STATIC), **switches})


def filled(shapes: Any, seed: int) -> Any:
    """Parameters of these shapes, drawn without a program to compile."""
    draw = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(draw.uniform(-0.4, 0.4, x.shape), x.dtype), shapes)


def fresh(static: Static, seed: int = 0, sizes: Sizes = SIZES) -> preassign.State:
    """Networks of stage 1 and a target critic that differs from the critic."""
    shapes = jax.eval_shape(lambda: preassign.init(jax.random.key(0), static, sizes))
    networks = shapes.actor, shapes.critic, shapes.mixer, shapes.critic
    return preassign.begin(*(filled(x, seed + i) for i, x in enumerate(networks)))


@pytest.fixture(scope="module")
def batch() -> preassign.Decision:
    """Decisions with busy entities and closed slots."""
    free, opened = bools("11111", "10111", "00101"), bools("111", "011", "001")
    choice = jnp.array([[0, 1, 2, 2, 1], [2, -1, 1, 2, 2], [-1, -1, 2, -1, 2]], jnp.int32)
    exists = jnp.ones((BATCH, N), bool), jnp.ones((BATCH, T), bool)
    rows = jnp.abs(normal(0, BATCH, N, D)), jnp.abs(normal(1, BATCH, T, D))
    reward, episode = jnp.array([2.0, -1.0, 0.5]), jnp.zeros(BATCH, jnp.int32)
    return preassign.Decision(*rows, free, opened, *exists, choice, reward, episode)


@pytest.fixture(scope="module")
def state() -> preassign.State:
    return fresh(STATIC)


@pytest.fixture(scope="module")
def boss() -> manager.State:
    shapes = jax.eval_shape(lambda: manager.init(jax.random.key(0), STATIC, SIZES))
    return manager.begin(filled(shapes.actor, 4), filled(shapes.critic, 5), filled(shapes.critic, 6), None)


def padded(batch: preassign.Decision, entities: int, slots: int) -> preassign.Decision:
    """More entities and slots that do not exist; their rows are no numbers."""

    def fill(x: jax.Array, more: int, value: float | bool) -> jax.Array:
        widths = [(0, 0), (0, more)] + [(0, 0)] * (x.ndim - 2)
        return jnp.pad(x, widths, constant_values=value)

    return batch._replace(
        entities=fill(batch.entities, entities, jnp.nan), slots=fill(batch.slots, slots, jnp.nan),
        free=fill(batch.free, entities, True), open=fill(batch.open, slots, False),
        entity_mask=fill(batch.entity_mask, entities, False), slot_mask=fill(batch.slot_mask, slots, False),
        assignment=fill(batch.assignment, entities, -1),
    )  # fmt: skip


@partial(jax.jit, static_argnums=0)
def losses(static: Static, state: preassign.State, batch: preassign.Decision) -> tuple:
    """Probabilities, values, and both losses with their gradients."""
    probs = jax.vmap(lambda x: preassign.probabilities(state.actor, x, HYPER))(batch)
    params = (state.critic, state.mixer)
    total = jax.vmap(lambda x: preassign.total_q(static, *params, x, HYPER))(batch)
    of_critic, _ = jax.value_and_grad(preassign.critic_loss, has_aux=True)(params, static, batch, batch.reward, HYPER)
    of_actor = jax.value_and_grad(preassign.actor_loss, has_aux=True)(
        state.actor, static, state.target_critic, state.mixer, batch, HYPER
    )
    return probs, total, of_critic[0], of_actor


def close(one: object, other: object, tolerance: float = 1e-6) -> None:
    jax.tree.map(partial(np.testing.assert_allclose, atol=tolerance, rtol=tolerance), one, other)


def test_order_of_entities_does_not_matter(state: preassign.State, batch: preassign.Decision) -> None:
    order = jnp.array([3, 0, 4, 1, 2])
    moved = batch._replace(
        entities=batch.entities[:, order], free=batch.free[:, order], assignment=batch.assignment[:, order]
    )
    probs, *rest = losses(PEAKED, state, batch)
    permuted, *same = losses(PEAKED, state, moved)
    close(permuted, probs[:, order])
    close(same, rest, 1e-5)


def test_order_of_slots_does_not_matter(state: preassign.State, batch: preassign.Decision) -> None:
    order = jnp.array([2, 0, 1])
    renamed = jnp.where(batch.assignment >= 0, jnp.argsort(order)[batch.assignment], -1)
    moved = batch._replace(slots=batch.slots[:, order], open=batch.open[:, order], assignment=renamed)
    probs, *rest = losses(PEAKED, state, batch)
    permuted, *same = losses(PEAKED, state, moved)
    close(permuted, probs[:, :, order])
    close(same, rest, 1e-5)


@pytest.mark.parametrize("switches", [{"entropy": "official"}, {"mixer": "scalar", "mixer_activation": "leaky_relu"}])
def test_padding_changes_nothing(switches: dict, batch: preassign.Decision) -> None:
    static = switched(**switches)
    state = fresh(static)
    probs, *rest = losses(static, state, batch)
    more, *same = losses(static, state, padded(batch, 3, 2))
    close(more[:, :N, :T], probs)
    assert (more[:, :, T:] == 0).all()
    close(same, rest)


@pytest.mark.parametrize("critic", ["mlp", "no_tam"])
def test_padding_stays_out_of_networks_of_fixed_size(critic: str, batch: preassign.Decision) -> None:
    static = switched(critic=critic)
    state = fresh(static, sizes=Sizes(N + 1, T + 1, D, D))
    more = padded(batch, 1, 1)
    other = more._replace(entities=jnp.nan_to_num(more.entities, nan=7.0), slots=jnp.nan_to_num(more.slots))
    ours = losses(static, state, more)
    close(ours, losses(static, state, other), 0.0)
    assert np.isfinite(ours[2])


def test_probabilities(state: preassign.State, batch: preassign.Decision) -> None:
    decision = jax.tree.map(lambda x: x[1], batch)
    probs = preassign.probabilities(state.actor, decision, HYPER)
    assert (probs[:, 0] == 0).all()
    close(probs.sum(-1), jnp.ones(N))
    encoder = state.actor["entity"]
    last = jax.tree.map(lambda x: 3.0 * x, encoder["dense1"])
    scaled = {**state.actor, "entity": {**encoder, "dense1": last}}
    plain, larger = (nets.logits(actor, decision.entities, decision.slots) for actor in (state.actor, scaled))
    hidden = [nets.mlp(state.actor[name], x) for name, x in (("entity", decision.entities), ("slot", decision.slots))]
    close(plain, hidden[0] @ hidden[1].T / HIDDEN)
    close(larger, 3.0 * plain)


def test_choices_follow_the_inverse_distribution_function(batch: preassign.Decision) -> None:
    probs = jnp.array([[0.0, 0.25, 0.75]] * N)
    uniform = jnp.array([0.0, 0.2, 0.25, 0.9999999, 0.5])
    decision = jax.tree.map(lambda x: x[1], batch)  # entity 1 is busy
    assert preassign.choose(decision, probs, uniform).tolist() == [1, -1, 2, 2, 2]
    assert preassign.choose(decision, probs, None).tolist() == [2, -1, 2, 2, 2]
    short = jnp.array([0.5, 0.4, 0.0])  # rounding left the sum below u
    assert int(nets.inverse_cdf(short, jnp.array(0.95))) == 1
    closed = decision._replace(open=jnp.zeros(T, bool))
    assert (preassign.choose(closed, probs, uniform) == -1).all()
    assert teams_of(jnp.array([1, -1, 2, 2, 2]), T).astype(int).tolist() == [
        [0, 0, 0, 0, 0], [1, 0, 0, 0, 0], [0, 0, 1, 1, 1]
    ]  # fmt: skip


@pytest.mark.parametrize(("kind", "sign"), [("official", 1.0), ("shannon", -1.0)])
def test_entropy(kind: str, sign: float, state: preassign.State, batch: preassign.Decision) -> None:
    static, decision = switched(entropy=kind), jax.tree.map(lambda x: x[0], batch)

    def bonus(actor: dict) -> tuple[jax.Array, jax.Array]:
        probs = preassign.probabilities(actor, decision, HYPER)
        return preassign.policy_entropy(static, probs, decision), probs

    actor = jax.tree.map(lambda x: 2.0 * x, state.actor)
    (value, probs), grads = jax.jit(jax.value_and_grad(bonus, has_aux=True))(actor)
    terms = jnp.log(probs + 1e-8) * (1.0 if kind == "official" else probs)
    close(value, -terms.sum(), 1e-5)
    after = bonus(jax.tree.map(lambda x, g: x + 1e-2 * g, actor, grads))[1]  # descends on -E
    assert sign * (jnp.square(after).sum() - jnp.square(probs).sum()) > 0


def test_gradients_stay_where_they_belong(state: preassign.State, batch: preassign.Decision) -> None:
    after, metrics = learn(STATIC, state, batch, HYPER)
    still, _ = learn(STATIC, state, batch, Hyper(actor_lr=0.0, critic_lr=1e-3))
    close((after.critic, after.mixer), (still.critic, still.mixer), 0.0)
    close(still.actor, state.actor, 0.0)
    close(after.target_critic, polyak(after.critic, state.target_critic, HYPER.tau), 1e-7)
    # The actor's loss is that of the updated mixer.
    loss = jax.jit(preassign.actor_loss, static_argnums=1)
    expected, _ = loss(state.actor, STATIC, state.target_critic, after.mixer, batch, HYPER)
    close(metrics["preassign_actor_loss"], expected)
    stale, _ = loss(state.actor, STATIC, state.target_critic, state.mixer, batch, HYPER)
    assert abs(expected - stale) > 1e-5


def test_scales_and_the_broadcasting_mistake(state: preassign.State, batch: preassign.Decision) -> None:
    scaled = Hyper(feature_scale=0.5, reward_scale=3.0, actor_lr=1e-3, critic_lr=1e-3)
    halved = batch._replace(entities=batch.entities / 2, slots=batch.slots / 2, reward=3 * batch.reward)
    close(learn(STATIC, state, batch, scaled)[1], learn(STATIC, state, halved, HYPER)[1])
    mlp = fresh(switched(critic="mlp"))
    loss = jax.jit(preassign.critic_loss, static_argnums=1)
    right, wrong = (
        loss((mlp.critic, {}), switched(critic="mlp", broadcast_bug=bug), batch, batch.reward, HYPER)[0]
        for bug in (False, True)
    )
    q = jax.vmap(lambda x: preassign.joint_q(mlp.critic, x, HYPER))(batch)
    close(wrong, jnp.square(batch.reward[:, None] - q[None]).mean())
    close(right, jnp.square(batch.reward - q).mean())
    assert abs(wrong - right) > 1e-3


def test_bootstrapped_target(state: preassign.State, batch: preassign.Decision) -> None:
    static = switched(stage1_bootstrap=True)
    following, continues = jax.tree.map(lambda x: x[::-1], batch), jnp.array([True, False, True])
    q = jax.vmap(lambda x: preassign.q_values(static, state.target_critic, x, HYPER))(following)
    best = jnp.where(following.open[:, None], q, -jnp.inf).max(-1) * following.free
    values = jax.vmap(lambda x, v: preassign.mixed(static, state.mixer, x, v, HYPER))(following, best)
    target = batch.reward + HYPER.discount * values * continues
    expected, _ = preassign.critic_loss((state.critic, state.mixer), static, batch, target, HYPER)
    got = learn(static, state, batch, HYPER, (following, continues))[1]["preassign_critic_loss"]
    close(got, expected)
    assert abs(got - learn(static, state, batch, HYPER)[1]["preassign_critic_loss"]) > 1e-4


def test_buffer_is_a_ring(batch: preassign.Decision) -> None:
    one = jax.tree.map(lambda x: x[0], batch)
    buffer, add = preassign.empty_buffer(4, one), jax.jit(preassign.add)
    for i in range(6):
        new = one._replace(reward=jnp.array(float(i)), episode=jnp.array(i // 4, jnp.int32))
        buffer = add(add(buffer, new, True), new, False)
    assert buffer.decisions.reward.tolist() == [4.0, 5.0, 2.0, 3.0]
    assert int(preassign.held(buffer)) == 4
    after, continues = preassign.successors(buffer, jnp.arange(4))
    assert after.reward.tolist()[2] == 3.0
    assert continues.tolist() == [True, False, True, False]  # 5 is the newest, 3 the last of its episode
    static = Static(batch_size=3, buffer_size=4, start_size=3, stage1_bootstrap=True)
    index = jax.vmap(lambda key: preassign.sample(key, static, buffer))(jax.random.split(jax.random.key(0), 8))
    assert all(sorted(row) == [0, 2, 3] for row in index.tolist())
    young = preassign.Buffer(buffer.decisions, jnp.array(3))
    index = preassign.sample(jax.random.key(1), Static(batch_size=3, buffer_size=4, start_size=3), young)
    assert sorted(index.tolist()) == [0, 1, 2]


def a_slot(**changes: Any) -> manager.Slot:
    """Five entities, capabilities one to five and costs a tenth of that; the demand needs several of them."""
    size = jnp.arange(1.0, N + 1)
    entities = jnp.stack([size / 10, size, size, 10 - size], -1)
    row = jnp.array([3.0, 6.0, 6.0, 20.0])
    slot = manager.Slot(entities, jnp.ones(N, bool), row, jnp.array([1, 1, 0, 1, 1]) > 0, jnp.array(True))
    return slot._replace(**changes)


UNIFORM = jnp.array([0.7, 0.1, 0.9, 0.4, 0.2])


def test_selection_returns_what_its_picks_earn(boss: manager.State) -> None:
    slot = a_slot()
    _, chosen = select(STATIC, boss, slot, UNIFORM, 2, HYPER, True)
    length, picks = int(chosen.length), chosen.picks
    actions = picks.action[:length]
    assert 1 <= length <= int(slot.pool.sum())
    assert set(actions.tolist()) == set(np.flatnonzero(chosen.picked).tolist()) <= {0, 1, 3, 4}
    covered = bool((picks.next_row[length - 1, 1:3] == 0).all())
    assert covered
    close(chosen.total, 3.0 - slot.entities[actions, 0].sum())
    close(picks.row[1:length], picks.next_row[: length - 1], 0.0)
    assert (picks.row[:length, 3] == 20.0).all()  # coordinates are left alone
    assert (chosen.team == chosen.picked).all()
    assert (chosen.critic_loss[length:] == 0).all()
    assert (chosen.critic_loss[:length] > 0).all()


def test_selection_is_refused_unless_it_pays(boss: manager.State) -> None:
    poor = a_slot(row=jnp.array([0.1, 6.0, 6.0, 20.0]))
    _, chosen = select(STATIC, boss, poor, UNIFORM, 2, HYPER, True)
    assert not chosen.team.any()
    assert chosen.picked.any()
    assert chosen.total == 0
    _, hopeless = select(STATIC, boss, a_slot(row=jnp.array([9.0, 99.0, 1.0, 0.0])), UNIFORM, 2, HYPER, True)
    assert int(hopeless.length) == 4  # burns its whole pool
    assert not hopeless.team.any()
    pool = poor.pool
    assert (manager.remaining(STATIC, pool, chosen) == pool).all()
    assert (manager.remaining(switched(return_refused=False), pool, chosen) == pool & ~chosen.picked).all()


def test_free_entities_earn_all_rewards(boss: manager.State) -> None:
    assignment = jnp.array([0, 1, 0, 1, 1])
    rows = jnp.array([[2.0, 3.0, 4.0, 0.0], [5.0, 9.0, 9.0, 0.0]])
    entities = a_slot().entities.at[:, 0].set(0.0)
    total, state = 0.0, boss
    for row, pool in zip(rows, teams_of(assignment, 2)):
        state, chosen = select(STATIC, state, a_slot(entities=entities, row=row, pool=pool), UNIFORM, 2, HYPER, True)
        total += float(chosen.total)
    assert total == 7.0


def test_empty_pools_and_slots_that_are_not_served(boss: manager.State) -> None:
    nobody = a_slot(pool=jnp.zeros(N, bool), row=jnp.array([3.0, 1.0, 1.0, 0.0]))
    official = boss._replace(table=nobody.entities)
    state, chosen = select(STATIC, boss, nobody, UNIFORM, 2, HYPER, True)
    assert int(chosen.length) == 0
    close(state, boss, 0.0)
    _, chosen = select(RECORDED, official, nobody, UNIFORM, 2, HYPER, True)
    assert int(chosen.length) == 1
    assert chosen.picks.action[0] == 3  # uniform over all five: the fourth contains 0.7
    assert chosen.team.tolist() == [False, False, False, True, False]
    masked = nobody._replace(entity_mask=jnp.arange(N) < 3)
    _, chosen = select(RECORDED, official, masked, UNIFORM, 2, HYPER, True)
    assert chosen.picks.action[0] == 2
    _, chosen = select(RECORDED, official, a_slot(live=jnp.array(False)), UNIFORM, 2, HYPER, True)
    assert int(chosen.length) == 0
    assert chosen.total == 0


def test_coordinates_are_covered_only_where_asked(boss: manager.State) -> None:
    slot = a_slot(row=jnp.array([3.0, 1.0, 1.0, 20.0]))
    _, chosen = select(STATIC, boss, slot, UNIFORM, 2, HYPER, True)
    assert int(chosen.length) == 1
    _, chosen = select(RECORDED, boss._replace(table=slot.entities), slot, UNIFORM, 2, HYPER, True)
    assert int(chosen.length) > 2
    assert slot.entities[:, 3] @ chosen.picked >= 20.0


def test_stale_entities_are_seen_until_the_first_update(boss: manager.State) -> None:
    slot = a_slot(row=jnp.array([9.0, 99.0, 1.0, 0.0]), pool=jnp.ones(N, bool))
    old = slot.entities[::-1]
    state, chosen = select(RECORDED, boss._replace(table=old), slot, UNIFORM, 2, HYPER, True)

    @jax.jit
    def first(entities: jax.Array) -> jax.Array:
        probs = manager.policy(boss.actor, entities, slot.entity_mask, slot.row[None], slot.pool[None], HYPER)
        return nets.inverse_cdf(probs[0], UNIFORM[0])

    assert int(chosen.picks.action[0]) == int(first(old)) != int(first(slot.entities))
    assert (state.table == slot.entities).all()


def test_greedy_selection_without_learning(boss: manager.State) -> None:
    slot = a_slot()
    state, chosen = select(STATIC, boss, slot, None, 2, HYPER, False)
    probs = manager.policy(boss.actor, slot.entities, slot.entity_mask, slot.row[None], slot.pool[None], HYPER)
    assert chosen.picks.action[0] == probs.argmax()
    close(state, boss, 0.0)
    broken = boss._replace(actor=jax.tree.map(lambda x: x * jnp.nan, boss.actor))
    assert int(select(STATIC, broken, slot, None, 2, HYPER, False)[1].length) <= N  # ends all the same


def test_padded_entities_leave_the_manager_alone(boss: manager.State) -> None:
    slot = a_slot()
    more = manager.Slot(
        jnp.pad(slot.entities, ((0, 2), (0, 0)), constant_values=jnp.nan), jnp.arange(N + 2) < N, slot.row,
        jnp.pad(slot.pool, (0, 2), constant_values=True), slot.live,
    )  # fmt: skip
    state, chosen = select(STATIC, boss, slot, UNIFORM, 2, HYPER, True)
    same, again = select(STATIC, boss, more, jnp.pad(UNIFORM, (0, 2)), 2, HYPER, True)
    close((same.critic, same.actor, same.target_critic), (state.critic, state.actor, state.target_critic))
    close((again.total, again.team[:N], again.critic_loss[:N]), (chosen.total, chosen.team, chosen.critic_loss))


@pytest.fixture(scope="module")
def selected(boss: manager.State) -> tuple[jax.Array, manager.Selection]:
    """The tables and selections of a slot served and of one that nobody chose."""
    slots = [a_slot(), a_slot(pool=jnp.zeros(N, bool))]
    chosen = [select(STATIC, boss, slot, UNIFORM, 2, HYPER, False)[1] for slot in slots]
    return jnp.stack([slot.entities for slot in slots]), jax.tree.map(lambda *x: jnp.stack(x), *chosen)


def test_manager_gradients_stay_where_they_belong(
    boss: manager.State, selected: tuple[jax.Array, manager.Selection]
) -> None:
    tables, selections = selected
    exists, picks = jnp.ones(N, bool), jax.tree.map(lambda x: x[0, :2], selections.picks)

    @jax.jit
    def gradients(critic: dict) -> dict:
        def loss(critic: dict, choice: str) -> jax.Array:
            static = switched(td_target=choice)
            return manager.critic_losses(critic, static, boss, tables[0], exists, picks, HYPER).sum()

        def target(critic: dict) -> jax.Array:
            return manager.td_target(critic, STATIC, boss, tables[0], exists, picks, HYPER)

        def semi(critic: dict) -> jax.Array:
            q = manager.q_values(critic, tables[0], exists, picks.row, HYPER)
            return jnp.square(target(boss.critic) - q[jnp.arange(2), picks.action]).sum()

        grads = {choice: jax.grad(loss)(critic, choice) for choice in nets.CHOICES["td_target"]}
        return grads | {"semi": jax.grad(semi)(critic), "y": jax.grad(lambda x: target(x).sum())(critic)}

    grads = gradients(boss.critic)
    close(grads["target_stopgrad"], grads["semi"])
    assert not any(leaf.any() for leaf in jax.tree.leaves(grads["y"]))
    bias = {name: grads[name]["slot"]["dense1"]["bias"] for name in grads}
    assert jnp.abs(bias["online_residual"] - bias["online_stopgrad"]).max() > 1e-3
    assert jnp.abs(bias["target_stopgrad"] - bias["online_stopgrad"]).max() > 1e-3

    one = jax.tree.map(lambda x: x[:1], selections.picks)
    arguments = (tables[:1], exists, one, jnp.full((1, N), 0.2))
    after, _ = learn_manager(STATIC, boss, *arguments, HYPER)
    still, _ = learn_manager(STATIC, boss, *arguments, Hyper(actor_lr=0.0, critic_lr=1e-3))
    close(after.critic, still.critic, 0.0)
    close(still.actor, boss.actor, 0.0)
    close(after.target_critic, polyak(after.critic, boss.target_critic, HYPER.tau), 1e-7)


def test_updates_on_all_picks_of_a_decision(boss: manager.State, selected: tuple[jax.Array, manager.Selection]) -> None:
    tables, selections = selected
    exists, length = jnp.ones(N, bool), int(selections.length[0])
    assert length > 1
    static = switched(manager_update="per_decision", decision_updates=2)
    update = jax.jit(manager.learn_decision, static_argnums=0)
    after, _ = update(static, boss, tables, exists, selections, HYPER)
    picks, weight = jax.tree.map(lambda x: x[:1], selections.picks), (jnp.arange(N) < length)[None] / length
    expected = boss
    for _ in range(2):
        expected, _ = learn_manager(STATIC, expected, tables[:1], exists, picks, weight, HYPER)
    # Moments, not parameters: Adam turns rounding in directions without gradient into steps.
    close(after.critic_optim[0].mu, expected.critic_optim[0].mu, 1e-5)
    close(after.actor_optim[0].mu, expected.actor_optim[0].mu, 1e-5)
    empty = selections._replace(length=jnp.zeros(2, jnp.int32))
    close(update(static, after, tables, exists, empty, HYPER)[0], after, 0.0)
    state, _ = select(static, boss, a_slot(), UNIFORM, 2, HYPER, True)
    close(state, boss, 0.0)  # a selection does not learn by itself


def test_workers_learn_when_asked() -> None:
    hyper = Hyper(actor_lr=1e-3, critic_lr=1e-2, sigma_decay=0.5)
    shapes = jax.eval_shape(lambda: worker.init(jax.random.key(5), STATIC, SIZES, hyper))
    state = worker.begin(filled(shapes.actor, 7), filled(shapes.critic, 8), hyper)
    row, pool = jnp.array([3.0, 6.0, 6.0, 20.0]), jnp.array([True, True, False, True, True])
    request = jax.jit(worker.request)
    asked, prices = request(state, row, pool, jnp.array([0.0, -9.0, 0.0, 1.0, 0.0]), hyper)
    _, plain = request(state, row, pool, jnp.zeros(N), hyper)
    assert asked.sigma.tolist() == [0.25, 0.25, 0.5, 0.25, 0.25]
    assert prices[1] == prices[2] == 0
    close(prices - plain, jnp.array([0.0, -plain[1], 0.0, 0.25, 0.0]))
    assert ((plain > 0) == pool).all()
    for _ in range(5):
        asked, _ = request(asked, row, pool, jnp.zeros(N), hyper)
    close(asked.sigma[0], 0.05)
    after, metrics = jax.jit(worker.learn)(state, row, pool, prices, jnp.arange(N) == 3, hyper)
    close(jax.tree.map(lambda x: x[2], after), jax.tree.map(lambda x: x[2], state), 0.0)
    assert after.critic_optim[0].count.tolist() == [1, 1, 0, 1, 1]
    values = jax.vmap(lambda critic, price: worker.value(critic, row, price, hyper))(state.critic, prices)
    earned = jnp.where(jnp.arange(N) == 3, prices, 0.0)
    close(metrics["worker_critic_loss"], jnp.square(earned - values)[pool].mean())


def test_networks_at_the_start() -> None:
    def shapes(static: Static, sizes: Sizes = SIZES) -> preassign.State:
        return jax.eval_shape(lambda: preassign.init(jax.random.key(0), static, sizes))

    def count(tree: Any) -> int:
        return sum(x.size for x in jax.tree.leaves(tree))

    full = shapes(Static())
    assert [count(full.actor), count(full.critic), count(full.mixer)] == [8960, 8960, 17665]
    whole = jax.eval_shape(lambda: manager.init(jax.random.key(0), Static(), SIZES))
    assert count((whole.actor, whole.critic)) == 17920
    layers = shapes(switched(critic="no_tam")).critic
    assert layers["dense0"]["kernel"].shape == (T * D + N * D, HIDDEN)
    assert layers["dense1"]["kernel"].shape == (HIDDEN, N * T)
    drawn = nets.init_mlp(jax.random.key(0), 4, 64)["dense0"]
    assert 0.45 < jnp.abs(drawn["kernel"]).max() <= 0.5
    assert 0.45 < jnp.abs(drawn["bias"]).max() <= 0.5


@pytest.mark.parametrize(
    ("settings", "culprit"),
    [
        ({"entropy": "yes"}, "entropy=yes"),
        ({"critic": "tam"}, "critic=tam"),
        ({"hidden": 0}, "hidden"),
        ({"batch_size": 200}, "start_size=100"),
        ({"buffer_size": 100}, "start_size=100"),
        ({"critic": "mlp", "stage1_bootstrap": True}, "stage1_bootstrap"),
    ],
)
def test_mistakes_are_told(settings: dict, culprit: str) -> None:
    with pytest.raises(UsageError, match=culprit) as raised:
        Static(**settings)
    assert "\n" not in str(raised.value)
