"""MRA's networks: the promises of the paper's definitions, written out; initialisers; bad settings."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from algos.core import Params
from algos.mra import initial, nets, objectives
from algos.mra.initial import init_params
from algos.mra.learn import Learner
from algos.mra.observe import Observation
from algos.mra.settings import CHOICES, OFFICIAL, Hyper, Static
from envs.core import UsageError
from tests.algos.mra_games import EVERY_SWITCH, STATIC, draw_batch, draw_obs, fresh

pytestmark = pytest.mark.usefixtures("quick_compilation")
KINDS = 2


def mlp(params: Params, x: np.ndarray) -> np.ndarray:
    first, last = params["fc1"], params["fc2"]
    hidden = np.maximum(x @ np.asarray(first["kernel"]) + np.asarray(first["bias"]), 0.0)
    return hidden @ np.asarray(last["kernel"]) + np.asarray(last["bias"])


def softmax_row(logits: np.ndarray) -> np.ndarray:
    x = np.exp(logits - logits.max())
    return x / x.sum()


def of_kind(params: Params, kind: int) -> Params:
    return jax.tree.map(lambda x: x[kind], params)


def written_out(learner: Params, obs: Observation, skill: np.ndarray, action: np.ndarray) -> tuple:
    """Graph, policy logits, critic's outputs and task logits of one row of N agents of two kinds, agent by agent."""
    n = len(skill)
    own, seen = np.asarray(obs.own), np.asarray(obs.others)
    relation, critic = learner["relation_net"], learner["critic"]
    queries = mlp(relation["self_proj"], own).reshape(n, -1, 16)
    keys = mlp(relation["other_proj"], seen).reshape(n, n, -1, 16)
    graph, attention = np.zeros((n, n)), np.zeros((n, n))
    key = mlp(critic["other_proj"], seen)
    for i in range(n):
        js = [j for j in range(n) if j != i]
        graph[i, js] = softmax_row(keys[i, js, skill[i]] @ queries[i, skill[i]] / 8.0)
        attention[i, js] = softmax_row(key[i, js] @ mlp(critic["self_proj"], own[i]) / 8.0)
    x = np.concatenate([np.einsum("ij,ijd->id", attention, mlp(critic["value_net"], seen)), np.eye(5)[action]], -1)
    mixed = mlp(critic["mix_value"], x)
    context = np.concatenate([mixed + graph @ mixed, mlp(critic["self_value"], x)], -1)
    logits, outputs = np.zeros((n, 5)), np.zeros((n, 5))
    for i in range(n):
        policy, out = of_kind(learner["policy"], i % KINDS), of_kind(critic["out"], i % KINDS)
        embedding = graph[i] @ mlp(policy["value_net"], seen[i])
        logits[i] = mlp(policy["action_head"], np.concatenate([embedding, own[i]]))
        outputs[i] = context[i] @ np.asarray(out["kernel"]) + np.asarray(out["bias"])
    predictor = learner["task_predictor"]
    embedding = np.einsum("ij,ijd->id", graph, mlp(predictor["value_net"], seen))
    task = mlp(predictor["head"], np.concatenate([embedding, np.eye(EVERY_SWITCH.skills)[skill]], -1)).sum(0)
    return graph, logits, outputs, task


def test_networks_are_those_of_the_paper_agent_by_agent_with_two_kinds() -> None:
    learner, obs = fresh(EVERY_SWITCH, KINDS), draw_obs(3, 4, 4, KINDS)
    skill, action = np.array([0, 2, 1, 2]), np.array([4, 0, 1, 3])

    @jax.jit
    def ours(learner: Learner, skill: jax.Array) -> tuple:
        graph = nets.relation_graph(learner.relation_net, obs, skill)
        logits = nets.policy_logits(learner.policy, obs, graph)
        outputs = nets.critic_outputs(learner.critic, obs, jnp.broadcast_to(action, obs.mask.shape), graph)
        task = nets.task_logits(learner.task_predictor, obs, graph, skill)
        return graph, logits, outputs, task, nets.relation_graphs(learner.relation_net, obs)

    *found, graphs = ours(learner, jnp.eye(EVERY_SWITCH.skills)[skill])
    for row in (0, 4):
        expected = written_out(learner._asdict(), Observation(*(x[row] for x in obs)), skill, action)
        for x, y in zip(found, expected):
            np.testing.assert_allclose(x[row], y, atol=2e-5)
    np.testing.assert_allclose(graphs[skill, :, np.arange(4)], jnp.moveaxis(found[0], 1, 0), atol=1e-6)
    # the bias of the keys shifts all logits of a row alike
    learner.relation_net["other_proj"]["fc2"]["bias"] += 3.0
    np.testing.assert_allclose(ours(learner, jnp.eye(EVERY_SWITCH.skills)[skill])[0], found[0], atol=1e-6)


def test_what_agents_see_of_each_other() -> None:
    obs = draw_obs(0, 3, 4, KINDS)
    own, seen = obs.own[2], obs.others[2]
    np.testing.assert_allclose(seen[0, 1, :2], own[1, 2:4] - own[0, 2:4])
    np.testing.assert_array_equal(seen[0, 1, 2:4], own[1, :2])
    np.testing.assert_array_equal(seen[0, 1, 4:], own[1, 4:])
    np.testing.assert_array_equal(own[:, -2:], [[1, 0], [0, 1], [1, 0], [0, 0]])  # kinds; a padded slot is zero
    np.testing.assert_array_equal(own[3], 0.0)
    np.testing.assert_array_equal(obs.counts[0], [2, 1])


def test_graphs_are_distributions_over_the_others() -> None:
    obs, relation = draw_obs(1, 3, 4), fresh(STATIC).relation_net
    graphs = np.asarray(jax.jit(nets.relation_graphs)(relation, obs))
    assert (graphs >= 0.0).all()
    np.testing.assert_allclose(graphs[:, :, :3].sum(-1), 1.0, rtol=1e-6)
    assert (graphs[:, :, 3] == 0.0).all()
    assert (graphs[..., 3] == 0.0).all()
    assert (graphs[..., np.arange(4), np.arange(4)] == 0.0).all()
    assert abs(graphs[0] - graphs[1]).max() > 0.01
    two = np.asarray(jax.jit(nets.relation_graphs)(relation, draw_obs(1, 2, 4)))
    np.testing.assert_array_equal(two[:, :, :2, :2], np.broadcast_to(1.0 - np.eye(2), (3, 5, 2, 2)))


def test_a_lone_agent_has_no_graph_and_finite_networks() -> None:
    obs, learner = draw_obs(1, 1, 4), fresh(STATIC)
    graphs = jax.jit(nets.relation_graphs)(learner.relation_net, obs)
    np.testing.assert_array_equal(graphs, 0.0)
    assert np.isfinite(nets.policy_logits(learner.policy, obs, graphs[0])).all()


def test_skills_are_drawn_from_their_distribution_with_a_straight_through_gradient() -> None:
    log_probs = jnp.log(jnp.array([0.5, 0.3, 0.2]))
    uniform = jnp.asarray(np.random.default_rng(0).uniform(size=(20_000, 3)), jnp.float32)
    skills = jax.jit(objectives.draw_skill)(log_probs, uniform)
    np.testing.assert_allclose(skills.mean(0), jnp.exp(log_probs), atol=0.015)
    np.testing.assert_allclose(np.sort(skills), np.tile([0.0, 0.0, 1.0], (20_000, 1)), atol=1e-6)
    gumbel = -jnp.log(-jnp.log(uniform[0]))
    ours = jax.jacobian(lambda x: objectives.draw_skill(x, uniform[0]))(log_probs)
    np.testing.assert_allclose(ours, jax.jacobian(lambda x: jax.nn.softmax(x + gumbel))(log_probs), atol=1e-6)
    assert np.isfinite(objectives.draw_skill(log_probs, jnp.zeros(3))).all()


def test_scrambled_graphs_are_those_of_a_flattened_transpose() -> None:
    n, batch = 3, draw_batch(3, 5)
    assert batch.graph is not None
    off = np.array([[j for j in range(n) if j != i] for i in range(n)])
    slots = np.asarray(batch.graph)[:, np.arange(n)[:, None], off]  # (B, n, n - 1)
    expected = slots.transpose(1, 0, 2).reshape(-1, n - 1).reshape(slots.shape)
    scrambled = np.asarray(objectives.scramble(batch.graph, batch.obs))
    np.testing.assert_array_equal(scrambled[:, np.arange(n)[:, None], off], expected)
    assert (scrambled[:, 3:] == 0.0).all()
    assert (scrambled[:, :, 3:] == 0.0).all()


def test_initial_parameters_have_the_stated_numbers_and_spreads() -> None:
    official, two_kinds = Static(**OFFICIAL["static"]), initial.policy(Static(), width=24, kinds=2)
    made = jax.jit(lambda key: (init_params(key, official, 22, 1, 4), initial.draw(key, two_kinds)))
    params, stacked = made(jax.random.key(0))
    numbers = {name: sum(x.size for x in jax.tree.leaves(net)) for name, net in params.items()}
    assert numbers == {
        "relation_net": 7808, "policy": 5093, "critic": 10373, "task_encoder": 30, "task_predictor": 5333 + 36 * 4,
    }  # fmt: skip
    value, head = params["policy"]["value_net"], params["policy"]["action_head"]
    assert float(jnp.std(value["fc2"]["kernel"])) == pytest.approx(0.1, rel=0.06)
    assert float(jnp.abs(value["fc2"]["bias"]).max()) > 0.05
    assert float(jnp.std(head["fc1"]["kernel"])) == pytest.approx((2.0 / (64 + 32)) ** 0.5, rel=0.06)
    assert 0.1 < float(jnp.abs(head["fc1"]["bias"]).max()) < 64**-0.5
    proj = params["relation_net"]["self_proj"]["fc2"]
    assert float(jnp.std(proj["kernel"])) == pytest.approx((2.0 / (32 + 96)) ** 0.5, rel=0.06)
    assert float(jnp.abs(proj["bias"]).max()) == 0.0
    of_critic = params["critic"]["value_net"]["fc2"]
    assert float(jnp.std(of_critic["kernel"])) == pytest.approx((2.0 / (32 + 64)) ** 0.5, rel=0.06)
    assert float(jnp.abs(of_critic["bias"]).max()) == 0.0
    mix = params["critic"]["mix_value"]["fc1"]["kernel"]
    assert 0.95 * 69**-0.5 < float(jnp.abs(mix).max()) <= 69**-0.5
    default = jax.eval_shape(lambda: init_params(jax.random.key(0), Static(), 22, 1, 4))
    assert "bias" not in default["critic"]["other_proj"]["fc2"]
    kernel = stacked["value_net"]["fc1"]["kernel"]
    assert kernel.shape == (2, 24, 32)
    assert float(jnp.abs(kernel[0] - kernel[1]).max()) > 0.1


@pytest.mark.parametrize(
    "name", [*CHOICES, "skills", "resamples", "envs", "batch_size", "cycle_steps", "cycle_updates"]
)
def test_bad_settings_are_refused_in_one_line(name: str) -> None:
    wrong: dict[str, Any] = {name: "nonsense" if name in CHOICES else 0}
    with pytest.raises(UsageError, match=f"algo.static.{name}[ =]") as error:
        Static(**wrong)
    assert "\n" not in str(error.value)


def test_a_buffer_smaller_than_a_batch_is_refused_and_official_settings_exist() -> None:
    with pytest.raises(UsageError, match="buffer_size=10 is less than a batch"):
        Static(buffer_size=10)
    assert Static(**OFFICIAL["static"]).next_action_obs == "current"
    assert Hyper(**OFFICIAL["hyper"]).reward_epsilon == 0.0
