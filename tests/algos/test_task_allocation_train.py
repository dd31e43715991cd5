"""The two-stage method as an online algorithm: episodes, what learns and what does not, transfer to other sizes."""

from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from algos import runner
from algos.core import Env, UsageError
from algos.task_allocation import play, train, transfer
from algos.task_allocation.greedy import greedy
from algos.task_allocation.nets import Hyper, Static
from envs import registry

pytestmark = pytest.mark.usefixtures("quick_compilation")
STATIC = Static(hidden=8, buffer_size=8, start_size=2, batch_size=2)
HYPER = Hyper(1e-3, 1e-3)
TRAINED_IN = "rbf-train-6x2"


@cache
def env(name: str = TRAINED_IN) -> Env:
    found = registry.make(name)
    assert isinstance(found, Env)
    return found


@cache
def played(static: Static, members: int = 1, steps: int = 12) -> tuple[Any, Any, Any]:
    """Populations before and after some steps, and the metrics."""
    algo = train.make(static, env().spec, env())
    hyper = jax.tree.map(lambda x: jnp.full(members, x, jnp.float32), HYPER)
    before = runner.init_population(algo, jnp.arange(members), hyper, "map")
    kept = jax.device_get(before.state)
    after, metrics = runner.make_chunk(algo, steps, "map")(before, env().params, jnp.int32(0))
    return kept, after, metrics


def same(x: Any, y: Any) -> bool:
    return all((np.asarray(a) == np.asarray(b)).all() for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(y)))


def test_training_returns_are_those_of_the_environment() -> None:
    """Greedy teams in an environment of three steps, counted by hand."""
    short = env("almighty-train-6x2")
    teams_for = jax.jit(lambda p: greedy(jax.random.key(0), p)[None] == jnp.arange(2)[:, None])
    advance = jax.jit(lambda key, episode, teams: play.advance(key, short, short.params, episode, teams))
    episode, earned, ended = play.begin(jax.random.key(0), short, short.params), 0.0, []
    for t in range(4):
        teams = teams_for(play.problem_of(short, episode.obs))
        _, step = short.step(jax.random.key(t), episode.env_state, play.action_of(teams), short.params)
        earned += float(step.reward)
        episode, over = advance(jax.random.key(t), episode, teams)
        if bool(over):
            ended.append(earned)
            assert float(episode.last_profit) == pytest.approx(earned)
            assert float(episode.profit) == 0
            earned = 0.0
    assert len(ended) == 4  # of one decision each
    assert max(ended) > 0


@pytest.mark.parametrize("variant", ["selfish", "fixed_order"])  # two_stage: the selfish without workers
def test_every_variant_learns(variant: str) -> None:
    before, after, metrics = played(replace(STATIC, variant=variant))
    agents = before.agent, after.state.agent
    assert not same(agents[0].manager.actor, agents[1].manager.actor)
    assert not same(agents[0].manager.critic, agents[1].manager.critic)
    assert (agents[1].stage1 is None) == (variant in ("fixed_order", "random_order"))
    assert (agents[1].workers is None) == (variant != "selfish")
    if agents[1].stage1 is not None:
        assert not same(agents[0].stage1.networks.actor, agents[1].stage1.networks.actor)
    if variant == "selfish":
        assert not same(agents[0].workers.critic, agents[1].workers.critic)
        assert float(metrics["worker_critic_loss"][0]) > 0
    assert float(metrics["manager_updates"][0]) == float(metrics["picks"][0]) > 0
    assert bool(after.alive[0])


def test_without_learning_only_the_environment_goes_on() -> None:
    before, after, metrics = played(replace(STATIC, variant="selfish", learning=False))
    assert same(before.agent, after.state.agent)
    assert not same(before.episode.obs, after.state.episode.obs)
    assert "manager_updates" not in metrics


def test_members_of_a_population_are_single_runs() -> None:
    both, alone = played(STATIC, 2)[1].state, played(STATIC)[1].state
    assert alone.agent.workers is None
    assert not same(played(STATIC)[0].agent, alone.agent)
    assert same(jax.tree.map(lambda x: x[0], both), jax.tree.map(lambda x: x[0], alone))
    assert not same(jax.tree.map(lambda x: x[1], both.agent), jax.tree.map(lambda x: x[0], alone.agent))


@pytest.mark.parametrize("acting", ["most_probable", "sampled"])
def test_actions_are_legal_teams_for_any_leading_axes(acting: str) -> None:
    algo = train.make(replace(STATIC, acting=acting), env().spec, env())
    state = jax.tree.map(lambda x: x[0], played(STATIC)[1].state)
    obs = jax.vmap(lambda key: env().reset(key, env().params)[1])(jax.random.split(jax.random.key(1), 8))
    act = jax.jit(algo.act)
    first, second = (act(jax.random.key(i), state, obs.reshape(2, 4, -1), HYPER) for i in range(2))
    assert first.shape == (2, 4, env().spec.action_dim)
    assert set(np.unique(first)) <= {-1.0, 1.0}
    assert (np.asarray(first).reshape(8, 2, 6) > 0).sum(1).max() <= 1
    assert bool((first == second).all()) == (acting == "most_probable")
    repeated = act(jax.random.key(0), state, jnp.repeat(obs[:1], 32, 0), HYPER)
    assert bool((repeated == repeated[0]).all()) == (acting == "most_probable")


def learnt(static: Static = STATIC) -> dict[str, Any]:
    """What a run leaves, as `start` reads it from a checkpoint: nested dictionaries."""

    def plain(x: Any) -> Any:
        return {name: plain(part) for name, part in x._asdict().items()} if hasattr(x, "_asdict") else x

    return {"agent": plain(jax.tree.map(lambda x: x[0], played(static)[1].state.agent))}


def carried(static: Any, name: str, start: dict[str, Any]) -> Any:
    algo = transfer.make(static, env(name).spec, env(name))
    return jax.jit(lambda key: algo.init(key, HYPER, start))(jax.random.key(5))


def moved(static: Static, **changes: Any) -> transfer.Static:
    return transfer.Static(**(vars(replace(static, **changes)) | {"learning": False}))


@pytest.mark.parametrize("variant", ["two_stage", "fixed_order"])
def test_networks_are_carried_over_to_other_sizes(variant: str) -> None:
    static = replace(STATIC, variant=variant)
    start, state = learnt(static), carried(moved(static), "rbf-heldout-9x3", learnt(static))
    for name in ("actor", "critic", "target_critic"):
        assert same(start["agent"]["manager"][name], getattr(state.agent.manager, name))
    if variant == "two_stage":
        assert same(start["agent"]["stage1"]["networks"]["mixer"], state.agent.stage1.networks.mixer)
        assert int(state.agent.stage1.buffer.added) == 0
    assert float(jax.tree.leaves(state.agent.manager.actor_optim)[0].sum()) == 0


def test_one_program_evaluates_all_numbers_of_entities_and_tasks() -> None:
    """Padded to the same sizes, environments differ in their parameters alone."""
    names = [f"rbf-heldout-{n}x{t}-in-12x3" for n, t in ((4, 1), (8, 2), (12, 3))]
    state = carried(moved(STATIC), names[0], learnt())
    algo = transfer.make(moved(STATIC), env(names[0]).spec, env(names[0]))

    traced = []

    @jax.jit
    def profit(params: Any) -> jax.Array:
        traced.append(params)

        def step(carry: Any, t: jax.Array) -> tuple[Any, jax.Array]:
            env_state, obs = carry
            env_state, out = env(names[0]).step(
                jax.random.key(t), env_state, algo.act(jax.random.key(t), state, obs, HYPER), params
            )
            return (env_state, out.obs), out.reward

        return jax.lax.scan(step, env(names[0]).reset(jax.random.key(0), params), jnp.arange(30))[1].sum()

    # Numbers of a type, or those of other types would be other programs.
    profits = [float(profit(jax.tree.map(jnp.float32, env(name).params))) for name in names]
    assert len(traced) == 1
    assert len(set(profits)) == 3


def test_what_cannot_be_carried_over_is_refused() -> None:
    config = {"name": "task_allocation", "static": vars(STATIC)}
    algo = SimpleNamespace(static=moved(STATIC))
    transfer.check_start(algo, ("run",), ({},), [config])
    refuse = [
        (("run",), [config | {"name": "sac"}], "run of algo=sac"),
        (("run", "other"), [config, config], "name one run"),
        (("run",), [config | {"static": vars(replace(STATIC, hidden=16))}], r"algo\.static\.hidden=8"),
    ]
    for places, configs, message in refuse:
        with pytest.raises(UsageError, match=message):
            transfer.check_start(algo, places, ({},) * len(places), configs)
    with pytest.raises(UsageError, match="stage-1 actor has weights of shape"):
        carried(moved(STATIC), "material-train-6x2", learnt())


def test_other_environments_are_refused() -> None:
    pointmix = registry.make("pointmix")
    assert isinstance(pointmix, Env)
    for module, name in ((train, "task_allocation"), (transfer, "task_allocation_transfer")):
        with pytest.raises(UsageError, match=f"algo={name} allocates tasks, env=pointmix has none"):
            module.make(STATIC, pointmix.spec, pointmix)
