"""General searches over who serves which slot: a genetic algorithm, simulated annealing, a particle swarm.

A genome has a gene for each entity: -1 for none, or the rank of a slot among the open ones. All three maximise
`fitness` with fixed numbers of evaluations (6000 by default) and return their best genome without the teams that
do not pay. Random numbers are drawn with the entities' axis first, so that padding does not change them.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from algos.core import Key, UsageError
from algos.task_allocation.myopic import Problem, fitness, keep_gainful, to_slots


class _Walk(NamedTuple):
    genes: jax.Array  # (N,) int32
    fitness: jax.Array  # ()
    best_genes: jax.Array  # (N,) int32
    best_fitness: jax.Array  # ()


class _Swarm(NamedTuple):
    position: jax.Array  # (P, N)
    velocity: jax.Array  # (P, N)
    best_position: jax.Array  # (P, N): each particle's
    best_fitness: jax.Array  # (P,)


def genetic(
    key: Key, problem: Problem, *,
    population: int = 60, generations: int = 100, crossover: float = 0.8, mutation: float = 0.05,
) -> jax.Array:  # fmt: skip
    """Genetic algorithm: binary tournaments, uniform crossover, mutation by gene, the best genome stays as it is.

    crossover: probability that a child mixes two parents; otherwise it is the first one. mutation: of each gene.
    Returns the assignment (N,) int32. Raises UsageError for a population of fewer than two.
    """
    _check_size("population", population)
    first_key, loop_key = jax.random.split(key)
    rate = partial(_rate, problem)

    def generation(genes: jax.Array, index: jax.Array) -> tuple[jax.Array, None]:
        keys = jax.random.split(jax.random.fold_in(loop_key, index), 6)
        score = rate(genes)
        mother, father = genes[_tournament(keys[0], score)], genes[_tournament(keys[1], score)]
        mixes = jax.random.bernoulli(keys[2], crossover, (population, 1))
        child = jnp.where(mixes & _coins(keys[3], 0.5, genes.shape), father, mother)
        mutant = _random_genes(keys[5], problem, population)
        child = jnp.where(_coins(keys[4], mutation, genes.shape), mutant, child)
        return child.at[0].set(genes[jnp.argmax(score)]), None

    first = _random_genes(first_key, problem, population)
    genes, _ = jax.lax.scan(generation, first, jnp.arange(generations))
    return keep_gainful(problem, to_slots(problem, genes[jnp.argmax(rate(genes))]))


def annealing(
    key: Key, problem: Problem, *, evaluations: int = 6000, hottest: float = 5.0, coldest: float = 0.05
) -> jax.Array:
    """Simulated annealing from the empty assignment: each move gives one free entity another gene.

    The temperature falls geometrically from `hottest` to `coldest`, in units of reward. Returns the best assignment
    met, (N,) int32. Raises UsageError for fewer than two evaluations.
    """
    _check_size("evaluations", evaluations)
    dtype = problem.cost.dtype
    movable = jnp.argsort(~problem.free, stable=True)  # free entities first
    count = jnp.sum(problem.free)
    place = jnp.arange(len(problem.free))
    draws = jax.random.uniform(key, (evaluations, 3), dtype)
    temperature = hottest * (coldest / hottest) ** (jnp.arange(evaluations, dtype=dtype) / (evaluations - 1))

    def move(walk: _Walk, step: tuple[jax.Array, jax.Array]) -> tuple[_Walk, None]:
        (who, what, luck), heat = step
        entity = movable[jnp.minimum((who * count).astype(jnp.int32), count - 1)]
        genes = jnp.where(place == entity, _to_gene(what, problem), walk.genes)
        score = fitness(problem, to_slots(problem, genes))
        accepts = luck < jnp.exp(jnp.minimum((score - walk.fitness) / heat, 0))
        improves = score > walk.best_fitness
        return _Walk(
            genes=jnp.where(accepts, genes, walk.genes),
            fitness=jnp.where(accepts, score, walk.fitness),
            best_genes=jnp.where(improves, genes, walk.best_genes),
            best_fitness=jnp.where(improves, score, walk.best_fitness),
        ), None

    nothing = jnp.full(len(problem.free), -1, jnp.int32)
    zero = jnp.zeros((), dtype)
    walk, _ = jax.lax.scan(move, _Walk(nothing, zero, nothing, zero), (draws, temperature))
    return keep_gainful(problem, to_slots(problem, walk.best_genes))


def swarm(
    key: Key, problem: Problem, *,
    particles: int = 60, iterations: int = 100, inertia: float = 0.7, own: float = 1.5, shared: float = 1.5,
) -> jax.Array:  # fmt: skip
    """Particle swarm over [-1, number of open slots) for each entity, decoded by rounding down; starts at rest.

    own, shared: pull of a particle's own best position (c1) and of the swarm's (c2).
    Returns the assignment (N,) int32. Raises UsageError for fewer than two particles.
    """
    _check_size("particles", particles)
    dtype, count = problem.cost.dtype, len(problem.free)
    top = jnp.sum(problem.open).astype(dtype)
    first_key, loop_key = jax.random.split(key)

    def decode(position: jax.Array) -> jax.Array:
        return jnp.floor(position).astype(jnp.int32)

    def iteration(now: _Swarm, index: jax.Array) -> tuple[_Swarm, None]:
        pull = jax.random.uniform(jax.random.fold_in(loop_key, index), (count, 2, particles), dtype).T  # (P, 2, N)
        leader = now.best_position[jnp.argmax(now.best_fitness)]
        velocity = (
            inertia * now.velocity
            + own * pull[:, 0] * (now.best_position - now.position)
            + shared * pull[:, 1] * (leader - now.position)
        )
        position = jnp.clip(now.position + velocity, -1, top)
        score = _rate(problem, decode(position))
        improves = score > now.best_fitness
        best = jnp.where(improves[:, None], position, now.best_position)
        return _Swarm(position, velocity, best, jnp.maximum(score, now.best_fitness)), None

    start = jax.random.uniform(first_key, (count, particles), dtype).T * (top + 1) - 1
    rest = _Swarm(start, jnp.zeros_like(start), start, _rate(problem, decode(start)))
    end, _ = jax.lax.scan(iteration, rest, jnp.arange(iterations))
    return keep_gainful(problem, to_slots(problem, decode(end.best_position[jnp.argmax(end.best_fitness)])))


def _rate(problem: Problem, genes: jax.Array) -> jax.Array:
    """Fitness (P,) of genomes (P, N)."""
    return jax.vmap(lambda genome: fitness(problem, to_slots(problem, genome)))(genes)


def _to_gene(uniform: jax.Array, problem: Problem) -> jax.Array:
    """Uniform numbers in [0, 1) to genes, -1 and every open slot alike."""
    count = jnp.sum(problem.open, dtype=jnp.int32)
    return jnp.minimum((uniform * (count + 1)).astype(jnp.int32), count) - 1


def _random_genes(key: Key, problem: Problem, population: int) -> jax.Array:
    """Genomes (population, N) int32."""
    uniform = jax.random.uniform(key, (len(problem.free), population), problem.cost.dtype)
    return _to_gene(uniform.T, problem)


def _tournament(key: Key, score: jax.Array) -> jax.Array:
    """As many winners as there are genomes, (P,) int, each the better one of two drawn at random."""
    one, other = jax.random.randint(key, (2, len(score)), 0, len(score))
    return jnp.where(score[one] >= score[other], one, other)


def _coins(key: Key, probability: float, shape: tuple[int, ...]) -> jax.Array:
    """Coins (P, N) bool that fall true with that probability."""
    return jax.random.bernoulli(key, probability, shape[::-1]).T


def _check_size(name: str, size: int) -> None:
    if size < 2:
        raise UsageError(f"{name}={size}: a search needs at least 2")
