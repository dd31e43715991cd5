"""Fast adaptation: what learns, what stays, and where the table of skills goes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from algos.mra import adapt, diversity, learn, nets
from algos.mra.initial import ACTIONS, KEY_WIDTH
from algos.mra.objectives import over_agents
from algos.mra.settings import Hyper, Static
from envs import particles
from tests.algos.mra_games import draw_batch, draw_obs, fresh

pytestmark = pytest.mark.usefixtures("quick_compilation")
STATIC = Static(skills=3, batch_size=8, buffer_size=200, envs=4, cycle_updates=2, cycle_steps=40)
HYPER = Hyper()
ENV = particles.make("resource-3")
LANDMARKS = 6
VALUES = 10.0 * jax.nn.one_hot(1, ACTIONS)
MOVING = {"all": {"policy", "critic", "relation_net"}, "latent_only": {"critic"}}


def same(x: object, y: object) -> bool:
    return all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), x, y)))


@pytest.mark.parametrize("variant", adapt.VARIANTS)
def test_only_what_the_variant_names_learns(variant: str) -> None:
    learner = fresh(STATIC, landmarks=LANDMARKS)  # of three games, with targets of their own
    start = adapt.init(learner, ENV, STATIC, HYPER)
    expected = nets.task_log_probs(learner.task_encoder, jnp.array([3.0]), HYPER.skill_divisor)
    np.testing.assert_array_equal(start.adapted.log_probs, expected)
    assert same(start.adapted.learner.target_policy, learner.policy)
    state, metrics = jax.jit(adapt.make(variant, ENV, STATIC))(jax.random.key(0), start, HYPER)
    assert metrics["cycles"] == 2.0  # of 80 steps, two of which begin another 40
    assert state.replay.added.tolist() == [80]
    after = state.adapted.learner
    for name in ("policy", "critic", "relation_net", "task_encoder", "task_predictor"):
        assert same(getattr(after, name), getattr(learner, name)) == (name not in MOVING[variant]), name
    assert same(after.target_critic, after.critic)
    assert same(after.target_policy, after.policy)
    assert same(state.adapted.log_probs, expected) == (variant == "all")


def test_adaptation_begins_with_fresh_optimisers() -> None:
    learner = fresh(STATIC, landmarks=LANDMARKS)
    used = learner._replace(optim=jax.tree.map(lambda x: x + 1, learner.optim))
    assert same(adapt.init(used, ENV, STATIC, HYPER).adapted.learner.optim, learner.optim)


def alike(layer: dict) -> dict:
    """Every skill's columns are those of the first."""
    return jax.tree.map(lambda x: jnp.tile(x[..., :KEY_WIDTH], STATIC.skills), layer)


@partial(jax.jit, static_argnames=("static",))
def gradient(log_probs: jax.Array, learner: learn.Learner, static: Static) -> jax.Array:
    batch = draw_batch(4, 5)
    draws = adapt.draw_latent(jax.random.key(0), batch, static)
    return jax.grad(adapt.latent_loss, has_aux=True)(log_probs, learner, batch.obs, draws, HYPER)[0]


def test_gradient_of_the_table() -> None:
    """Values that all actions share are none of its business, and where skills are alike it has nothing to learn."""
    learner, table = fresh(STATIC), jnp.array([0.3, -0.2, 0.0])
    found = gradient(table, learner, STATIC)
    assert np.abs(found).max() > 1e-5
    assert abs(found.sum()) < 1e-6
    out = learner.critic["out"]
    raised = learner._replace(critic=learner.critic | {"out": out | {"bias": out["bias"] + 5.0}})
    np.testing.assert_allclose(gradient(table, raised, STATIC), found, atol=2e-5 * 5.0)
    net = {part: blocks | {"fc2": alike(blocks["fc2"])} for part, blocks in learner.relation_net.items()}
    np.testing.assert_allclose(gradient(table, learner._replace(relation_net=net), STATIC), 0.0, atol=1e-6)


def test_the_table_comes_to_favour_the_better_skill(monkeypatch: pytest.MonkeyPatch) -> None:
    """Valued is one action alone: what should grow is how often skills lead to it.

    Skills share their keys, so that attention logits are linear in z, and the policy is far from certain: elsewhere
    straight-through can point astray.
    """
    monkeypatch.setattr(adapt, "LATENT_LR", 0.1)
    monkeypatch.setattr(
        adapt, "critic_outputs", lambda critic, obs, action, graph: jnp.broadcast_to(VALUES, (*action.shape, ACTIONS))
    )
    batch = draw_batch(4, 5)

    @jax.jit
    def train(learner: learn.Learner) -> tuple[jax.Array, jax.Array]:
        graphs = nets.relation_graphs(learner.relation_net, batch.obs)
        probs = jax.nn.softmax(jax.vmap(nets.policy_logits, (None, None, 0))(learner.policy, batch.obs, graphs))
        value = jax.vmap(over_agents, (0, None))(probs @ VALUES, batch.obs).mean(1)  # (Z,)

        def one(adapted: adapt.Adapted, key: jax.Array) -> tuple[adapt.Adapted, None]:
            draws = adapt.draw_latent(key, batch, STATIC)
            return adapt.latent_step(adapted, batch, draws, HYPER)[0], None

        start = adapt.Adapted(learner, jnp.zeros(3), learn.rule(0.0, 0.0).init(jnp.zeros(3)))
        return value, jax.lax.scan(one, start, jax.random.split(jax.random.key(1), 200))[0].log_probs

    for seed in (3, 4, 5):
        learner = fresh(STATIC, seed=seed)
        policy = jax.tree.map(lambda x: 0.7 * x, learner.policy)
        keys = learner.relation_net["other_proj"]
        net = learner.relation_net | {"other_proj": keys | {"fc2": alike(keys["fc2"])}}
        value, table = train(learner._replace(policy=policy, relation_net=net))
        assert jax.nn.softmax(table)[value.argmax()] > 0.9


def test_skills_differ_as_their_heads_do() -> None:
    obs, table = draw_obs(0, 4, 5), jnp.zeros(3)
    learner = fresh(STATIC)
    measure = jax.jit(lambda net: diversity.skill_differences(
        jax.random.key(0), learner._replace(relation_net=net), obs, table, STATIC
    ))  # fmt: skip
    found = measure(learner.relation_net)
    assert 0.0 < found["graph_distance"] < 1.0
    assert 0.0 < found["action_distance"] < found["graph_distance"]
    level = measure(jax.tree.map(jnp.zeros_like, learner.relation_net))  # every graph is uniform
    np.testing.assert_allclose(list(level.values()), 0.0, atol=1e-6)
