import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from algos.distributions import gaussian_log_prob, tanh_gaussian

RNG = np.random.default_rng(0)


def test_gaussian_log_prob_equals_scipy():
    x, mean, log_std = RNG.standard_normal((3, 5, 4))
    expected = stats.norm.logpdf(x, mean, np.exp(log_std)).sum(-1)
    actual = gaussian_log_prob(jnp.asarray((x - mean) / np.exp(log_std)), jnp.asarray(log_std))
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_tanh_gaussian_equals_the_change_of_variables():
    mean, log_std, noise = RNG.standard_normal((3, 50, 3)) * 0.5
    action, log_prob = tanh_gaussian(jnp.asarray(mean), jnp.asarray(log_std), jnp.asarray(noise), 2.5)
    u = mean + np.exp(log_std) * noise
    slope = 2.5 * (1.0 - np.tanh(u) ** 2)
    expected = (stats.norm.logpdf(u, mean, np.exp(log_std)) - np.log(slope)).sum(-1)
    np.testing.assert_allclose(action, 2.5 * np.tanh(u), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(log_prob, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("mean", "log_std", "max_action"), [(0.0, 0.0, 1.0), (0.8, -1.0, 3.0)])
def test_tanh_gaussian_density_integrates_to_one(mean, log_std, max_action):
    noise = jnp.linspace(-8.0, 8.0, 4001)[:, None]
    action, log_prob = tanh_gaussian(jnp.full((1,), mean), jnp.full((1,), log_std), noise, max_action)
    density = np.exp(np.asarray(log_prob, np.float64))
    assert np.trapezoid(density, np.asarray(action[:, 0], np.float64)) == pytest.approx(1.0, abs=1e-3)


def test_saturated_actions_have_exact_densities_and_finite_gradients():
    log_prob = lambda mean: tanh_gaussian(mean, jnp.zeros(1), jnp.zeros(1), 1.0)[1]  # noqa: E731
    for mean in (30.0, -30.0, 300.0):
        # tanh is 1 in float32, but log(1 - tanh(u)^2) -> 2 log 2 - 2 |u|
        expected = -0.5 * np.log(2.0 * np.pi) - 2.0 * np.log(2.0) + 2.0 * abs(mean)
        value, slope = jax.value_and_grad(lambda m: log_prob(m).sum())(jnp.full((1,), mean))
        assert value == pytest.approx(expected, rel=1e-6)
        assert slope[0] == pytest.approx(2.0 * np.sign(mean), rel=1e-6)
