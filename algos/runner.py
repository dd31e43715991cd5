"""Populations: the only place where training is jitted, vmapped over members and scanned over time."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from algos.core import Algorithm, Key, Metrics, Source
from algos.host_memory import HOST, Space, memory_space, on_host


class Population(NamedTuple):
    """Members trained side by side. Every leaf has a leading member axis."""

    key: Key  # (members,): root key of each member; the key of step t is fold_in(key, t)
    state: Any
    hyper: Any
    alive: jax.Array  # (members,) bool: false once a member's numbers were not finite


def over_members(how: str, function: Callable) -> Callable:
    """Apply `function` to each member: "vmap" (batched, for accelerators) or "map" (in turn, exact).

    A single member is always mapped: batching gains it nothing, and XLA would copy a replay buffer at each step.
    """

    def apply(*args: Any) -> Any:
        members = jax.tree.leaves(args)[0].shape[0]
        if how == "vmap" and members > 1:
            return jax.vmap(function)(*args)
        return jax.lax.map(lambda member: function(*member), args)

    return apply


def init_population(
    algo: Algorithm, seeds: jax.Array, hyper: Any, how: str, start: tuple[Any, ...] = (), mesh: Mesh | None = None
) -> Population:
    """Members with the given seeds (members,) and stacked hyperparameters (each leaf (members,)).

    `start`: what the algorithm begins from, see `Algorithm`; every leaf has a leading member axis. Each device of the
    mesh (by default there is one) makes its share of the members.
    """

    def init(seed: jax.Array, hyper: Any, *start: Any) -> tuple[Key, Any]:
        init_key, train_key = jax.random.split(jax.random.key(seed))
        return train_key, algo.init(init_key, hyper, *start)

    every = over_members(how, init)
    if mesh is not None:
        every = jax.shard_map(every, mesh=mesh, in_specs=P("member"), out_specs=P("member"), check_vma=False)
    key, state = jax.jit(every)(seeds, hyper, *start)
    return Population(key, state, hyper, jnp.ones(seeds.shape, bool))


def in_turn(function: Callable, carried: Any, *given: Any) -> tuple[Any, Any]:
    """Each member after the other, its part of `carried` written in place: (carried, what else came out, stacked).

    `function` takes a member's parts and returns its new part of `carried`, and the rest. Beside `carried` there is
    room for one member's part only, where `jax.lax.map` would hold all of it twice. What lies in the host's memory
    stays there.
    """
    members = jax.tree.leaves(given)[0].shape[0]

    def body(carried: Any, index: jax.Array) -> tuple[Any, Any]:
        new, out = function(part(carried, index), *part(given, index))
        return jax.tree.map(partial(_with_part, index), carried, new), out

    return jax.lax.scan(body, carried, jnp.arange(members))


def part(tree: Any, index: jax.Array) -> Any:
    """What each array has at an index () of its first axis."""
    return jax.tree.map(partial(_part, index), tree)


def _part(index: jax.Array, whole: jax.Array) -> jax.Array:
    if memory_space(whole) != HOST:
        return whole[index]
    # Computed on the host, a part is a copy; of a single member's replay there need not be one.
    return whole.reshape(whole.shape[1:]) if len(whole) == 1 else on_host(lambda x, i: x[i], whole, index)


def _with_part(index: jax.Array, whole: jax.Array, x: jax.Array) -> jax.Array:
    if memory_space(whole) != HOST:
        return whole.at[index].set(x)
    return x[None] if len(whole) == 1 else on_host(lambda whole, i, x: whole.at[i].set(x), whole, index, x)


def all_finite(tree: Any) -> jax.Array:
    """Whether every floating-point number of the tree is finite."""
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.stack([jnp.isfinite(x).all() for x in leaves]).all()


def without_replay(algo: Algorithm, state: Any) -> Any:
    """A state, or a population's, with None in place of its replay."""
    return state._replace(**dict.fromkeys(algo.replay)) if algo.replay else state


def with_replay(algo: Algorithm, state: Any, source: Any) -> Any:
    """A state with the replay of another one."""
    return state._replace(**{name: getattr(source, name) for name in algo.replay}) if algo.replay else state


def make_chunk(algo: Algorithm, length: int, how: str, mesh: Mesh | None = None) -> jax.stages.Wrapped:
    """`length` steps of every member as one program: (population, source, first step) -> (population, metrics).

    Each device of the mesh (by default there is one) trains its share of the members by itself. The
    population's buffers are donated. Metrics are means over the chunk, (members,) each. A member whose numbers
    stop being finite keeps its state from the start of the chunk and is marked not alive; the others go on. Its
    replay is not kept from then, as it never trains again: a copy of it would double the memory of every member.
    """

    def chunk(population: Population, source: Source, start: jax.Array) -> tuple[Population, Metrics]:
        def member(carried: tuple[Any, jax.Array], key: Key, hyper: Any) -> tuple[tuple[Any, jax.Array], Metrics]:
            def body(state: Any, t: jax.Array) -> tuple[Any, Metrics]:
                return algo.step(jax.random.fold_in(key, t), state, source, hyper)

            state, alive = carried
            trained, metrics = jax.lax.scan(body, state, start + jnp.arange(length))
            new, old = without_replay(algo, trained), without_replay(algo, state)
            alive = alive & all_finite(new)
            kept = jax.tree.map(lambda new, old: jnp.where(alive, new, old), new, old)
            return (with_replay(algo, kept, trained), alive), jax.tree.map(lambda x: x.mean(0), metrics)

        each = jax.vmap(member) if how == "vmap" and population.alive.size > 1 else partial(in_turn, member)
        (state, alive), metrics = each((population.state, population.alive), population.key, population.hyper)
        return population._replace(state=state, alive=alive), metrics

    if mesh is None:
        return jax.jit(chunk, donate_argnums=0)
    members, everywhere = P("member"), P()
    local = jax.shard_map(
        chunk,
        mesh=mesh,
        in_specs=(members, everywhere, everywhere),
        out_specs=members,
        check_vma=False,
    )
    return jax.jit(local, donate_argnums=0)


def member_mesh(members: int) -> Mesh:
    """A mesh over the local devices, no more of them than members."""
    devices = jax.local_devices()[:members]
    return jax.make_mesh((len(devices),), ("member",), axis_types=(AxisType.Auto,), devices=devices)


def shard(population: Population, mesh: Mesh) -> Population:
    """Spread the members evenly over the devices of the mesh; their number is a multiple of the devices'.

    What lies in the host's memory stays there.
    """
    return jax.device_put(population, jax.tree.map(lambda x: member_sharding(mesh, memory_space(x)), population))


def member_sharding(mesh: Mesh, space: Space) -> NamedSharding:
    """Of an array whose first axis is the members, in the memory of the mesh's devices or in that of their host."""
    return NamedSharding(mesh, P("member"), memory_kind="pinned_host" if space == HOST else None)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Give every device of the mesh a copy, e.g. of the data set."""
    return jax.device_put(tree, NamedSharding(mesh, P()))
