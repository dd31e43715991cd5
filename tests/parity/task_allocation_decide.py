"""Task allocation: recorded decisions, with learning and the environment between them, against ours, in float64."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from algos.task_allocation import manager
from algos.task_allocation.decide import Draws, Result, Stage1, State, begin, decide
from algos.task_allocation.nets import OFFICIAL, Hyper, Static
from envs.allocation import almighty, electric, instances, material, rbf
from envs.allocation.core import OFFICIAL as RULES
from envs.allocation.core import Problem
from envs.allocation.grid import approach, encode
from tests.parity.core import EXACT, Arrays, Case, Comparison, Kinds, Rule
from tests.parity.task_allocation_envs import CLOSE
from tests.parity.task_allocation_nets import add_tree, begin_preassign, compare_preassign, read_hyper, tree

LOSS = Rule(1e-6)
PARAMETERS = Rule(1e-5, relative=False)
MODULES: dict[str, Any] = {"rbf": rbf, "material": material, "electric": electric, "almighty": almighty}
VARIANTS = {"two_stage": "two_stage", "sequence_no_preassign": "fixed_order"}


class Trace(NamedTuple):
    """Every step of the episode, leading axis S."""

    before: Any  # the environment's state
    problem: Problem
    result: Result
    after: Any
    reward: jax.Array
    gross: jax.Array
    done: jax.Array
    next_problem: Problem


def compare_decide(case: Case, comparison: Comparison) -> None:
    """An episode of decisions (of Almighty, several of one) with recorded uniforms and rows of the buffer."""
    arrays, name = case.arrays, case.settings["environment"]
    with jax.enable_x64(True):
        instance, hyper = read_instance(name, arrays), read_hyper(arrays)
        static = read_static(case)
        if not static.stale_entities:
            held = arrays["manager_initial_entity"]  # which Electric replaces before it is used
            comparison.add("manager_initial_entity", instance.tables.entities, held, EXACT)
        env_state, problem = MODULES[name].reset(jax.random.key(0), instance)
        state = begin_learner(arrays, static, problem)
        play = jax.jit(partial(_play, MODULES[name], static, name == "almighty"))
        draws = read_draws(arrays, static)
        state, trace = jax.device_get(play(instance, hyper, env_state, problem, state, draws))
        compare_steps(name, arrays, comparison, instance, trace)
        compare_decisions(arrays, comparison, trace)
        ours = {"actor": state.manager.actor, "critic": state.manager.critic}
        add_tree(comparison, "manager", ours, tree(arrays, "params_end.manager"), PARAMETERS)
        recorded = tree(arrays, "params_end.manager_target")["critic"]  # nothing reads the target of the actor
        add_tree(comparison, "manager: target critic", state.manager.target_critic, recorded, PARAMETERS)
        if state.stage1 is not None:
            compare_stage1(arrays, comparison, state.stage1, trace.result)


def read_instance(name: str, arrays: Arrays) -> Any:
    """The environment's tables; those of Almighty are ours."""
    slots = arrays["step.allocation"].shape[1]
    if name == "rbf":
        queue = np.hstack([arrays["tables.task_queue"], arrays["tables.task_pos_queue"]])
        side = int(arrays["tables.map_size"])
        return instances.rbf_instance(arrays["tables.entity_table"], queue, slots, side=side)
    if name == "material":
        tables = (arrays["tables.entity_table"], arrays["tables.task_queue"])
        return instances.material_instance(*tables, slots, side=int(arrays["tables.map_size"]))
    if name == "electric":
        nodes = np.hstack([arrays["tables.node_table"], arrays["tables.convey_cost"][:, None]])
        return instances.electric_instance(nodes, arrays["tables.node_queue"], slots)
    read = instances.read_table
    return instances.almighty_instance(read("almighty_entities"), read("almighty_tasks"))


def read_static(case: Case) -> Static:
    """The official switches; Electric's manager looks at the entities as they are."""
    arrays, hyper = case.arrays, case.settings["hyper"]
    stale = case.settings["environment"] != "electric"
    switches = OFFICIAL | {"stale_entities": stale, "variant": VARIANTS[case.settings["variant"]]}
    if hyper != {"lr": float(arrays["lr"]), "hidden_dim": int(arrays["hidden_dim"])}:
        raise ValueError("settings.json and the file disagree about hyperparameters")
    return Static(
        hidden=int(arrays["hidden_dim"]), buffer_size=len(arrays["decision.step_index"]) + 1,
        start_size=int(arrays["preassign_min_size"]), batch_size=int(arrays["preassign_batch_size"]), **switches,
    )  # fmt: skip


def begin_learner(arrays: Arrays, static: Static, problem: Problem) -> State:
    """Recorded networks before the first decision."""
    params, target = tree(arrays, "params0.manager"), tree(arrays, "params0.manager_target")
    table = jnp.asarray(arrays["manager_initial_entity"]) if static.stale_entities else None
    stage2 = manager.begin(params["actor"], params["critic"], target["critic"], table)
    two_stage = static.variant == "two_stage"
    return begin(static, begin_preassign(arrays, "params0.preassign") if two_stage else None, stage2, problem)


def read_draws(arrays: Arrays, static: Static) -> Draws:
    """The recorded chance of each step, leading axis S; zeros where nothing was drawn."""
    allocation = arrays["step.allocation"]
    at = arrays["decision.step_index"]

    def by_step(name: str, dtype: Any) -> jax.Array:
        recorded = np.nan_to_num(arrays[f"decision.{name}"])
        steps = np.zeros((len(allocation), *recorded.shape[1:]))
        steps[at] = np.maximum(recorded, 0)
        return jnp.asarray(steps, dtype)

    order = jnp.broadcast_to(jnp.arange(allocation.shape[1], dtype=jnp.int32), allocation.shape[:2])
    picks = by_step("select_uniform", jnp.float64)
    if static.variant != "two_stage":
        return Draws(None, picks, order, None)
    return Draws(by_step("preassign_uniform", jnp.float64), picks, order, by_step("replay_index", jnp.int32))


def _play(
    module: Any, static: Static, one_shot: bool, instance: Any, hyper: Hyper, env_state: Any, problem: Problem,
    state: State, draws: Draws,
) -> tuple[State, Trace]:  # fmt: skip
    def step(carry: tuple, draws: Draws) -> tuple[tuple, Trace]:
        before, problem, state = carry
        state, result = decide(static, state, problem, draws, hyper)
        after, outcome = module.step(jax.random.key(0), before, result.allocation, instance, RULES)
        done = outcome.terminated | outcome.truncated
        trace = Trace(before, problem, result, after, outcome.reward, outcome.gross, done, outcome.problem)
        following = (before, problem) if one_shot else (after, outcome.problem)
        return (*following, state), trace

    (_, _, state), trace = jax.lax.scan(step, (env_state, problem, state), draws)
    return state, trace


def compare_steps(name: str, arrays: Arrays, comparison: Comparison, instance: Any, trace: Trace) -> None:
    """What the environment went through."""
    tail = np.asarray(instance.kappa) if name == "electric" else np.zeros(0)
    comparison.add("state", flat(trace.problem, tail), arrays["step.state"], CLOSE)
    comparison.add("allocation", trace.after.board.team, arrays["step.allocation"], EXACT)
    rule = CLOSE if name == "electric" else EXACT  # a team's costs are fractions there, summed in another order
    comparison.add("reward", trace.reward, arrays["step.reward"], rule)
    if name == "almighty":
        return
    comparison.add("next_state", flat(trace.next_problem, tail), arrays["step.next_state"], CLOSE)
    comparison.add("total_reward", trace.gross, arrays["step.total_reward"], EXACT)
    comparison.add("done", trace.done, arrays["step.done"], EXACT)
    comparison.add("avail_task_after", trace.after.board.open, arrays["step.avail_task_after"], EXACT)
    if name == "electric":
        comparison.add("entity_attr", trace.problem.entities, arrays["step.entity_attr"], CLOSE)
        return
    cells = trace.before.cells if name == "rbf" else np.swapaxes(trace.before.board.slots[..., 4:], 1, 2)
    comparison.add("task_pos", np.swapaxes(cells, 1, 2), arrays["step.task_pos"], EXACT)
    comparison.add("entity_pos", np.swapaxes(trace.before.position, 1, 2), arrays["step.entity_pos"], EXACT)
    diagonal = name == "material"
    motion = jax.vmap(partial(approach, diagonal=diagonal))(trace.after.board.team, trace.before.position, cells)
    comparison.add("action", jax.vmap(partial(encode, diagonal=diagonal))(motion), arrays["step.action"], EXACT)


def flat(problem: Problem, tail: np.ndarray) -> np.ndarray:
    """The recorded layout of a state."""
    steps = len(problem.free)
    parts = [np.asarray(x, np.float64).reshape(steps, -1) for x in (problem.slots, problem.entities, problem.free)]
    return np.hstack([*parts, np.broadcast_to(tail, (steps, len(tail)))])


def compare_decisions(arrays: Arrays, comparison: Comparison, trace: Trace) -> None:
    """Stage 2: which slots were served, how many picks each made, the manager's losses, the teams."""
    at = arrays["decision.step_index"]
    asked = trace.before.board.open.any(-1)
    comparison.add("step_index", np.flatnonzero(asked), at, EXACT)
    result = jax.tree.map(lambda x: x[at], trace.result)
    comparison.add("avail_task", trace.before.board.open[at], arrays["decision.avail_task"], EXACT)
    comparison.add("accepted_allocation", result.allocation, arrays["decision.accepted_allocation"], EXACT)
    served = [np.flatnonzero(row) for row in result.served]
    slots = result.served.shape[1]
    order = [np.pad(row, (0, slots - len(row)), constant_values=-1) for row in served]
    comparison.add("task_order", order, arrays["decision.task_order"], EXACT)
    for name, ours in {"critic": result.critic_loss, "actor": result.actor_loss}.items():
        recorded = arrays[f"decision.select_{name}_loss"]
        made = ~np.isnan(recorded)
        comparison.add("picks", result.picks, made.sum(-1), EXACT)
        comparison.add(f"select_{name}_loss", ours[made[..., : ours.shape[-1]]], recorded[made], LOSS)


def compare_stage1(arrays: Arrays, comparison: Comparison, stage1: Stage1, result: Result) -> None:
    """Stage 1: choices, what was kept, updates, parameters."""
    at = arrays["decision.step_index"]
    result = jax.tree.map(lambda x: x[at], result)
    skipped = ~result.served.any(-1)
    made = ~skipped
    comparison.add("skipped_no_open_task", skipped, arrays["decision.skipped_no_open_task"], EXACT)
    chosen = np.asarray(result.assignment)[..., None] == np.arange(result.served.shape[1])
    comparison.add("preassign", chosen[made], arrays["decision.preassign"][made], EXACT)
    comparison.add("stage2_return_total", result.total[made], arrays["decision.stage2_return_total"][made], CLOSE)
    count = int(stage1.buffer.added)
    comparison.add("decisions held", count, (~arrays["decision.skipped_no_open_task"]).sum(), EXACT)
    kept = stage1.buffer.decisions.entities[:count]
    comparison.add("buffer_entity", kept, arrays["decision.buffer_entity"][made], CLOSE)
    updated = arrays["decision.preassign_updated"]
    comparison.add("preassign_updated", result.updated, updated, EXACT)
    for name in ("preassign_critic_loss", "preassign_actor_loss"):
        comparison.add(name, result.metrics[name][updated], arrays[f"decision.{name}"][updated], LOSS)
    compare_preassign(arrays, comparison, stage1.networks, "params_end.preassign", PARAMETERS, PARAMETERS)


KINDS: Kinds = {"decide": compare_decide}
