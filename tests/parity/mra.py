"""MRA: recorded networks, losses, gradients and three cycles of updates against ours, for every recorded population.

Recorded arrays have an entry for each other agent, in index order, where ours have one for every agent.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from algos.core import Params
from algos.mra import learn, nets, objectives
from algos.mra.learn import Learner
from algos.mra.objectives import Batch, Networks, RelationDraws
from algos.mra.observe import Observation
from algos.mra.settings import OFFICIAL, Hyper, Static
from tests.parity import mra_env
from tests.parity.core import EXACT, Arrays, Case, Comparison, Kinds, Rule

FORWARD = Rule(1e-5)
LOSS = Rule(1e-5)
# Entries whose gradient is near zero are moved by rounding, of which Adam makes up to a learning rate in each step.
PARAMETERS = Rule(3e-4, 1e-6, relative=False)
GROUPS = {
    "policy": ("policy",),
    "critic": ("critic",),
    "relation": ("relation_net",),
    "task": ("task_encoder", "task_predictor"),
}


def others(x: jax.Array) -> jax.Array:
    """Entries (..., n, n, ...) of axes 1 and 2 off the diagonal, (..., n, n - 1, ...)."""
    n = x.shape[1]
    j = np.array([[j for j in range(n) if j != i] for i in range(n)])
    return x[:, np.arange(n)[:, None], j]


def everyone(x: np.ndarray) -> jax.Array:
    """The inverse of `others` with zeros on the diagonal, of (B, n, n - 1)."""
    n = x.shape[1]
    j = np.array([[j for j in range(n) if j != i] for i in range(n)])
    return jnp.zeros((len(x), n, n)).at[:, np.arange(n)[:, None], j].set(x)


def split_official(x: np.ndarray) -> tuple[Observation, np.ndarray]:
    """Recorded observations (B, n, 22 n): ours, and what each agent sees of the others (B, n, n - 1, 22)."""
    size, n, width = x.shape[0], x.shape[1], x.shape[2] // x.shape[1]
    own = np.concatenate([x[..., :4], x[..., 4 + (n - 1) * width :]], -1)
    seen = x[..., 4 : 4 + (n - 1) * width].reshape(size, n, n - 1, width)
    return Observation(jnp.asarray(own), jnp.ones((size, n)), jnp.ones((size, n, 1))), seen


def tree(arrays: Arrays, prefix: str) -> Params:
    """The arrays below `prefix/` as nested dictionaries, with an axis of one kind where ours have it."""
    root: Params = {}
    for name in arrays.children(f"{prefix}/"):
        path = f"{prefix}/{name}"
        root[name] = jnp.asarray(arrays[path]) if path in arrays else tree(arrays, path)
    return root


def with_kinds(name: str, net: Params) -> Params:
    """A recorded network in our layout: one policy, and one last layer of the critic, for each kind."""
    if name.endswith("policy"):
        return jax.tree.map(lambda x: x[None], net)
    if name.endswith("critic"):
        return net | {"out": jax.tree.map(lambda x: x[None], net["out"])}
    return net


def networks_of(arrays: Arrays, prefix: str, names: tuple[str, ...]) -> Params:
    """Recorded networks in our layout: directly below the prefix where there is but one, or by their names."""
    below = tree(arrays, prefix)
    found = below if names[0] in below else {names[0]: below}
    return {name: with_kinds(name, found[name]) for name in names}


def compare_params(comparison: Comparison, quantity: str, ours: Params, recorded: Params, rule: Rule) -> None:
    """All leaves, but not the bias of the critic's keys: its gradient is zero, and Adam walks along its rounding."""
    for path, x in jax.tree_util.tree_leaves_with_path(recorded):
        names = [key.key for key in path]
        if "critic" in names[0] and names[1:] == ["other_proj", "fc2", "bias"]:
            continue
        y = ours
        for name in names:
            y = y[name]
        comparison.add(quantity, y, np.asarray(x), rule)


def noise_of(index: np.ndarray) -> jax.Array:
    """Noise (..., 5) that makes a draw come out as recorded."""
    return jnp.where(jax.nn.one_hot(jnp.asarray(index), nets.ACTIONS) > 0.0, 0.0, -jnp.inf)


def read_batch(arrays: Arrays, comparison: Comparison, prefix: str) -> Batch:
    """A recorded batch; what each agent sees of the others is compared."""
    obs, seen = split_official(arrays[f"{prefix}/observations"])
    next_obs, next_seen = split_official(arrays[f"{prefix}/next_observations"])
    comparison.add("others observed", others(obs.others), seen, FORWARD)
    comparison.add("others observed", others(next_obs.others), next_seen, FORWARD)
    done = arrays[f"{prefix}/dones"]
    comparison.add("done is of all agents", np.broadcast_to(done[:, :1], done.shape), done, EXACT)
    return Batch(
        obs, jnp.asarray(arrays[f"{prefix}/actions_onehot"]).argmax(-1).astype(jnp.int32),
        jnp.asarray(arrays[f"{prefix}/rewards_normalised"]), next_obs, jnp.asarray(done[:, 0]),
        jnp.asarray(arrays["config/task_id"]), everyone(arrays[f"{prefix}/relations"]),
    )  # fmt: skip


def read_settings(arrays: Arrays, comparison: Comparison) -> tuple[Static, Hyper]:
    """The original code's settings with the file's numbers."""
    static = Static(
        skills=int(arrays["config/latent_size"]), resamples=int(arrays["config/resample_num"]), **OFFICIAL["static"]
    )
    rate = float(arrays["config/learning_rate"])
    hyper = Hyper(
        rate, rate, rate, rate, l2=float(arrays["config/weight_decay"]), discount=float(arrays["config/gamma"]),
        reward_scale=float(arrays["config/reward_scale"]), **OFFICIAL["hyper"],
    )  # fmt: skip
    for name in ("critic", "relation"):
        comparison.add(
            "clip norm", hyper.clip_factor * arrays["config/population"], arrays[f"config/{name}_clip_norm"], EXACT
        )
    return static, hyper


@partial(jax.jit, static_argnames="static")
def forward(learner: Learner, batch: Batch, skill: jax.Array, static: Static) -> dict[str, Any]:
    """Every network's outputs."""
    obs, graph = batch.obs, batch.graph
    assert graph is not None
    relation, logits = learner.relation_net, nets.policy_logits(learner.policy, obs, graph)
    drawn = nets.relation_graph(relation, obs, skill)
    found = {
        "relation_graph": others(drawn),
        "policy_embedding": nets.policy_embedding(learner.policy, obs, graph)[0],
        "policy_logits": logits,
        "policy_probs": jax.nn.softmax(logits),
        "policy_log_probs": jax.nn.log_softmax(logits),
        "target_policy_logits": nets.policy_logits(learner.target_policy, obs, graph),
        "task_logits_correct": nets.task_logits(learner.task_predictor, obs, drawn, skill),
        "task_logits_scrambled": nets.task_logits(
            learner.task_predictor, obs, objectives.scramble(drawn, obs), skill
        ),
    }  # fmt: skip
    for h, one in enumerate(nets.relation_graphs(relation, obs)):
        found[f"relation_graph_skill{h}"] = others(one)
    pairs = (("critic_", learner.critic, obs), ("target_critic_next_obs_", learner.target_critic, batch.next_obs))
    for prefix, critic, seen in pairs:
        outputs = nets.critic_outputs(critic, seen, batch.action, graph)
        found[f"{prefix}embedding"] = nets.critic_embedding(critic, seen)
        found[f"{prefix}self_attention"] = others(nets.critic_attention(critic, seen))
        found[f"{prefix}q_all_heads"] = outputs
        found[f"{prefix}q_taken"] = nets.pick(outputs, batch.action)
    return found


def compare_forward(
    arrays: Arrays, comparison: Comparison, learner: Learner, batch: Batch, static: Static, hyper: Hyper
) -> None:
    """Networks at the initial parameters, and skills drawn by recorded uniform numbers."""
    for population in [None, *arrays["config/task_populations"]]:
        counts = jnp.asarray(arrays["config/population"] if population is None else population, jnp.float32)[None]
        log_probs = nets.task_log_probs(learner.task_encoder, counts, hyper.skill_divisor)
        name = "" if population is None else f"_population{population}"
        comparison.add("task_log_probs", log_probs, arrays[f"forward/task_log_probs{name}"], FORWARD)
    log_probs = nets.task_log_probs(learner.task_encoder, batch.obs.counts[0], hyper.skill_divisor)
    for prefix in [name for name in arrays.children() if name.startswith("batch")]:
        skill = objectives.draw_skill(log_probs, jnp.asarray(arrays[f"{prefix}/skill_uniform"]))
        comparison.add("skill", skill, arrays[f"{prefix}/skill_onehot"], FORWARD)
    skill = jnp.asarray(arrays["batch0/skill_onehot"])
    for name, ours in forward(learner, batch, skill, static).items():
        comparison.add(name, ours, arrays[f"forward/{name}"], FORWARD)


@partial(jax.jit, static_argnames="static")
def update(learner: Learner, batch: Batch, draws: learn.Draws, static: Static, hyper: Hyper) -> tuple:
    """Learners after the critic's and after the policy's step, and everything on the way."""
    assert batch.graph is not None
    graphs, obs, graph = (batch.graph, batch.graph), batch.obs, batch.graph
    target = objectives.td_target(
        learner.target_policy, learner.target_critic, batch, graphs, draws.next_action, static, hyper
    )
    grads, _ = jax.grad(objectives.critic_loss, has_aux=True)(learner.critic, batch, graph, target.value, static)
    middle, of_critic = learn.critic_step(learner, batch, draws.next_action, static, hyper)
    policy_grads, _ = jax.grad(objectives.policy_loss, has_aux=True)(
        learner.policy, middle.critic, obs, graph, draws.action, static, hyper
    )
    after, of_policy = learn.policy_step(middle, batch, draws.action, static, hyper)
    action = draws.action.argmax(-1)
    log_probs = jax.nn.log_softmax(nets.policy_logits(learner.policy, obs, graph))
    found = {
        "next_log_prob": target.log_prob,
        "next_q": target.next_q,
        "q_target": target.value,
        "q_taken": nets.pick(nets.critic_outputs(learner.critic, obs, batch.action, graph), batch.action),
        "critic_loss": of_critic["critic_loss"],
        "critic_grad_norm_unclipped": of_critic["critic_grad_norm"],
        "policy_log_prob": nets.pick(log_probs, action),
        "policy_q": nets.pick(nets.critic_outputs(middle.critic, obs, action, graph), action),
        "policy_loss": of_policy["policy_loss"],
        "policy_entropy": of_policy["policy_entropy"],
    }
    clipped, _ = learn.clip(grads, learn.clip_norm(batch, hyper))
    return middle, after, found, {"critic": clipped}, {"policy": policy_grads}


def compare_update(
    arrays: Arrays, comparison: Comparison, prefix: str, learner: Learner, batch: Batch, static: Static, hyper: Hyper
) -> Learner:
    """The learner after a step of the critic and one of the policy."""
    indices = (arrays[f"{prefix}/{name}_action_index"] for name in ("next", "policy"))
    middle, after, found, critic_grads, policy_grads = update(
        learner, batch, learn.Draws(*map(noise_of, indices)), static, hyper
    )
    for name, ours in found.items():
        comparison.add(name, ours, arrays[f"{prefix}/{name}"], LOSS)
    records = arrays.children(f"{prefix}/")
    if "critic_grads_clipped" in records:
        recorded = networks_of(arrays, f"{prefix}/critic_grads_clipped", GROUPS["critic"])
        compare_params(comparison, "critic_grads_clipped", critic_grads, recorded, LOSS)
        recorded = networks_of(arrays, f"{prefix}/policy_grads", GROUPS["policy"])
        compare_params(comparison, "policy_grads", policy_grads, recorded, LOSS)
    for name, state in (("critic", middle), ("policy", after)):
        if f"params_after_{name}_step" in records:
            recorded = networks_of(arrays, f"{prefix}/params_after_{name}_step", GROUPS[name])
            compare_params(comparison, f"params_after_{name}_step", state._asdict(), recorded, PARAMETERS)
    return after


@partial(jax.jit, static_argnames="static")
def meta(learner: Learner, batch: Batch, draws: learn.MetaDraws, static: Static, hyper: Hyper) -> tuple:
    """Learners after the relation step and after all, and everything on the way."""
    obs, relation = batch.obs, learner.relation_net
    log_probs = nets.task_log_probs(learner.task_encoder, obs.counts[0], hyper.skill_divisor)
    networks = Networks(learner.policy, learner.target_policy)
    grads, _ = jax.grad(objectives.relation_loss, has_aux=True)(
        relation, networks, obs, log_probs, draws.relation, static
    )
    clipped, _ = learn.clip(grads, learn.clip_norm(batch, hyper))

    def probs(uniform: jax.Array) -> jax.Array:
        graph = nets.relation_graph(relation, obs, objectives.draw_skill(log_probs, uniform))
        return jax.nn.softmax(nets.policy_logits(learner.target_policy, obs, graph))

    middle, of_relation = learn.relation_step(learner, batch, draws.relation, static, hyper)
    labelled = jax.tree.map(lambda x: x[None], batch)
    params = (learner.task_encoder, learner.task_predictor)
    task_grads, _ = jax.grad(objectives.task_loss, has_aux=True)(
        params, middle.relation_net, labelled, draws.task, static, hyper
    )
    skill = objectives.draw_skill(log_probs, draws.task[0])
    graph = objectives.scramble(nets.relation_graph(middle.relation_net, obs, skill), obs)
    after, of_both = learn.meta_step(learner, batch, draws, static, hyper)
    found = {
        "relation/target_policy_probs": probs(draws.relation.skill),
        "relation/target_policy_probs_resampled": jnp.moveaxis(jax.vmap(probs)(draws.relation.resample), 0, 1),
        "relation/relation_loss": -of_relation["relation_reward"],
        "relation/relation_grad_norm_unclipped": of_relation["relation_grad_norm"],
        "task/task_logits": nets.task_logits(learner.task_predictor, obs, graph, skill),
        "task/task_loss": of_both["task_loss"],
    }
    grads = {"relation_net": clipped, "task_encoder": task_grads[0], "task_predictor": task_grads[1]}
    return middle, after, found, grads


def compare_meta(
    arrays: Arrays, comparison: Comparison, prefix: str, learner: Learner, batch: Batch, static: Static, hyper: Hyper
) -> Learner:
    """The learner after a relation step, copies to the targets and a task step."""
    relation = RelationDraws(
        jnp.asarray(arrays[f"{prefix}/relation/skill_uniform"]),
        jnp.asarray(arrays[f"{prefix}/relation/resample_uniform"]),
        noise_of(arrays[f"{prefix}/relation/desired_action_index"]),
    )
    draws = learn.MetaDraws(relation, jnp.asarray(arrays[f"{prefix}/task/skill_uniform"])[None])
    middle, after, found, grads = meta(learner, batch, draws, static, hyper)
    for name, ours in found.items():
        comparison.add(name.split("/")[1], ours, arrays[f"{prefix}/{name}"], LOSS)
    for name, state in (("relation", middle), ("task", after)):
        step, names = f"{prefix}/{name}", GROUPS[name]
        if f"{name}_grads" in arrays.children(f"{step}/"):
            recorded = networks_of(arrays, f"{step}/{name}_grads", names)
            compare_params(comparison, f"{name}_grads", grads, recorded, LOSS)
            recorded = networks_of(arrays, f"{step}/params_after_{name}_step", names)
            compare_params(comparison, f"params_after_{name}_step", state._asdict(), recorded, PARAMETERS)
    return after


def networks(case: Case, comparison: Comparison) -> None:
    """Forward passes, then cycles of two updates, a relation step, copies to the targets and a task step."""
    arrays = case.arrays
    static, hyper = read_settings(arrays, comparison)
    params = {name: with_kinds(name, net) for name, net in tree(arrays, "params_initial").items()}
    targets = {name: params.pop(name) for name in ("target_policy", "target_critic")}
    learner = learn.begin(params)._replace(**targets)
    first = read_batch(arrays, comparison, "batch0")
    compare_forward(arrays, comparison, learner, first, static, hyper)
    cycles = [name for name in arrays.children() if name.startswith("cycle")]
    for c, prefix in enumerate(cycles):
        for u in range(2):
            batch = read_batch(arrays, comparison, f"batch{2 * c + u}")
            learner = compare_update(arrays, comparison, f"{prefix}/update{u}", learner, batch, static, hyper)
        index = arrays[f"{prefix}/relation/batch_index"]
        comparison.add("batch of the relation step", 2 * c + 1, index, EXACT)
        learner = compare_meta(arrays, comparison, prefix, learner, batch, static, hyper)
        if f"params_after_{prefix}" in arrays.children():
            names = tuple(arrays.children(f"params_after_{prefix}/"))
            recorded = networks_of(arrays, f"params_after_{prefix}", names)
            compare_params(comparison, "params_after_cycle", learner._asdict(), recorded, PARAMETERS)


KINDS: Kinds = {"networks": networks, "resource_env": mra_env.check}
