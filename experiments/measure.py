"""How fast a population trains and is evaluated, and how fast the device could multiply matrices."""

import dataclasses
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from algos import runner
from algos.core import Algorithm, Env, Hyper, Source
from algos.runner import Population
from envs.core import autoreset
from experiments import provenance
from experiments.rollout import RETURN, episode_seeds, make_evaluator

EPISODES = 10  # per member and evaluation, as the papers do
PARALLEL, STEPS = 256, 100  # environments on each device, and steps of each, where nothing but the environment runs


@dataclass(frozen=True)
class Subject:
    """What is timed."""

    algo: Algorithm
    hyper: Hyper  # the same for all members
    source: Source
    env: Env | None  # None: no evaluation
    how: str  # members by vmap or map
    start: tuple[Any, ...] = ()  # what every member begins from


def flops_per_update(subject: Subject) -> float | None:
    """Floating-point operations of one gradient update of one member; None where XLA does not say.

    Counted on a single training iteration: XLA counts the body of a loop once, however often it runs. The program
    is analysed before optimisation, where matrix multiplications are not yet calls that XLA cannot look into. An
    iteration that may go without an update, at replay ratios below one, counts as if it made it.
    """
    algo, hyper = subject.algo, jax.tree.map(jnp.float32, subject.hyper)
    key = jax.random.key(0)
    state = jax.eval_shape(algo.init, key, hyper, *subject.start)
    cost = jax.jit(algo.step).lower(key, state, subject.source, hyper).cost_analysis()
    flops = (cost or {}).get("flops", 0.0)
    return flops / algo.updates_per_step if flops > 0 else None


def matmul_peak() -> float:
    """Most floating-point operations per second seen in float32 matrix multiplications on one device."""
    best = 0.0
    for size in (1024, 2048) if jax.default_backend() == "cpu" else (4096, 8192):
        x = jax.random.normal(jax.random.key(size), (size, size))
        multiply = jax.jit(jnp.matmul)
        multiply(x, x).block_until_ready()
        until = time.perf_counter() + 0.5
        while time.perf_counter() < until:
            best = max(best, 2.0 * size**3 / seconds(lambda: multiply(x, x)))  # noqa: B023 (called at once)
    return best


def seconds(function: Callable[[], Any]) -> float:
    """Wall-clock time until all arrays that `function` returns are there."""
    began = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - began


def measure(subject: Subject, size: int, updates: int, chunks: int) -> dict[str, Any]:
    """Compile and time a population of that size: `chunks` times `updates` gradient updates, after a warm-up."""
    algo = subject.algo
    mesh = runner.member_mesh(size)
    hyper = jax.tree.map(lambda x: jnp.full(size, x, jnp.float32), subject.hyper)
    start = jax.tree.map(lambda x: jnp.broadcast_to(x, (size, *x.shape)), subject.start)
    population = runner.shard(runner.init_population(algo, jnp.arange(size), hyper, subject.how, start), mesh)
    source = runner.replicate(subject.source, mesh)
    steps = updates // algo.updates_per_step

    began = time.perf_counter()
    train: Any = runner.make_chunk(algo, steps, subject.how, mesh)
    compiled = train.lower(population, source, jnp.int32(0)).compile()
    compile_seconds = time.perf_counter() - began
    rates = []
    for chunk in range(chunks + 1):
        began = time.perf_counter()
        population, metrics = jax.block_until_ready(compiled(population, source, jnp.int32(chunk * steps)))
        rates.append(size * updates / (time.perf_counter() - began))
    best, median = max(rates[1:]), statistics.median(rates[1:])  # the first one warms up
    return {
        "population": size,
        "devices": mesh.size,
        "compile_seconds": compile_seconds,
        "updates_per_second_best": best,
        "updates_per_second_median": median,
        "updates_per_second_per_member_best": best / size,
        "updates_per_second_per_member_median": median / size,
        "program_bytes": _program_bytes(compiled),
        # Updates that one iteration makes in a number of its own, which training reports as ..._updates.
        **{f"{k}_per_second_best": best * float(x.mean()) for k, x in metrics.items() if k.endswith("_updates")},
        "env_steps_per_second": env_steps_per_second(subject, population, size),
        "peak_memory_bytes": provenance.peak_memory(),
    }


def _program_bytes(compiled: Any) -> int | None:
    """Device memory that the training program needs, its arguments included; None where XLA does not say."""
    memory = compiled.memory_analysis()
    if memory is None:
        return None
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.argument_size_in_bytes + memory.temp_size_in_bytes + results


def env_steps_per_second(subject: Subject, population: Population, size: int) -> float | None:
    """Steps of unfinished episodes per second of an evaluation, policy included; None without an environment."""
    if subject.env is None:
        return None
    inner = subject.env.step

    def step(key: jax.Array, state: Any, action: jax.Array, params: Any) -> tuple[Any, Any]:
        state, out = inner(key, state, action, params)
        return state, out._replace(reward=jnp.ones_like(out.reward))  # so that returns are lengths

    env = dataclasses.replace(subject.env, step=step)
    evaluate = make_evaluator(subject.algo, env, EPISODES, subject.how)
    here = jax.device_put(population, jax.local_devices()[0])
    normalizer = (jnp.zeros(env.spec.obs_dim), jnp.ones(env.spec.obs_dim))
    seeds = episode_seeds(list(range(size)), EPISODES, 0, "fixed")
    lengths = evaluate(here, normalizer, seeds)[RETURN]
    return float(lengths.sum()) / seconds(lambda: evaluate(here, normalizer, seeds))


def env_alone_steps_per_second(env: Env | None) -> float | None:
    """Steps per second of PARALLEL environments on each device, with uniform actions; None without an environment."""
    if env is None:
        return None
    bound = env.spec.max_action

    def one(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        def step(
            carry: tuple[Any, jax.Array, jax.Array], t: jax.Array
        ) -> tuple[tuple[Any, jax.Array, jax.Array], None]:
            state, _, total = carry
            env_key, action_key = jax.random.split(jax.random.fold_in(key, t))
            action = jax.random.uniform(action_key, (env.spec.action_dim,), minval=-bound, maxval=bound)
            state, obs, out = autoreset(env, env_key, state, action, env.params)
            return (state, obs, total + out.reward), None

        # The last observation is asked for, too: else nothing would be drawn where observations are pictures.
        _, obs, total = jax.lax.scan(step, (*env.reset(key, env.params), jnp.zeros(())), jnp.arange(STEPS))[0]
        return obs, total

    mesh = runner.member_mesh(jax.local_device_count())
    members = PartitionSpec("member")
    run = jax.jit(jax.shard_map(jax.vmap(one), mesh=mesh, in_specs=members, out_specs=members, check_vma=False))
    keys = jax.device_put(jax.random.split(jax.random.key(0), PARALLEL * mesh.size), NamedSharding(mesh, members))
    jax.block_until_ready(run(keys))
    return PARALLEL * mesh.size * STEPS / min(seconds(lambda: run(keys)) for _ in range(3))
