"""BARFI: objectives and hypergradients against recorded ones, in float64, on three small problems."""

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from algos.barfi import objectives, rewards
from algos.barfi.objectives import Batch, Form, softmax_policy
from algos.barfi.rewards import Omega
from algos.core import Params
from algos.hypergrad import Settings, implicit, solve, unrolled
from algos.losses import adam, descend, rmsprop
from tests.parity.core import Arrays, Case, Comparison, Kinds, Rule

CLOSE = Rule(1e-9)  # of numbers times 1000: relative 1e-9, absolute 1e-12
POPULATION = Rule(1e-7)  # likewise
TINY = Rule(1e-11, relative=False)  # for differences from finite differences
FORM = Form(softmax_policy(lambda theta, features: features @ theta))  # theta (states, actions), features one-hot
RATE = 0.005  # of the recorded optimisers
QUICK = {"xla_backend_optimization_level": 0}  # programs run once
REWARD_L2, GAMMA_L2 = 0.06125, 0.25  # of the recorded penalty

Compare = Callable[[Case, Comparison], None]
Inner = Callable[[Params, Params], jax.Array]
Outer = Callable[[jax.Array], jax.Array]
Quantities = dict[str, jax.Array]


def in_double(compare: Compare) -> Compare:
    """The comparison with float64 switched on."""

    @wraps(compare)
    def wrapped(case: Case, comparison: Comparison) -> None:
        with jax.enable_x64(True):
            compare(case, comparison)

    return wrapped


class Table:
    """A comparison with the arrays it reads and the rule it goes by."""

    def __init__(self, case: Case, comparison: Comparison, rule: Rule = CLOSE) -> None:
        self.arrays, self.comparison, self.rule = case.arrays, comparison, rule

    def __getitem__(self, name: str) -> jax.Array:
        return jnp.asarray(self.arrays[name])

    def add(self, compute: Callable[..., Quantities], *inputs: Any) -> None:
        """Compare all that the function returns with the arrays of these names, what follows a colon left out."""
        for name, ours in jax.jit(compute, compiler_options=QUICK)(*inputs).items():
            recorded = self.arrays[name.split(":")[0]]
            if name.endswith("finite_difference") and self.rule is CLOSE:
                self.comparison.add(name, ours, recorded, TINY)
            else:
                self.comparison.add(name, 1e3 * np.asarray(ours), 1e3 * recorded, self.rule)


def flat(tree: Params) -> jax.Array:
    """All numbers of a tree, phi before psi."""
    return ravel_pytree(tree)[0]


def read_batch(arrays: Arrays, side: str, states: int) -> Batch:
    """Recorded trajectories of the chain."""
    names = ("s", "a", "beta", "rp", "raux", "mask")
    s, a, beta, primary, auxiliary, mask = (jnp.asarray(arrays[f"{side}_batch_{name}"]) for name in names)
    return Batch(jax.nn.one_hot(s, states, dtype=primary.dtype), a, beta, primary, auxiliary, mask)


def maximise(inner: Callable[[jax.Array], jax.Array], start: jax.Array) -> jax.Array:
    """The maximum near `start` by gradient steps, then Newton's method."""
    gradient = jax.grad(inner)

    def newton(theta: jax.Array) -> jax.Array:
        product = jax.linearize(lambda t: flat(gradient(t.reshape(theta.shape))), flat(theta))[1]
        step = solve(product, flat(gradient(theta)), Settings("exact", lanczos=0))[0]
        return theta - step.reshape(theta.shape)

    start = jax.lax.fori_loop(0, 500, lambda _, theta: theta + 0.5 * gradient(theta), start)
    return jax.lax.fori_loop(0, 10, lambda _, theta: newton(theta), start)


def at_the_maximum(table: Table, inner: Inner, outer: Outer, theta: jax.Array, omega: Omega) -> Quantities:
    """Blocks, curvature and hypergradients at the inner maximum, which both chains have."""
    gradient, g = jax.grad(inner), jax.grad(outer)(theta)
    hessian = jax.jacfwd(gradient)(theta, omega).reshape(theta.size, -1)
    mixed = jax.jacfwd(gradient, argnums=1)(theta, omega)
    exact, seen = implicit(inner, theta, omega, g, Settings("exact", lanczos=12))
    alpha = table["neumann_alpha_good"]
    series = [Settings(loops=int(k), alpha=alpha, lanczos=0) for k in table.arrays["neumann_loops"]]
    return {
        "theta_star": maximise(lambda t: inner(t, omega), jnp.zeros_like(theta)),
        "policy_star": jax.nn.softmax(theta),
        "inner_grad_at_star": flat(gradient(theta, omega)),
        "hessian": hessian,
        "hessian_eigenvalues": jnp.linalg.eigvalsh(hessian),
        "mixed_block": jnp.concatenate([x.reshape(theta.size, -1) for x in jax.tree.leaves(mixed)], 1),
        "outer_grad": flat(g),
        "hyper_exact": flat(exact),
        "hyper_exact: conjugate gradients": flat(implicit(inner, theta, omega, g, Settings("cg", loops=40))[0]),
        "hyper_finite_difference": flat(exact),
        "neumann_alpha_good": -1.0 / seen["curvature_min"],
        "neumann_hyper_alpha_good": jnp.stack([flat(implicit(inner, theta, omega, g, one)[0]) for one in series]),
    }


@in_double
def tabular_chain(case: Case, comparison: Comparison) -> None:
    """Fixed trajectories of a chain: objectives, hypergradients of every kind, losses of the baselines."""
    table = Table(case, comparison)
    theta, omega = table["theta_star"], Omega({"weight": table["phi"]}, table["psi"])
    data, newest = (read_batch(case.arrays, side, len(theta)) for side in ("inner", "outer"))

    def inner(theta: jax.Array, omega: Omega) -> jax.Array:
        return objectives.inner_objective(
            theta, omega, data, FORM, entropy=table["lam_ent"], theta_l2=table["theta_l2"]
        )

    def outer(theta: jax.Array) -> jax.Array:
        return objectives.outer_objective(theta, newest, FORM, discount=table["gamma_outer"])

    table.add(partial(at_the_maximum, table, inner, outer), theta, omega)
    table.add(partial(further_hypergradients, table, inner, outer), theta, omega)
    table.add(partial(differentiated_steps, table, inner, outer), omega)
    table.add(partial(terms, table, inner, outer), omega, data, newest)
    table.add(partial(linear_rewards, table), omega, data)
    table.add(partial(baselines, table), data)
    table.add(partial(outer_steps, table), omega)
    checks = [name for name in case.arrays.children() if name.startswith("check_maxabs_")]
    worst = np.array([case.arrays[name] for name in checks])
    comparison.add("finite differences in the record", np.zeros_like(worst), worst, TINY)


def further_hypergradients(table: Table, inner: Inner, outer: Outer, theta: jax.Array, omega: Omega) -> Quantities:
    """What is recorded for the main chain only: first order, damping, the official step, dtheta/domega."""
    g = jax.grad(outer)(theta)
    product = jax.linearize(lambda t: flat(jax.grad(inner)(t.reshape(theta.shape), omega)), flat(theta))[1]

    def hyper(*settings: Settings) -> jax.Array:
        return jnp.stack([flat(implicit(inner, theta, omega, g, one)[0]) for one in settings])

    def inverse_times_g(*settings: Settings) -> jax.Array:
        return jnp.stack([solve(product, flat(g), one)[0] for one in settings])

    def series(alpha: str) -> list[Settings]:
        step = table[f"neumann_alpha_{alpha}"]
        return [Settings(loops=int(k), alpha=step, lanczos=0) for k in table.arrays["neumann_loops"]]

    unit = jnp.eye(theta.size).reshape(-1, *theta.shape)
    found = {
        "hyper_identity_first_order": hyper(Settings("identity"))[0],
        "vector_inverse_hessian_exact": inverse_times_g(Settings("exact"))[0],
        "neumann_hyper_alpha_official": hyper(*series("official")),
        "neumann_vihp_alpha_official": inverse_times_g(*series("official")),
        "neumann_vihp_alpha_good": inverse_times_g(*series("good")),
        "dtheta_domega_finite_difference": jax.vmap(
            lambda e: flat(implicit(inner, theta, omega, e, Settings("exact"))[0])
        )(unit),
    }
    for damping in (0.01, 0.1):
        found[f"hyper_damped_{damping}"] = hyper(Settings("exact", damping=damping))[0]
        found[f"hyper_damped_{damping}: conjugate gradients"] = hyper(Settings("cg", loops=40, damping=damping))[0]
    return found


def differentiated_steps(table: Table, inner: Inner, outer: Outer, omega: Omega) -> Quantities:
    """Plain gradient steps from zero, differentiated."""
    rate, start = table["unrolled_lr"], jnp.zeros_like(table["theta_star"])

    def update(theta: jax.Array, omega: Omega, _: jax.Array) -> jax.Array:
        return theta + rate * jax.grad(inner)(theta, omega)

    runs = [unrolled(update, outer, start, omega, jnp.arange(int(n))) for n in table.arrays["unrolled_steps"]]
    return {
        "unrolled_theta": jnp.stack([theta for theta, _, _ in runs]),
        "unrolled_hyper": jnp.stack([flat(hyper) for _, _, hyper in runs]),
    }


def terms(table: Table, inner: Inner, outer: Outer, omega: Omega, data: Batch, newest: Batch) -> Quantities:
    """Each term of the objectives at a theta that is no maximum."""
    theta = table["theta_probe"]
    bare = partial(objectives.inner_objective, theta, omega, data, FORM)
    return {
        "logprob_inner_batch": FORM.policy.log_prob(theta, data.features, data.action),
        "return_phi_inner_batch": objectives.learned_returns(omega, data, FORM),
        "return_primary_outer_batch": rewards.reward_to_go(newest.primary, newest.mask, table["gamma_outer"]),
        "loss_inner_surrogate": bare(),
        "loss_inner_entropy": objectives.mean_entropy(theta, data, FORM.policy),
        "loss_inner_theta_l2": bare() - bare(theta_l2=table["theta_l2"]),
        "loss_inner_total": inner(theta, omega),
        "loss_inner_grad": flat(jax.grad(inner)(theta, omega)),
        "loss_outer_surrogate": outer(theta),
        "loss_outer_grad": flat(jax.grad(outer)(theta)),
    }


def linear_rewards(table: Table, omega: Omega, data: Batch) -> Quantities:
    """Rewards of a table and of a linear head, and what the penalties are made of."""
    mixed = partial(rewards.learned_reward, features=data.features, primary=data.primary, auxiliary=data.auxiliary)
    head = {"weight": table["reward_weight_probe"], "bias": table["reward_bias_probe"]}
    gamma, slope = jax.value_and_grad(rewards.penalty)(omega, 0.0, 1.0)
    return {
        "reward_phi_inner_batch": mixed(omega.phi),
        "reward_linear_phi2_free": mixed(head),
        "reward_linear_phi2_one": mixed(head, phi2_mode="one"),
        "reward_l2_sum_of_norms": rewards.sum_of_norms(head),
        "gamma_learned": rewards.discount_of(omega),
        "gamma_reg": gamma,
        "gamma_reg_grad_psi": slope.psi,
    }


def baselines(table: Table, data: Batch) -> Quantities:
    """Returns and losses of REINFORCE and actor-critic."""
    theta, discount = table["theta_probe"], table["gamma_outer"]
    returns = {
        "naive": objectives.naive_returns(data, discount),
        "reinforce_potential": objectives.potential_returns(data, discount),
    }
    shaped = objectives.potential_reward(data, discount)
    found = {
        "baseline_shaped_reward": shaped,
        "baseline_shaped_return": rewards.reward_to_go(shaped, data.mask, discount),
    }
    for name, values in returns.items():
        found[f"baseline_{name}_return"] = values
        found[f"baseline_{name}_surrogate"] = -objectives.reinforce_loss(theta, data, values, FORM)
    value = data.features @ table["value_table_probe"]
    for name, reward in (("naive", objectives.naive_reward(data)), ("potential", shaped)):
        errors = objectives.td_errors(reward, value, data.mask, discount)
        found[f"actorcritic_{name}_td_error"] = errors
        found[f"actorcritic_{name}_critic_loss"] = objectives.critic_loss(errors, data.mask)
        found[f"actorcritic_{name}_actor_loss"] = objectives.actor_loss(theta, data, errors, FORM)
    return found


def outer_steps(table: Table, omega: Omega) -> Quantities:
    """The penalised direction, and three steps of each optimiser along the exact one."""
    slope = jax.grad(rewards.penalty)(omega, REWARD_L2, GAMMA_L2)
    exact = ravel_pytree(omega)[1](table["hyper_exact"])
    found = {"outer_regularised_direction": flat(exact) - flat(slope)}
    for name, optimiser in (("rmsprop", rmsprop(RATE)), ("adam", adam(RATE))):
        params, optim, after = omega, optimiser.init(omega), []
        for scale in (-1.0, -0.5, -0.25):
            grads = jax.tree.map(lambda x, scale=scale: scale * x, exact)
            params, optim = descend(optimiser, grads, optim, params)
            after.append(flat(params))
        found[f"torch_{name}_omega_after_1_2_3"] = jnp.stack(after)
    return found


@in_double
def population_chain(case: Case, comparison: Comparison) -> None:
    """The chain in expectation: the Hessian contains how theta moves the distribution of states."""
    table = Table(case, comparison, POPULATION)
    theta, omega = table["theta_star"], Omega({"weight": table["phi"]}, table["psi"])
    transition, primary, auxiliary = (table[name] for name in ("transition", "reward_primary", "reward_aux"))
    alive = jnp.arange(len(theta)) < len(theta) - 1  # the last state absorbs, and nothing is earned there

    def value(theta: jax.Array, reward: jax.Array, discount: jax.Array) -> jax.Array:
        policy = jax.nn.softmax(theta)
        moves = jnp.einsum("sa,sat->st", policy, transition)
        earned = jnp.where(alive, (policy * reward).sum(-1), 0.0)
        return jnp.linalg.solve(jnp.eye(len(theta)) - discount * moves, earned)[0]

    def inner(theta: jax.Array, omega: Omega) -> jax.Array:
        states = jnp.eye(len(theta))[:, None]
        bonus = -table["lam_ent"] * jax.nn.log_softmax(theta)
        reward = rewards.learned_reward(omega.phi, states, primary, auxiliary) + bonus
        return value(theta, reward, rewards.discount_of(omega)) - table["theta_l2"] / 2 * (theta**2).sum()

    def outer(theta: jax.Array) -> jax.Array:
        return value(theta, primary, table["gamma_outer"])

    table.add(lambda: {"J_inner_at_star": inner(theta, omega), "J_outer_at_star": outer(theta)})
    table.add(partial(at_the_maximum, table, inner, outer), theta, omega)


@in_double
def softmax_bandit(case: Case, comparison: Comparison) -> None:
    """A bandit in closed form, whose Hessian is singular: all logits may shift together."""
    table = Table(case, comparison)
    phi, primary = table["phi"], table["reward_primary"]
    reward_of = partial(
        rewards.learned_reward, features=jnp.eye(len(primary)), primary=primary, auxiliary=table["reward_aux"]
    )

    def of_reward(theta: jax.Array, reward: jax.Array) -> jax.Array:
        policy = jax.nn.softmax(theta)
        return policy @ (reward - table["lam_ent"] * jax.nn.log_softmax(theta))

    def of_phi(theta: jax.Array, phi: jax.Array) -> jax.Array:
        return of_reward(theta, reward_of({"weight": phi}))

    def outer(theta: jax.Array) -> jax.Array:
        return jax.nn.softmax(theta) @ primary

    def quantities(phi: jax.Array) -> Quantities:
        reward = reward_of({"weight": phi})
        theta = reward / table["lam_ent"]
        g = jax.grad(outer)(theta)
        hyper = implicit(of_phi, theta, phi, g, Settings("cg", loops=10))[0]
        return {
            "reward_phi": reward,
            "policy_star": jax.nn.softmax(theta),
            "J_outer": outer(theta),
            "hessian_theta": jax.hessian(of_reward)(theta, reward),
            "mixed_theta_reward": jax.jacfwd(jax.grad(of_reward), argnums=1)(theta, reward),
            "outer_grad_theta": g,
            "hyper_reward_via_pinv": implicit(of_reward, theta, reward, g, Settings("exact"))[0],
            "hyper_reward_per_arm": implicit(of_reward, theta, reward, g, Settings("neumann", loops=2000))[0],
            "hyper_phi": hyper,
            "hyper_finite_difference": hyper,
        }

    table.add(quantities, phi)


KINDS: Kinds = {
    "tabular_chain": tabular_chain,
    "population_chain": population_chain,
    "softmax_bandit": softmax_bandit,
}
