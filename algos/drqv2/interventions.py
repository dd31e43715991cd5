"""Interventions on the plasticity of DrQ-v2, as Adaptive Replay Ratio (ICLR 2024, arXiv 2310.07418) compares them.

Here are those that happen now and then: resets, shrink & perturb, ReDo and plasticity injection. `intervene` is called
after every update and does what is due; what is not due costs nothing. What changes networks or losses all the time is
in `nets.py` and `learn.py`. `settings.py` has the switches, all of them off by default.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from algos.buffers import NStepBatch
from algos.core import Key, Params, UsageError
from algos.drqv2 import nets
from algos.drqv2.learn import Agent, Optim, init_agent, init_networks, trained
from algos.drqv2.replay_ratio import when, whole
from algos.drqv2.settings import Hyper, Static
from algos.losses import adam

Event = Callable[[Agent, Any], Agent]
Seen = tuple[jax.Array, jax.Array]  # observations and actions of a batch
Sizes = tuple[tuple[int, int, int], int]  # of images with all stacked frames, and of actions
Recycling = tuple[Key, jax.Array, jax.Array, jax.Array]  # its key, observations, actions and threshold


def check_measurable(static: Static) -> None:
    """Raise UsageError where the critic's share of active units says nothing. For a ratio that adapts to it."""
    if static.crelu:
        raise UsageError(
            "algo.static.crelu=true keeps half of the critic's units active whatever it learns, so that the replay "
            "ratio cannot adapt to them: set it to false, or take algo=drqv2"
        )


def intervene(
    key: Key, agent: Agent, batch: NStepBatch, steps: ArrayLike, updates: ArrayLike, static: Static, hyper: Hyper
) -> Agent:
    """The agent after what is due after an update; `key` is for this alone.

    `batch` is the update's. `steps` () is the agent step that it was made at. `updates` () counts those made so far,
    this one included. What fell due at an agent step without updates is done after the next one.
    """
    height, width, channels = batch.obs.shape[1:]
    sizes, keys = ((height, width, channels), batch.action.shape[-1]), jax.random.split(key, 3)
    steps, updates = jnp.asarray(steps), jnp.asarray(updates)
    seen = batch.obs, batch.action
    if static.redo:
        due = updates % whole(hyper.redo_period) == 0
        given = keys[0], *seen, jnp.asarray(hyper.redo_threshold)
        agent = when(measured(partial(recycle, static, sizes)))(due, agent, (seen, given))
    if static.perturb:
        due = updates % whole(hyper.perturb_period) == 0
        mix = keys[1], jnp.asarray(hyper.perturb_keep), jnp.asarray(hyper.perturb_fresh)
        agent = when(measured(partial(shrink_and_perturb, static, sizes)))(due, agent, (seen, mix))
    if agent.injected is not None:
        due = (steps >= hyper.inject_at) & ~agent.injected
        agent = when(measured(lambda agent, _: inject(static, agent)))(due, agent, (seen, ()))
    if agent.resets is not None:
        passed = (steps // whole(hyper.reset_interval)).astype(jnp.float32)
        resets = jnp.minimum(passed, hyper.resets).astype(jnp.int32)
        reborn = when(measured(partial(reset, static, sizes)))(resets > agent.resets, agent, (seen, keys[2]))
        agent = reborn._replace(resets=resets)
    return agent


def measured(event: Event) -> Callable[[Agent, tuple[Seen, Any]], Agent]:
    """The event, with the largest change of Q that it makes on images and actions, not shifted, kept in the agent."""

    def q(agent: Agent, seen: Seen) -> jax.Array:
        features, *_ = nets.encoder(agent.encoder, seen[0])
        return nets.critic(agent.critic, features, seen[1])[0]

    def apply(agent: Agent, inputs: tuple[Seen, Any]) -> Agent:
        seen, given = inputs
        after = event(agent, given)
        return after._replace(q_change=jnp.abs(q(after, seen) - q(agent, seen)).max())

    return apply


def reset(static: Static, sizes: Sizes, agent: Agent, key: Key) -> Agent:
    """Actor, critic, its target and their Adam states begin anew, and with them what L2 Init pulls to.

    The encoder and its Adam state stay as they are.
    """
    fresh = init_agent(key, static, *sizes)
    optim = fresh.optim._replace(encoder=agent.optim.encoder)
    return fresh._replace(encoder=agent.encoder, optim=optim, resets=agent.resets, injected=agent.injected)


def shrink_and_perturb(static: Static, sizes: Sizes, agent: Agent, given: tuple[Key, jax.Array, jax.Array]) -> Agent:
    """Each trained parameter of the critic becomes α of itself plus β of a fresh one; `given` are key, α and β.

    The target critic follows at its own pace, and Adam's state stays.
    """
    key, keep, renew = given
    fresh = init_networks(key, static, *sizes)["critic"]
    mixed = jax.tree.map(lambda x, y: keep * x + renew * y, trained(agent.critic), trained(fresh))
    return agent._replace(critic=nets.iterate_power(agent.critic | mixed))


def inject(static: Static, agent: Agent) -> Agent:
    """Plasticity injection: a head g_θ goes on as g_θ + g_θ1 - g_θ2, of which θ1 alone is trained; θ1 = θ2 at first.

    θ1 takes the place of θ, and its Adam state begins here. The target critic is injected likewise; its θ is its own.
    """
    name, part = static.inject, nets.HEADS[static.inject]

    def exchange(params: Params) -> Params:
        fixed = params[nets.FIXED]
        return params | {part: fixed["minus"], nets.FIXED: fixed | {"base": params[part]}}

    changed = {name: exchange(getattr(agent, name))}
    head = changed[name][part]
    if name == "critic":
        changed["target_critic"] = exchange(agent.target_critic)
        if agent.initial is not None:
            changed["initial"] = agent.initial | {part: head}
    state = getattr(agent.optim, name) | {part: adam(0.0).init(head)}
    optim = agent.optim._replace(**{name: state})
    return agent._replace(**changed, optim=optim, injected=jnp.ones((), bool))


def dormant(hidden: jax.Array, threshold: ArrayLike) -> jax.Array:
    """Units () of a layer, by activations (..., units), whose mean size is at most `threshold` of all units' mean."""
    activity = jnp.abs(hidden).mean(tuple(range(hidden.ndim - 1)))
    return activity / (activity.mean() + 1e-9) <= threshold


def recycle(static: Static, sizes: Sizes, agent: Agent, given: Recycling) -> Agent:
    """ReDo: dormant units of encoder, actor and critic are drawn anew, and what they feed ignores them at first.

    Units of the encoder are channels. The observations (B, H, W, C) are not shifted. The target critic, which has
    no encoder of its own, ignores new features, too; its units stay.
    """
    key, obs, action, threshold = given
    fresh = init_networks(key, static, *sizes)
    features, hidden, _ = nets.encoder(agent.encoder, obs)
    channels = [dormant(x, threshold) for x in hidden]
    encoder, encoder_changed = recycle_layers(agent.encoder, fresh["encoder"], channels)

    units = [dormant(x, threshold) for x in nets.actor(agent.actor, features)[1]]
    policy, policy_changed = recycle_layers(agent.actor["policy"], fresh["actor"]["policy"], units)
    trunk, trunk_changed = ignore_channels(agent.actor["trunk"], channels[-1])
    actor, actor_changed = {"trunk": trunk, "policy": policy}, {"trunk": trunk_changed, "policy": policy_changed}

    twins = [jax.vmap(dormant, (0, None))(x, threshold) for x in nets.critic(agent.critic, features, action)[1]]
    heads, heads_changed = jax.vmap(recycle_layers)(agent.critic["heads"], fresh["critic"]["heads"], twins)
    trunk, trunk_changed = ignore_channels(agent.critic["trunk"], channels[-1])
    critic, critic_changed = {"trunk": trunk, "heads": heads}, {"trunk": trunk_changed, "heads": heads_changed}

    target_trunk, _ = ignore_channels(agent.target_critic["trunk"], channels[-1])
    changed = Optim(encoder_changed, actor_changed, critic_changed)
    return agent._replace(
        encoder=encoder,
        actor=agent.actor | actor,
        critic=agent.critic | critic,
        target_critic=agent.target_critic | {"trunk": target_trunk},
        optim=Optim(*(forget(*pair) for pair in zip(agent.optim, changed, strict=True))),
    )


def recycle_layers(layers: Params, fresh: Params, units: Sequence[jax.Array]) -> tuple[Params, Params]:
    """Layers one after the other, with the `units` (out,) bool of each drawn anew, and which entries this changed.

    A last layer that no units are given for keeps its own.
    """
    names = sorted(layers)
    none = lambda layer, axis: jnp.zeros(layer["kernel"].shape[axis], bool)  # noqa: E731
    outputs = [*units, none(layers[names[-1]], -1)][: len(names)]
    inputs = [none(layers[names[0]], -2), *outputs[:-1]]
    pairs = {
        name: recycle_layer(layers[name], fresh[name], *ends)
        for name, *ends in zip(names, inputs, outputs, strict=True)
    }
    return {name: pair[0] for name, pair in pairs.items()}, {name: pair[1] for name, pair in pairs.items()}


def recycle_layer(layer: Params, fresh: Params, inputs: jax.Array, outputs: jax.Array) -> tuple[Params, Params]:
    """The layer with `outputs` (out,) bool drawn anew and `inputs` (in,) bool ignored, and which entries changed."""
    changed = jax.tree.map(lambda x: jnp.broadcast_to(outputs, x.shape), layer)
    drawn = jax.tree.map(jnp.where, changed, fresh, layer)
    kernel = jnp.where(inputs[:, None], 0.0, drawn["kernel"])
    return drawn | {"kernel": kernel}, changed | {"kernel": changed["kernel"] | inputs[:, None]}


def ignore_channels(trunk: Params, channels: jax.Array) -> tuple[Params, Params]:
    """A trunk that ignores features of these `channels` (C,) bool at every position, and which entries changed."""
    dense, width = trunk["dense"], trunk["dense"]["bias"].shape
    rows = jnp.tile(channels, dense["kernel"].shape[0] // channels.size)  # features are (h, w, c), flattened
    dense, changed = recycle_layer(dense, dense, rows, jnp.zeros(width, bool))
    kept = jax.tree.map(lambda x: jnp.zeros(x.shape, bool), trunk)
    return trunk | {"dense": dense}, kept | {"dense": changed}


def forget(optim: optax.OptState, changed: Params) -> optax.OptState:
    """Adam's state with moments of changed entries zero."""
    if isinstance(optim, dict):
        return {name: forget(state, changed[name]) for name, state in optim.items()}
    moments, *rest = optim
    clear = lambda moment: jax.tree.map(lambda c, m: jnp.where(c, 0.0, m), changed, moment)  # noqa: E731
    return moments._replace(mu=clear(moments.mu), nu=clear(moments.nu)), *rest
