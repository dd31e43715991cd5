"""The learned reward and discount of BARFI, returns, and the penalties on what is learned.

Omega = (phi, psi) is what the outer problem learns. phi mixes the rewards,

    r_phi(s, a) = phi_1(s) + phi_2(s) r_p(s, a) + phi_3(s) w r_aux(s, a),

with multipliers of the state alone; sigmoid(psi) is the discount. phi is a dictionary in one of two forms:

    state-dependent    {"weight": (3, F), "bias": (3,)}    phi_i(s) = weight_i . x(s) + bias_i; the bias may be missing
    state-independent  {"bias": (3,)}                      phi_1 = bias_1 - 1, so that ones mean phi = (0, 1, 1)

Rewards are padded: (..., P), `mask` is 1 on valid steps, and what stands in other slots has no influence.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from algos.core import Key, Params, UsageError

MULTIPLIERS = 3
PHI2_MODES = ("linear", "one")  # learned like the others, or fixed to 1


class Omega(NamedTuple):
    """Everything that the outer problem learns."""

    phi: Params
    psi: jax.Array  # (); the discount is its sigmoid


def init_phi(key: Key, features: int, state_dependent: bool = True) -> Params:
    """PyTorch's default for a linear layer (uniform on +-1/sqrt(F)), or the ones of the state-independent form."""
    if not state_dependent:
        return {"bias": jnp.ones(MULTIPLIERS)}
    weight_key, bias_key = jax.random.split(key)
    bound = features**-0.5
    weight = jax.random.uniform(weight_key, (MULTIPLIERS, features), minval=-bound, maxval=bound)
    return {"weight": weight, "bias": jax.random.uniform(bias_key, (MULTIPLIERS,), minval=-bound, maxval=bound)}


def multipliers(phi: Params, features: jax.Array, phi2_mode: str = "linear") -> jax.Array:
    """phi_1, phi_2, phi_3 of states with features (..., F), as (..., 3). Raises UsageError for an unknown mode."""
    if phi2_mode not in PHI2_MODES:
        raise UsageError(f"phi2_mode={phi2_mode}: choose one of {', '.join(PHI2_MODES)}")
    if "weight" in phi:
        values = features @ phi["weight"].T + phi.get("bias", 0.0)
    else:
        values = jnp.broadcast_to(phi["bias"], (*features.shape[:-1], MULTIPLIERS)).at[..., 0].add(-1.0)
    return values.at[..., 1].set(1.0) if phi2_mode == "one" else values


def learned_reward(
    phi: Params,
    features: jax.Array,
    primary: jax.Array,
    auxiliary: jax.Array,
    phi2_mode: str = "linear",
    aux_weight: ArrayLike = 1.0,
) -> jax.Array:
    """r_phi (...) of features (..., F) and both rewards (...)."""
    first, second, third = jnp.moveaxis(multipliers(phi, features, phi2_mode), -1, 0)
    return first + second * primary + third * (aux_weight * auxiliary)


def discount_of(omega: Omega) -> jax.Array:
    """gamma = sigmoid(psi)."""
    return jax.nn.sigmoid(omega.psi)


def reward_to_go(reward: jax.Array, mask: jax.Array, discount: ArrayLike) -> jax.Array:
    """G_t = m_t r_t + discount G_(t+1) over the last axis, 0 beyond it. All are (..., P)."""
    masked = jnp.moveaxis(jnp.where(mask > 0.0, reward, 0.0), -1, 0)
    discount = jnp.asarray(discount, masked.dtype)

    def backwards(later: jax.Array, now: jax.Array) -> tuple[jax.Array, jax.Array]:
        total = now + discount * later
        return total, total

    returns = jax.lax.scan(backwards, jnp.zeros_like(masked[0]), masked, reverse=True)[1]
    return jnp.moveaxis(returns, 0, -1)


def next_step(x: jax.Array, mask: jax.Array) -> jax.Array:
    """m_(t+1) x_(t+1): the value of the following valid step, 0 where there is none. Both are (..., P)."""
    valid = jnp.where(mask > 0.0, x, 0.0)
    return jnp.concatenate([valid[..., 1:], jnp.zeros_like(valid[..., :1])], -1)


def shaped_reward(primary: jax.Array, potential: jax.Array, mask: jax.Array, discount: ArrayLike) -> jax.Array:
    """m_t (r_p,t + discount Phi_(t+1) - Phi_t), the potential Phi being 0 after the end. All are (..., P)."""
    return jnp.where(mask > 0.0, primary + discount * next_step(potential, mask) - potential, 0.0)


def sum_of_norms(params: Params) -> jax.Array:
    """Sum of the norms (not squared) of all arrays, with gradient 0 where an array is zero, as in PyTorch."""

    def norm(x: jax.Array) -> jax.Array:
        squares = jnp.square(x).sum()
        return jnp.where(squares > 0.0, jnp.sqrt(jnp.where(squares > 0.0, squares, 1.0)), 0.0)

    return jnp.stack([norm(x) for x in jax.tree.leaves(params)]).sum()


def penalty(omega: Omega, reward_l2: ArrayLike, gamma_l2: ArrayLike) -> jax.Array:
    """R(omega) = reward_l2 (||weight||_F + ||bias||_2) + gamma_l2 sigmoid(psi).

    It is subtracted from the outer objective. How much it weighs depends on the hypergradient: Neumann's series cut
    after K loops is about alpha (K + 1) times the first-order direction, but the penalty stays as it is.
    """
    return jnp.asarray(reward_l2 * sum_of_norms(omega.phi) + gamma_l2 * discount_of(omega))
