"""BARFI over a modern inner learner: a vectorised on-policy actor-critic with clipped ratios (PPO).

Not in the paper. The outer problem is BARFI's: the reward and the discount change along the hypergradient of the true
return. What differs is below it. A block is many episodes played in parallel by one policy; the critic is a linear
baseline on the policy's features, fitted anew to each block by ridge regression; the policy makes a few epochs of
clipped steps on the block, which is then dropped. So the data are on-policy, and the curvature may be taken from what
such a learner does: a step bounded in the KL divergence moves theta by the inverse Fisher information times the
gradient, hence `curvature=fisher`, -E[KL], never indefinite. `surrogate` is the paper's Hessian.
"""

import jax
import jax.numpy as jnp

from algos.barfi.common import act, block_metrics, check_env, check_reward, optimiser, play_block, reward_metrics
from algos.barfi.policy import feature_count, make_actor
from algos.barfi.ppo_learn import State, block_batch, improve_policy, improve_reward
from algos.barfi.ppo_settings import Hyper, Static
from algos.barfi.rewards import Omega
from algos.barfi.train import start_phi
from algos.core import Algorithm, Env, Key, Metrics, Source, Spec

__all__ = ["Hyper", "State", "Static", "make"]


def make(static: Static, spec: Spec, env: Env) -> Algorithm:
    """Build it for an environment with an auxiliary reward; `updates_per_step` is the number of episodes of a block.

    Raises UsageError for an environment without an auxiliary reward or without a horizon, and for a state-dependent
    reward without features.
    """
    check_env("barfi_ppo", env)
    check_reward("barfi_ppo", env, static.phi_state_dependent)
    actor = make_actor(env)

    def init(key: Key, hyper: Hyper) -> State:
        policy_key, phi_key, _ = jax.random.split(key, 3)  # as BARFI does: equal seeds give equal policies
        policy, features = actor.init(policy_key), feature_count(env)
        phi = start_phi(phi_key, static.phi_start, static.phi_state_dependent, features)
        omega = Omega(phi, jnp.asarray(hyper.psi0, jnp.result_type(float)))
        rule = optimiser("adam", 0.0)
        optim = (rule.init(policy), rule.init(omega.phi), rule.init(omega.psi))
        return State(policy, omega, jnp.zeros((features, 2)), optim, jnp.zeros(()))

    def step(key: Key, state: State, source: Source, hyper: Hyper) -> tuple[State, Metrics]:
        play_key, improve_key = jax.random.split(key)
        any_start = jnp.zeros((), jnp.uint32)
        block = play_block(play_key, any_start, env, source, actor, state.policy, static.episodes, same_start=False)
        state = state._replace(steps=state.steps + block.mask.sum())
        metrics = block_metrics(block)
        batch = block_batch(block, actor, state.policy["body"])
        if static.reward == "learnt":
            state, diagnostics = improve_reward(state, batch, actor, static, hyper)
            metrics |= diagnostics | reward_metrics(state.omega, batch.features, batch.mask, static.phi2_mode)
        state = improve_policy(improve_key, state, block, actor, static, hyper)
        return state, metrics | {"environment_steps": state.steps}

    def act_in(key: Key, state: State, obs: jax.Array, hyper: Hyper) -> jax.Array:
        return act(key, actor, state.policy, obs, static.acting)

    return Algorithm(init, step, act_in, updates_per_step=static.episodes)
