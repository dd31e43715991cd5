"""Reptile on particle games: one policy for all of them, drawn towards what each game teaches a copy of it.

The networks are MRA's with a single skill; the relation network learns with the policy (`settings.UNIMODAL`). Every
`inner_cycles · cycle_steps` environment steps of a game, a copy of all networks makes `inner_cycles` cycles of updates
there, and Θ moves towards it: Θ <- Θ + ε (Θ_t - Θ) (arXiv 1803.02999). Games take turns in a fixed order; Θ acts. The
ratio of updates to steps is that of MRA. Adam's state of each game is kept from copy to copy.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.tree_util import register_dataclass

from algos.checks import check_least
from algos.core import Algorithm, Env, Key, Metrics, Spec
from algos.mra import play, settings
from algos.mra.learn import Learner, copy_targets, draw_update, init_learner, update
from algos.mra.objectives import Batch
from algos.mra.replay import Replay, World
from algos.mra.train import Method, assemble, repeat

ANY_POPULATION = True  # it acts in populations that it did not learn in
check_other = play.check_other


@register_dataclass
@dataclass
class Hyper:
    """Scalars that may differ between members. Those before the last two are MRA's."""

    policy_lr: float = 3e-4
    critic_lr: float = 3e-4
    relation_lr: float = 3e-4
    l2: float = 3e-4
    discount: float = 0.95
    reward_scale: float = 30.0
    clip_factor: float = 10.0
    reward_epsilon: float = 1e-6
    step_size: float = 0.1  # ε at the start; it falls linearly
    decay_episodes: float = 80_000.0  # episodes of each game until ε is 0, and nothing is learnt any more: run.updates


@dataclass(unsafe_hash=True)
class Static:
    """What shapes the compiled program. All but `inner_cycles` are MRA's, see `settings.Static`."""

    inner_cycles: int = 10  # k: cycles of the copy before Θ moves towards it
    envs: int = 12
    batch_size: int = 1024
    buffer_size: int = 200_000
    cycle_steps: int = 100
    cycle_updates: int = 10
    next_action_obs: str = "next"
    critic_loss: str = "sum_td"
    baseline: str = "none"
    discount_entropy: bool = False
    reward_statistics: str = "per_slot"
    policy_self_features: bool = False

    def __post_init__(self) -> None:
        """Raises UsageError for choices that do not exist, and for sizes below 1."""
        check_least(self, inner_cycles=1)
        unimodal(self)


def unimodal(static: Static) -> settings.Static:
    """The settings of the actor-critic."""
    return settings.adopt(settings.Static, static, **settings.UNIMODAL)


def fresh(key: Key, static: settings.Static, world: World) -> Learner:
    """Θ, with an optimiser state for each game: their leading axis is T."""
    learner = init_learner(key, static, world.width, world.kinds, world.games)
    return learner._replace(optim=jax.tree.map(lambda x: jnp.stack([x] * world.games), learner.optim))


def towards(learner: Learner, fast: Learner, epsilon: jax.Array) -> Learner:
    """Θ + ε (Θ_t - Θ) of policy, critic and relation network; targets are copies."""

    def between(slow: jax.Array, fast: jax.Array) -> jax.Array:
        return slow + epsilon * (fast - slow)

    names = ("policy", "critic", "relation_net")
    moved = {name: jax.tree.map(between, getattr(learner, name), getattr(fast, name)) for name in names}
    return copy_targets(learner._replace(**moved))


def cycle(
    key: Key, learner: Learner, rings: Replay, index: jax.Array, epsilon: jax.Array, world: World,
    static: settings.Static, hyper: settings.Hyper, inner_cycles: int,
) -> tuple[Learner, Metrics]:  # fmt: skip
    """An outer step: the copy's cycles on a game, and Θ's move; metrics are means over the copy's cycles."""

    def one(key: Key, learner: Learner, batch: Batch) -> tuple[Learner, Metrics]:
        return update(learner, batch, draw_update(key, batch), static, hyper)

    def inner(fast: Learner, key: Key) -> tuple[Learner, Metrics]:
        fast, metrics, _ = repeat(key, fast, rings, index, world, static, hyper, one)
        return copy_targets(fast), metrics

    copy = learner._replace(optim=jax.tree.map(lambda x: x[index], learner.optim))
    fast, metrics = jax.lax.scan(inner, copy, jax.random.split(key, inner_cycles))
    optim = jax.tree.map(lambda kept, new: kept.at[index].set(new), learner.optim, fast.optim)
    moved = towards(learner, fast, epsilon)._replace(optim=optim)
    return moved, jax.tree.map(lambda x: x.mean(0), metrics) | {"step_size": epsilon}


def make(static: Static, spec: Spec, env: Env) -> Algorithm:
    """Build Reptile for the populations of a particle game; the `source` of `step` is `env.params`.

    `updates_per_step` counts episodes of each game. Raises UsageError for an environment that is no particle game.
    """
    world = play.world_of("mra_reptile", env)
    inner = unimodal(static)
    outer = settings.adopt(settings.Static, inner, cycle_steps=static.cycle_steps * static.inner_cycles)

    def outer_step(
        key: Key, learner: Learner, rings: Replay, index: jax.Array, hyper: Hyper
    ) -> tuple[Learner, Metrics]:
        done = rings.added[index] / (env.horizon * hyper.decay_episodes)
        epsilon = hyper.step_size * jnp.maximum(1.0 - done, 0.0)
        scalars = settings.adopt(settings.Hyper, hyper)
        return cycle(key, learner, rings, index, epsilon, world, inner, scalars, static.inner_cycles)

    method = Method(
        lambda key: fresh(key, inner, world),
        lambda key, learner, seen, hyper: jnp.ones((*seen.mask.shape, 1)),
        outer_step,
    )
    return assemble(method, outer, spec, env, world)
