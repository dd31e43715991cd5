"""Two-stage task allocation: recorded networks, losses, gradients and updates against ours, in float64."""

import jax
import jax.numpy as jnp
import numpy as np

from algos.core import Params
from algos.losses import polyak
from algos.task_allocation import manager, preassign, worker
from algos.task_allocation.nets import OFFICIAL, Hyper, Static
from tests.parity.core import Arrays, Case, Comparison, Kinds, Rule

FORWARD = Rule(1e-14)
LOSS = Rule(1e-10)
PARAMETERS = Rule(1e-10, relative=False)
FLAT = Rule(1e-8, relative=False)  # of a parameter whose true gradient is zero: Adam enlarges the rounding
EXACT = Rule(0.0, relative=False)
NAMES = {"entity_embed": "entity", "entity_mlp": "entity", "task_embed": "slot", "task_mlp": "slot"}


def tree(arrays: Arrays, prefix: str, rename: dict[str, str] | None = None) -> Params:
    """The arrays below `prefix.` as nested dictionaries in our names; those of unused layers are left out."""
    names = NAMES | (rename or {})
    root: Params = {}
    for name in arrays.children(f"{prefix}."):
        *path, leaf = [names.get(part, part) for part in name.split(".")]
        value = jnp.asarray(arrays[f"{prefix}.{name}"])
        if any(part.startswith("unused") for part in path):
            continue
        node = root
        for part in path:
            node = node.setdefault(part, {})
        node[leaf] = value
    return root


def add_tree(comparison: Comparison, quantity: str, ours: Params, recorded: Params, rule: Rule) -> None:
    """Compare two trees of the same names leaf by leaf."""
    jax.tree.map(lambda x, y: comparison.add(quantity, x, np.asarray(y), rule), ours, recorded)


def numbered(arrays: Arrays, word: str) -> list[int]:
    """The numbers k of arrays named `word{k}.`, ascending."""
    return sorted({int(name.split(".")[0]) for name in arrays.children(word) if name.split(".")[0].isdigit()})


def read_hyper(arrays: Arrays) -> Hyper:
    """One learning rate for everything; what a file does not tell stays at the default."""
    told = {"discount": "gamma", "tau": "tau", "entropy_weight": "entropy_coef"}
    told |= {"sigma": "sigma0", "sigma_decay": "sigma_decay", "sigma_floor": "sigma_floor"}
    lr = float(arrays["lr"])
    return Hyper(lr, lr, **{ours: float(arrays[name]) for ours, name in told.items() if name in arrays})


def read_decisions(arrays: Arrays, prefix: str) -> preassign.Decision:
    """The decisions of an update, or of the forward passes."""
    entities, slots = (jnp.asarray(arrays[f"{prefix}.{name}"]) for name in ("entity", "task"))
    free, opened = (jnp.asarray(arrays[f"{prefix}.{name}_available"]) > 0 for name in ("entity", "task"))
    chosen = jnp.asarray(arrays[f"{prefix}.assignment"])
    assignment = jnp.where(chosen.sum(-1) > 0, chosen.argmax(-1), -1).astype(jnp.int32)
    reward = jnp.asarray(arrays[f"{prefix}.reward"]) if f"{prefix}.reward" in arrays else jnp.zeros(len(entities))
    exists = jnp.ones_like(free), jnp.ones_like(opened)
    return preassign.Decision(
        entities, slots, free, opened, *exists, assignment, reward, jnp.zeros(len(entities), int)
    )  # fmt: skip


def compare_forward(
    arrays: Arrays, comparison: Comparison, static: Static, state: preassign.State, hyper: Hyper
) -> None:
    """Probabilities, sampled choices, values and the mixer's output."""
    decisions = read_decisions(arrays, "forward")
    probs = jax.vmap(lambda x: preassign.probabilities(state.actor, x, hyper))(decisions)
    choices = jax.vmap(preassign.choose)(decisions, probs, jnp.asarray(arrays["forward.sample_uniform"]))
    q = jax.vmap(lambda x: preassign.q_values(static, state.critic, x, hyper))(decisions)
    chosen = (jax.nn.one_hot(decisions.assignment, q.shape[-1]) * q).sum(-1)
    total = jax.vmap(lambda x: preassign.total_q(static, state.critic, state.mixer, x, hyper))(decisions)
    mixed = jax.vmap(lambda x, v: preassign.mixed(static, state.mixer, x, v, hyper))(
        decisions, jnp.asarray(arrays["forward.mix_random_value"])
    )
    comparison.add("choices", choices, np.asarray(decisions.assignment), EXACT)
    recorded = {"probs": probs, "q": q, "q_chosen": chosen, "q_total": total, "mix_random_out": mixed}
    for name, ours in recorded.items():
        comparison.add(f"forward: {name}", ours, arrays[f"forward.{name}"], FORWARD)


def begin_preassign(arrays: Arrays, prefix: str = "params0") -> preassign.State:
    """Recorded networks before any update; without a target critic of its own the critic is the target."""
    params = tree(arrays, prefix, {"mix": "mixer"})
    target = params.get("target_critic", params["critic"])
    return preassign.begin(params["actor"], params["critic"], params.get("mixer", {}), target)


def compare_update(
    arrays: Arrays, comparison: Comparison, static: Static, state: preassign.State, hyper: Hyper, k: int
) -> tuple[preassign.State, dict]:
    """Update k of stage 1: what was there before, gradients, parameters. Losses are left to the caller."""
    batch = read_decisions(arrays, f"batch{k}")
    if f"batch{k}.probs_before_update" in arrays:
        probs = jax.vmap(lambda x: preassign.probabilities(state.actor, x, hyper))(batch)
        comparison.add("probabilities before updates", probs, arrays[f"batch{k}.probs_before_update"], PARAMETERS)
    params = (state.critic, state.mixer)
    grads, _ = jax.grad(preassign.critic_loss, has_aux=True)(params, static, batch, batch.reward, hyper)
    after, metrics = preassign.learn(static, state, batch, hyper)
    actor_grad, _ = jax.grad(preassign.actor_loss, has_aux=True)(
        state.actor, static, state.target_critic, after.mixer, batch, hyper
    )
    recorded = {"critic_grad": grads[0], "mix_grad": grads[1], "actor_grad": actor_grad}
    for name, ours in recorded.items():
        if arrays.children(f"update{k}.{name}."):
            add_tree(comparison, name, ours, tree(arrays, f"update{k}.{name}"), LOSS)
    if arrays.children(f"params_after_update{k}."):
        compare_preassign(arrays, comparison, after, f"params_after_update{k}")
    return after, metrics


def compare_preassign(
    arrays: Arrays, comparison: Comparison, state: preassign.State, prefix: str, rule: Rule = PARAMETERS,
    flat: Rule = FLAT,
) -> None:  # fmt: skip
    """All networks of stage 1. The bias of the queries shifts a whole softmax, so that only rounding moves it."""
    ours = {name: x for name, x in state._asdict().items() if x and not name.endswith("optim")}
    recorded = tree(arrays, prefix, {"mix": "mixer"})
    if state.mixer:
        biases = [params["mixer"]["query"]["dense1"]["bias"] for params in (ours, recorded)]
        comparison.add("parameters: bias of the queries", biases[0], np.asarray(biases[1]), flat)
        recorded["mixer"]["query"]["dense1"]["bias"] = biases[0]
    add_tree(comparison, "parameters", ours, recorded, rule)


def stage1_preassign(case: Case, comparison: Comparison) -> None:
    """Stage 1 with the mixer of generated weights."""
    with jax.enable_x64(True):
        arrays = case.arrays
        static, hyper = Static(hidden=int(arrays["hidden_dim"]), **OFFICIAL), read_hyper(arrays)
        state = begin_preassign(arrays)
        compare_forward(arrays, comparison, static, state, hyper)
        for k in numbered(arrays, "batch"):
            state, metrics = compare_update(arrays, comparison, static, state, hyper, k)
            for name in ("critic_loss", "actor_loss"):
                comparison.add(name, metrics[f"preassign_{name}"], arrays[name][k], LOSS)


def stage1_mlp_critic(case: Case, comparison: Comparison) -> None:
    """Stage 1 with one network as critic, with and without the broadcasting mistake."""
    with jax.enable_x64(True):
        arrays = case.arrays
        static, hyper = Static(hidden=int(arrays["hidden_dim"]), critic="mlp", **OFFICIAL), read_hyper(arrays)
        right = Static(**{**vars(static), "broadcast_bug": False})
        comparison.add("bonus on probabilities", preassign.PROBABILITY_BONUS, arrays["prob_bias"], EXACT)
        state = begin_preassign(arrays)
        for k in numbered(arrays, "batch"):
            batch = read_decisions(arrays, f"batch{k}")
            q = jax.vmap(lambda x, critic=state.critic: preassign.joint_q(critic, x, hyper))(batch)
            comparison.add("q before updates", q, arrays[f"batch{k}.q_before_update"], PARAMETERS)
            loss, _ = preassign.critic_loss((state.critic, {}), right, batch, batch.reward, hyper)
            comparison.add("critic loss, elementwise", loss, arrays[f"batch{k}.critic_loss_elementwise"], LOSS)
            state, metrics = compare_update(arrays, comparison, static, state, hyper, k)
            comparison.add("critic_loss", metrics["preassign_critic_loss"], arrays["critic_loss_broadcast"][k], LOSS)
            comparison.add("actor_loss", metrics["preassign_actor_loss"], arrays["actor_loss"][k], LOSS)


def read_picks(arrays: Arrays, k: int) -> manager.Picks:
    """The recorded selection step k, leading axis of one."""
    fields = {"row": "state", "reward": "reward", "next_row": "next_state"}
    read = {ours: jnp.asarray(arrays[f"transition.{name}"])[k][None] for ours, name in fields.items()}
    action = jnp.asarray(arrays["transition.action"])[k][None].astype(jnp.int32)
    done = jnp.asarray(arrays["transition.done"])[k][None] > 0
    pool = jnp.asarray(arrays["transition.next_available"])[k][None] > 0
    return manager.Picks(action=action, done=done, pool=pool, **read)


def compare_manager_grads(
    arrays: Arrays, comparison: Comparison, static: Static, state: manager.State, hyper: Hyper, k: int
) -> None:
    """Gradients of update k, of the critic with and without those through the target."""
    entities, picks = jnp.asarray(arrays["entity"]), read_picks(arrays, k)
    exists = jnp.ones(len(entities), bool)
    for name, choice in {"full_residual": "online_residual", "target_stopped": "online_stopgrad"}.items():
        chosen = Static(**{**vars(static), "td_target": choice})
        ours = jax.grad(
            lambda critic, chosen=chosen: manager.critic_losses(
                critic, chosen, state, entities, exists, picks, hyper
            ).sum()  # fmt: skip
        )(state.critic)
        recorded = tree(arrays, f"update{k}.critic_grad_{name}")["critic"]
        add_tree(comparison, f"critic_grad_{name}", ours, recorded, LOSS)
    ours = jax.grad(
        lambda actor: manager.actor_losses(actor, state.target_critic, entities, exists, picks, hyper).sum()
    )(state.actor)
    add_tree(comparison, "actor_grad", ours, tree(arrays, f"update{k}.actor_grad")["actor"], LOSS)


def stage2_manager(case: Case, comparison: Comparison) -> None:
    """Forward passes and single updates of the manager.

    We keep no target of the actor, which nothing reads; the recorded one is the moving average of our actor.
    """
    with jax.enable_x64(True):
        arrays = case.arrays
        static, hyper = Static(hidden=int(arrays["hidden_dim"]), **OFFICIAL), read_hyper(arrays)
        params, target = tree(arrays, "params0"), tree(arrays, "target_params0")
        entities = jnp.asarray(arrays["entity"])
        exists = jnp.ones(len(entities), bool)
        state = manager.begin(params["actor"], params["critic"], target["critic"], entities)
        rows, pools = jnp.asarray(arrays["forward.task"]), jnp.asarray(arrays["forward.available"]) > 0
        probs = manager.policy(state.actor, entities, exists, rows, pools, hyper)
        comparison.add("forward: probs", probs, arrays["forward.probs"], FORWARD)
        q = manager.q_values(state.critic, entities, exists, rows, hyper)
        comparison.add("forward: q", q, arrays["forward.q"], FORWARD)
        stopped = Static(**{**vars(static), "td_target": "online_stopgrad"})
        target_actor, one = target["actor"], jnp.ones((1, 1))
        for k in range(len(arrays["transition.action"])):
            if arrays.children(f"update{k}."):
                compare_manager_grads(arrays, comparison, static, state, hyper, k)
            picks = jax.tree.map(lambda x: x[None], read_picks(arrays, k))
            same = manager.learn(stopped, state, entities[None], exists, picks, one, hyper)[1]["manager_critic_loss"]
            comparison.add("critic_loss, target stopped", same, arrays["critic_loss_semi_gradient_same_value"][k], LOSS)
            state, metrics = manager.learn(static, state, entities[None], exists, picks, one, hyper)
            target_actor = polyak(state.actor, target_actor, hyper.tau)
            for name in ("critic_loss", "actor_loss"):
                comparison.add(name, metrics[f"manager_{name}"], arrays[name][k], LOSS)
            if arrays.children(f"params_after_update{k}."):
                ours = {"actor": state.actor, "critic": state.critic}
                add_tree(comparison, "parameters", ours, tree(arrays, f"params_after_update{k}"), PARAMETERS)
                ours = {"actor": target_actor, "critic": state.target_critic}
                recorded = tree(arrays, f"target_params_after_update{k}")
                add_tree(comparison, "target parameters", ours, recorded, PARAMETERS)


def selfish_worker(case: Case, comparison: Comparison) -> None:
    """Price requests in a row, then updates, of one worker."""
    with jax.enable_x64(True):
        arrays = case.arrays
        hyper = read_hyper(arrays)
        params = worker_params(arrays, "params0")
        state = worker.begin(params["actor"], params["critic"], hyper)
        comparison.add("hidden width", params["actor"]["dense0"]["bias"].shape[-1], arrays["hidden_dim"], EXACT)
        everyone = jnp.ones(1, bool)
        for k, row in enumerate(arrays["demand.task"]):
            noise = jnp.asarray(arrays["demand.normal"])[k][None]
            state, prices = worker.request(state, jnp.asarray(row), everyone, noise, hyper)
            comparison.add("price", prices[0], arrays["demand.price"][k], FORWARD)
            comparison.add("sigma", state.sigma[0], arrays["demand.sigma"][k], FORWARD)
        for k, row in enumerate(jnp.asarray(arrays["update.state"])):
            price, reward = (jnp.asarray(arrays[f"update.{name}"])[k] for name in ("price", "reward"))
            one = jax.tree.map(lambda x: x[0], state)
            grad = jax.grad(worker.critic_loss)(one.critic, row, price, reward, hyper)
            state, metrics = worker.learn(state, row, everyone, price[None], (reward > 0)[None], hyper)
            critic = jax.tree.map(lambda x: x[0], state.critic)
            actor_grad = jax.grad(worker.actor_loss)(one.actor, critic, row, hyper)
            for name, ours in {"critic_grad": grad, "actor_grad": actor_grad}.items():
                if arrays.children(f"update{k}.{name}."):
                    recorded = worker_params(arrays, f"update{k}.{name}")
                    add_tree(comparison, name, jax.tree.map(lambda x: x[None], ours), recorded, LOSS)
            for name in ("critic_loss", "actor_loss"):
                comparison.add(name, metrics[f"worker_{name}"], arrays[name][k], LOSS)
        ours = {"actor": state.actor, "critic": state.critic}
        add_tree(comparison, "parameters", ours, worker_params(arrays, "params_after"), PARAMETERS)


def worker_params(arrays: Arrays, prefix: str) -> Params:
    """A worker's networks with a leading axis of one; their recorded middle layer, dense1, is never applied."""
    recorded = tree(arrays, prefix, {"dense1": "unused", "dense2": "dense1"})
    return jax.tree.map(lambda x: x[None], recorded)


KINDS: Kinds = {
    "net_stage1_preassign": stage1_preassign,
    "net_stage1_mlp_critic": stage1_mlp_critic,
    "net_stage2_manager": stage2_manager,
    "net_selfish_worker": selfish_worker,
}
