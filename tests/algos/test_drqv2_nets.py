"""DrQ-v2's networks: initial values, constants, and the share of active units."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from algos.core import Params, UsageError
from algos.drqv2 import nets
from algos.drqv2.fau import active_counts, fraction_active
from algos.drqv2.learn import init_agent
from algos.drqv2.settings import Static

pytestmark = pytest.mark.usefixtures("quick_compilation")
STATIC = Static(batch_size=8, feature_dim=10, hidden_dim=64)
IMAGE, ACTIONS = (17, 19, 6), 3


@pytest.fixture(scope="module")
def agent():
    return jax.jit(lambda key: init_agent(key, STATIC, IMAGE, ACTIONS))(jax.random.key(0))


@pytest.fixture(scope="module")
def inputs():
    keys = jax.random.split(jax.random.key(1), 2)
    pixels = jax.random.randint(keys[0], (8, *IMAGE), 0, 256).astype(jnp.uint8)
    return pixels, jax.random.uniform(keys[1], (8, ACTIONS), minval=-1.0)


def size(params: Params) -> int:
    return sum(x.size for x in jax.tree.leaves(params))


def test_sizes_are_those_of_the_paper():
    paper = jax.eval_shape(lambda key: init_agent(key, Static(), (84, 84, 9), 6), jax.random.key(0))
    assert size(paper.encoder) == 30_368
    assert size(paper.actor) == 3_068_124
    assert size(paper.critic) == size(paper.target_critic) == 4_178_136
    assert nets.feature_size(84, 84) == 39_200
    assert nets.feature_size(36, 36) == 3_872


def test_kernels_start_orthogonal_and_biases_at_zero(agent):
    biases = [x for path, x in jax.tree_util.tree_leaves_with_path(agent[:3]) if path[-1].key == "bias"]
    assert not any(np.any(x) for x in biases)
    for i in range(1, 5):
        kernel = agent.encoder[f"conv{i}"]["kernel"].reshape(-1, 32)
        np.testing.assert_allclose(kernel.T @ kernel, 2.0 * np.eye(32), atol=1e-5)
    heads = [jax.tree.map(lambda x: x[i], agent.critic["heads"]) for i in range(2)]  # noqa: B023
    for net in (agent.actor["policy"], *heads):
        for layer in net.values():
            kernel = layer["kernel"] if layer["kernel"].shape[0] < layer["kernel"].shape[1] else layer["kernel"].T
            np.testing.assert_allclose(kernel @ kernel.T, np.eye(len(kernel)), atol=1e-5)
    assert np.abs(heads[0]["dense1"]["kernel"] - heads[1]["dense1"]["kernel"]).max() > 0.01
    jax.tree.map(np.testing.assert_array_equal, agent.critic, agent.target_critic)


def test_layer_norm_has_pytorchs_epsilon():
    """A row of variance 1e-6 comes out with standard deviation √(1/11); flax's epsilon would give 0.71."""
    row = jnp.where(jnp.arange(50) % 2 == 0, 1e-3, -1e-3)
    bias = jnp.linspace(-0.2, 0.2, 50)
    params = {
        "dense": {"kernel": jnp.eye(50), "bias": jnp.zeros(50)},
        "layernorm": {"scale": jnp.ones(50), "bias": jnp.zeros(50)},
    }
    np.testing.assert_allclose(jnp.arctanh(nets.trunk(params, row)).std(), np.sqrt(1 / 11), rtol=1e-4)
    params["layernorm"]["bias"] = bias
    np.testing.assert_allclose(nets.trunk(params, jnp.full(50, 7.0)), jnp.tanh(bias), rtol=1e-6)


def test_both_critics_see_the_action_and_share_the_trunk(agent, inputs):
    features, *_ = nets.encoder(agent.encoder, inputs[0])
    q, _ = nets.critic(agent.critic, features, inputs[1])
    other, _ = nets.critic(agent.critic, features, -inputs[1])
    assert q.shape == (2, 8)
    assert (q != other).all()
    assert (q[0] != q[1]).all()


def with_biases(critic: Params, values: tuple[float, float]) -> Params:
    """The critic with biases in the heads' hidden layers; those of the second layer outweigh its inputs."""
    heads = dict(critic["heads"])
    for name, factor in {"dense0": 1.0, "dense1": 1e3}.items():
        bias = jnp.broadcast_to(factor * jnp.array(values)[:, None], heads[name]["bias"].shape)
        heads[name] = heads[name] | {"bias": bias}
    return critic | {"heads": heads}


def test_active_units_are_pooled_over_batch_and_layers(agent, inputs):
    features, hidden, _ = nets.encoder(agent.encoder, inputs[0])
    counts = active_counts(hidden)
    np.testing.assert_array_equal(counts, [int((np.asarray(x) > 0).sum()) for x in hidden])
    total = sum(x.size for x in hidden)
    assert total == 8 * 32 * (8 * 9 + 6 * 7 + 4 * 5 + 2 * 3)
    np.testing.assert_allclose(fraction_active(hidden), counts.sum() / total, rtol=1e-6)

    def phi(critic: Params, order: slice = slice(None)) -> float:
        return float(fraction_active(nets.critic(critic, features[order], inputs[1][order])[1]))

    fresh = phi(agent.critic)
    assert 0.4 < fresh < 0.6
    assert phi(agent.critic, slice(None, None, -1)) == fresh
    assert phi(with_biases(agent.critic, (1e3, 1e3))) == 1.0
    assert phi(with_biases(agent.critic, (-1e3, -1e3))) == 0.0
    one_dead = phi(with_biases(agent.critic, (-1e3, 1e3)))
    assert one_dead == 0.5


def test_dead_heads_pass_no_gradient_on(agent, inputs):
    features, *_ = nets.encoder(agent.encoder, inputs[0])
    dead = with_biases(agent.critic, (-1e3, -1e3))
    slope = jax.grad(lambda x: nets.critic(dead, x, inputs[1])[0].sum())(features)
    assert not slope.any()


def test_exactly_zero_is_not_active():
    assert fraction_active([jnp.array([[0.0, 1.0], [-0.0, 1e-30]])]) == 0.5


@pytest.mark.parametrize("image", [(14, 84, 9), (84, 14, 9)])
def test_images_too_small_for_the_encoder_are_refused(image):
    with pytest.raises(UsageError, match=f"{image[0]}x{image[1]} are too small"):
        init_agent(jax.random.key(0), STATIC, image, ACTIONS)
    smallest = jax.eval_shape(lambda key: init_agent(key, STATIC, (15, 15, 9), ACTIONS), jax.random.key(0))
    assert smallest.actor["trunk"]["dense"]["kernel"].shape == (32, 10)


@pytest.mark.parametrize("name", ["batch_size", "feature_dim", "hidden_dim", "nstep"])
def test_sizes_below_one_are_refused(name):
    wrong: dict[str, Any] = {name: 0}
    with pytest.raises(UsageError, match=rf"algo\.static\.{name} is at least 1"):
        Static(**wrong)
