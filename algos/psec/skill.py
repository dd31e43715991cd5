"""Stage B of PSEC: skills as low-rank increments of the frozen base.

One run trains a skill for each of `static.kinds`, all on the same batches and with critics of their own. A kind is
the weight that the diffusion loss gives to a transition:

    imitation   1
    reward      clip(exp(β_r (min Q(s, a) - V(s))), 0, w_max)
    cost        1[Qc < Vc] clip(exp(β_c (Vc(s) - Qc(s, a))), 0, w_max)
    feasible    the cost weight where Vc > 0, the reward weight where Vc <= 0 and Qc <= 0
"""

import functools
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
from algos.losses import adamw, cosine, descend, polyak
from algos.psec.base import Draws, clip_action, draw, held_out, squared_error
from algos.psec.critics import Critic, init_critic, learn_critic, pessimistic, q_values, value
from algos.psec.diffusion import Noise, Schedule, add_noise, draw_noise, make_schedule, reverse_chain
from algos.psec.nets import ADAPTERS, Net, init_noise_net, init_skill, noise_net

START = ("base",)
START_FROM = "a run of algo=psec_base"
KINDS = {"imitation": (), "reward": ("reward",), "cost": ("cost",), "feasible": ("reward", "cost")}  # critics of each


@register_dataclass
@dataclass
class Hyper:
    """Scalars that may differ between members. The defaults are the paper's code's for MetaDrive."""

    rank: float = 8.0  # r, at most static.max_rank
    scale: float = 16.0  # c: what the product of the factors is multiplied by; not divided by the rank
    lr: float = 3e-4  # at the start; it falls to zero along a cosine
    lr_steps: float = 1e6
    weight_decay: float = 1e-4
    ema_rate: float = 1e-3
    critic_lr: float = 3e-4
    reward_temperature: float = 1.0  # β_r
    cost_temperature: float = 1.0  # β_c
    reward_cap: float = 100.0  # w_max of the reward weight
    cost_cap: float = 100.0  # w_max of the cost weight; 150 for BulletGym
    expectile: float = 0.7  # τ_r
    cost_expectile: float = 0.9  # τ_c: Vc tends to the lower 1 - τ_c of Qc
    discount: float = 0.99  # γ
    tau: float = 0.005  # Polyak step of the target critics
    unsafe_cost: float = 25.0  # h where the data's cost is above zero
    safe_cost: float = -1.0  # h elsewhere
    reward_scale: float = 1.0  # r <- reward_scale r + reward_shift, when sampled
    reward_shift: float = 0.0
    temperature: float = 1.0  # κ: of the noise added while acting


@dataclass(unsafe_hash=True)
class Static:
    """What shapes the compiled program."""

    net: Net = field(default_factory=Net)  # that of the base
    kinds: tuple[str, ...] = ("reward", "cost")  # imitation | reward | cost | feasible: a skill for each
    acting: int = 0  # which of them acts in evaluations
    adapter: str = "lora"  # lora | mlp: the paper's ablation, a ReLU between the factors
    max_rank: int = 8  # what factors are padded to
    skill_activation: str = "same"  # same as the base's | swish: the original code's mistake
    critic_hidden: tuple[int, ...] = (256, 256)
    value_norm: bool = True  # LayerNorm on the observations that the value networks see
    cost_critic: str = "hj"  # hj: the largest cost ahead | qc: the discounted sum of costs
    relabel_cost: bool = True  # costs become unsafe_cost or safe_cost
    bootstrap_on_timeout: bool = False  # false: a time limit ends an episode like a terminal state
    same_init: bool = False  # all skills of a run start from the same A, as in the original code
    candidates: int = 1  # N actions sampled while acting
    select: str = "first"  # first | cost: the candidate of the lowest max Qc
    batch_size: int = 2048

    def __post_init__(self) -> None:
        """Hydra hands over lists; tuples are hashable. Raises UsageError for choices that do not exist."""
        self.kinds, self.critic_hidden = tuple(self.kinds), tuple(self.critic_hidden)
        for kind in self.kinds:
            check_choice("kinds", kind, KINDS)
        if not 0 <= self.acting < len(self.kinds):
            raise UsageError(f"acting={self.acting} must be the index of one of kinds={list(self.kinds)}")
        check_choice("adapter", self.adapter, ADAPTERS)
        check_choice("skill_activation", self.skill_activation, ("same", "swish", "mish"))
        check_choice("cost_critic", self.cost_critic, ("hj", "qc"))
        check_choice("select", self.select, ("first", "cost"))
        if self.select == "cost" and "cost" not in self.sides:
            raise UsageError(f"select=cost needs a cost critic, which kinds={list(self.kinds)} do not train")

    @property
    def sides(self) -> tuple[str, ...]:
        """The critics that the kinds need."""
        needed = {side for kind in self.kinds for side in KINDS[kind]}
        return tuple(side for side in ("reward", "cost") if side in needed)

    @property
    def adapted(self) -> Net:
        """The base's network as it is evaluated with skills."""
        return adapted_net(self.net, self.skill_activation)


class State(NamedTuple):
    """Everything that training changes, and the frozen base."""

    base: Params
    factors: Params  # of all skills, leading axis: kinds
    lora: Params  # their exponential moving average: what acts, and what compositions take
    scale: jax.Array  # (kinds,): c of each skill, for compositions
    critics: dict[str, Critic]  # by side
    optim: optax.OptState


def adapted_net(net: Net, skill_activation: str) -> Net:
    """The base's network with the activation that it is evaluated with once skills are there."""
    same = skill_activation == "same"
    return net if same else Net(**{**vars(net), "activation": skill_activation})


def check_start(algo: Any, places: tuple[str, ...], parts: tuple[dict, ...], configs: list[dict]) -> None:
    """Whether a skill of this configuration can be trained on the base found.

    Raises:
        UsageError: several bases, a network of another shape, or a rank that does not fit.
    """
    if len(places) > 1:
        raise UsageError(f"start names {len(places)} runs, a skill has one base: keep one of them")
    check_net(algo.static.net, places[0], configs[0])
    if not 1 <= algo.hyper.rank <= algo.static.max_rank or algo.hyper.rank != int(algo.hyper.rank):
        raise UsageError(
            f"algo.hyper.rank={algo.hyper.rank:g} must be a whole number from 1 to algo.static.max_rank="
            f"{algo.static.max_rank}"
        )


def check_net(net: Net, place: str, config: dict) -> None:
    """Raise UsageError where the network of an earlier run has another shape."""
    earlier = config["static"]["net"]
    for name, ours in vars(net).items():
        theirs = tuple(earlier[name]) if isinstance(earlier[name], list) else earlier[name]
        if theirs != ours and name != "dropout":
            raise UsageError(f"algo.static.net.{name}={ours}, but the base in {place} has {theirs}: set that")


def check_data(algo: Any, data: Dataset) -> None:
    """Raise UsageError where skills of these kinds cannot be learnt from the data."""
    if "cost" in algo.static.sides and data.transitions.cost is None:
        raise UsageError(
            f"algo.static.kinds={list(algo.static.kinds)} needs data with costs: choose such data, or other kinds"
        )


def example_start(key: Key, static: Static, spec: Spec) -> tuple[dict[str, Any]]:
    """An untrained base, to measure speed and memory with."""
    return ({"base": init_noise_net(key, static.net, spec.obs_dim, spec.action_dim)},)


def relabel(batch: Transition, hyper: Hyper) -> Transition:
    """h: `unsafe_cost` where the recorded cost is above zero, else `safe_cost`."""
    return batch._replace(cost=jnp.where(jnp.asarray(batch.cost) > 0, hyper.unsafe_cost, hyper.safe_cost))


def reward_weight(advantage: jax.Array, hyper: Any) -> jax.Array:
    """clip(exp(β_r A), 0, w_max) of the advantage A = min Q - V; β_r and w_max are the hyper's."""
    return jnp.minimum(jnp.exp(hyper.reward_temperature * advantage), hyper.reward_cap)


def cost_weight(qc: jax.Array, vc: jax.Array, hyper: Hyper) -> jax.Array:
    """1[Qc < Vc] clip(exp(β_c (Vc - Qc)), 0, w_max)."""
    return (qc < vc) * jnp.minimum(jnp.exp(hyper.cost_temperature * (vc - qc)), hyper.cost_cap)


def feasible_weight(advantage: jax.Array, qc: jax.Array, vc: jax.Array, hyper: Hyper) -> jax.Array:
    """Away from unsafe states as fast as possible; in safe ones the reward, among actions that keep them safe."""
    back = jnp.minimum(jnp.exp(hyper.cost_temperature * (vc - qc)), hyper.cost_cap)
    return jnp.where(vc > 0, back, (qc <= 0) * reward_weight(advantage, hyper))


def weights(critics: dict[str, Critic], batch: Transition, kinds: tuple[str, ...], hyper: Hyper) -> jax.Array:
    """(kinds, batch): what each skill's loss gives to each transition, without gradient."""
    seen = {side: pessimistic(critic, batch, side) for side, critic in critics.items()}
    values = {side: value(critic.v, batch.obs) for side, critic in critics.items()}

    def weight(kind: str) -> jax.Array:
        if kind == "imitation":
            return jnp.ones(batch.obs.shape[0])
        if kind == "cost":
            return cost_weight(seen["cost"], values["cost"], hyper)
        advantage = seen["reward"] - values["reward"]
        if kind == "reward":
            return reward_weight(advantage, hyper)
        return feasible_weight(advantage, seen["cost"], values["cost"], hyper)

    return jax.lax.stop_gradient(jnp.stack([weight(kind) for kind in kinds]))


def skill_loss(
    factors: Params, static: Static, schedule: Schedule, base: Params, batch: Transition, draws: Draws,
    weight: jax.Array, scale: jax.Array,
) -> jax.Array:  # fmt: skip
    """L = mean over the batch of w Σ (eps - n)², of one skill."""
    x = add_noise(schedule, batch.action, draws.time, draws.noise)
    one = jax.tree.map(lambda leaf: leaf[None], factors)
    predicted = noise_net(
        static.adapted, base, x, batch.obs, draws.time, one, scale[None], static.adapter, draws.keep
    )  # fmt: skip
    return (weight * squared_error(draws.noise, predicted)).mean()


def skills_loss(
    factors: Params, static: Static, schedule: Schedule, base: Params, batch: Transition, draws: Draws,
    weight: jax.Array, scale: jax.Array,
) -> Loss:  # fmt: skip
    """The losses of all skills, each with draws and weights of its own (leading axis: kinds), summed."""
    one = functools.partial(skill_loss, static=static, schedule=schedule, base=base, batch=batch)
    losses = jax.vmap(lambda f, d, w, s: one(f, draws=d, weight=w, scale=s))(factors, draws, weight, scale)
    names = [f"{kind}_loss" for kind in static.kinds]
    return losses.sum(), dict(zip(names, losses))


def learn_skills(
    static: Static, schedule: Schedule, state: State, batch: Transition, draws: Draws, hyper: Hyper
) -> tuple[State, Metrics]:
    """One update of all skills with the critics of before this update, then of their moving averages."""
    weight = weights(state.critics, batch, static.kinds, hyper)
    grads, metrics = jax.grad(skills_loss, has_aux=True)(
        state.factors, static, schedule, state.base, batch, draws, weight, state.scale
    )
    factors, optim = descend(optimiser(hyper), grads, state.optim, state.factors)
    metrics |= {f"{kind}_weight": w.mean() for kind, w in zip(static.kinds, weight)}
    lora = polyak(factors, state.lora, hyper.ema_rate)
    return state._replace(factors=factors, lora=lora, optim=optim), metrics


def learn(
    static: Static, schedule: Schedule, state: State, batch: Transition, draws: Draws, hyper: Hyper
) -> tuple[State, Metrics]:
    """One update: the skills, then their critics."""
    mask = 1.0 - batch.terminated
    if not static.bootstrap_on_timeout:
        mask = mask * (1.0 - batch.truncated)
    learnt, metrics = learn_skills(static, schedule, state, batch, draws, hyper)
    critics = {}
    for side, critic in state.critics.items():
        critics[side], more, _ = learn_critic(critic, batch, mask, hyper, side, static.cost_critic)
        metrics |= more
    return learnt._replace(critics=critics), metrics


def optimiser(hyper: Hyper) -> optax.GradientTransformation:
    """AdamW on the factors, its rate falling along a cosine."""
    return adamw(cosine(hyper.lr, hyper.lr_steps), hyper.weight_decay)


def choose(actions: jax.Array, obs: jax.Array, critics: dict[str, Critic], select: str) -> jax.Array:
    """One of the candidates (N, batch, action_dim) for each obs (batch, obs_dim): the first, or the least unsafe."""
    if select == "first":
        return actions[0]
    repeated = jnp.broadcast_to(obs, (*actions.shape[:-1], obs.shape[-1]))
    best = q_values(critics["cost"].q_target, repeated, actions).max(0).argmin(0)
    return jnp.take_along_axis(actions, best[None, ..., None], 0)[0]


def sample_actions(
    net: Net, schedule: Schedule, base: Params, lora: Params, alpha: jax.Array, obs: jax.Array, noise: Noise,
    temperature: ArrayLike, adapter: str,
) -> jax.Array:  # fmt: skip
    """Actions (..., batch, action_dim) at obs (batch, obs_dim) of the base with skills mixed by alpha (batch, k)."""

    def predict(x: jax.Array, t: jax.Array) -> jax.Array:
        lead = x.shape[:-1]
        seen, mix = (jnp.broadcast_to(y, (*lead, y.shape[-1])) for y in (obs, alpha))
        return noise_net(net, base, x, seen, jnp.broadcast_to(t, lead), lora, mix, adapter)

    return reverse_chain(schedule, predict, noise, temperature)[0]


def make(static: Static, spec: Spec) -> Algorithm:
    """Build skills for the observation and action shapes in `spec`."""
    net, kinds = static.adapted, len(static.kinds)
    schedule = make_schedule(net.schedule, net.diffusion_steps)

    def init(key: Key, hyper: Hyper, start: dict[str, Any]) -> State:
        skill_key, critic_key = jax.random.split(key)
        keys = jax.random.split(skill_key, kinds)
        if static.same_init:
            keys = keys[jnp.zeros(kinds, int)]
        base = start["base"]
        factors = jax.vmap(lambda k: init_skill(k, base, static.max_rank, hyper.rank))(keys)
        critics = {
            side: init_critic(k, spec.obs_dim, spec.action_dim, static.critic_hidden, static.value_norm)
            for side, k in zip(static.sides, jax.random.split(critic_key, 2))
        }
        scale = jnp.full(kinds, hyper.scale)
        return State(base, factors, factors, scale, critics, optimiser(hyper).init(factors))

    def step(key: Key, state: State, source: Dataset, hyper: Hyper) -> tuple[State, Metrics]:
        batch_key, draw_key = jax.random.split(key)
        batch = clip_action(sample_dataset(batch_key, source, static.batch_size))
        batch = shape_reward(batch, hyper.reward_scale, hyper.reward_shift)
        if "cost" in static.sides and static.relabel_cost:
            batch = relabel(batch, hyper)
        draws = jax.vmap(lambda k: draw(k, net, batch.action.shape, dropout=True))(jax.random.split(draw_key, kinds))
        return learn(static, schedule, state, batch, draws, hyper)

    def acting(state: State) -> tuple[Params, jax.Array]:
        return jax.tree.map(lambda x: x[static.acting : static.acting + 1], (state.lora, state.scale))

    def act(key: Key, state: State, obs: jax.Array, hyper: Hyper) -> jax.Array:
        lora, scale = acting(state)
        noise = draw_noise(key, schedule, (static.candidates, *obs.shape[:-1], spec.action_dim))
        actions = sample_actions(
            net, schedule, state.base, lora, scale, obs, noise, hyper.temperature, static.adapter
        )  # fmt: skip
        return choose(actions, obs, state.critics, static.select) * spec.max_action

    def validate(key: Key, state: State, data: Dataset, hyper: Hyper) -> Metrics:
        batch, draws = held_out(data, net, key)
        one, scale = jax.tree.map(lambda x: x[0], acting(state))
        even = jnp.ones(batch.obs.shape[0])
        return {"heldout_loss": skill_loss(one, static, schedule, state.base, batch, draws, even, scale)}

    return Algorithm(init, step, act, validate=validate)
