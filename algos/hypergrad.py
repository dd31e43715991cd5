"""Hypergradients: how an outer objective changes with what shapes the inner problem.

At theta*(omega) = argmax J(theta; omega), with H = d2J/dtheta2, A = d2J/dtheta domega and g = dJ_out/dtheta there,

    dJ_out/domega = -g^T H^-1 A

(implicit function theorem). Only products with H and A are formed, by forward over reverse mode; theta need not be
exactly optimal. `Settings.method` says what stands for p = H^-1 g:

    neumann   -alpha sum_(j=0..K) (I + alpha H)^j g, K = loops; converges for H < 0 and alpha < 2/|lambda_min(H)|
    identity  -g (first order); K = 0 of the series divided by alpha
    cg        conjugate gradients, at most `loops` iterations; for H < 0
    exact     the pseudo-inverse of the whole Hessian; for small problems

with H - damping I in place of H in all but `identity`. A `margin` raises the damping to where H - damping I is negative
definite, with a condition number of at most about (2 + margin)/margin: the safeguard for a theta that is no maximum.
`unrolled` differentiates through the learner's steps instead.

Three members on one quadratic J = -theta.C.theta/2 + theta.omega: theta* = C^-1 omega and dJ_out/domega = C^-1 g.

>>> import jax, jax.numpy as jnp
>>> from algos.hypergrad import Settings, implicit
>>> C, omega = jnp.diag(jnp.array([1.0, 2.0, 4.0])), jnp.array([1.0, 2.0, -4.0])
>>> inner = lambda theta, omega: -theta @ C @ theta / 2 + theta @ omega
>>> theta, g = jnp.linalg.solve(C, omega), jnp.array([1.0, 1.0, 1.0])
>>> def member(alpha):
...     return implicit(inner, theta, omega, g, Settings("neumann", loops=20, alpha=alpha))
>>> direction, diagnostics = jax.vmap(member)(jnp.array([0.25, 0.4, 0.6]))
>>> [[round(float(x), 2) for x in row] for row in direction[:2]]  # the third diverges
[[1.0, 0.5, 0.25], [1.0, 0.5, 0.25]]
>>> diagnostics["diverges"].tolist(), round(float(diagnostics["alpha_bound"][0]), 2)
([0.0, 0.0, 1.0], 0.5)
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.scipy.sparse.linalg import cg
from jax.typing import ArrayLike

from algos.core import Metrics, Params, UsageError
from algos.lapack import unbatched_on_cpus

METHODS = ("neumann", "identity", "cg", "exact")
Product = Callable[[jax.Array], jax.Array]  # v (n,) -> H v (n,), symmetric

static = partial(field, metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclass
class Settings:
    """How H^-1 g is found. alpha and damping may be traced and differ between members, the rest is static."""

    method: str = static(default="neumann")
    loops: int = static(default=5)  # K of the Neumann series; the most iterations of conjugate gradients
    alpha: ArrayLike | None = None  # step of the Neumann series; None: 1/|lambda|, of the largest curvature seen
    damping: ArrayLike = 0.0  # taken off the diagonal of H; has to exceed its largest eigenvalue for cg and neumann
    lanczos: int = static(default=8)  # products spent on looking at the curvature; 0: not looked at
    compare: int = static(default=0)  # iterations of conjugate gradients to compare with; 0: not compared
    margin: ArrayLike | None = None  # distance of the damped H from 0, in largest |eigenvalues| seen; None: as it is


def implicit(
    inner: Callable[[Params, Params], jax.Array],
    theta: Params,
    omega: Params,
    outer_grad: Params,
    settings: Settings,
    curvature: Callable[[Params], jax.Array] | None = None,
) -> tuple[Params, Metrics]:
    """The ascent direction -g^T H^-1 A, like omega, and scalars that tell how far to trust it.

    `inner(theta, omega)` is the objective that theta maximises, `outer_grad` is g, like theta. `curvature(theta)` is
    an objective to take H from instead of the inner one, where that has a better-behaved substitute. Scalars:

        residual       ||(H - damping) p - g|| / ||g||
        curvature_min, curvature_max    extreme eigenvalues of H as far as seen, never beyond the true ones
        indefinite     1 where the largest is positive beyond rounding: theta is no maximum, the answer no derivative
        damping        with a margin only: what has been taken off the diagonal
        alpha, alpha_bound, alpha_curvature    Neumann only: its step, 2/|lambda| and alpha |lambda|
        diverges       Neumann only: 1 where alpha |lambda| > 2, lambda being the largest in size as far as seen
        cosine_cg      of the direction and the one by conjugate gradients, where `settings.compare` asks for it

    Raises UsageError for settings that make no sense.
    """
    check(settings)
    gradient = jax.grad(inner if curvature is None else lambda t, _: curvature(t))
    flat_theta, unravel = ravel_pytree(theta)
    g = ravel_pytree(outer_grad)[0]
    _, product = jax.linearize(lambda t: ravel_pytree(gradient(unravel(t), omega))[0], flat_theta)

    def direction(p: jax.Array) -> Params:
        slope = jax.grad(lambda w: jax.jvp(lambda t: inner(t, w), (theta,), (unravel(p),))[1])(omega)
        return jax.tree.map(jnp.negative, slope)

    p, metrics = solve(product, g, settings)
    found = direction(p)
    if settings.compare:
        other = conjugate(damped(product, metrics.get("damping", settings.damping)), g, settings.compare)
        metrics["cosine_cg"] = cosine(found, direction(other))
    return found, metrics


def check(settings: Settings) -> None:
    """Raise UsageError for settings that make no sense."""
    if settings.method not in METHODS:
        raise UsageError(f"hypergrad={settings.method}: choose one of {', '.join(METHODS)}, or call `unrolled`")
    if settings.loops < 0 or settings.lanczos < 0 or settings.compare < 0:
        raise UsageError("hypergrad: loops, lanczos and compare are numbers of products; give none below 0")
    if settings.method == "neumann" and settings.alpha is None and settings.lanczos == 0:
        raise UsageError("hypergrad=neumann: give alpha, or lanczos > 0 to find it from the curvature")
    if settings.margin is not None and settings.lanczos == 0:
        raise UsageError("hypergrad: a margin needs the curvature, give lanczos > 0")


def solve(product: Product, g: jax.Array, settings: Settings) -> tuple[jax.Array, Metrics]:
    """p (n,), close to (H - damping I)^-1 g where the method's conditions hold, and its diagnostics (`implicit`)."""
    metrics, radius, damping = {}, jnp.zeros((), g.dtype), settings.damping
    if settings.lanczos:
        low, high = curvature_range(product, g, settings.lanczos)
        positive = high > jnp.sqrt(jnp.finfo(g.dtype).eps) * jnp.abs(low)
        metrics = {"curvature_min": low, "curvature_max": high, "indefinite": positive.astype(g.dtype)}
        if settings.margin is not None:
            needed = high + settings.margin * jnp.maximum(jnp.abs(low), jnp.abs(high))
            damping = metrics["damping"] = jnp.maximum(needed, damping)
        radius = jnp.maximum(jnp.abs(low - damping), jnp.abs(high - damping))
    shifted = damped(product, damping)
    if settings.method == "neumann":
        alpha = inverse(radius) if settings.alpha is None else jnp.asarray(settings.alpha, g.dtype)
        p = neumann(shifted, g, alpha, settings.loops)
        metrics["alpha"] = alpha
        if settings.lanczos:
            metrics |= {"alpha_bound": 2.0 * inverse(radius), "alpha_curvature": alpha * radius}
            metrics["diverges"] = (alpha * radius > 2.0).astype(g.dtype)
    elif settings.method == "identity":
        p = -g
    elif settings.method == "cg":
        p = conjugate(shifted, g, settings.loops)
    else:
        p = pseudo_inverse(shifted, g)
    p = jax.lax.stop_gradient(p)
    metrics["residual"] = jnp.linalg.norm(shifted(p) - g) * inverse(jnp.linalg.norm(g))
    return p, metrics


def damped(product: Product, damping: ArrayLike) -> Product:
    """v -> (H - damping I) v."""
    return lambda v: product(v) - jnp.asarray(damping, v.dtype) * v


def neumann(product: Product, g: jax.Array, alpha: jax.Array, loops: int) -> jax.Array:
    """-alpha sum_(j=0..loops) (I + alpha H)^j g: loops + 1 terms."""

    def term(carry: tuple[jax.Array, jax.Array], _: None) -> tuple[tuple[jax.Array, jax.Array], None]:
        v, total = carry
        v = v + alpha * product(v)
        return (v, total + v), None

    return -alpha * jax.lax.scan(term, (g, g), None, loops)[0][1]


def conjugate(product: Product, g: jax.Array, iterations: int) -> jax.Array:
    """H^-1 g of a negative definite H, to rounding or as far as the iterations go."""
    tolerance = 10.0 * float(jnp.finfo(g.dtype).eps)
    return -cg(lambda v: -product(v), g, tol=tolerance, maxiter=iterations)[0]


def pseudo_inverse(product: Product, g: jax.Array) -> jax.Array:
    """H^+ g by the eigenvalues of the whole matrix; those that are zero up to rounding count as zero."""
    matrix = jax.vmap(product)(jnp.eye(g.size, dtype=g.dtype))
    values, vectors = unbatched_on_cpus(jnp.linalg.eigh)((matrix + matrix.T) / 2.0)
    smallest = g.size * jnp.finfo(g.dtype).eps * jnp.abs(values).max()
    kept = jnp.where(jnp.abs(values) > smallest, values, 0.0)
    return vectors @ (inverse(kept) * (vectors.T @ g))


def curvature_range(product: Product, like: jax.Array, iterations: int) -> tuple[jax.Array, jax.Array]:
    """Estimates of the smallest and the largest eigenvalue of H, from inside, by Lanczos' method.

    It spends as many products as power iteration would on one end, and finds both ends more sharply.
    """
    start = jax.random.normal(jax.random.key(0), like.shape, like.dtype)
    start = start / jnp.linalg.norm(start)

    def extend(carry: Any, _: None) -> tuple[Any, tuple[jax.Array, jax.Array, jax.Array]]:
        before, now, size, going = carry
        image = product(now) - size * before
        level = now @ image
        rest = image - level * now
        size = jnp.linalg.norm(rest)
        on = going & (size > 10.0 * jnp.finfo(like.dtype).eps * jnp.linalg.norm(image))
        size = jnp.where(on, size, 0.0)
        return (now, rest * inverse(size), size, on), (level, size, going)

    carry = (jnp.zeros_like(start), start, jnp.zeros((), like.dtype), jnp.ones((), bool))
    levels, sizes, valid = jax.lax.scan(extend, carry, None, iterations)[1]
    levels = jnp.where(valid, levels, levels[0])  # a smaller basis was complete: repeat a value within the range
    off = jnp.diag(sizes[:-1], 1)
    values = unbatched_on_cpus(jnp.linalg.eigvalsh)(jnp.diag(levels) + off + off.T)
    return values[0], values[-1]


def inverse(x: jax.Array) -> jax.Array:
    """1/x, and 0 for 0."""
    return jnp.where(x == 0.0, 0.0, 1.0 / jnp.where(x == 0.0, 1.0, x))


def cosine(x: Params, y: Params) -> jax.Array:
    """Cosine of the angle between two trees; 0 if one is zero."""
    a, b = ravel_pytree(x)[0], ravel_pytree(y)[0]
    return (a @ b) * inverse(jnp.linalg.norm(a)) * inverse(jnp.linalg.norm(b))


def unrolled(
    update: Callable[[Any, Params, Any], Any],
    outer: Callable[[Any], jax.Array],
    theta: Any,
    omega: Params,
    inputs: Any,
) -> tuple[Any, jax.Array, Params]:
    """theta after one update per leading entry of `inputs`, outer(theta) there, and its whole gradient in omega.

    `theta` is whatever `update(theta, omega, input)` carries on: moments of an optimiser are differentiated through.
    Only the carried values are stored; each step is computed again on the way back. PyTorch's RMSProp has no
    derivative while a moment is 0: begin with positive ones.
    """
    step = jax.checkpoint(update)

    def final(omega: Params) -> tuple[jax.Array, Any]:
        last = jax.lax.scan(lambda carry, x: (step(carry, omega, x), None), theta, inputs)[0]
        return outer(last), last

    (value, last), gradient = jax.value_and_grad(final, has_aux=True)(omega)
    return last, value, gradient
