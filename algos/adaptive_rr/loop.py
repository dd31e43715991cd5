"""The replay loop: one agent step of one environment, with the updates that a replay ratio grants.

In an agent step the action is chosen, the updates that are due are made, the environment steps, and if that ended an
episode the rule may check and switch. So `run.updates` counts agent steps here; the metric `updates` tells how many
gradient updates were made in one, and its mean over a chunk is the ratio realised. An agent step may apply its action
several times: the environment's name says so.

What a step leaves behind is stored when the next one begins, so that the buffer is written first and read afterwards:
read first, it would be copied by the compiler at every step. It is read inside the branches of updates, which read
alone may do, so that slots without an update cost nothing. Draws are those of fold_in(key of the agent step, number of
the update): they do not depend on the slots, and `segments.py` finds the same.

With `prefetch` = p > 0 update m learns from draw m - p. Draw m is still made beside update m, with the same key and
from the same buffer, but neither waits for the other. So a batch is p updates old: it cannot have the steps stored
since, which at a ratio of 1/2 are the latest 2 p, and it may have windows that have left the buffer since. Nothing else
is stale: values and targets are computed when it is learnt from. Draws -p ... -1 are made when update 0 is.

Metrics of updates are means over those of the latest agent step that made any, so that steps without updates do not
dilute a chunk's means. `check`, `check_phi` and `check_phi_before` are zero but at checks: a chunk's means of the two
numbers compared, divided by that of `check`, are the means over its checks. `episode_return` is of the latest training
episode that has ended, `switched` 0 or 1, `phi` of the latest update.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from algos.checks import check_least
from algos.core import Algorithm, Env, Hyper, Key, Metrics, Source, Transition
from algos.drqv2 import replay_ratio
from algos.drqv2.replay_ratio import Check, RatioHyper, RatioState, RatioStatic, when
from algos.off_policy import Agent, Batch, Buffer, Learner
from envs.core import EnvState, autoreset


@dataclass(unsafe_hash=True)
class LoopStatic(RatioStatic):
    """What shapes the compiled program."""

    priming: int = 0  # heavy priming: so many updates at once when the warm-up ends; paper: 100,000
    prefetch: int = 0  # batches drawn ahead: an update learns from the one drawn so many updates before

    def __post_init__(self) -> None:
        """Raises UsageError for choices that do not exist and for sizes out of range."""
        super().__post_init__()
        check_least(self, priming=0, prefetch=0)


class Loop(NamedTuple):
    """A method, the environment it learns in, and its replay ratio."""

    learner: Learner
    env: Env
    static: LoopStatic
    rule: Callable[[Hyper], RatioHyper]  # the rule's part of the settings


class Prefetched(NamedTuple):
    """A buffer, and batches drawn from it for the updates to come."""

    buffer: Buffer
    batches: Batch  # leading axis: algo.static.prefetch; update m learns from the one at m modulo that


class State(NamedTuple):
    """Everything that training changes."""

    agent: Agent
    buffer: Buffer | Prefetched  # all steps but the latest
    env_state: EnvState
    obs: jax.Array  # (obs_dim,), what the policy sees next
    latest: Transition  # the latest step, not yet in the buffer
    ratio: RatioState
    learnt: Metrics  # of the latest agent step that had updates
    current_return: jax.Array  # () of the running episode
    episode_return: jax.Array  # () of the last one that ended


class Given(NamedTuple):
    """What an update is made from. Branches that members share must be told all they use."""

    key: Key  # of the agent step
    buffer: Buffer
    steps: jax.Array
    hyper: Hyper


Carry = tuple[Agent, Batch, Metrics]  # the batches are those drawn ahead, None without; the metrics are sums


def parts(buffer: Buffer | Prefetched) -> tuple[Buffer, Batch]:
    """The learner's buffer, and the batches drawn ahead or None."""
    return buffer if isinstance(buffer, Prefetched) else (buffer, None)


def joined(buffer: Buffer, batches: Batch) -> Buffer | Prefetched:
    """What `parts` took apart. Without batches it is the buffer alone, so that checkpoints are as ever."""
    return buffer if batches is None else Prefetched(buffer, batches)


def ended(step: Transition) -> jax.Array:
    """Whether this step was an episode's last, () bool."""
    return (step.terminated + step.truncated) > 0.0


def draw(loop: Loop, given: Given, number: jax.Array) -> tuple[Batch, Key]:
    """The batch of this number, and the key of the update beside which it is drawn."""
    sample_key, update_key = jax.random.split(jax.random.fold_in(given.key, number))
    return loop.learner.sample(sample_key, given.buffer, given.hyper), update_key


def fill(loop: Loop, batches: Batch, given: Given) -> Batch:
    """The batches of the first updates, in place of zeros."""
    numbers = jnp.arange(-loop.static.prefetch, 0)
    return jax.lax.map(lambda number: draw(loop, given, number)[0], numbers)


def update(loop: Loop, carry: Carry, given: tuple[Given, jax.Array]) -> tuple[Carry, jax.Array]:
    """One update, and Φ of its critic; `given` ends with the number of updates made before."""
    (agent, batches, sums), (inputs, made) = carry, given
    batch, key = draw(loop, inputs, made)
    if loop.static.prefetch:
        batches = when(partial(fill, loop))(made == 0, batches, inputs)
        place, drawn = made % loop.static.prefetch, batch
        batch = jax.tree.map(lambda ahead: ahead[place], batches)
        batches = jax.tree.map(lambda ahead, new: ahead.at[place].set(new), batches, drawn)
    agent, metrics = loop.learner.update(key, agent, batch, inputs.steps, made, inputs.hyper)
    return (agent, batches, jax.tree.map(jnp.add, sums, metrics)), metrics["fau_critic"]


def prime(loop: Loop, carry: tuple[Carry, RatioState], given: Given) -> tuple[Carry, RatioState]:
    """Heavy priming, appendix B.2: many updates on what the warm-up collected."""

    def body(_: jax.Array, carry: tuple[Carry, RatioState]) -> tuple[Carry, RatioState]:
        learnt, phi = update(loop, carry[0], (given, carry[1].updates))
        return learnt, replay_ratio.record(carry[1], phi, loop.static, loop.rule(given.hyper))

    return jax.lax.fori_loop(0, loop.static.priming, body, carry)


def learn(loop: Loop, slots: int, due: jax.Array, ratio: RatioState, state: State, given: Given) -> State:
    """The state after the `due` updates, at most `slots`, of an agent step, and priming's if it is their time."""
    buffer, batches = parts(state.buffer)
    carry = state.agent, batches, jax.tree.map(jnp.zeros_like, state.learnt)
    made = ratio.updates
    if loop.static.priming:
        first = (given.steps >= loop.static.warmup) & loop.learner.ready(buffer) & (made == 0)
        carry, ratio = when(partial(prime, loop))(first, (carry, ratio), given)
    if slots:
        static = RatioStatic(max_updates=slots, measure=loop.static.measure)
        carry, ratio = replay_ratio.masked_updates(
            partial(update, loop), carry, ratio, due, lambda made: (given, made), static, loop.rule(given.hyper)
        )
    count = ratio.updates - made
    agent, batches, sums = carry
    means = jax.tree.map(
        lambda total, old: jnp.where(count > 0, total / jnp.maximum(count, 1), old), sums, state.learnt
    )
    return state._replace(agent=agent, buffer=joined(buffer, batches), ratio=ratio, learnt=means)


def store(loop: Loop, state: State) -> State:
    """The latest step enters the buffer, and where an episode begins its first observation."""
    first, (buffer, batches) = state.ratio.steps == 0, parts(state.buffer)
    buffer = loop.learner.add(buffer, state.latest, ~first)
    buffer = loop.learner.begin(buffer, state.obs, first | ended(state.latest))
    return state._replace(buffer=joined(buffer, batches))


def choose(loop: Loop, key: Key, state: State, hyper: Hyper) -> jax.Array:
    """The action (action_dim,) in [-1, 1] that training takes: uniform in the warm-up, then the method's."""
    explore_key, uniform_key = jax.random.split(key)
    action = loop.learner.explore(explore_key, state.agent, state.obs, state.ratio.steps, hyper)
    uniform = jax.random.uniform(uniform_key, action.shape, minval=-1.0)
    return jnp.where(state.ratio.steps < loop.static.warmup, uniform, action)


def advance(loop: Loop, key: Key, state: State, action: jax.Array, params: Source) -> State:
    """A step of the environment."""
    scaled = loop.env.spec.max_action * action
    env_state, obs, step = autoreset(loop.env, key, state.env_state, scaled, params)
    flags = step.terminated.astype(jnp.float32), step.truncated.astype(jnp.float32)
    latest = Transition(state.obs, action, step.reward, step.obs, *flags)
    total, done = state.current_return + step.reward, ended(latest)
    return state._replace(
        env_state=env_state,
        obs=obs,
        latest=latest,
        current_return=jnp.where(done, 0.0, total),
        episode_return=jnp.where(done, total, state.episode_return),
    )


def agent_step(loop: Loop, slots: int, key: Key, state: State, source: Source, hyper: Hyper) -> tuple[State, Metrics]:
    """One agent step, in which up to `slots` updates can be made."""
    hyper = jax.tree.map(jnp.asarray, hyper)
    rule = loop.rule(hyper)
    act_key, update_key, env_key = jax.random.split(key, 3)
    state, before = store(loop, state), state.ratio
    action = choose(loop, act_key, state, hyper)
    ratio, due = replay_ratio.grant(before, loop.static, rule)
    buffer, _ = parts(state.buffer)
    due = jnp.where(loop.learner.ready(buffer), due, 0)  # those due before there is anything to draw are lost
    state = learn(loop, slots, due, ratio, state, Given(update_key, buffer, before.steps, hyper))
    state = advance(loop, env_key, state, action, source)
    # The rule looks when an agent step begins, which is when the one before has ended.
    ratio, found = replay_ratio.check(state.ratio, ended(state.latest), loop.static, rule)
    state = state._replace(ratio=ratio)
    return state, state.learnt | ratio_metrics(state, found, before)


def ratio_metrics(state: State, found: Check, before: RatioState) -> Metrics:
    """What is told of the loop itself, see above."""
    made = found.made.astype(jnp.float32)
    return {
        "updates": (state.ratio.updates - before.updates).astype(jnp.float32),
        "switched": state.ratio.switched.astype(jnp.float32),
        "phi": state.ratio.phi_recent,
        "check": made,
        "check_phi": made * found.phi,
        "check_phi_before": made * found.phi_before,
        "episode_return": state.episode_return,
    }


def init(loop: Loop, key: Key, hyper: Hyper) -> State:
    """Everything before the first agent step."""
    agent_key, env_key = jax.random.split(key)
    learner, spec, zero = loop.learner, loop.env.spec, jnp.zeros(())
    agent, buffer = learner.init(agent_key, hyper), learner.empty()
    env_state, obs = loop.env.reset(env_key, loop.env.params)
    none = Transition(jnp.zeros_like(obs), jnp.zeros(spec.action_dim), zero, jnp.zeros_like(obs), zero, zero)

    def made() -> tuple[Batch, Metrics]:
        batch = learner.sample(key, buffer, hyper)
        return batch, learner.update(key, agent, batch, jnp.int32(0), jnp.int32(0), hyper)[1]

    zeros = lambda tree, *axes: jax.tree.map(lambda x: jnp.zeros((*axes, *x.shape), x.dtype), tree)  # noqa: E731
    batch, metrics = jax.eval_shape(made)
    batches = zeros(batch, loop.static.prefetch) if loop.static.prefetch else None
    ratio, learnt = replay_ratio.init_ratio(), zeros(metrics)
    return State(agent, joined(buffer, batches), env_state, obs, none, ratio, learnt, zero, zero)


def make_algorithm(loop: Loop) -> Algorithm:
    """The loop as an algorithm of which each step, and so each of `run.updates`, is an agent step."""

    def act(key: Key, state: State, obs: jax.Array, hyper: Hyper) -> jax.Array:
        return loop.env.spec.max_action * loop.learner.act(state.agent, obs, hyper)

    step = partial(agent_step, loop, loop.static.max_updates)
    return Algorithm(partial(init, loop), step, act, updates_per_step=1, replay=("buffer",))
