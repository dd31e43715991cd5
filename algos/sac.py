"""SAC: soft actor-critic with a learnt temperature (Haarnoja et al. 2018, arXiv 1812.05905, Algorithm 1).

Twin critics with target networks, no value network, one temperature for all states. Online: the replay buffer
and the environments' states are part of `State`. The networks start in PyTorch's initialisation.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.tree_util import register_dataclass

from algos.buffers import ReplayBuffer, add, empty_buffer, sample_buffer
from algos.checks import check_least
from algos.core import Algorithm, Env, Key, Loss, Metrics, Params, Source, Spec, Transition, UsageError
from algos.distributions import tanh_gaussian
from algos.losses import adam, descend, ensemble_mse, min_td_target, polyak
from algos.nets import MLP, Critic, apply_ensemble, init_ensemble
from envs.core import EnvState, autoreset


@register_dataclass
@dataclass
class Hyper:
    """Scalars that may differ between members. The defaults are the paper's (table 1)."""

    discount: float = 0.99  # γ
    tau: float = 0.005  # τ: Polyak step of the target critics
    target_entropy_scale: float = 1.0  # H̄ = -scale x action_dim, for actions in [-1, 1]
    initial_temperature: float = 1.0  # α at the start
    actor_lr: float = 3e-4
    critic_lr: float = 3e-4
    alpha_lr: float = 3e-4


@dataclass(unsafe_hash=True)
class Static:
    """What shapes the compiled program."""

    hidden: tuple[int, ...] = (256, 256)
    batch_size: int = 256
    num_envs: int = 1
    updates_per_iteration: int | None = None  # gradient updates; None: one for each environment step
    buffer_capacity: int = 1_000_000  # a multiple of num_envs
    warmup: int = 10_000  # transitions collected with uniform actions before the first update

    def __post_init__(self) -> None:
        """Hydra hands over lists; tuples are hashable."""
        self.hidden = tuple(self.hidden)
        check_least(self, batch_size=1, num_envs=1, updates_per_iteration=1, buffer_capacity=1)
        if self.buffer_capacity % self.num_envs:
            raise UsageError(
                f"algo.static.buffer_capacity={self.buffer_capacity} is a multiple of algo.static.num_envs="
                f"{self.num_envs}"
            )


class TanhGaussianActor(nn.Module):
    """obs (..., obs_dim) -> mean and log standard deviation before tanh, each (..., action_dim)."""

    hidden: tuple[int, ...]
    action_dim: int

    @nn.compact
    def __call__(self, obs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The parameters of the Gaussian; the bounds on log_std are those of the authors' code."""
        mean, log_std = jnp.split(MLP(self.hidden, 2 * self.action_dim)(obs), 2, -1)
        return mean, jnp.clip(log_std, -20.0, 2.0)


class Nets(NamedTuple):
    """Network definitions (no parameters), and the task they are for."""

    actor: TanhGaussianActor
    critic: Critic
    spec: Spec


class Optim(NamedTuple):
    """One Adam state per trained part."""

    actor: optax.OptState
    critic: optax.OptState
    log_alpha: optax.OptState


class Agent(NamedTuple):
    """What the gradient updates change."""

    actor: Params
    critic: Params  # leading axis 2: twin critics
    target_critic: Params
    log_alpha: jax.Array  # (): logarithm of the temperature
    optim: Optim


class State(NamedTuple):
    """Everything that training changes.

    Each iteration appends one block of `num_envs` rows to the buffer, in the order of the environments: row i
    is a transition of environment i % num_envs, and the same episode goes on in row i + num_envs, modulo the
    capacity (in a ring that has wrapped, the oldest row is count % capacity). `next_obs` is the true
    successor, never the observation after a reset; an episode's last row has `terminated` or `truncated` set.
    """

    agent: Agent
    buffer: ReplayBuffer  # its count is the number of environment steps made so far
    env_state: EnvState  # leading axis num_envs
    obs: jax.Array  # (num_envs, obs_dim)


class Draws(NamedTuple):
    """Every random number of one update: standard normal."""

    target: jax.Array  # (batch, action): a' ~ π(s')
    actor: jax.Array  # (batch, action): a ~ π(s)


def make_nets(static: Static, spec: Spec) -> Nets:
    """Networks of the given widths for the given task."""
    return Nets(TanhGaussianActor(static.hidden, spec.action_dim), Critic(static.hidden), spec)


def draw(key: Key, static: Static, spec: Spec) -> Draws:
    """All noise of one update."""
    shape = (static.batch_size, spec.action_dim)
    return Draws(*(jax.random.normal(k, shape) for k in jax.random.split(key)))


def policy(nets: Nets, actor: Params, obs: jax.Array, noise: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Action of the stochastic policy for the given noise, and its log density."""
    mean, log_std = nets.actor.apply(actor, obs)
    return tanh_gaussian(mean, log_std, noise, nets.spec.max_action)


def sample_action(key: Key, nets: Nets, actor: Params, obs: jax.Array) -> jax.Array:
    """a ~ π(s): what training collects with. obs (..., obs_dim) -> (..., action_dim)."""
    return policy(nets, actor, obs, jax.random.normal(key, (*obs.shape[:-1], nets.spec.action_dim)))[0]


def mean_action(nets: Nets, actor: Params, obs: jax.Array) -> jax.Array:
    """The evaluation policy: tanh of the Gaussian's mean, without noise."""
    return nets.spec.max_action * jnp.tanh(nets.actor.apply(actor, obs)[0])


def target_entropy(spec: Spec, hyper: Hyper) -> jax.Array:
    """H̄ = -dim A on [-1, 1]; the density of actions on [-M, M] has an entropy larger by dim A log M."""
    return spec.action_dim * (jnp.log(spec.max_action) - hyper.target_entropy_scale)


def critic_loss(critic: Params, nets: Nets, batch: Transition, target: jax.Array) -> Loss:
    """J_Q, equation (5), summed over the twin critics."""
    q = apply_ensemble(nets.critic, critic, batch.obs, batch.action)  # (2, batch)
    loss = ensemble_mse(q, target)
    return loss, {"critic_loss": loss, "q": q.mean()}


def actor_loss(
    actor: Params, nets: Nets, critic: Params, log_alpha: jax.Array, obs: jax.Array, noise: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """J_π, equation (9); also returns the mean log density, which the temperature uses."""
    action, log_prob = policy(nets, actor, obs, noise)
    q = apply_ensemble(nets.critic, critic, obs, action).min(0)
    return (jnp.exp(log_alpha) * log_prob - q).mean(), log_prob.mean()


def temperature_loss(log_alpha: jax.Array, log_prob: jax.Array, target: jax.Array) -> jax.Array:
    """J(α), equation (18): α falls while the entropy is above the target."""
    return -jnp.exp(log_alpha) * jax.lax.stop_gradient(log_prob + target)


def learn(nets: Nets, agent: Agent, batch: Transition, draws: Draws, hyper: Hyper) -> tuple[Agent, Metrics]:
    """One gradient update of critics, actor and temperature, then of the target critics."""
    next_action, next_log_prob = policy(nets, agent.actor, batch.next_obs, draws.target)
    next_q = apply_ensemble(nets.critic, agent.target_critic, batch.next_obs, next_action)
    soft_q = next_q - jnp.exp(agent.log_alpha) * next_log_prob
    target = min_td_target(batch.reward, batch.terminated, soft_q, hyper.discount)
    grads, metrics = jax.grad(critic_loss, has_aux=True)(agent.critic, nets, batch, target)
    critic, critic_optim = descend(adam(hyper.critic_lr), grads, agent.optim.critic, agent.critic)

    (pi_loss, log_prob), grads = jax.value_and_grad(actor_loss, has_aux=True)(
        agent.actor, nets, critic, agent.log_alpha, batch.obs, draws.actor
    )
    actor, actor_optim = descend(adam(hyper.actor_lr), grads, agent.optim.actor, agent.actor)

    grads = jax.grad(temperature_loss)(agent.log_alpha, log_prob, target_entropy(nets.spec, hyper))
    log_alpha, alpha_optim = descend(adam(hyper.alpha_lr), grads, agent.optim.log_alpha, agent.log_alpha)

    target_critic = polyak(critic, agent.target_critic, hyper.tau)
    metrics |= {"actor_loss": pi_loss, "entropy": -log_prob, "temperature": jnp.exp(log_alpha)}
    return Agent(actor, critic, target_critic, log_alpha, Optim(actor_optim, critic_optim, alpha_optim)), metrics


def collect(key: Key, nets: Nets, static: Static, env: Env, state: State, params: Source) -> State:
    """One step of every environment, with uniform actions during the warm-up, appended to the buffer."""
    policy_key, uniform_key, env_key = jax.random.split(key, 3)
    bound = nets.spec.max_action
    action = sample_action(policy_key, nets, state.agent.actor, state.obs)
    uniform = jax.random.uniform(uniform_key, action.shape, minval=-bound, maxval=bound)
    action = jnp.where(state.buffer.count < static.warmup, uniform, action)
    env_state, obs, step = jax.vmap(lambda k, s, a: autoreset(env, k, s, a, params))(
        jax.random.split(env_key, static.num_envs), state.env_state, action
    )
    ends = step.terminated.astype(jnp.float32), step.truncated.astype(jnp.float32)
    rows = Transition(state.obs, action, step.reward, step.obs, *ends)
    return State(state.agent, add(state.buffer, rows), env_state, obs)


def init_agent(keys: tuple[Key, Key], nets: Nets, hyper: Hyper) -> Agent:
    """A fresh agent, from keys of the actor and of the critics; the target critics are copies."""
    obs, action = jnp.zeros((1, nets.spec.obs_dim)), jnp.zeros((1, nets.spec.action_dim))
    actor = nets.actor.init(keys[0], obs)
    critic = init_ensemble(nets.critic, keys[1], 2, obs, action)
    log_alpha = jnp.log(jnp.asarray(hyper.initial_temperature, jnp.float32))
    optim = Optim(*(adam(0.0).init(params) for params in (actor, critic, log_alpha)))
    return Agent(actor, critic, critic, log_alpha, optim)


def make(static: Static, spec: Spec, env: Env) -> Algorithm:
    """Build SAC for the shapes in `spec`, to be trained in `env`; the `source` of `step` is `env.params`.

    `updates_per_step` also counts the iterations of the warm-up, which collect only: their metrics are zero.
    """
    nets = make_nets(static, spec)
    updates = static.updates_per_iteration or static.num_envs

    def init(key: Key, hyper: Hyper) -> State:
        actor_key, critic_key, env_key = jax.random.split(key, 3)
        agent = init_agent((actor_key, critic_key), nets, hyper)
        buffer = empty_buffer(static.buffer_capacity, spec.obs_dim, spec.action_dim)
        env_state, obs = jax.vmap(lambda k: env.reset(k, env.params))(jax.random.split(env_key, static.num_envs))
        return State(agent, buffer, env_state, obs)

    def step(key: Key, state: State, source: Source, hyper: Hyper) -> tuple[State, Metrics]:
        """`num_envs` environment steps, then the gradient updates."""
        collect_key, batch_key, draw_key = jax.random.split(key, 3)
        state = collect(collect_key, nets, static, env, state, source)
        # Batches are drawn here, as a buffer that enters the branch below could be copied by the compiler.
        batches = sample_buffer(batch_key, state.buffer, updates * static.batch_size)
        batches = jax.tree.map(lambda x: x.reshape(updates, static.batch_size, *x.shape[1:]), batches)

        def update(agent: Agent, inputs: tuple[Key, Transition]) -> tuple[Agent, Metrics]:
            return learn(nets, agent, inputs[1], draw(inputs[0], static, spec), hyper)

        def train(agent: Agent) -> tuple[Agent, Metrics]:
            agent, metrics = jax.lax.scan(update, agent, (jax.random.split(draw_key, updates), batches))
            return agent, jax.tree.map(lambda x: x.mean(0), metrics)

        def wait(agent: Agent) -> tuple[Agent, Metrics]:
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(train, agent)[1])
            return agent, zeros

        # Under vmap the branch becomes a selection: the warm-up then costs as much as training.
        agent, metrics = jax.lax.cond(state.buffer.count >= static.warmup, train, wait, state.agent)
        return state._replace(agent=agent), metrics

    def act(key: Key, state: State, obs: jax.Array, hyper: Hyper) -> jax.Array:
        return mean_action(nets, state.agent.actor, obs)

    return Algorithm(init, step, act, updates_per_step=updates, replay=("buffer",))
