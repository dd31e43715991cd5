"""PSEC: recorded updates and reverse chains against ours, quantity by quantity."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from algos.core import Params, Transition, UsageError
from algos.losses import adam, descend, polyak
from algos.psec import base, compose, critics, skill
from algos.psec.diffusion import Noise, Schedule, add_noise, make_schedule, reverse_chain
from algos.psec.nets import Net, noise_net, stack
from tests.parity.core import Arrays, Case, Comparison, Kinds, Rule

FORWARD = Rule(1e-5)
CHAIN = Rule(5e-5)  # a chain's steps hand their rounding on
GRADIENT = Rule(1e-4, relative=False)  # of arrays divided by their largest recorded entry
SIDES = {"reward": ("q", "v"), "cost": ("qc", "vc")}


class Setting(NamedTuple):
    """What the settings and the shapes say of a case."""

    net: Net  # of the base
    static: skill.Static
    hyper: skill.Hyper
    schedule: Schedule
    raw: dict[str, Any]


def tree(arrays: Arrays, prefix: str) -> Params:
    """The arrays below `prefix` as nested dictionaries."""
    children = arrays.children(f"{prefix}/")
    if not children:
        return jnp.asarray(arrays[prefix])
    return {name: tree(arrays, f"{prefix}/{name}") for name in children}


def read_setting(case: Case, params: Params | None) -> Setting:
    """Settings of a case; `params` are a noise network's, whose shapes the settings do not tell."""
    raw = case.settings["hyper"]
    shapes = {}
    if params is not None:
        layers = params["time_mlp"]
        shapes = {
            "time_features": params["time_fourier"]["w"].shape[0],
            "time_hidden": tuple(layers[f"layer{i}"]["w"].shape[1] for i in range(2)),
        }
    net = Net(
        hidden=raw["hidden_width"], blocks=raw["blocks"], activation=raw["base_activation"],
        dropout=raw["dropout_rate"], diffusion_steps=raw["diffusion_steps"], schedule=raw["noise_schedule"], **shapes,
    )  # fmt: skip
    static = skill.Static(
        net=net, max_rank=raw["rank"], skill_activation=raw["lora_activation"],
        critic_hidden=tuple(raw["value_hidden"]), value_norm=raw["value_input_layernorm"],
        cost_critic=raw["cost_critic"],
    )  # fmt: skip
    hyper = skill.Hyper(
        rank=raw["rank"], scale=raw["lora_scale"], lr=raw["actor_lr"], lr_steps=raw["lora_decay_steps"],
        weight_decay=raw["actor_weight_decay"], ema_rate=raw["actor_ema_rate"], critic_lr=raw["critic_lr"],
        reward_temperature=raw["reward_temperature"], cost_temperature=raw["cost_temperature"],
        reward_cap=raw["reward_weight_cap"], cost_cap=raw["cost_weight_cap"], expectile=raw["expectile"],
        cost_expectile=raw["cost_expectile"], discount=raw["discount"], tau=raw["critic_tau"],
    )  # fmt: skip
    return Setting(net, static, hyper, make_schedule(net.schedule, net.diffusion_steps), raw)


def numbered(arrays: Arrays, word: str) -> list[int]:
    """The numbers N of arrays named `wordN/...`; those of steps have to count from 1 without a gap."""
    numbers = sorted(int(name.removeprefix(word)) for name in arrays.children() if name.startswith(word))
    if word == "step" and numbers != list(range(1, len(numbers) + 1)):
        raise UsageError(f"{arrays.name}: steps have to be numbered 1, 2, ... without a gap")
    return numbers


def parameters_rule(lr: float, steps: int) -> Rule:
    """Adam moves an entry whose gradient is about zero by up to lr a step in either direction."""
    return Rule(2.0 * lr * steps, 1e-5, relative=False)


def add_tree(comparison: Comparison, quantity: str, ours: Params, recorded: Params, rule: Rule) -> None:
    """Compare two trees of the same names leaf by leaf."""
    pairs = jax.tree.leaves(jax.tree.map(lambda x, y: (x, y), ours, recorded), is_leaf=lambda x: isinstance(x, tuple))
    for x, y in pairs:
        comparison.add(quantity, x, np.asarray(y), rule)


def add_gradient(comparison: Comparison, quantity: str, ours: Params, recorded: Params) -> None:
    """Compare gradients, each array relative to its largest entry."""

    def scaled(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        largest = jnp.abs(y).max()
        largest = jnp.where(largest > 0, largest, 1.0)
        return x / largest, y / largest

    pairs = jax.tree.leaves(jax.tree.map(scaled, ours, recorded), is_leaf=lambda x: isinstance(x, tuple))
    for x, y in pairs:
        comparison.add(quantity, x, np.asarray(y), GRADIENT)


def compare_schedule(case: Case, comparison: Comparison, schedule: Schedule) -> None:
    """Constants of the diffusion."""
    for name, ours in schedule._asdict().items():
        comparison.add(f"schedule: {name}", ours, case.arrays[f"schedule/{name}"], Rule(1e-6, relative=False))


def read_batch(arrays: Arrays, group: str) -> Transition:
    """Observations and actions of an update; the other fields are empty."""
    obs, action = (jnp.asarray(arrays[f"{group}/batch/{name}"]) for name in ("observations", "actions"))
    none = jnp.zeros(len(obs))
    return Transition(obs, action, none, obs, none, none)


def read_draws(arrays: Arrays, group: str, kind: str = "") -> base.Draws:
    """Times, noises and, where recorded, dropout's mask."""
    time, noise = (jnp.asarray(arrays[f"{group}/{kind}{name}"]) for name in ("time", "noise"))
    masks = arrays.children(f"{group}/dropout_keep_mask/")
    keep = jnp.stack([jnp.asarray(arrays[f"{group}/dropout_keep_mask/{name}"]) for name in masks]) if masks else None
    return base.Draws(time, noise, keep)


def pretrain(case: Case, comparison: Comparison) -> None:
    """Updates of the base policy, with or without dropout."""
    arrays = case.arrays
    params = tree(arrays, "init/params")
    setting = read_setting(case, params)
    net, schedule, raw = setting.net, setting.schedule, setting.raw
    if "schedule" in arrays.children():
        compare_schedule(case, comparison, schedule)
    hyper = base.Hyper(
        lr=raw["actor_lr"], lr_steps=raw["pretrain_decay_steps"], weight_decay=raw["actor_weight_decay"],
        ema_rate=raw["actor_ema_rate"],
    )  # fmt: skip
    state = base.State(params, params, base.optimiser(hyper).init(params))
    afterwards = numbered(arrays, "after")
    learn = jax.jit(partial(base.learn, net, schedule))
    for i in numbered(arrays, "step"):
        group = f"step{i}"
        batch, draws = read_batch(arrays, group), read_draws(arrays, group)
        if f"{group}/noisy_actions" in arrays:
            x = add_noise(schedule, batch.action, draws.time, draws.noise)
            predicted = noise_net(net, state.params, x, batch.obs, draws.time)
            comparison.add("noisy actions", x, arrays[f"{group}/noisy_actions"], FORWARD)
            comparison.add("predicted noise", predicted, arrays[f"{group}/eps_pred"], FORWARD)
        if arrays.children(f"{group}/grad/"):
            grads = jax.jit(
                jax.grad(partial(base.cloning_loss, net=net, schedule=schedule, batch=batch, draws=draws), has_aux=True)
            )(state.params)[0]
            add_gradient(comparison, "gradient", grads, tree(arrays, f"{group}/grad"))
        state, metrics = learn(state, batch, draws, hyper)
        comparison.add("loss", metrics["loss"], arrays[f"{group}/loss"], FORWARD)
        if i in afterwards:
            rule = parameters_rule(hyper.lr, i)
            add_tree(comparison, "parameters", state.params, tree(arrays, f"after{i}/params"), rule)
            if arrays.children(f"after{i}/ema/"):
                add_tree(comparison, "moving average", state.base, tree(arrays, f"after{i}/ema"), rule)


def lora(case: Case, comparison: Comparison) -> None:
    """Updates of the reward and the cost skill on the frozen base, with recorded values of the critics."""
    arrays = case.arrays
    frozen = tree(arrays, "base/params")
    setting = read_setting(case, frozen)
    static, hyper, schedule = setting.static, setting.hyper, setting.schedule
    initial = [tree(arrays, f"init/{kind}_lora") for kind in static.kinds]
    factors = stack(initial)
    scale = jnp.full(len(static.kinds), hyper.scale)
    optim, average = skill.optimiser(hyper).init(factors), factors
    loss = partial(skill.skills_loss, static=static, schedule=schedule, base=frozen, scale=scale)
    gradient = jax.jit(jax.grad(loss, has_aux=True))
    afterwards = numbered(arrays, "after")
    for i in numbered(arrays, "step"):
        group = f"step{i}"
        weight = compare_weights(arrays, comparison, group, hyper)
        draws = jax.tree.map(lambda *x: jnp.stack(x), *[read_draws(arrays, group, f"{kind}_") for kind in static.kinds])
        grads, metrics = gradient(factors, batch=read_batch(arrays, group), draws=draws, weight=weight)
        for index, kind in enumerate(static.kinds):
            comparison.add(f"{kind} loss", metrics[f"{kind}_loss"], arrays[f"{group}/{kind}_loss"], FORWARD)
            if arrays.children(f"{group}/grad/"):
                ours = jax.tree.map(lambda x, index=index: x[index], grads)
                add_gradient(comparison, f"{kind} gradient", ours, tree(arrays, f"{group}/grad/{kind}_lora"))
        factors, optim = descend(skill.optimiser(hyper), grads, optim, factors)
        average = polyak(factors, average, hyper.ema_rate)
        if i in afterwards:
            for index, kind in enumerate(static.kinds):
                for ours, name in ((factors, f"{kind}_lora"), (average, f"{kind}_lora_ema")):
                    one = jax.tree.map(lambda x, index=index: x[index], ours)
                    add_tree(comparison, name, one, tree(arrays, f"after{i}/{name}"), parameters_rule(hyper.lr, i))


def compare_weights(arrays: Arrays, comparison: Comparison, group: str, hyper: skill.Hyper) -> jax.Array:
    """Weights of both skills (2, batch) from the recorded values; they are exponential, so relative."""
    q, v, qc, vc = (jnp.asarray(arrays[f"{group}/{name}"]) for name in ("q_target_min", "v", "qc_target_max", "vc"))
    ours = {"reward": skill.reward_weight(q - v, hyper), "cost": skill.cost_weight(qc, vc, hyper)}
    for kind, weight in ours.items():
        comparison.add(f"{kind} weight", weight, arrays[f"{group}/{kind}_weight"], FORWARD)
    return jnp.stack([ours["reward"], ours["cost"]])


def critic_updates(case: Case, comparison: Comparison) -> None:
    """Updates of the critics of reward and cost."""
    arrays, setting = case.arrays, read_setting(case, None)
    held = {}
    for side, (q_name, v_name) in SIDES.items():
        q, v = tree(arrays, f"init/{q_name}"), tree(arrays, f"init/{v_name}")
        held[side] = critics.Critic(q, q, v, adam(0.0).init(q), adam(0.0).init(v))
    for i in numbered(arrays, "step"):
        for side in SIDES:
            held[side] = compare_critic(arrays, comparison, setting, held[side], side, i)


def compare_critic(
    arrays: Arrays, comparison: Comparison, setting: Setting, critic: critics.Critic, side: str, step: int
) -> critics.Critic:
    """One update of one side; the critic after it."""
    q_name, v_name = SIDES[side]
    group, hyper = f"step{step}", setting.hyper
    batch = read_batch(arrays, group)
    signal, mask = (jnp.asarray(arrays[f"{group}/batch/{name}"]) for name in (f"{side}s", "masks"))
    next_obs = jnp.asarray(arrays[f"{group}/batch/next_observations"])
    batch = batch._replace(next_obs=next_obs, reward=signal, cost=signal)
    seen = critics.q_values(critic.q_target, batch.obs, batch.action)
    comparison.add(f"{q_name}: target network", seen, arrays[f"{group}/{q_name}_target_net_all"], FORWARD)
    predicted = critics.value(critic.v, batch.obs)
    comparison.add(f"{v_name}: value", predicted, arrays[f"{group}/{v_name}_pred"], FORWARD)
    learn = jax.jit(critics.learn_critic, static_argnames=("side", "kind"))
    after, metrics, target = learn(critic, batch, mask, hyper, side=side, kind=setting.static.cost_critic)
    comparison.add(f"{q_name}: target", target, arrays[f"{group}/td_target_{q_name}"], FORWARD)
    for name, ours in ((q_name, "q"), (v_name, "v")):
        comparison.add(f"{name}: loss", metrics[f"{side}_{ours}_loss"], arrays[f"{group}/loss_{name}"], FORWARD)
    if arrays.children(f"{group}/grad/"):
        expectile = hyper.expectile if side == "reward" else hyper.cost_expectile
        lowest = critics.pessimistic(critic, batch, side)
        v_grad = jax.grad(critics.value_loss, has_aux=True)(critic.v, batch.obs, lowest, expectile, side)[0]
        q_grad = jax.grad(critics.q_loss, has_aux=True)(critic.q, batch, target, side)[0]
        add_gradient(comparison, f"{v_name}: gradient", v_grad, tree(arrays, f"{group}/grad/{v_name}"))
        add_gradient(comparison, f"{q_name}: gradient", q_grad, tree(arrays, f"{group}/grad/{q_name}"))
    if step in numbered(arrays, "after"):
        rule = parameters_rule(hyper.critic_lr, step)
        for name, params in ((q_name, after.q), (f"{q_name}_target", after.q_target), (v_name, after.v)):
            add_tree(comparison, f"{name}: parameters", params, tree(arrays, f"after{step}/{name}"), rule)
    return after


def read_mixture(case: Case, prefix: str, level: str) -> tuple[Setting, compose.Static, compose.State]:
    """Base, both skills and the context network below `prefix` ("" for none), to be composed at that level."""
    arrays = case.arrays
    frozen = tree(arrays, "base/params")
    setting = read_setting(case, frozen)
    skills = stack([tree(arrays, f"{kind}_lora") for kind in setting.static.kinds])
    context = tree(arrays, prefix) if prefix else ()
    static = compose.Static(net=setting.net, level=level, skill_activation=setting.static.skill_activation)
    scale = jnp.full(2, float(setting.hyper.scale))
    return setting, static, compose.State(context, frozen, skills, scale, {}, adam(0.0).init(context))


def composition(case: Case, comparison: Comparison) -> None:
    """Updates of the context network, with the original code's pulls on alpha."""
    arrays = case.arrays
    setting, static, state = read_mixture(case, "init/alpha_net", "parameter")
    targets, scale = setting.raw["alpha_regulariser"], setting.hyper.scale
    if targets != {"mean_target": scale / 2, "cost_column_target": scale}:
        raise UsageError(f"{arrays.name}: alpha_regulariser={targets} are not c/2 and c of c={scale}")
    hyper = compose.Hyper(lr=setting.raw["alpha_lr"], mean_pull=1.0, last_pull=1.0)
    loss_of = partial(compose.parameter_loss, static=static, schedule=setting.schedule)
    gradient = jax.jit(jax.grad(loss_of, has_aux=True))
    learn = jax.jit(partial(compose.learn, static, setting.schedule))
    afterwards = numbered(arrays, "after")
    for i in numbered(arrays, "step"):
        group = f"step{i}"
        batch, draws = read_batch(arrays, group), read_draws(arrays, group)
        even = jnp.ones(len(batch.obs))
        alpha = compose.mixture(static, state, hyper, batch.obs)
        comparison.add("alpha", alpha, arrays[f"{group}/alpha"], FORWARD)
        if f"{group}/eps_pred" in arrays:
            x = add_noise(setting.schedule, batch.action, draws.time, draws.noise)
            predicted = noise_net(static.adapted, state.base, x, batch.obs, draws.time, state.lora, alpha)
            comparison.add("predicted noise", predicted, arrays[f"{group}/eps_pred"], FORWARD)
        for name, pulled in (("grad_total", hyper), ("grad_diffusion_only", compose.Hyper())):
            if arrays.children(f"{group}/{name}/"):
                grads = gradient(state.context, state=state, batch=batch, draws=draws, weight=even, hyper=pulled)[0]
                add_gradient(comparison, name, grads, tree(arrays, f"{group}/{name}"))
        state, metrics = learn(state, batch, draws, even, hyper)
        comparison.add("diffusion loss", metrics["loss"], arrays[f"{group}/loss_diffusion"], FORWARD)
        comparison.add("pull on alpha", metrics["pull"], arrays[f"{group}/loss_regulariser"], FORWARD)
        comparison.add("loss", metrics["loss"] + metrics["pull"], arrays[f"{group}/loss_total"], FORWARD)
        if i in afterwards:
            recorded = tree(arrays, f"after{i}/alpha_net")
            add_tree(comparison, "parameters", state.context, recorded, parameters_rule(hyper.lr, i))


def composition_baselines(case: Case, comparison: Comparison) -> None:
    """One update of the weights of noises and of actions, through the whole chain."""
    for level in ("noise", "action"):
        compare_level(case, comparison, level)


def compare_level(case: Case, comparison: Comparison, level: str) -> None:
    """Chains, loss, gradient and update of one level."""
    arrays, group = case.arrays, f"{level}_level"
    setting, static, state = read_mixture(case, "init/weight_net", level)
    batch = read_batch(arrays, "step1")
    noise = Noise(jnp.asarray(arrays[f"{group}/x_init"]), jnp.asarray(arrays[f"{group}/z"]))
    hyper = compose.Hyper(lr=setting.raw["alpha_lr"])
    weight = compose.mixture(static, state, hyper, batch.obs)
    if level == "noise":
        composed = jax.jit(partial(compose.composed_actions, static, setting.schedule))
        actions = composed(state, weight, batch.obs, noise, 1.0)
        comparison.add("noise level: weights", weight, arrays[f"{group}/weights"], FORWARD)
        comparison.add("noise level: actions", actions, arrays[f"{group}/actions"], CHAIN)
    else:
        separate = compose.skill_actions(static, setting.schedule, state, batch.obs, noise, 1.0)
        for actions, kind in zip(separate, setting.static.kinds):
            comparison.add(f"action level: {kind} skill", actions, arrays[f"{group}/actions_{kind}"], CHAIN)
    loss = partial(compose.action_loss, static=static, schedule=setting.schedule, batch=batch, noise=noise)
    grads = jax.jit(jax.grad(loss, has_aux=True))(state.context, state=state, hyper=hyper)[0]
    add_gradient(comparison, f"{level} level: gradient", grads, tree(arrays, f"{group}/grad"))
    even = jnp.ones(len(batch.obs))
    after, metrics = jax.jit(partial(compose.learn, static, setting.schedule))(state, batch, noise, even, hyper)
    comparison.add(f"{level} level: loss", metrics["loss"], arrays[f"{group}/loss"], FORWARD)
    recorded = tree(arrays, f"{group}/after1/weight_net")
    add_tree(comparison, f"{level} level: parameters", after.context, recorded, parameters_rule(hyper.lr, 1))


def sampling(case: Case, comparison: Comparison) -> None:
    """Every step of reverse chains, and which candidate is chosen by its cost."""
    arrays = case.arrays
    setting, static, state = read_mixture(case, "alpha_net", "parameter")
    compare_schedule(case, comparison, setting.schedule)
    noise = Noise(jnp.asarray(arrays["x_init"]), jnp.asarray(arrays["z"]))
    obs = jnp.broadcast_to(jnp.asarray(arrays["observation"]), (len(noise.start), len(arrays["observation"])))
    one = jnp.eye(2) * setting.hyper.scale
    alpha = {kind: jnp.broadcast_to(one[i], (len(obs), 2)) for i, kind in enumerate(setting.static.kinds)}
    context = compose.mixture(static, state, compose.Hyper(), obs)
    comparison.add("context: alpha", context, arrays["composed_context/alpha"], FORWARD)
    mixed = {
        "reward_lora_policy": alpha["reward"],
        "cost_lora_policy": alpha["cost"],
        "composed_context": context,
        "composed_given_alpha": jnp.asarray(arrays["composed_given_alpha/alpha"]),
    }

    def times(x: jax.Array, t: jax.Array) -> jax.Array:
        return jnp.broadcast_to(t, x.shape[:-1])

    def plain(x: jax.Array, t: jax.Array) -> jax.Array:
        return noise_net(static.net, state.base, x, obs, times(x, t))

    def with_skills(mix: jax.Array, x: jax.Array, t: jax.Array) -> jax.Array:
        return noise_net(static.adapted, state.base, x, obs, times(x, t), state.lora, mix)

    weights = jnp.asarray(arrays["noise_level/weights"])

    def noises(x: jax.Array, t: jax.Array) -> jax.Array:
        return jnp.einsum("bk,kba->ba", weights, compose.skill_noises(static, state, x, obs, times(x, t)))

    chains = {"base": plain, "noise_level": noises}
    chains |= {name: partial(with_skills, mix) for name, mix in mixed.items()}
    for name, predict in chains.items():
        compare_chain(case, comparison, name, jax.jit(partial(reverse_chain, setting.schedule, predict))(noise), obs)


def compare_chain(case: Case, comparison: Comparison, name: str, chain: tuple, obs: jax.Array) -> None:
    """Steps, actions, their costs and the choice of one chain."""
    arrays = case.arrays
    actions, (predicted, after) = chain
    comparison.add(f"{name}: predicted noise", predicted, arrays[f"{name}/eps_each_step"], CHAIN)
    comparison.add(f"{name}: each step", after, arrays[f"{name}/x_after_each_step"], CHAIN)
    comparison.add(f"{name}: actions", actions, arrays[f"{name}/actions"], CHAIN)
    qc_target = tree(arrays, "qc_target")
    cost = critics.q_values(qc_target, obs, actions).max(0)
    comparison.add(f"{name}: cost of actions", cost, arrays[f"{name}/qc_of_actions"], CHAIN)
    critic = critics.Critic(qc_target, qc_target, (), (), ())
    chosen = skill.choose(actions[:, None], obs[:1], {"cost": critic}, "cost")[0]
    recorded = arrays[f"{name}/actions"][int(arrays[f"{name}/selected_index_min_qc"])]
    comparison.add(f"{name}: chosen action", chosen, recorded, CHAIN)


KINDS: Kinds = {
    "pretrain": pretrain,
    "pretrain_dropout": pretrain,
    "lora": lora,
    "critics": critic_updates,
    "composition": composition,
    "composition_baselines": composition_baselines,
    "sampling": sampling,
}
