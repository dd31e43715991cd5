"""A2PR: recorded updates against ours, quantity by quantity."""

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from algos.a2pr import Hyper, State, Static, guide_action, make, make_nets
from algos.buffers import shape_reward
from algos.core import Dataset, Params, Spec, UsageError
from tests.parity import a2pr_arrays as read
from tests.parity.a2pr_trace import Trace, trace
from tests.parity.core import EXACT, Arrays, Case, Comparison, Kinds, Rule
from tests.parity.d4rl import conversion

CHOICES = ("vae/indicator", "actor/choose_vae", "actor/gate")
WEIGHTED = ("actor/lambda", "actor/q_loss", "actor/loss")  # λ and what it multiplies


class Rules(NamedTuple):
    """The bounds that the README of the records suggests."""

    params: Rule
    other: Rule
    weighted: Rule


INPUT = Rule(1e-5)  # what no update has touched
NARROW = Rules(Rule(2e-6, relative=False), Rule(1e-5), Rule(1e-5))
FULL_SIZE = Rules(Rule(1e-3, 1e-5, relative=False), Rule(1e-3, 1e-5), Rule(1e-4))


class Run(NamedTuple):
    """What stays the same over the updates of a case."""

    arrays: Arrays
    comparison: Comparison
    rules: Rules
    static: Static
    spec: Spec
    hyper: Hyper
    dataset: Dataset


def updates(case: Case, comparison: Comparison) -> None:
    """A run at narrow width, in one file."""
    compare_run(case, comparison, NARROW)


def updates_split(case: Case, comparison: Comparison) -> None:
    """A run at full size, its parameters in files of their own."""
    compare_run(case, comparison, FULL_SIZE)


KINDS: Kinds = {"updates": updates, "updates_split": updates_split, "d4rl_conversion": conversion}


def compare_run(case: Case, comparison: Comparison, rules: Rules) -> None:
    """Every update in turn, each from the state that our previous one left."""
    arrays = case.arrays
    static, spec, hyper = read.read_static(arrays), read.read_spec(arrays), read.read_hyper(arrays)
    run = Run(arrays, comparison, rules, static, spec, hyper, read.read_dataset(arrays))
    compare_config(run)
    compare_dataset(run)
    state = read.read_state(arrays, static, spec)
    compare_prior(run, state)
    checkpoints = [name for name in arrays.children() if name.startswith("after_")]
    if not checkpoints or not arrays.children("eval/"):
        raise UsageError(f"{arrays.name}: no array 'after_.../...' or 'eval/...'")
    for count, number in enumerate(update_numbers(arrays), start=1):
        state = compare_update(run, state, count, f"update_{number}")
        if f"after_{number}" in checkpoints:
            compare_params(run, state, f"after_{number}", with_actor=count >= static.policy_delay)
        if f"eval/action_after_{number}" in arrays:
            compare_policy(run, state, f"eval/action_after_{number}")


def update_numbers(arrays: Arrays) -> list[str]:
    """The numbers of the recorded updates, as written; they have to count from 1 without a gap."""
    names = [name.removeprefix("update_") for name in arrays.children() if name.startswith("update_")]
    numbers = sorted((name for name in names if name.isdecimal()), key=int)
    if not numbers or [int(number) for number in numbers] != list(range(1, len(numbers) + 1)):
        raise UsageError(f"{arrays.name}: updates have to be numbered 1, 2, ... without a gap")
    return numbers


def compare_config(run: Run) -> None:
    """Sizes that the shapes imply and the noise in units of the action. The seed only names the run."""
    arrays, static, bound = run.arrays, run.static, run.spec.max_action
    int(arrays["config/seed"])
    sizes = {
        "hidden_width": [*static.actor_hidden, *static.critic_hidden],
        "vae_hidden_width": [static.vae_hidden],
        "latent_dim": [2 * run.spec.action_dim],
    }
    for name, ours in sizes.items():
        recorded = np.full(len(ours), arrays[f"config/{name}"])
        run.comparison.add(f"config: {name}", ours, recorded, EXACT)
    for name in ("policy_noise", "noise_clip"):
        scaled = getattr(run.hyper, name) * bound
        run.comparison.add(f"config: {name}_scaled", scaled, arrays[f"config/{name}_scaled"], INPUT)


def compare_dataset(run: Run) -> None:
    """Normalisation of the observations."""
    ours = {
        "obs_mean": run.dataset.obs_mean[None],
        "obs_std_plus_eps": run.dataset.obs_std[None],
        "observations": run.dataset.transitions.obs,
        "next_observations": run.dataset.transitions.next_obs,
    }
    for name, x in ours.items():
        run.comparison.add(f"data: {name}", x, run.arrays[f"data/{name}"], INPUT)


def compare_prior(run: Run, state: State) -> None:
    """The decoder at a clipped draw of the prior, which is the candidate of the kind `prior_sample`."""
    arrays, nets = run.arrays, make_nets(run.static, run.spec)
    obs, draw = jnp.asarray(arrays["prior/state"]), jnp.asarray(arrays["prior/normal_draw"])
    latent = jnp.asarray(arrays["prior/latent"])
    unused = jnp.zeros((len(obs), run.spec.action_dim))
    sampled = guide_action(nets, replace(run.static, candidate="prior_sample"), state.vae, obs, unused, draw)
    decoded = nets.vae.apply(state.vae, obs, latent, method="decode")
    recorded = arrays["prior/decoded_action"]
    run.comparison.add("prior: action from the draw", sampled, recorded, INPUT)
    run.comparison.add("prior: action from the latent", decoded, recorded, INPUT)


def compare_update(run: Run, state: State, count: int, group: str) -> State:
    """All quantities of one update; the state after it."""
    compare_batch(run, group)
    with_actor = count % run.static.policy_delay == 0
    batch, draws = read.read_batch(run.arrays, group), read.read_draws(run.arrays, group, with_actor)
    ours = trace(run.static, run.spec, state, batch, draws, run.hyper)
    quantities = ours.critics | ours.actor if with_actor else ours.critics
    for name, x in quantities.items():
        run.comparison.add(name, x, run.arrays[f"{group}/{name}"], rule_of(name, run.rules))
    if "grads" in run.arrays.children(f"{group}/"):
        compare_grads(run, ours, group, with_actor)
    return ours.after_actor if with_actor else ours.after_critics


def rule_of(name: str, rules: Rules) -> Rule:
    """The bound of an intermediate quantity."""
    if name in CHOICES:
        return EXACT
    return rules.weighted if name in WEIGHTED else rules.other


def compare_batch(run: Run, group: str) -> None:
    """Rows gathered by index, with shaped rewards."""
    arrays = run.arrays
    index = jnp.asarray(arrays[f"{group}/batch/index"])
    run.comparison.add("batch: size", len(index), arrays["config/batch_size"], EXACT)
    ours = jax.tree.map(lambda x: x[index], run.dataset.transitions)
    ours = shape_reward(ours, run.hyper.reward_scale, run.hyper.reward_shift)
    for name, x in (("state", ours.obs), ("next_state", ours.next_obs), ("reward", ours.reward)):
        run.comparison.add(f"batch: {name}", x, arrays[f"{group}/batch/{name}"], INPUT)
    for name, x in (("action", ours.action), ("not_done", 1.0 - ours.terminated)):
        run.comparison.add(f"batch: {name}", x, arrays[f"{group}/batch/{name}"], EXACT)


def compare_grads(run: Run, ours: Trace, group: str, with_actor: bool) -> None:
    """Gradients of every network that the update moves."""
    for name, tree in ours.grads.items():
        if with_actor or not name.endswith("/actor"):
            recorded = read.read_net(run.arrays, f"{group}/{name}", run.static)
            add_tree(run.comparison, name, tree, recorded, run.rules.other)


def compare_params(run: Run, state: State, group: str, with_actor: bool) -> None:
    """Parameters and targets, and Adam's state where it is recorded."""
    for name in read.NETWORKS:
        recorded = read.read_net(run.arrays, f"{group}/{name}", run.static)
        add_tree(run.comparison, f"parameters: {name}", getattr(state, name), recorded, run.rules.params)
    if "adam" not in run.arrays.children(f"{group}/"):
        return
    for name in read.TRAINED:
        adam = getattr(state.optim, name)[0]
        count = run.arrays[f"{group}/adam/count/{name}"]
        run.comparison.add(f"adam count: {name}", adam.count, count, EXACT)
        if with_actor or name != "actor":
            compare_moments(run, f"{group}/adam", name, adam)


def compare_moments(run: Run, group: str, name: str, adam: Any) -> None:
    """Both moments; the second also as its root, since 1e-5 would hide most squares of gradients."""
    mu = read.read_net(run.arrays, f"{group}/mu/{name}", run.static)
    nu = read.read_net(run.arrays, f"{group}/nu/{name}", run.static)
    add_tree(run.comparison, f"adam mu: {name}", adam.mu, mu, run.rules.other)
    add_tree(run.comparison, f"adam nu: {name}", adam.nu, nu, run.rules.other)
    ours, recorded = (jax.tree.map(jnp.sqrt, tree) for tree in (adam.nu, nu))
    add_tree(run.comparison, f"adam sqrt(nu): {name}", ours, recorded, run.rules.other)


def compare_policy(run: Run, state: State, name: str) -> None:
    """The evaluation policy's actions at raw observations."""
    raw = jnp.asarray(run.arrays["eval/observation_raw"])
    obs = (raw - run.dataset.obs_mean) / run.dataset.obs_std
    ours = make(run.static, run.spec).act(jax.random.key(0), state, obs, run.hyper)
    run.comparison.add("eval: action", ours, run.arrays[name], run.rules.other)


def add_tree(comparison: Comparison, quantity: str, ours: Params, recorded: Params, rule: Rule) -> None:
    """Compare two trees leaf by leaf."""
    for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(recorded), strict=True):
        comparison.add(quantity, x, np.asarray(y), rule)
