"""What BARFI and the baselines it is compared with share: episodes of a block, optimisers, metrics, refusals."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from algos import checks
from algos.barfi.objectives import Batch
from algos.barfi.policy import Actor
from algos.barfi.replay import Rows
from algos.barfi.rewards import Omega, discount_of, multipliers
from algos.barfi.rollout import Trajectory, rollout
from algos.core import Env, Key, Metrics, Params, UsageError
from algos.losses import adam, descend, rmsprop
from envs.core import EnvParams, measure_names

OPTIMISERS = ("rmsprop", "adam")
ACTING = ("most_probable", "sampled")


def check_env(algo: str, env: Env) -> None:
    """Raise UsageError for an environment without an auxiliary reward, or without episodes."""
    if env.horizon < 1:
        raise UsageError(f"algo={algo} learns from whole episodes, env={env.name} has horizon {env.horizon}: set one")
    if "auxiliary" not in measure_names(env):
        raise UsageError(
            f"algo={algo} needs an auxiliary reward, env={env.name} has none: set env=gridworld-bad, cartpole-good, ..."
        )


def check_reward(algo: str, env: Env, state_dependent: bool) -> None:
    """Raise UsageError for a reward that depends on the state where there are no features of it."""
    if env.view is None and state_dependent:
        raise UsageError(
            f"algo={algo}: env={env.name} has no features for a reward that depends on the state: "
            "set algo.static.phi_state_dependent=false"
        )


def check_choices(static: Any, choices: dict[str, tuple[str, ...]], positive: tuple[str, ...]) -> None:
    """Raise UsageError for a setting of `algo.static` that is no choice, a number below 1, or no norm to clip at."""
    checks.check_choices(static, choices)
    checks.check_least(static, **dict.fromkeys(positive, 1))
    if static.clip_norm is not None and static.clip_norm <= 0.0:
        raise UsageError(f"algo.static.clip_norm={static.clip_norm} must be positive, or null for none")


def play_block(
    key: Key, start: jax.Array, env: Env, params: EnvParams, actor: Actor, policy: Params, size: int, same_start: bool
) -> Trajectory:
    """`size` episodes (leading axis) of one policy; with `same_start` all begin alike, as `start` () seeds."""

    def choose(key: Key, obs: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        x = actor.features(policy["body"], obs)
        action = actor.sample(key, policy["head"], x)
        return action, actor.to_env(action), jnp.exp(actor.policy.log_prob(policy["head"], x, action))

    def episode(key: Key) -> Trajectory:
        reset_key, key = jax.random.split(key)
        reset_key = jax.random.key(start) if same_start else reset_key
        return rollout(reset_key, key, env, params, choose)

    return jax.vmap(episode)(jax.random.split(key, size))


def act(key: Key, actor: Actor, policy: Params, obs: jax.Array, acting: str) -> jax.Array:
    """What an evaluation does: the most probable action, or one as in training. obs (..., obs_dim)."""
    x = actor.features(policy["body"], obs)
    sampled = acting == "sampled"
    return actor.to_env(actor.sample(key, policy["head"], x) if sampled else actor.mode(policy["head"], x))


def block_metrics(block: Trajectory) -> Metrics:
    """Means over the block's episodes: returns of both rewards, undiscounted, and steps."""
    sums = {"return": block.reward, "auxiliary": block.auxiliary, "length": block.mask}
    return {f"train_{name}": x.sum(-1).mean() for name, x in sums.items()}


def reward_metrics(omega: Omega, features: jax.Array, mask: jax.Array, phi2_mode: str) -> Metrics:
    """The discount, and the mean of each multiplier over the steps (B, P) of a block, wherever these went."""
    total = jnp.where(mask[..., None] > 0.0, features, 0.0).sum((0, 1))
    mean = total / jnp.maximum(mask.sum(), 1.0)
    phi = multipliers(omega.phi, mean, phi2_mode)  # affine: of the mean it is the mean
    return {"gamma": discount_of(omega)} | {f"phi{i}_mean": value for i, value in enumerate(phi, 1)}


def to_batch(rows: Rows, actor: Actor, body: Params) -> Batch:
    """What objectives take, of episodes drawn from the ring."""
    part = rows.trajectories
    features = actor.features(body, part.obs)
    return Batch(features, part.action, part.beta, part.reward, part.auxiliary, part.mask, rows.share)


def optimiser(name: str, learning_rate: ArrayLike, smooth: bool = False) -> optax.GradientTransformation:
    """RMSProp or Adam as in PyTorch. `smooth`: with a derivative where a second moment is 0, for unrolling."""
    tiny = 1e-16  # in the square root: the same denominator at zero as 1e-8 outside
    if name == "rmsprop" and smooth:
        return optax.rmsprop(learning_rate, decay=0.99, eps=tiny, eps_in_sqrt=True)
    if name == "rmsprop":
        return rmsprop(learning_rate)
    return optax.adam(learning_rate, eps_root=tiny) if smooth else adam(learning_rate)


def clip(gradient: Params, largest: float | None) -> Params:
    """Scaled down to a global norm of `largest`, as PyTorch does it; the norm is a constant to derivatives."""
    if largest is None:
        return gradient
    norm = jax.lax.stop_gradient(optax.tree.norm(gradient))
    scale = jnp.minimum(1.0, largest / (norm + 1e-6))
    return jax.tree.map(lambda x: scale * x, gradient)


def ascend(
    rule: optax.GradientTransformation, direction: Params, optim: optax.OptState, params: Params
) -> tuple[Params, optax.OptState]:
    """One optimiser step along `direction`, uphill."""
    return descend(rule, jax.tree.map(jnp.negative, direction), optim, params)


def clip_each(direction: Params, largest: float | None) -> Params:
    """Each network of a dictionary clipped by itself."""
    return {name: clip(part, largest) for name, part in direction.items()}


def running_mean(baseline: tuple[jax.Array, jax.Array], returns: jax.Array, rate: float) -> tuple[jax.Array, jax.Array]:
    """(value, seen) after b <- (1 - rate) b + rate mean(returns); the first call sets b to the mean.

    `value` is 0 until then: no baseline. The mean is over the padded array.
    """
    value, seen = baseline
    rate_now = jnp.where(seen > 0.0, rate, 1.0)
    mean = jax.lax.stop_gradient(returns.mean())
    return (1.0 - rate_now) * value + rate_now * mean, jnp.ones_like(seen)
