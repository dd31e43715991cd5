"""Populations: the only place where training is jitted, vmapped over members and scanned over time."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from algos.core import Algorithm, Key, Metrics, Source


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


def init_population(algo: Algorithm, seeds: jax.Array, hyper: Any, how: str, start: tuple[Any, ...] = ()) -> Population:
    """Members with the given seeds (members,) and stacked hyperparameters (each leaf (members,)).

    `start`: what the algorithm begins from, see `Algorithm`; every leaf has a leading member axis.
    """

    def init(seed: jax.Array, hyper: Any, *start: Any) -> tuple[Key, Any]:
        init_key, train_key = jax.random.split(jax.random.key(seed))
        return train_key, algo.init(init_key, hyper, *start)

    key, state = jax.jit(over_members(how, init))(seeds, hyper, *start)
    return Population(key, state, hyper, jnp.ones(seeds.shape, bool))


def all_finite(tree: Any) -> jax.Array:
    """Whether every floating-point number of the tree is finite."""
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.stack([jnp.isfinite(x).all() for x in leaves]).all()


def make_chunk(algo: Algorithm, length: int, how: str, mesh: Mesh | None = None) -> jax.stages.Wrapped:
    """`length` steps of every member as one program: (population, source, first step) -> (population, metrics).

    Each device of the mesh (by default there is one) trains its share of the members by itself. The
    population's buffers are donated. Metrics are means over the chunk, (members,) each. A member whose numbers
    stop being finite keeps its state from the start of the chunk and is marked not alive; the others go on.
    """

    def chunk(population: Population, source: Source, start: jax.Array) -> tuple[Population, Metrics]:
        def member(key: Key, state: Any, hyper: Any, alive: jax.Array) -> tuple[Any, jax.Array, Metrics]:
            def body(state: Any, t: jax.Array) -> tuple[Any, Metrics]:
                return algo.step(jax.random.fold_in(key, t), state, source, hyper)

            trained, metrics = jax.lax.scan(body, state, start + jnp.arange(length))
            alive = alive & all_finite(trained)
            kept = jax.tree.map(lambda new, old: jnp.where(alive, new, old), trained, state)
            return kept, alive, jax.tree.map(lambda x: x.mean(0), metrics)

        state, alive, metrics = over_members(how, member)(*population)
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
    """Spread the members evenly over the devices of the mesh; their number is a multiple of the devices'."""
    return jax.device_put(population, NamedSharding(mesh, P("member")))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Give every device of the mesh a copy, e.g. of the data set."""
    return jax.device_put(tree, NamedSharding(mesh, P()))
