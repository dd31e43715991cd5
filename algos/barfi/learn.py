"""The steps of BARFI: of the policy on the learnt reward, and of the reward along the hypergradient."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from algos import hypergrad
from algos.barfi.common import ascend, clip, clip_each, optimiser, running_mean, to_batch
from algos.barfi.objectives import (
    Batch,
    Form,
    inner_objective,
    learned_returns,
    naive_returns,
    outer_objective,
    reinforce_loss,
)  # fmt: skip
from algos.barfi.policy import Actor
from algos.barfi.replay import Ring, Rows, draw, draw_older, newest
from algos.barfi.rewards import Omega, discount_of, penalty, reward_to_go
from algos.barfi.settings import NAIVE_EPISODES, Hyper, Static
from algos.core import Key, Metrics, Params

INNER_RATE, OUTER_RATE = 0.1, 0.01  # of the running baselines
Baseline = tuple[jax.Array, jax.Array]  # value, and whether (0 or 1) there is one


class Optim(NamedTuple):
    """One optimiser state per trained part."""

    policy: optax.OptState
    phi: optax.OptState
    psi: optax.OptState


class Learner(NamedTuple):
    """What the steps change; nothing of it is ever reset."""

    policy: Params  # {"body", "head"}; the head is θ
    omega: Omega
    optim: Optim
    inner_baseline: Baseline
    outer_baseline: Baseline


class Method(NamedTuple):
    """What is fixed in all steps."""

    static: Static
    actor: Actor

    @property
    def form(self) -> Form:
        """Of the objectives."""
        static = self.static
        return Form(self.actor.policy, static.phi2_mode, static.time_reduction, static.importance_clip)

    def rule(self, learning_rate: Any) -> optax.GradientTransformation:
        """The optimiser."""
        return optimiser(self.static.optimiser, learning_rate, smooth=self.static.hypergrad == "unrolled")


def init_learner(policy: Params, omega: Omega, method: Method) -> Learner:
    """A learner before its first step."""
    rule, none = method.rule(0.0), (jnp.zeros(()), jnp.zeros(()))
    optim = Optim(rule.init(policy), rule.init(omega.phi), rule.init(omega.psi))
    return Learner(policy, omega, optim, none, none)


def inner_value(policy: Params, omega: Omega, rows: Rows, baseline: jax.Array, method: Method, hyper: Hyper) -> Any:
    """J_φ of a whole policy, body and head."""
    batch = to_batch(rows, method.actor, policy["body"])
    return inner_objective(
        policy["head"], omega, batch, method.form, entropy=hyper.entropy_weight, theta_l2=hyper.theta_l2,
        aux_weight=hyper.aux_weight, baseline=baseline,
    )  # fmt: skip


def move_policy(learner: Learner, direction: Params, method: Method, hyper: Hyper) -> Learner:
    """The policy after one optimiser step uphill."""
    direction = clip_each(direction, method.static.clip_norm)
    policy, optim = ascend(method.rule(hyper.actor_lr), direction, learner.optim.policy, learner.policy)
    return learner._replace(policy=policy, optim=learner.optim._replace(policy=optim))


def inner_step(learner: Learner, rows: Rows, method: Method, hyper: Hyper) -> Learner:
    """One step of the policy on the learnt reward. The reward and the discount stay."""
    gradient = jax.grad(inner_value)(learner.policy, learner.omega, rows, learner.inner_baseline[0], method, hyper)
    batch = to_batch(rows, method.actor, learner.policy["body"])
    learner = learner._replace(inner_baseline=inner_baseline(learner, learner.omega, batch, method, hyper))
    return move_policy(learner, gradient, method, hyper)


def inner_baseline(learner: Learner, omega: Omega, batch: Batch, method: Method, hyper: Hyper) -> Baseline:
    """The baseline after the returns of a batch have been used; it stays at none unless asked for."""
    if not method.static.running_baselines:
        return learner.inner_baseline
    returns = learned_returns(omega, batch, method.form, hyper.aux_weight)
    return running_mean(learner.inner_baseline, returns, INNER_RATE)


def outer_baseline(learner: Learner, batch: Batch, method: Method, hyper: Hyper) -> Baseline:
    """As `inner_baseline`, of the true reward's returns."""
    if not method.static.running_baselines:
        return learner.outer_baseline
    return running_mean(learner.outer_baseline, reward_to_go(batch.primary, batch.mask, hyper.discount), OUTER_RATE)


def naive_step(learner: Learner, ring: Ring, method: Method, hyper: Hyper) -> Learner:
    """One step of the policy on r_p + w r_aux of the newest two episodes, with the learnt discount."""
    rows = newest(ring, NAIVE_EPISODES)

    def loss(policy: Params) -> jax.Array:
        batch = to_batch(rows, method.actor, policy["body"])
        returns = naive_returns(batch, discount_of(learner.omega), hyper.aux_weight)
        return reinforce_loss(policy["head"], batch, returns, method.form, entropy=hyper.entropy_weight)

    downhill = jax.grad(loss)(learner.policy)
    return move_policy(learner, jax.tree.map(jnp.negative, downhill), method, hyper)


def inner_loop(key: Key, steps: jax.Array, learner: Learner, ring: Ring, method: Method, hyper: Hyper) -> Learner:
    """`steps` () inner steps, each on episodes drawn anew from the whole ring."""

    def one(i: jax.Array, learner: Learner) -> Learner:
        rows = draw(jax.random.fold_in(key, i), ring, method.static.batch_size)
        return inner_step(learner, rows, method, hyper)

    return jax.lax.fori_loop(0, steps, one, learner)


def outer_step(key: Key, learner: Learner, ring: Ring, method: Method, hyper: Hyper) -> tuple[Learner, Metrics]:
    """One step of reward and discount, and what tells how far to trust it (see `algos.hypergrad.implicit`)."""
    if method.static.hypergrad == "unrolled":
        return unrolled_step(key, learner, ring, method, hyper)
    learner, direction, metrics = implicit_direction(key, learner, ring, method, hyper)
    return move_omega(learner, direction, method, hyper), metrics


def implicit_direction(
    key: Key, learner: Learner, ring: Ring, method: Method, hyper: Hyper
) -> tuple[Learner, Omega, Metrics]:
    """The implicit hypergradient at the current policy, without penalties; the baselines move on."""
    static, head = method.static, learner.policy["head"]
    on, off = outer_batches(key, learner, ring, method)
    g = jax.grad(outer_objective)(
        head, on, method.form, discount=hyper.discount, baseline=learner.outer_baseline[0]
    )  # fmt: skip

    def inner(theta: Params, omega: Omega, entropy: Any = hyper.entropy_weight, positive_only: bool = False) -> Any:
        return inner_objective(
            theta, omega, off, method.form, entropy=entropy, theta_l2=hyper.theta_l2, aux_weight=hyper.aux_weight,
            baseline=learner.inner_baseline[0], positive_only=positive_only,
        )  # fmt: skip

    settings = hypergrad.Settings(
        static.hypergrad, static.loops, None if static.neumann_step == "auto" else hyper.neumann_alpha,
        hyper.damping, static.lanczos, static.compare,
    )  # fmt: skip
    safe = None if static.hessian == "full" else lambda theta: inner(theta, learner.omega, 0.0, True)
    direction, metrics = hypergrad.implicit(inner, head, learner.omega, g, settings, safe)
    metrics["diverging"] = metrics.pop("diverges", jnp.zeros(()))
    moved = learner._replace(
        inner_baseline=inner_baseline(learner, learner.omega, off, method, hyper),
        outer_baseline=outer_baseline(learner, on, method, hyper),
    )
    return moved, direction, metrics | {"hypergradient": optax.tree.norm(direction)}


def outer_batches(key: Key, learner: Learner, ring: Ring, method: Method) -> tuple[Batch, Batch]:
    """The newest episodes, and older ones: all of the ring's where it holds none besides the newest."""
    static = method.static
    spared = static.delta if static.buffer_size > static.delta else 0
    on = newest(ring, static.delta + static.on_set_extra)
    off = draw_older(key, ring, static.batch_size, static.hess_mul, spared)
    body = learner.policy["body"]
    return to_batch(on, method.actor, body), to_batch(off, method.actor, body)


def move_omega(learner: Learner, direction: Omega, method: Method, hyper: Hyper) -> Learner:
    """Reward and discount after one optimiser step along the hypergradient less the penalties' gradient."""
    slope = jax.grad(penalty)(learner.omega, hyper.reward_l2, hyper.gamma_l2)
    phi, psi = (clip(part, method.static.clip_norm) for part in jax.tree.map(jnp.subtract, direction, slope))
    phi, phi_optim = ascend(method.rule(hyper.reward_lr), phi, learner.optim.phi, learner.omega.phi)
    psi, psi_optim = ascend(method.rule(hyper.gamma_lr), psi, learner.optim.psi, learner.omega.psi)
    return learner._replace(omega=Omega(phi, psi), optim=learner.optim._replace(phi=phi_optim, psi=psi_optim))


def unrolled_step(key: Key, learner: Learner, ring: Ring, method: Method, hyper: Hyper) -> tuple[Learner, Metrics]:
    """N inner steps, kept, and a step of the reward along the gradient through them."""
    keys = jax.random.split(key, method.static.steps)
    on = newest(ring, method.static.delta + method.static.on_set_extra)

    def update(learner: Learner, omega: Omega, key: Key) -> Learner:
        moved = inner_step(learner._replace(omega=omega), draw(key, ring, method.static.batch_size), method, hyper)
        constants = jax.tree.map(jax.lax.stop_gradient, moved.inner_baseline)
        return moved._replace(omega=learner.omega, inner_baseline=constants)

    def outer(learner: Learner) -> jax.Array:
        batch = to_batch(on, method.actor, learner.policy["body"])
        baseline = learner.outer_baseline[0]
        return outer_objective(
            learner.policy["head"], batch, method.form, discount=hyper.discount, baseline=baseline
        )  # fmt: skip

    trained, _, direction = hypergrad.unrolled(update, outer, learner, learner.omega, keys)
    batch = to_batch(on, method.actor, trained.policy["body"])
    trained = trained._replace(outer_baseline=outer_baseline(trained, batch, method, hyper))
    zero = jnp.zeros(())
    metrics = {"diverging": zero, "indefinite": zero, "hypergradient": optax.tree.norm(direction)}
    return move_omega(trained, direction, method, hyper), metrics
