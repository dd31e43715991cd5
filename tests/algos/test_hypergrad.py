"""Hypergradients on problems whose answer is known, their diagnostics, and what is refused."""

import doctest
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from algos import hypergrad
from algos.core import Metrics, UsageError
from algos.hypergrad import Settings, curvature_range, implicit, unrolled
from algos.losses import adam, descend

compiled = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # every program runs once
LEVELS = np.array([-0.3, -0.5, -0.8, -1.0, -1.6, -2.0])  # eigenvalues of the quadratic's Hessian


def quadratic(levels: np.ndarray = LEVELS) -> tuple:
    """Hessian H with these eigenvalues, mixed block A (n, 3), g (n,)."""
    rng = np.random.default_rng(0)
    n = len(levels)
    basis = np.linalg.qr(rng.normal(size=(n, n)))[0]
    return basis @ np.diag(levels) @ basis.T, rng.normal(size=(n, 3)), rng.normal(size=n)


def solved(settings: Settings, levels: np.ndarray = LEVELS, dtype: type = np.float32) -> tuple[np.ndarray, Metrics]:
    """The direction on the quadratic."""
    H, A, g = (jnp.asarray(x, dtype) for x in quadratic(levels))
    theta, omega = jnp.ones(len(levels), dtype), jnp.ones(3, dtype)

    def inner(theta: jax.Array, omega: jax.Array) -> jax.Array:
        return theta @ H @ theta / 2 + theta @ A @ omega

    found, metrics = compiled(lambda g, settings: implicit(inner, theta, omega, g, settings))(g, settings)
    assert found.dtype == metrics["residual"].dtype == dtype
    return np.asarray(found), metrics


def test_the_example_of_the_docstring_runs() -> None:
    result = doctest.testmod(hypergrad)
    assert result.attempted >= 7
    assert result.failed == 0


@pytest.mark.parametrize("damping", [0.0, 0.25])
def test_exact_and_conjugate_gradients_solve(damping: float) -> None:
    H, A, g = quadratic()
    expected = -g @ np.linalg.inv(H - damping * np.eye(len(H))) @ A
    for method in ("exact", "cg"):
        with jax.enable_x64(True):
            found, metrics = solved(Settings(method, loops=20, damping=damping), dtype=np.float64)
        np.testing.assert_allclose(found, expected, rtol=1e-10)
        assert float(metrics["residual"]) < 1e-12
        assert np.allclose(solved(Settings(method, loops=20, damping=damping))[0], expected, rtol=1e-4)


def test_a_margin_makes_an_indefinite_hessian_safe() -> None:
    levels = LEVELS + 1.0  # from -1.0 to 0.7
    H, A, g = quadratic(levels)
    for method in ("cg", "neumann", "exact"):
        found, metrics = solved(Settings(method, loops=60, margin=0.5, compare=20), levels)
        assert float(metrics["damping"]) == pytest.approx(0.7 + 0.5 * 1.0, rel=1e-4)
        np.testing.assert_allclose(found, -g @ np.linalg.inv(H - 1.2 * np.eye(len(H))) @ A, rtol=2e-3)
        assert float(metrics["cosine_cg"]) > 0.9999
        assert float(metrics["indefinite"]) == 1.0
    # Where it is not needed, the damping asked for stays.
    assert float(solved(Settings("cg", loops=20, damping=0.4, margin=0.1))[1]["damping"]) == pytest.approx(0.4)


def test_neumann_has_one_term_more_than_loops() -> None:
    H, A, g = quadratic()
    step = np.eye(len(H)) + 0.7 * H
    expected = 0.7 * (g + step @ g + step @ step @ g) @ A
    np.testing.assert_allclose(solved(Settings(loops=2, alpha=0.7))[0], expected, rtol=1e-5)
    alone, identity = solved(Settings(loops=0, alpha=0.7))[0], solved(Settings("identity"))[0]
    np.testing.assert_allclose(alone / 0.7, identity, rtol=1e-6)
    np.testing.assert_allclose(identity, g @ A, rtol=1e-5)


def test_neumann_converges_geometrically_with_its_own_step() -> None:
    H, A, g = quadratic()
    with jax.enable_x64(True):
        found = [solved(Settings(loops=k, lanczos=12), dtype=np.float64) for k in (0, 5, 10, 40, 160)]
    residuals = np.array([metrics["residual"] for _, metrics in found])
    ratio = 1 - LEVELS.max() / LEVELS.min()
    np.testing.assert_allclose(found[0][1]["alpha"], 1 / 2.0, rtol=1e-9)
    assert (residuals <= ratio ** np.array([1, 6, 11, 41, 161]) + 1e-12).all()
    np.testing.assert_allclose(found[-1][0], -g @ np.linalg.inv(H) @ A, rtol=1e-9)


def test_divergence_shows() -> None:
    quiet = solved(Settings(loops=60, alpha=0.9))[1]
    loud = solved(Settings(loops=60, alpha=1.1))[1]
    for metrics, alpha in ((quiet, 0.9), (loud, 1.1)):
        np.testing.assert_allclose(metrics["alpha_bound"], 1.0, rtol=1e-4)
        np.testing.assert_allclose(metrics["alpha_curvature"], 2.0 * alpha, rtol=1e-4)
    assert (quiet["diverges"], loud["diverges"]) == (0.0, 1.0)
    assert quiet["residual"] < 1e-3
    assert loud["residual"] > 1e3
    damped = solved(Settings(loops=60, alpha=0.9, damping=0.3))[1]
    assert damped["diverges"] == 1.0


def test_indefinite_curvature_is_flagged() -> None:
    metrics = solved(Settings("cg", loops=20), levels=np.array([-3.0, -1.0, -0.5, 0.1]))[1]
    np.testing.assert_allclose(metrics["curvature_max"], 0.1, atol=1e-5)
    assert metrics["indefinite"] == 1.0
    for levels in (LEVELS, np.array([-3.0, -1.0, -0.5, 0.0])):
        assert solved(Settings("identity"), levels=levels)[1]["indefinite"] == 0.0


def test_curvature_is_seen_from_inside() -> None:
    levels = -np.geomspace(0.01, 100.0, 60)
    H = jnp.asarray(quadratic(levels)[0], jnp.float32)
    seen = compiled(curvature_range, static_argnums=(0, 2))
    low, high = seen(lambda v: H @ v, jnp.zeros(60), 8)
    assert -100.01 < low < -90.0
    assert -10.0 < high < -0.009
    for products in (1, 4, 30):  # more than dimensions
        low, high = seen(lambda v: -2.0 * v, jnp.zeros(3), products)
        np.testing.assert_allclose([low, high], -2.0, rtol=1e-6)


def test_cosine_with_conjugate_gradients() -> None:
    H, A, g = quadratic()
    exact, first = -g @ np.linalg.inv(H) @ A, g @ A
    expected = exact @ first / np.linalg.norm(exact) / np.linalg.norm(first)
    assert expected < 0.99
    np.testing.assert_allclose(solved(Settings("identity", compare=20))[1]["cosine_cg"], expected, rtol=1e-5)
    np.testing.assert_allclose(solved(Settings("exact", compare=20))[1]["cosine_cg"], 1.0, rtol=1e-5)
    assert "cosine_cg" not in solved(Settings("exact"))[1]


@pytest.mark.parametrize("method", hypergrad.METHODS)
def test_a_zero_outer_gradient_gives_zero(method: str) -> None:
    def inner(theta: dict, omega: dict) -> jax.Array:
        return -(theta["a"] ** 2).sum() + omega["b"] * theta["a"][0]

    theta, omega, settings = {"a": jnp.ones(3)}, {"b": jnp.ones(())}, Settings(method, compare=3)
    found, metrics = compiled(implicit, static_argnums=0)(inner, theta, omega, {"a": jnp.zeros(3)}, settings)
    assert found["b"] == 0.0
    assert all(np.isfinite(x) for x in metrics.values())


def test_members_with_other_steps_equal_single_calls() -> None:
    H, A, g = (jnp.asarray(x, jnp.float32) for x in quadratic())

    def member(settings: Settings, scale: jax.Array) -> tuple:
        def inner(theta: dict, omega: dict) -> jax.Array:
            x = jnp.concatenate([theta["a"], theta["b"]])
            return scale * jnp.cos(x).sum() + x @ H @ x / 2 + x @ A @ omega["w"]

        theta = {"a": jnp.linspace(-0.4, 0.3, 2), "b": jnp.linspace(0.1, 0.5, 4)}
        return implicit(inner, theta, {"w": jnp.ones(3)}, {"a": g[:2], "b": g[2:]}, settings)

    alphas, dampings, scales = jnp.array([0.1, 0.5]), jnp.array([0.0, 0.2]), jnp.array([0.0, 1.0])
    for method in ("neumann", "cg"):
        many = compiled(jax.vmap(member))(Settings(method, loops=9, alpha=alphas, damping=dampings), scales)
        for i in range(2):
            one = compiled(member)(Settings(method, loops=9, alpha=alphas[i], damping=dampings[i]), scales[i])
            jax.tree.map(lambda x, y, i=i: np.testing.assert_allclose(x[i], y, rtol=2e-4, atol=1e-5), many, one)


def bandit(c: float = 1.0) -> tuple:
    """Inner objective times c, outer objective, rewards and the theta that is best for them."""
    primary, shaped, lam = jnp.array([0.65, 0.9, 0.03, 0.18]), jnp.array([0.0, 0.7, 0.3, -0.2]), 0.3

    def inner(theta: jax.Array, reward: jax.Array) -> jax.Array:
        policy = jax.nn.softmax(theta)
        return c * policy @ (reward - lam * jax.nn.log_softmax(theta))

    return inner, lambda theta: jax.nn.softmax(theta) @ primary, shaped, lambda reward: reward / lam


def test_a_step_along_the_hypergradient_raises_the_outer_objective_as_it_says() -> None:
    with jax.enable_x64(True):
        inner, outer, reward, best = bandit()
        g = jax.grad(outer)(best(reward))
        for settings in (Settings("exact"), Settings("cg", loops=9), Settings(loops=900)):
            found, metrics = compiled(implicit, static_argnums=0)(inner, best(reward), reward, g, settings)
            assert metrics["indefinite"] == 0.0  # though all logits may shift together
            assert found[1] > 0.0  # the arm with the best primary reward
            gain = outer(best(reward + 1e-5 * found)) - outer(best(reward))
            np.testing.assert_allclose(gain, 1e-5 * found @ found, rtol=1e-4)


def test_the_scale_of_the_inner_objective() -> None:
    """The solution does not depend on it, so the exact direction must not; the first-order one is proportional."""
    found = {}
    for c in (1.0, 7.0):
        inner, outer, reward, best = bandit(c)
        g = jax.grad(outer)(best(reward))
        run = partial(compiled(implicit, static_argnums=0), inner, best(reward), reward, g)
        found[c] = [run(Settings(method))[0] for method in ("exact", "identity")]
    np.testing.assert_allclose(found[7.0][0], found[1.0][0], rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(found[7.0][1], 7.0 * found[1.0][1], rtol=1e-4, atol=1e-6)


def test_unrolled_equals_a_loop_and_tends_to_the_implicit_one() -> None:
    H, A, g = (jnp.asarray(x, jnp.float32) for x in quadratic())
    optimiser, start = adam(0.1), jnp.zeros(6)

    def gradient(theta: jax.Array, omega: jax.Array, noise: jax.Array) -> jax.Array:
        return H @ theta + A @ omega + noise

    def update(carry: tuple, omega: jax.Array, noise: jax.Array) -> tuple:
        theta, optim = carry
        return descend(optimiser, -gradient(theta, omega, noise), optim, theta)

    def loop(omega: jax.Array) -> jax.Array:
        carry = (start, optimiser.init(start))
        for x in noise:
            carry = update(carry, omega, x)
        return carry[0] @ g

    noise, omega = 0.1 * jax.random.normal(jax.random.key(1), (4, 6)), jnp.array([0.3, -0.2, 0.5])
    (theta, _), value, slope = unrolled(update, lambda c: c[0] @ g, (start, optimiser.init(start)), omega, noise)
    expected, expected_slope = jax.value_and_grad(loop)(omega)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(theta @ g, value, rtol=1e-5)
    np.testing.assert_allclose(slope, expected_slope, rtol=1e-3)
    plain = unrolled(
        lambda t, w, _: t + 0.5 * gradient(t, w, jnp.zeros(6)), lambda t: t @ g, start, omega, jnp.zeros(99)
    )
    np.testing.assert_allclose(plain[2], solved(Settings("exact"))[0], rtol=1e-3)


@pytest.mark.parametrize(
    ("settings", "culprit"),
    [
        (Settings("newton"), "hypergrad=newton"),
        (Settings("unrolled"), "`unrolled`"),
        (Settings(loops=-1), "none below 0"),
        (Settings("neumann", lanczos=0), "give alpha"),
        (Settings("cg", lanczos=0, margin=0.1), "a margin needs the curvature"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: Settings, culprit: str) -> None:
    with pytest.raises(UsageError, match=culprit):
        solved(settings)
