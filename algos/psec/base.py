"""Stage A of PSEC: the base policy, cloned from data as a diffusion model.

Trained on the data of a new task alone, this is also the paper's baseline `scratch`; trained on the data of two
domains together, `joint training`.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import register_dataclass
from jax.typing import ArrayLike

from algos.buffers import sample_dataset
from algos.core import Algorithm, Dataset, Key, Loss, Metrics, Params, Spec, Transition
from algos.losses import adamw, cosine, descend, polyak
from algos.psec.diffusion import Noise, Schedule, add_noise, draw_noise, make_schedule, reverse_chain
from algos.psec.nets import Net, init_noise_net, noise_net

ACTION_BOUND = 1.0 - 1e-5  # where recorded actions are clipped
HELD_OUT_DRAWS = 4  # times and noises for each held-out transition


@register_dataclass
@dataclass
class Hyper:
    """Scalars that may differ between members. The defaults are the paper's code's."""

    lr: float = 3e-4  # at the start; it falls to zero along a cosine
    lr_steps: float = 3e6  # updates after which it is zero; inf keeps it constant
    weight_decay: float = 1e-4
    ema_rate: float = 1e-3
    temperature: float = 1.0  # κ: of the noise added while acting


@dataclass(unsafe_hash=True)
class Static:
    """What shapes the compiled program."""

    net: Net = field(default_factory=Net)
    batch_size: int = 2048


class Draws(NamedTuple):
    """The random numbers of one diffusion loss."""

    time: jax.Array  # (batch,) int32 in 0 ... T-1
    noise: jax.Array  # (batch, action_dim), standard normal
    keep: jax.Array | None  # (blocks, batch, hidden): dropout's mask; None: no dropout


class State(NamedTuple):
    """Everything that training changes."""

    params: Params
    base: Params  # their exponential moving average: what acts, and what every later phase begins from
    optim: optax.OptState


def draw(key: Key, net: Net, shape: tuple[int, ...], dropout: bool) -> Draws:
    """Times, noises and, if asked for and the network has it, dropout's mask, for actions (batch, action_dim)."""
    time_key, noise_key, keep_key = jax.random.split(key, 3)
    time = jax.random.randint(time_key, shape[:1], 0, net.diffusion_steps)
    noise = jax.random.normal(noise_key, shape)
    if not dropout or net.dropout == 0.0:
        return Draws(time, noise, None)
    # Sixteen bits decide: half the work of `bernoulli`, which takes as long as the network's layers on CPUs.
    bits = jax.random.bits(keep_key, (net.blocks, shape[0], net.hidden), jnp.uint16)
    return Draws(time, noise, bits < round(2**16 * (1.0 - net.dropout)))


def clip_action(batch: Transition) -> Transition:
    """Recorded actions just inside [-1, 1]."""
    return batch._replace(action=jnp.clip(batch.action, -ACTION_BOUND, ACTION_BOUND))


def squared_error(noise: jax.Array, predicted: jax.Array) -> jax.Array:
    """Σ over action dimensions of (eps - n)², (...)."""
    return jnp.square(predicted - noise).sum(-1)


def cloning_loss(params: Params, net: Net, schedule: Schedule, batch: Transition, draws: Draws) -> Loss:
    """L_BC: mean over the batch of the squared error of the predicted noise."""
    x = add_noise(schedule, batch.action, draws.time, draws.noise)
    predicted = noise_net(net, params, x, batch.obs, draws.time, keep=draws.keep)
    loss = squared_error(draws.noise, predicted).mean()
    return loss, {"loss": loss}


def optimiser(hyper: Hyper) -> optax.GradientTransformation:
    """AdamW whose rate falls along a cosine."""
    return adamw(cosine(hyper.lr, hyper.lr_steps), hyper.weight_decay)


def learn(
    net: Net, schedule: Schedule, state: State, batch: Transition, draws: Draws, hyper: Hyper
) -> tuple[State, Metrics]:
    """One update of the network, then of its moving average."""
    grads, metrics = jax.grad(cloning_loss, has_aux=True)(state.params, net, schedule, batch, draws)
    params, optim = descend(optimiser(hyper), grads, state.optim, state.params)
    return State(params, polyak(params, state.base, hyper.ema_rate), optim), metrics


def held_out(data: Dataset, net: Net, key: Key) -> tuple[Transition, Draws]:
    """Every held-out transition several times, with draws of times and noises."""
    repeated = jax.tree.map(lambda x: jnp.repeat(x, HELD_OUT_DRAWS, 0), clip_action(data.transitions))
    return repeated, draw(key, net, repeated.action.shape, dropout=False)


def sample_actions(
    net: Net, schedule: Schedule, base: Params, obs: jax.Array, noise: Noise, temperature: ArrayLike
) -> jax.Array:
    """Actions (batch, action_dim) of the base policy at obs (batch, obs_dim)."""

    def predict(x: jax.Array, t: jax.Array) -> jax.Array:
        return noise_net(net, base, x, obs, jnp.broadcast_to(t, x.shape[:-1]))

    return reverse_chain(schedule, predict, noise, temperature)[0]


def make(static: Static, spec: Spec) -> Algorithm:
    """Build the base policy for the observation and action shapes in `spec`."""
    net = static.net
    schedule = make_schedule(net.schedule, net.diffusion_steps)

    def init(key: Key, hyper: Hyper) -> State:
        params = init_noise_net(key, net, spec.obs_dim, spec.action_dim)
        return State(params, params, optimiser(hyper).init(params))

    def step(key: Key, state: State, source: Dataset, hyper: Hyper) -> tuple[State, Metrics]:
        batch_key, draw_key = jax.random.split(key)
        batch = clip_action(sample_dataset(batch_key, source, static.batch_size))
        draws = draw(draw_key, net, batch.action.shape, dropout=True)
        return learn(net, schedule, state, batch, draws, hyper)

    def act(key: Key, state: State, obs: jax.Array, hyper: Hyper) -> jax.Array:
        noise = draw_noise(key, schedule, (*obs.shape[:-1], spec.action_dim))
        return sample_actions(net, schedule, state.base, obs, noise, hyper.temperature) * spec.max_action

    def validate(key: Key, state: State, data: Dataset, hyper: Hyper) -> Metrics:
        batch, draws = held_out(data, net, key)
        return {"heldout_loss": cloning_loss(state.base, net, schedule, batch, draws)[0]}

    return Algorithm(init, step, act, validate=validate)
