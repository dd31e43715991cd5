"""DrQ-v2: recorded updates against ours, from the same parameters, batches and draws."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from algos.buffers import NStepBatch
from algos.core import Metrics, Params, UsageError
from algos.drqv2 import learn, nets, replay_ratio
from algos.drqv2.learn import Agent, Draws
from algos.drqv2.replay_ratio import RatioHyper, RatioState, RatioStatic
from algos.drqv2.settings import PAD, Hyper
from tests.parity.core import EXACT, Arrays, Case, Comparison, Rule

FORWARD = Rule(1e-5)
LATER = Rule(1e-4)  # once parameters differ by what Adam makes of rounding
FEATURES = Rule(2e-5)  # of images that the recorded interpolation has off by up to 1e-5 of their range
ROUNDING = Rule(1e-6)
GRADIENT = Rule(1e-5, relative=False)  # of arrays divided by their largest recorded entry
COUNT = Rule(0.1, relative=False)
COUNT_LATER = Rule(1.1, relative=False)  # once parameters differ by rounding, a unit may be at zero
ENCODER_SHARE = Rule(3e-4, relative=False)  # of units that are zero up to rounding
CROP = Rule(5e-3, relative=False)  # of 255: what interpolation at pixels' centres leaves
# Adam makes of rounding where a gradient is near zero: so many entries may be off by more than so much.
SHARES = {1e-6: 1e-2, 1e-5: 2e-4}
PARAMETERS = Rule(5e-4, relative=False)
ADAM = [0.9, 0.999, 1e-8]


def tree(arrays: Arrays, prefix: str) -> Params:
    """The arrays below `prefix/` as nested dictionaries."""
    root: Params = {}
    for name in arrays.children(f"{prefix}/"):
        path = f"{prefix}/{name}"
        root[name] = jnp.asarray(arrays[path]) if path in arrays else tree(arrays, path)
    return root


def with_heads(critic: Params) -> Params:
    """A recorded critic in our layout: heads `q1` and `q2` stacked."""
    heads = jax.tree.map(lambda *x: jnp.stack(x), critic["q1"], critic["q2"])
    return {"trunk": critic["trunk"], "heads": heads}


def flat(ours: Params) -> dict[str, np.ndarray]:
    """Our parameters by the names of the record."""
    arrays = {}
    for path, x in jax.tree_util.tree_leaves_with_path(ours):
        names = [key.key for key in path]
        if "heads" in names:
            at = names.index("heads")
            for i in range(2):
                arrays["/".join([*names[:at], f"q{i + 1}", *names[at + 1 :]])] = np.asarray(x[i])
        else:
            arrays["/".join(names)] = np.asarray(x)
    return arrays


def params_of(agent: Agent) -> Params:
    """The networks by the names of the record."""
    return {
        "encoder": agent.encoder, "actor": agent.actor, "critic": agent.critic, "critic_target": agent.target_critic,
    }  # fmt: skip


def recorded_below(arrays: Arrays, prefix: str) -> dict[str, np.ndarray]:
    """Arrays below a prefix (which ends in a slash) by their whole names after it."""
    found: dict[str, np.ndarray] = {}
    for name in arrays.children(prefix):
        path = f"{prefix}{name}"
        parts = {"": arrays[path]} if path in arrays else recorded_below(arrays, f"{path}/")
        found |= {f"{name}/{rest}" if rest else name: x for rest, x in parts.items()}
    return found


class Compared(NamedTuple):
    """One array as it is recorded: whole, or some rows, column sums or column norms."""

    name: str
    part: str  # "", rows, colsum, coll2
    ours: np.ndarray
    recorded: np.ndarray


def pair_up(arrays: Arrays, prefix: str, ours: Params) -> list[Compared]:
    """Every array below the prefix with ours of the same name. Raises UsageError where either lacks one."""
    mine, pairs, seen = flat(ours), [], set()
    for key, recorded in recorded_below(arrays, prefix).items():
        name, _, part = key.partition("@")
        if name not in mine or part not in ("", "rows", "colsum", "coll2"):
            raise UsageError(f"{arrays.name}: not understood, so not compared: {prefix}{key}")
        x = mine[name]
        if part == "rows":
            x = x[arrays["trunk_rows"]]
        elif part:
            x = x.astype(np.float64)
            x = x.sum(0) if part == "colsum" else np.sqrt(np.square(x).sum(0))
        pairs.append(Compared(name, part, x, recorded))
        seen.add(name)
    missing = sorted(mine.keys() - seen)
    if missing:
        raise UsageError(f"{arrays.name}: array '{prefix}{missing[0]}' is missing")
    return pairs


def compare_params(comparison: Comparison, arrays: Arrays, update: int, agent: Agent) -> None:
    """All recorded parameters after an update: the worst entry, and how many are off by more than rounding."""
    errors = []
    for name, part, ours, recorded in pair_up(arrays, f"after{update}/", params_of(agent)):
        if part in ("colsum", "coll2"):
            comparison.add(f"parameters: {part}", ours, recorded, Rule(1e-3))
            continue
        comparison.add(f"parameters: {name.split('/')[0]}", ours, recorded, PARAMETERS)
        if ours.shape == recorded.shape:
            errors.append(np.abs(ours.astype(np.float64) - recorded).ravel())
    every = np.concatenate(errors) if errors else np.full(1, np.inf)
    for size, share in SHARES.items():
        off = np.mean(~(every <= size))
        comparison.add(f"parameters: share off by more than {size:.0e}", off, np.zeros(()), Rule(share, relative=False))


def compare_gradients(comparison: Comparison, arrays: Arrays, prefix: str, ours: Params) -> None:
    """Gradients, each array relative to its largest entry."""
    for name, part, x, recorded in pair_up(arrays, prefix, ours):
        largest = np.abs(recorded).max() or 1.0
        rule = Rule(1e-4, relative=False) if part in ("colsum", "coll2") else GRADIENT
        quantity = f"gradient: {name.split('/')[0]}" + (f" ({part})" if part in ("colsum", "coll2") else "")
        comparison.add(quantity, x / largest, recorded / largest, rule)


def read_hyper(raw: dict[str, Any]) -> Hyper:
    """The settings of a case of updates. Raises UsageError for constants that are not ours."""
    if raw["adam"] != ADAM or raw["pad"] != PAD:
        raise UsageError(f"settings.json: updates are compared with adam {ADAM} and pad {PAD} only")
    start, end, steps = raw["stddev_schedule"]
    return Hyper(
        lr=raw["lr"], tau=raw["critic_tau"], stddev_start=start, stddev_end=end, stddev_steps=steps,
        stddev_clip=raw["stddev_clip"], augment=float(raw["augment"]),
    )  # fmt: skip


def read_update(arrays: Arrays, group: str, augment: bool) -> tuple[NStepBatch, Draws]:
    """Batch and draws of a recorded update."""
    read = lambda name: jnp.asarray(arrays[f"{group}/{name}"])  # noqa: E731
    batch = NStepBatch(
        read("obs"), read("action"), read("reward").squeeze(-1), read("discount").squeeze(-1), read("next_obs")
    )
    shift, next_shift = (
        read(name) if augment else jnp.full_like(read(name), PAD) for name in ("shift_obs", "shift_next_obs")
    )
    return batch, Draws(shift, next_shift, read("noise_next_action"), read("noise_actor"))


class Parts(NamedTuple):
    """What one update consists of, piece by piece, with parameters before it."""

    target: learn.Target
    acted: learn.ActorOutputs
    critic: learn.CriticOutputs
    next_features: jax.Array
    gradients: Params


@jax.jit
def update_in_parts(
    agent: Agent, batch: NStepBatch, draws: Draws, step: jax.Array, hyper: Hyper
) -> tuple[Agent, Metrics, Parts]:
    """An update as training makes it, and its pieces."""
    after, metrics = learn.learn(agent, batch, draws, step, hyper)
    stddev = learn.stddev_at(step, hyper)
    target = learn.critic_target(agent, batch, draws, stddev, hyper)
    obs = learn.random_shift(batch.obs, draws.shift)
    (encoder, critic), outputs = jax.grad(learn.critic_loss, has_aux=True)(
        (agent.encoder, agent.critic), obs, batch.action, target.value
    )
    actor, acted = jax.grad(learn.actor_loss, has_aux=True)(
        agent.actor, after.critic, outputs.features, draws.action, stddev, hyper.stddev_clip
    )
    next_features, *_ = nets.encoder(agent.encoder, learn.random_shift(batch.next_obs, draws.next_shift))
    gradients = {"encoder": encoder, "critic": critic, "actor": actor}
    return after, metrics, Parts(target, acted, outputs, next_features, gradients)


def compare_forward(comparison: Comparison, arrays: Arrays, group: str, parts: Parts) -> None:
    """Networks' outputs."""
    rule = FORWARD if group == "u1" else LATER
    pairs = {
        "target_q1": parts.target.q[0], "target_q2": parts.target.q[1], "target_q": parts.target.value,
        "next_action_mean": parts.target.mean, "next_action": parts.target.action,
        "q1": parts.critic.q[0], "q2": parts.critic.q[1],
        "actor_mean": parts.acted.mean, "actor_action": parts.acted.action,
        "actor_q1": parts.acted.q[0], "actor_q2": parts.acted.q[1],
    }  # fmt: skip
    for name, ours in pairs.items():
        comparison.add(name, ours, arrays[f"{group}/{name}"], rule)
    norms = jnp.linalg.norm(parts.critic.features, axis=-1)
    comparison.add("features' norms", norms, arrays[f"{group}/features_obs_l2_per_sample"], rule)
    for name, x in {"obs": parts.critic.features, "next_obs": parts.next_features}.items():
        key = f"{group}/features_{name}_first2"
        if key in arrays:
            comparison.add("features", x[: len(arrays[key])], arrays[key], FEATURES)


def compare_images(comparison: Comparison, arrays: Arrays, group: str, batch: NStepBatch, draws: Draws) -> None:
    """Shifted images where they are recorded, and the interpolation's own distance from a crop."""
    comparison.add("recorded shift, off the crop", 0.0, arrays[f"{group}/aug_max_dev_from_integer_crop"], CROP)
    for name, images, shift in (("obs", batch.obs, draws.shift), ("next_obs", batch.next_obs, draws.next_shift)):
        key = f"{group}/{name}_aug"
        if key in arrays:
            size = len(arrays[key])
            comparison.add("shifted images", learn.random_shift(images[:size], shift[:size]), arrays[key], CROP)


def compare_metrics(comparison: Comparison, arrays: Arrays, group: str, metrics: Metrics) -> None:
    """Losses, the policy's density and entropy."""
    names = {
        "stddev": "stddev", "critic_loss": "critic_loss", "actor_loss": "actor_loss",
        "actor_logprob_mean": "log_prob", "actor_entropy_mean": "entropy",
    }  # fmt: skip
    for name, ours in names.items():
        comparison.add(name, metrics[ours], arrays[f"{group}/{name}"], FORWARD)


def compare_fau(
    comparison: Comparison, arrays: Arrays, group: str, metrics: Metrics, parts: Parts, state: RatioState
) -> None:
    """Active units: of critic and actor to the unit, of the encoder to a share."""
    rule = COUNT if group == "u1" else COUNT_LATER
    units = {
        name: sum(x.size for x in hidden)
        for name, hidden in (parts.critic.hidden | {"actor": parts.acted.hidden}).items()
    }
    for name in ("critic", "actor"):
        ours, recorded = float(metrics[f"fau_{name}"]), arrays[f"{group}/fau_{name}"]
        comparison.add(f"active units: {name}", ours * units[name], recorded * units[name], rule)
    comparison.add("fau_encoder", metrics["fau_encoder"], arrays[f"{group}/fau_encoder"], ENCODER_SHARE)
    sizes = np.array([x.size for x in parts.critic.hidden["encoder"]])
    comparison.add("encoder's units", sizes, arrays[f"{group}/encoder_unit_totals"], EXACT)
    recorded = arrays[f"{group}/encoder_active_counts"] / sizes
    comparison.add("encoder's active units", np.asarray(parts.critic.active) / sizes, recorded, ENCODER_SHARE)
    total = float(state.phi_sum) * units["critic"], arrays[f"{group}/sum_phi"] * units["critic"]
    comparison.add("sum of phi, units", *total, COUNT_LATER)
    comparison.add("updates in the sum", state.phi_count, arrays[f"{group}/sum_phi_count"], EXACT)


def start(arrays: Arrays) -> Agent:
    """The recorded agent before its first update."""
    agent = learn.begin(tree(arrays, "encoder"), tree(arrays, "actor"), with_heads(tree(arrays, "critic")))
    return agent._replace(target_critic=with_heads(tree(arrays, "critic_target")))


def compare_updates(case: Case, comparison: Comparison) -> None:
    """Consecutive updates, each from where ours before it led."""
    arrays, static, ratio = case.arrays, RatioStatic(), RatioHyper()
    hyper = read_hyper(case.settings["hyper"])
    agent, state = start(arrays), replay_ratio.init_ratio()
    groups = [name for name in arrays.children() if f"{name}/critic_loss" in arrays]
    for number in range(1, len(groups) + 1):
        group = f"u{number}"
        batch, draws = read_update(arrays, group, hyper.augment > 0.0)
        step = arrays[f"{group}/step"]
        agent, metrics, parts = update_in_parts(agent, batch, draws, jnp.asarray(step, jnp.int32), hyper)
        state = replay_ratio.record(state, metrics["fau_critic"], static, ratio)
        compare_images(comparison, arrays, group, batch, draws)
        compare_forward(comparison, arrays, group, parts)
        compare_metrics(comparison, arrays, group, metrics)
        compare_fau(comparison, arrays, group, metrics, parts, state)
        for prefix in (f"{group}/grad/", "grad/") if number == 1 else (f"{group}/grad/",):
            if arrays.children(prefix):
                compare_gradients(comparison, arrays, prefix, parts.gradients)
        if f"after{number}" in arrays.children():
            compare_params(comparison, arrays, number, agent)
    comparison.add("reference phi", state.phi_last, arrays["init_phi"], ROUNDING)
