"""BARFI: behaviour alignment by learning the reward (Gupta et al., NeurIPS 2023, arXiv 2310.19007).

A designer's auxiliary reward may help or harm. BARFI learns a third reward, and a discount, such that the policy which
REINFORCE makes of them does well at the true reward alone: the outer gradient goes through the inner optimum by the
implicit function theorem (`algos.hypergrad`).

One training iteration is a block of `delta` episodes and the steps that follow it, outer first (`settings.timetable`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from algos.barfi.common import act, block_metrics, check_env, check_reward, play_block, reward_metrics
from algos.barfi.learn import Learner, Method, init_learner, inner_loop, naive_step, outer_step
from algos.barfi.policy import feature_count, make_actor
from algos.barfi.replay import Ring, empty_ring, push
from algos.barfi.rewards import MULTIPLIERS, Omega, init_phi
from algos.barfi.settings import Hyper, Static, timetable
from algos.core import Algorithm, Env, Key, Metrics, Params, Source, Spec

__all__ = ["Hyper", "State", "Static", "make"]


class State(NamedTuple):
    """Everything that training changes."""

    learner: Learner
    ring: Ring  # its count of episodes is the position in the timetable
    start: jax.Array  # () uint32: seeds the reset of every episode where all start alike

    @property
    def omega(self) -> Omega:
        """The reward and the discount that are learnt."""
        return self.learner.omega


def start_phi(key: Key, phi_start: str, state_dependent: bool, features: int) -> Params:
    """The reward's parameters at first."""
    if phi_start == "primary":
        return {"weight": jnp.zeros((MULTIPLIERS, features)), "bias": jnp.array([0.0, 1.0, 0.0])}
    return init_phi(key, features, state_dependent)


def at_most_once(times: jax.Array, step: Callable[[Learner], tuple[Learner, Metrics]], learner: Learner) -> Any:
    """`step(learner)` if `times` () is 1; if 0 the learner as it is, and zeros.

    A loop, as `vmap` would make both sides of a branch be computed: this is skipped where no member needs it.
    """
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(step, learner)[1])
    return jax.lax.fori_loop(0, times, lambda _, carry: step(carry[0]), (learner, zeros))


def make(static: Static, spec: Spec, env: Env) -> Algorithm:
    """Build BARFI for an environment with an auxiliary reward; the `source` of `step` is `env.params`.

    `updates_per_step` is the number of episodes of a block: runs are counted in episodes. Raises UsageError for an
    environment without an auxiliary reward or without a horizon, and for a state-dependent reward without features.
    """
    check_env("barfi", env)
    check_reward("barfi", env, static.phi_state_dependent)
    method = Method(static, make_actor(env))

    def play(key: Key, start: jax.Array, policy: Params, source: Source) -> Any:
        return play_block(key, start, env, source, method.actor, policy, static.delta, static.same_start)

    def init(key: Key, hyper: Hyper) -> State:
        policy_key, phi_key, start_key = jax.random.split(key, 3)
        policy, start = method.actor.init(policy_key), jax.random.bits(start_key)
        psi = jnp.asarray(hyper.psi0, jnp.result_type(float))
        phi = start_phi(phi_key, static.phi_start, static.phi_state_dependent, feature_count(env))
        omega = Omega(phi, psi)
        block = jax.eval_shape(play, key, start, policy, env.params)
        return State(init_learner(policy, omega, method), empty_ring(static.buffer_size, block), start)

    def step(key: Key, state: State, source: Source, hyper: Hyper) -> tuple[State, Metrics]:
        play_key, outer_key, inner_key = jax.random.split(key, 3)
        learner = state.learner
        block = play(play_key, state.start, learner.policy, source)
        ring = push(state.ring, block)
        plan = timetable(static, ring.episodes)
        metrics = block_metrics(block) | {"outer_steps": plan.outer.astype(block.reward.dtype)}
        if static.hypergrad != "none":
            outer = lambda learner: outer_step(outer_key, learner, ring, method, hyper)  # noqa: E731
            learner, diagnostics = at_most_once(plan.outer, outer, learner)
            metrics |= diagnostics
        naive = lambda _, learner: naive_step(learner, ring, method, hyper)  # noqa: E731
        learner = jax.lax.fori_loop(0, plan.naive, naive, learner)
        learner = inner_loop(inner_key, plan.inner, learner, ring, method, hyper)
        features = method.actor.features(learner.policy["body"], block.obs)
        metrics |= reward_metrics(learner.omega, features, block.mask, static.phi2_mode)
        return State(learner, ring, state.start), metrics

    def act_in(key: Key, state: State, obs: jax.Array, hyper: Hyper) -> jax.Array:
        return act(key, method.actor, state.learner.policy, obs, static.acting)

    return Algorithm(init, step, act_in, updates_per_step=static.delta)
