"""Stage C of PSEC: a network that mixes the skills of a library state by state.

Base and skills are frozen; what is learnt is alpha(s) (k numbers, unbounded) from a few good trajectories. Levels:

    parameter   PSEC: W0 + Σ_i alpha_i(s) A_i B_i in every layer, learnt with the diffusion loss
    noise       NSEC: Σ_i w_i(s) eps_i at every step of one reverse chain, learnt through the chain
    action      ASEC: Σ_i w_i(s) a_i of the actions that the skills' own chains end with
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import register_dataclass
from jax.typing import ArrayLike

from algos.buffers import sample_dataset, shape_reward
from algos.checks import check_choice
from algos.core import Algorithm, Dataset, Key, Loss, Metrics, Params, Spec, Transition, UsageError
from algos.losses import adam, descend
from algos.psec import skill
from algos.psec.base import Draws, clip_action, draw, held_out, squared_error
from algos.psec.critics import Critic, pessimistic, value
from algos.psec.diffusion import Noise, Schedule, add_noise, draw_noise, make_schedule, reverse_chain
from algos.psec.nets import ADAPTERS, Net, init_mlp, init_noise_net, mlp, noise_net, stack
from algos.psec.skill import adapted_net, check_net, choose, reward_weight, sample_actions

START = ("base", "lora", "scale", "critics")
START_FROM = "runs of algo=psec_skill on one base, or skills of a library"
LEVELS = ("parameter", "noise", "action")


@register_dataclass
@dataclass
class Hyper:
    """Scalars that may differ between members."""

    lr: float = 3e-4
    constant: list[float] = field(default_factory=list)  # alpha of context=constant, a number for each skill
    # Pulls of the original code, which the paper does not mention; 1 for its numbers.
    mean_pull: float = 0.0  # weight of (mean alpha - c/2)^2
    last_pull: float = 0.0  # weight of (mean of the last column - c)^2, c = 1 at the noise level
    reward_temperature: float = 10.0  # of weighted=true, see algos/psec/skill.py
    reward_cap: float = 100.0
    reward_scale: float = 1.0
    reward_shift: float = 0.0
    temperature: float = 1.0  # κ: of the noise added while acting


@dataclass(unsafe_hash=True)
class Static:
    """What shapes the compiled program."""

    net: Net = field(default_factory=Net)  # that of the base
    level: str = "parameter"  # parameter | noise | action
    context: str = "network"  # network: alpha(s) is learnt | vector: one alpha is | constant: hyper.constant
    hidden: tuple[int, ...] = (256, 256)  # of the network
    adapter: str = "lora"  # that of the skills
    skill_activation: str = "same"  # that of the skills
    with_base: bool = False  # the base policy is mixed in too, as a first skill that changes nothing
    weighted: bool = False  # weigh the loss by the skills' reward critic, as the code for dynamics shift does
    frozen_draws: bool = False  # the same times and noises at each update, as in the original code
    candidates: int = 1  # N actions sampled while acting
    select: str = "first"  # first | cost: the candidate of the lowest max Qc
    batch_size: int = 2048

    def __post_init__(self) -> None:
        """Hydra hands over lists; tuples are hashable. Raises UsageError for choices that do not exist."""
        self.hidden = tuple(self.hidden)
        check_choice("level", self.level, LEVELS)
        check_choice("context", self.context, ("network", "vector", "constant"))
        check_choice("adapter", self.adapter, ADAPTERS)
        check_choice("skill_activation", self.skill_activation, ("same", "swish", "mish"))
        check_choice("select", self.select, ("first", "cost"))
        if self.weighted and self.level != "parameter":
            raise UsageError(f"weighted=true is for level=parameter, not level={self.level}")

    @property
    def adapted(self) -> Net:
        """The base's network as it is evaluated with skills."""
        return adapted_net(self.net, self.skill_activation)


class State(NamedTuple):
    """The context network, and everything frozen."""

    context: Params  # of alpha(s), or alpha (k,); () with constant weights
    base: Params
    lora: Params  # leading axis: skills
    scale: jax.Array  # (k,): c of each skill
    critics: dict[str, Critic]  # by side, of the first run that has it
    optim: optax.OptState


def check_start(algo: Any, places: tuple[str, ...], parts: tuple[dict, ...], configs: list[dict]) -> None:
    """Whether these skills can be mixed.

    Raises:
        UsageError: skills of different bases, of another kind or network, or not as many constants as skills.
    """
    static = algo.static
    for place, part, config in zip(places, parts, configs):
        if "lora" not in part:
            raise UsageError(f"start={place} holds no skill; {START_FROM}")
        check_net(static.net, place, config)
        for name in ("adapter", "skill_activation"):
            if (theirs := config["static"][name]) != getattr(static, name):
                raise UsageError(f"algo.static.{name}={getattr(static, name)}, but {place} has {theirs}: set that")
        same = jax.tree.map(lambda x, y: x.shape == y.shape and bool((x == y).all()), part["base"], parts[0]["base"])
        if not all(jax.tree.leaves(same)):
            raise UsageError(f"{place} and {places[0]} are skills of different bases: choose skills of one base")
    skills = sum(len(part["scale"]) for part in parts) + static.with_base
    if static.context == "constant" and len(algo.hyper.constant) != skills:
        raise UsageError(
            f"algo.hyper.constant={list(algo.hyper.constant)} has {len(algo.hyper.constant)} numbers for {skills} "
            "skills: give one for each"
        )
    if static.select == "cost" and not any("cost" in part["critics"] for part in parts):
        raise UsageError("select=cost needs a cost critic: begin from a run with kinds=[...,cost]")
    if static.weighted and not any("reward" in part["critics"] for part in parts):
        raise UsageError("weighted=true needs a reward critic: begin from a run with kinds=[reward,...]")


def example_start(key: Key, static: Static, spec: Spec) -> tuple[dict[str, Any]]:
    """Two untrained skills, to measure speed and memory with."""
    earlier = skill.Static(net=static.net, critic_hidden=static.hidden)
    base_key, skill_key = jax.random.split(key)
    base = init_noise_net(base_key, static.net, spec.obs_dim, spec.action_dim)
    state = skill.make(earlier, spec).init(skill_key, skill.Hyper(), {"base": base})
    return ({name: getattr(state, name) for name in START},)


def all_skills(starts: tuple[dict[str, Any], ...]) -> tuple[Params, jax.Array, dict[str, Critic]]:
    """The skills of all runs side by side, the scale of each (k,), and the critics of the first run that has each."""
    separate = [
        jax.tree.map(lambda x, i=i: x[i], start["lora"]) for start in starts for i in range(len(start["scale"]))
    ]
    critics: dict[str, Any] = {}
    for start in starts:
        critics = start["critics"] | critics
    scale = jnp.concatenate([jnp.asarray(start["scale"]) for start in starts])
    return stack(separate), scale, {side: _critic(critic) for side, critic in critics.items()}


def _critic(critic: Any) -> Critic:
    """Without the optimisers' states: nothing is learnt of them here."""
    found = critic._asdict() if isinstance(critic, Critic) else critic
    return Critic(found["q"], found["q_target"], found["v"], (), ())


def mixture(static: Static, state: State, hyper: Hyper, obs: jax.Array) -> jax.Array:
    """alpha(s), (batch, k), at obs (batch, obs_dim)."""
    if static.context == "constant":
        return jnp.broadcast_to(jnp.stack(hyper.constant), (*obs.shape[:-1], len(hyper.constant)))
    if static.context == "vector":
        return jnp.broadcast_to(state.context, (*obs.shape[:-1], *state.context.shape))
    return mlp(state.context, obs)


def mixing_error(
    state: State, static: Static, schedule: Schedule, batch: Transition, draws: Draws, hyper: Hyper
) -> tuple[jax.Array, jax.Array]:
    """Squared error (batch,) of the noise that the mixed network predicts, and the alpha (batch, k) it was mixed by."""
    alpha = mixture(static, state, hyper, batch.obs)
    x = add_noise(schedule, batch.action, draws.time, draws.noise)
    predicted = noise_net(static.adapted, state.base, x, batch.obs, draws.time, state.lora, alpha, static.adapter)
    return squared_error(draws.noise, predicted), alpha


def skill_noises(static: Static, state: State, x: jax.Array, obs: jax.Array, t: jax.Array) -> jax.Array:
    """(k, ..., action_dim): the noise that each skill alone predicts, at its own scale."""

    def one(lora: Params, scale: jax.Array) -> jax.Array:
        alone = jax.tree.map(lambda leaf: leaf[None], lora)
        alpha = jnp.broadcast_to(scale, (*x.shape[:-1], 1))
        return noise_net(static.adapted, state.base, x, obs, t, alone, alpha, static.adapter)

    return jax.vmap(one)(state.lora, state.scale)


def noise_level_actions(
    static: Static, schedule: Schedule, state: State, weight: jax.Array, obs: jax.Array, noise: Noise,
    temperature: ArrayLike,
) -> jax.Array:  # fmt: skip
    """NSEC's actions (..., batch, action_dim): e = Σ_i w_i(s) eps_i at every step; weight (batch, k)."""

    def predict(x: jax.Array, t: jax.Array) -> jax.Array:
        lead = x.shape[:-1]
        seen = jnp.broadcast_to(obs, (*lead, obs.shape[-1]))
        noises = skill_noises(static, state, x, seen, jnp.broadcast_to(t, lead))
        return jnp.einsum("...k,k...a->...a", jnp.broadcast_to(weight, (*lead, weight.shape[-1])), noises)

    return reverse_chain(schedule, predict, noise, temperature)[0]


def skill_actions(
    static: Static, schedule: Schedule, state: State, obs: jax.Array, noise: Noise, temperature: ArrayLike
) -> jax.Array:
    """Where each skill's own chain ends, (k, ..., batch, action_dim), from the same random numbers."""

    def one(lora: Params, scale: jax.Array) -> jax.Array:
        alone = jax.tree.map(lambda leaf: leaf[None], lora)
        alpha = jnp.broadcast_to(scale, (*obs.shape[:-1], 1))
        return sample_actions(
            static.adapted, schedule, state.base, alone, alpha, obs, noise, temperature, static.adapter
        )  # fmt: skip

    return jax.vmap(one)(state.lora, state.scale)


def composed_actions(
    static: Static, schedule: Schedule, state: State, weight: jax.Array, obs: jax.Array, noise: Noise,
    temperature: ArrayLike,
) -> jax.Array:  # fmt: skip
    """Actions (..., batch, action_dim) of the mixture at obs (batch, obs_dim), weights (batch, k), at its level."""
    if static.level == "parameter":
        return sample_actions(
            static.adapted, schedule, state.base, state.lora, weight, obs, noise, temperature, static.adapter
        )  # fmt: skip
    if static.level == "noise":
        return noise_level_actions(static, schedule, state, weight, obs, noise, temperature)
    return jnp.einsum("bk,k...ba->...ba", weight, skill_actions(static, schedule, state, obs, noise, temperature))


def parameter_loss(
    context: Params, static: Static, schedule: Schedule, state: State, batch: Transition, draws: Draws,
    weight: jax.Array, hyper: Hyper,
) -> Loss:  # fmt: skip
    """L = mean w Σ (eps - n)², plus the original code's pulls on alpha; weight (batch,)."""
    error, alpha = mixing_error(state._replace(context=context), static, schedule, batch, draws, hyper)
    loss, scale = (weight * error).mean(), state.scale[-1]
    pull = hyper.mean_pull * jnp.square(alpha.mean() - scale / 2) + hyper.last_pull * jnp.square(
        alpha[:, -1].mean() - scale
    )
    return loss + pull, {"loss": loss, "pull": pull} | _told(alpha)


def action_loss(
    context: Params, static: Static, schedule: Schedule, state: State, batch: Transition, noise: Noise, hyper: Hyper
) -> Loss:
    """L = mean Σ (a_sampled - a)² of NSEC and ASEC; in the original code NSEC is also pulled to w_k = 1."""
    weight = mixture(static, state._replace(context=context), hyper, batch.obs)
    actions = composed_actions(static, schedule, state, weight, batch.obs, noise, hyper.temperature)
    loss = squared_error(batch.action, actions).mean()
    pull = hyper.last_pull * jnp.square(weight[:, -1] - 1.0).mean() if static.level == "noise" else jnp.float32(0.0)
    return loss + pull, {"loss": loss, "pull": pull} | _told(weight)


def _told(alpha: jax.Array) -> Metrics:
    return {f"alpha_{i + 1}": alpha[:, i].mean() for i in range(alpha.shape[-1])}


def learn(
    static: Static, schedule: Schedule, state: State, batch: Transition, draws: Draws | Noise, weight: jax.Array,
    hyper: Hyper,
) -> tuple[State, Metrics]:  # fmt: skip
    """One update of the context network; draws are those of a diffusion loss, at the other levels those of a chain."""
    if isinstance(draws, Draws):
        grads, metrics = jax.grad(parameter_loss, has_aux=True)(
            state.context, static, schedule, state, batch, draws, weight, hyper
        )
    else:
        grads, metrics = jax.grad(action_loss, has_aux=True)(
            state.context, static, schedule, state, batch, draws, hyper
        )  # fmt: skip
    context, optim = descend(adam(hyper.lr), grads, state.optim, state.context)
    return state._replace(context=context, optim=optim), metrics


def make(static: Static, spec: Spec) -> Algorithm:
    """Build a composition for the observation and action shapes in `spec`."""
    net = static.adapted
    schedule = make_schedule(net.schedule, net.diffusion_steps)

    def init(key: Key, hyper: Hyper, *starts: dict[str, Any]) -> State:
        lora, scale, critics = all_skills(starts)
        if static.with_base:
            lora, scale = jax.tree.map(lambda x: jnp.concatenate([jnp.zeros_like(x[:1]), x]), (lora, scale))
        context: Params = ()
        if static.context == "vector":
            context = jnp.zeros(len(scale))
        elif static.context == "network":
            context = init_mlp(key, spec.obs_dim, static.hidden, len(scale))
        return State(context, starts[0]["base"], lora, scale, critics, adam(hyper.lr).init(context))

    def step(key: Key, state: State, source: Dataset, hyper: Hyper) -> tuple[State, Metrics]:
        batch_key, draw_key = jax.random.split(key)
        if static.frozen_draws:
            draw_key = jax.random.key(0)
        batch = clip_action(sample_dataset(batch_key, source, static.batch_size))
        batch = shape_reward(batch, hyper.reward_scale, hyper.reward_shift)
        draws = draw(draw_key, net, batch.action.shape, dropout=False)
        if static.context == "constant":
            error, alpha = mixing_error(state, static, schedule, batch, draws, hyper)
            return state, {"loss": error.mean()} | _told(alpha)
        weight = jnp.ones(static.batch_size)
        if static.weighted:
            advantage = pessimistic(state.critics["reward"], batch, "reward") - value(
                state.critics["reward"].v, batch.obs
            )
            weight = jax.lax.stop_gradient(reward_weight(advantage, hyper))
        if static.level == "parameter":
            return learn(static, schedule, state, batch, draws, weight, hyper)
        return learn(static, schedule, state, batch, draw_noise(draw_key, schedule, batch.action.shape), weight, hyper)

    def act(key: Key, state: State, obs: jax.Array, hyper: Hyper) -> jax.Array:
        noise = draw_noise(key, schedule, (static.candidates, *obs.shape[:-1], spec.action_dim))
        weight = mixture(static, state, hyper, obs)
        actions = composed_actions(static, schedule, state, weight, obs, noise, hyper.temperature)
        return choose(actions, obs, state.critics, static.select) * spec.max_action

    def validate(key: Key, state: State, data: Dataset, hyper: Hyper) -> Metrics:
        batch, draws = held_out(data, net, key)
        if static.level == "parameter":
            return {"heldout_loss": mixing_error(state, static, schedule, batch, draws, hyper)[0].mean()}
        noise = draw_noise(key, schedule, batch.action.shape)
        weight = mixture(static, state, hyper, batch.obs)
        actions = composed_actions(static, schedule, state, weight, batch.obs, noise, hyper.temperature)
        return {"heldout_action_error": squared_error(batch.action, actions).mean()}

    return Algorithm(init, step, act, validate=validate)
