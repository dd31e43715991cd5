"""Adaptive Replay Ratio over SAC, in environments seen by their state. Not in the paper.

`run.updates` counts agent steps.
"""

from dataclasses import dataclass, replace

import jax
from jax.tree_util import register_dataclass

from algos import sac
from algos.adaptive_rr.loop import Loop, LoopStatic, State, make_algorithm
from algos.buffers import ReplayBuffer, add, empty_buffer, sample_buffer
from algos.checks import check_least
from algos.core import Algorithm, Env, Key, Metrics, Params, Spec, Transition, UsageError
from algos.drqv2.fau import fraction_active
from algos.drqv2.replay_ratio import RatioHyper, check_ratios
from algos.nets import Dense
from algos.off_policy import Learner

__all__ = ["Hyper", "State", "Static", "check_settings", "make"]


@register_dataclass
@dataclass
class Hyper(sac.Hyper, RatioHyper):
    """Scalars that may differ between members: SAC's and the rule's."""


@dataclass(unsafe_hash=True)
class Static(LoopStatic):
    """What shapes the compiled program: SAC's and the loop's."""

    hidden: tuple[int, ...] = (256, 256)
    batch_size: int = 256
    buffer_capacity: int = 1_000_000
    warmup: int = 10_000  # agent steps with uniform actions before the first update

    def __post_init__(self) -> None:
        """Raises UsageError for choices that do not exist and for sizes out of range."""
        super().__post_init__()
        self.hidden = tuple(self.hidden)
        check_least(self, batch_size=1, buffer_capacity=1)
        if not self.hidden:
            raise UsageError("algo.static.hidden=[] has no units whose activity could be measured: set it to [256,256]")


def check_settings(static: Static, hyper: Hyper) -> None:
    """Raise UsageError for a ratio that needs more updates in an agent step than there are slots for."""
    check_ratios(static, hyper)


def hidden_layers(net: sac.TanhGaussianActor | sac.Critic, params: Params, *inputs: jax.Array) -> list[jax.Array]:
    """What a network's ReLUs are given; it is above zero where what they put out is."""
    keep = lambda module, _: isinstance(module, Dense)  # noqa: E731
    _, seen = net.apply(params, *inputs, capture_intermediates=keep, mutable=["intermediates"])
    layers = seen["intermediates"]["MLP_0"]
    return [layers[f"Dense_{i}"]["__call__"][0] for i in range(len(layers) - 1)]


def active_units(nets: sac.Nets, agent: sac.Agent, batch: Transition) -> Metrics:
    """Φ of both critics together and of the actor on a batch.

    These are the networks, inputs and products of the losses' own forward passes, so that compilers make them once.
    """
    critic = jax.vmap(lambda params: hidden_layers(nets.critic, params, batch.obs, batch.action))(agent.critic)
    actor = hidden_layers(nets.actor, agent.actor, batch.obs)
    return {"fau_critic": fraction_active(critic), "fau_actor": fraction_active(actor)}


def make_learner(static: Static, spec: Spec) -> Learner:
    """SAC whose actions are in [-1, 1], with a ring of transitions."""
    shapes = sac.Static(static.hidden, static.batch_size, 1, None, static.buffer_capacity, static.warmup)
    spec = replace(spec, max_action=1.0)
    nets = sac.make_nets(shapes, spec)

    def init(key: Key, hyper: Hyper) -> sac.Agent:
        actor_key, critic_key = jax.random.split(key)
        return sac.init_agent((actor_key, critic_key), nets, hyper)

    def store(buffer: ReplayBuffer, step: Transition, write: jax.Array) -> ReplayBuffer:
        added = add(buffer, jax.tree.map(lambda x: x[None], step))
        return added._replace(count=buffer.count + write)  # a row that does not count is overwritten by the next

    def update(
        key: Key, agent: sac.Agent, batch: Transition, steps: jax.Array, updates: jax.Array, hyper: Hyper
    ) -> tuple[sac.Agent, Metrics]:
        measured = active_units(nets, agent, batch)
        agent, metrics = sac.learn(nets, agent, batch, sac.draw(key, shapes, spec), hyper)
        return agent, metrics | measured

    return Learner(
        init=init,
        explore=lambda key, agent, obs, steps, hyper: sac.sample_action(key, nets, agent.actor, obs),
        act=lambda agent, obs, hyper: sac.mean_action(nets, agent.actor, obs),
        empty=lambda: empty_buffer(static.buffer_capacity, spec.obs_dim, spec.action_dim),
        begin=lambda buffer, obs, write: buffer,
        add=store,
        ready=lambda buffer: buffer.count > 0,
        sample=lambda key, buffer, hyper: sample_buffer(key, buffer, static.batch_size),
        update=update,
    )


def make_loop(static: Static, spec: Spec, env: Env) -> Loop:
    """What `make` builds the algorithm of."""
    return Loop(make_learner(static, spec), env, static, lambda hyper: hyper)


def make(static: Static, spec: Spec, env: Env) -> Algorithm:
    """Build it for an environment seen by its state; the `source` of `step` is `env.params`.

    Raises UsageError for an environment seen in pixels.
    """
    if env.view is not None:
        raise UsageError(
            f"algo=adaptive_rr_sac learns from states, env={env.name} shows something else: set algo=adaptive_rr, or "
            "env=cartpole-swingup-state, ..."
        )
    return make_algorithm(make_loop(static, spec, env))
