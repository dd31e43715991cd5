"""PointMix in a few lines: data, training of a small population, returns. Shared by the tests of the algorithms."""

from operator import itemgetter

import jax
import jax.numpy as jnp
import numpy as np

from algos.runner import init_population, make_chunk
from envs import pointmix
from envs.core import Dataset, Transition

ENV = pointmix.make()
SPEC = ENV.spec


def dataset(rho, episodes=300):
    """PointMix data, observations not normalised; a share `rho` of the episodes is the expert's."""
    return Dataset(pointmix.make_dataset(0, rho, episodes), jnp.zeros(2), jnp.ones(2))


def random_batch(seed=0, size=16, spec=SPEC, scale=1.0):
    """Standard normal transitions, a third of them terminal."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(scale * rng.standard_normal(shape), jnp.float32)  # noqa: E731
    action = jnp.tanh(draw(size, spec.action_dim)) * spec.max_action
    terminated = jnp.asarray(np.arange(size) % 3 == 0, jnp.float32)
    obs, next_obs = draw(size, spec.obs_dim), draw(size, spec.obs_dim)
    return Transition(obs, action, draw(size), next_obs, terminated, jnp.zeros(size))


def population(algo, hyper, seeds=2, how="map"):
    """Members that differ in the seed alone."""
    stacked = jax.tree.map(lambda x: jnp.full(seeds, x, jnp.float32), hyper)
    return init_population(algo, jnp.arange(seeds), stacked, how)


def train(algo, hyper, source, steps, seeds=2, how="map"):
    """The population after one chunk of `steps` steps, and the chunk's metrics."""
    return make_chunk(algo, steps, how)(population(algo, hyper, seeds, how), source, jnp.int32(0))


def mean_return(policy, key, episodes=200):
    """Mean undiscounted return of policy(key, obs), with obs (episodes, 2), over one horizon."""

    def body(carry, key):
        state, obs = carry
        state, out = jax.vmap(ENV.step, (None, 0, 0, None))(key, state, policy(key, obs), ENV.params)
        return (state, out.obs), out.reward

    reset_key, run_key = jax.random.split(key)
    start = jax.vmap(ENV.reset, (0, None))(jax.random.split(reset_key, episodes), ENV.params)
    return jax.lax.scan(body, start, jax.random.split(run_key, ENV.horizon))[1].sum(0).mean()


def returns(algo, trained):
    """Return of each member's evaluation policy: (members,)."""
    member = lambda s, h: mean_return(lambda k, obs: algo.act(k, s, obs, h), jax.random.key(7))  # noqa: E731
    return jax.jit(lambda s, h: jax.lax.map(lambda x: member(*x), (s, h)))(trained.state, trained.hyper)


def random_return():
    """Return of uniformly random actions."""
    return mean_return(lambda k, obs: jax.random.uniform(k, obs.shape, minval=-1.0), jax.random.key(7))


def member(algo, hyper):
    """The initial state of one member."""
    return algo.init(jax.random.key(0), hyper)


def twins(params):
    """The parameters of each of two critics."""
    return [jax.tree.map(itemgetter(i), params) for i in (0, 1)]


def scattered_targets(state):
    """The state with target networks that differ from the online ones, so that tests can tell them apart."""
    names = [name for name in state._fields if name.startswith("target_")]
    return state._replace(**{name: jax.tree.map(lambda x: 0.8 * x + 0.1, getattr(state, name)) for name in names})


def assert_first_adam_step(after, before, optim, grads, lr):
    """Adam's first step by hand: the first moment is 0.1 g, and each entry moves by lr g / (|g| + 1e-8).

    Entries whose gradient is rounding error may move either way.
    """
    assert_close(jax.tree.map(lambda m: 10.0 * m, optim[0].mu), grads, rtol=1e-3, atol=1e-5)

    def check(after, before, grad):
        expected = before - lr * grad / (jnp.abs(grad) + 1e-8)
        clear = jnp.abs(grad) > 1e-5
        assert clear.any()
        np.testing.assert_allclose(after[clear], expected[clear], rtol=0.0, atol=0.02 * lr)

    jax.tree.map(check, after, before, grads)


def assert_close(actual, expected, rtol=2e-5, atol=2e-6):
    """Equal trees up to rounding."""
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol, atol), actual, expected)


def assert_equal(actual, expected):
    """Equal trees, bit for bit."""
    jax.tree.map(np.testing.assert_array_equal, actual, expected)
