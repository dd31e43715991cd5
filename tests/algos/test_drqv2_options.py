"""Options of DrQ-v2's networks, losses and augmentation that are there all the time."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from algos.buffers import NStepBatch
from algos.drqv2 import learn, nets
from algos.drqv2.fau import active_counts, fraction_active
from algos.drqv2.nets import Options
from algos.drqv2.settings import Hyper, Static
from tests.algos import toy

pytestmark = pytest.mark.usefixtures("quick_compilation")
SIZES, IMAGE = (32, 3, 10, 64), (15, 15, 3)  # features, actions, widths of trunk and hidden layers
KEYS = jax.random.split(jax.random.key(0), 4)


def fresh(**options: bool) -> dict[str, Any]:
    """The three networks with options."""

    @jax.jit
    def make() -> dict[str, Any]:
        given = Options(**options)
        return {
            "encoder": nets.init_encoder(KEYS[0], IMAGE[2], given),
            "actor": nets.init_actor(KEYS[1], *SIZES, given),
            "critic": nets.init_critic(KEYS[2], *SIZES, given),
        }

    return make()


@pytest.fixture(scope="module")
def inputs() -> tuple[jax.Array, jax.Array, jax.Array]:
    keys = jax.random.split(KEYS[3], 3)
    pixels = jax.random.uniform(keys[0], (8, *IMAGE), maxval=255.0)
    return pixels, jax.random.normal(keys[1], (8, 32)), jax.random.uniform(keys[2], (8, 3), minval=-1.0)


def without_norms(params: Any) -> Any:
    """The parameters with no option in them."""
    if not isinstance(params, dict):
        return params
    return {name: without_norms(part) for name, part in params.items() if name not in ("norm", nets.FIXED)}


@jax.jit
def run(networks: dict[str, Any], pixels: jax.Array, features: jax.Array, action: jax.Array) -> dict[str, Any]:
    """Outputs and hidden layers of the three networks."""
    return {
        "encoder": nets.encoder(networks["encoder"], pixels),
        "actor": nets.actor(networks["actor"], features),
        "critic": nets.critic(networks["critic"], features, action),
    }


def test_layer_norm_makes_hidden_layers_blind_to_scale(inputs):
    networks = fresh(layer_norm=True)
    assert all("norm" in layer for layer in networks["encoder"].values())
    for mlp in (networks["actor"]["policy"], networks["critic"]["heads"]):
        assert ["norm" in mlp[f"dense{i}"] for i in range(3)] == [True, True, False]

    def stretched(path: Any, x: jax.Array) -> jax.Array:
        names = [key.key for key in path]
        return 5.0 * x if names[-1] == "kernel" and names[-2] in ("conv2", "dense0", "dense1") else x

    first, second = run(networks, *inputs), run(jax.tree_util.tree_map_with_path(stretched, networks), *inputs)
    # the output layer has no norm, and its kernel has not been stretched
    toy.assert_close(first, second, rtol=1e-3, atol=2e-3)
    bare = run(without_norms(networks), *inputs)
    for net in ("encoder", "actor", "critic"):
        assert np.abs(first[net][0] - bare[net][0]).max() > 1e-2
        before = np.asarray(first[net][1][1])
        # of standard normal units what ReLU leaves has a mean square of 1/2
        assert np.square(before).mean() == pytest.approx(0.5, abs=0.1)


def test_half_of_the_critics_units_are_active_with_crelu(inputs):
    networks = fresh(crelu=True)
    heads = networks["critic"]["heads"]
    assert [heads[f"dense{i}"]["kernel"].shape[1:] for i in range(3)] == [(13, 64), (128, 64), (128, 1)]
    toy.assert_equal(networks["actor"], fresh()["actor"])
    q, hidden = run(networks, *inputs)["critic"]
    assert q.shape == (2, 8)
    assert fraction_active(hidden) == 0.5
    np.testing.assert_array_equal(active_counts(hidden), [2 * 8 * 64] * 2)
    for x in hidden:
        np.testing.assert_array_equal(x[..., :64] * x[..., 64:], 0.0)


def test_spectral_norm_divides_by_the_largest_singular_value(inputs):
    plain, networks = fresh(), fresh(spectral_norm=True)
    # fresh kernels have no singular value but 1
    toy.assert_close(run(networks, *inputs)["critic"], run(plain, *inputs)["critic"], rtol=1e-4, atol=1e-5)
    noise = 0.3 * jax.random.normal(KEYS[3], (32, 10))

    @jax.jit
    def settle(params):
        dense = {"kernel": params["trunk"]["dense"]["kernel"] + noise, "bias": jnp.ones(10)}
        params = params | {"trunk": params["trunk"] | {"dense": dense}}
        return jax.lax.scan(lambda x, _: (nets.iterate_power(x), None), params, length=100)[0]

    for name in ("actor", "critic"):
        params = settle(networks[name])
        kernel, direction = params["trunk"]["dense"]["kernel"], params[nets.FIXED]["direction"]
        largest = np.linalg.norm(kernel, ord=2)
        assert largest > 1.5
        np.testing.assert_allclose(nets.spectral_scale(kernel, direction), 1.0 / largest, rtol=1e-3)
        x = inputs[1] @ kernel / largest + 1.0
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        np.testing.assert_allclose(nets.trunk(params["trunk"], inputs[1], direction), np.tanh(x), atol=1e-4)
    zero = nets.spectral_scale(jnp.zeros((32, 10)), direction)
    assert jnp.isfinite(jax.grad(nets.spectral_scale)(jnp.zeros((32, 10)), direction)).all()
    assert jnp.isfinite(zero)


def test_weight_decay_and_l2_init_are_added_to_the_gradient():
    params = {"trunk": {"w": jnp.array([1.0, -2.0, 0.5])}, "heads": {"b": jnp.array([4.0])}}
    initial = {"trunk": {"w": jnp.array([1.0, 0.0, 0.0])}, "heads": {"b": jnp.array([3.0])}}
    grads = {"trunk": {"w": jnp.array([0.1, 0.2, 0.3])}, "heads": {"b": jnp.array([-1.0])}}
    hyper = Hyper(lr=0.01, weight_decay=0.1, l2_init_weight=0.5)
    with_fixed = params | {nets.FIXED: {"base": jnp.array([7.0])}}
    given = grads | {nets.FIXED: {"base": jnp.array([0.0])}}
    expected = {"trunk": {"w": jnp.array([0.2, 0.0 - 2.0, 0.35 + 0.5])}, "heads": {"b": jnp.array([0.4])}}
    for start, slope in ((params, grads), (with_fixed, given)):
        new, optim = learn.improve(start, slope, learn.begin_adam(start), hyper, initial)
        states = optim if isinstance(optim, dict) else {"trunk": optim, "heads": optim}
        mu = {name: states[name][0].mu.get(name, states[name][0].mu) for name in ("trunk", "heads")}
        toy.assert_close(jax.tree.map(lambda m: 10.0 * m, mu), expected)
        assert new.get(nets.FIXED) == start.get(nets.FIXED)
        np.testing.assert_allclose(new["trunk"]["w"], params["trunk"]["w"] - 0.01 * jnp.sign(expected["trunk"]["w"]))
    np.testing.assert_allclose(learn.l2_init_penalty(with_fixed, initial), 4.0 + 0.25 + 1.0)
    assert learn.l2_init_penalty(with_fixed, params) == 0.0


def test_updates_with_all_options():
    static = Static(8, 10, 32, layer_norm=True, crelu=True, spectral_norm=True, l2_init=True)
    images = jax.random.randint(KEYS[0], (2, 8, *IMAGE), 0, 256).astype(jnp.uint8)
    action = jax.random.uniform(KEYS[1], (8, 3), minval=-1.0)
    batch = NStepBatch(images[0], action, jnp.ones(8), jnp.full(8, 0.97), images[1])
    draws = learn.draw(KEYS[2], 8, 3)
    agent = jax.jit(partial(learn.init_agent, static=static, image=IMAGE, action_dim=3))(KEYS[3])
    update = jax.jit(learn.learn)
    hyper = Hyper(lr=1e-3)
    first, metrics = update(agent, batch, draws, 0, hyper)
    assert metrics["l2_init"] == 0.0
    assert metrics["fau_critic"] == 0.5
    second, metrics = update(first, batch, draws, 2, hyper)
    np.testing.assert_allclose(metrics["l2_init"], 0.01 * learn.l2_init_penalty(first.critic, agent.initial), rtol=1e-5)
    assert metrics["l2_init"] > 0.0
    toy.assert_equal(second.initial, agent.initial)
    for name in ("actor", "critic", "target_critic"):
        before, after = getattr(first, name), getattr(second, name)
        kernel = np.asarray(after["trunk"]["dense"]["kernel"], np.float64)
        along = np.asarray(before[nets.FIXED]["direction"], np.float64)
        if name == "target_critic":
            along = 0.01 * np.asarray(second.critic[nets.FIXED]["direction"]) + 0.99 * along
        along = kernel.T @ (kernel @ along)
        # one power iteration, with the kernel after its step
        np.testing.assert_allclose(after[nets.FIXED]["direction"], along / np.linalg.norm(along), atol=1e-5)


def test_augmentation_is_on_between_two_steps():
    steps = jnp.array([0, 99, 100, 199, 200])
    on = lambda hyper: learn.augment_at(steps, hyper).tolist()  # noqa: E731
    assert on(Hyper()) == [1.0] * 5
    assert on(Hyper(augment_from=100.0)) == [0.0, 0.0, 1.0, 1.0, 1.0]
    assert on(Hyper(augment_until=200.0)) == [1.0, 1.0, 1.0, 1.0, 0.0]
    assert on(Hyper(augment_from=100.0, augment_until=200.0)) == [0.0, 0.0, 1.0, 1.0, 0.0]
    assert on(Hyper(augment=0.0)) == [0.0] * 5
