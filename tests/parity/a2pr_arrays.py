"""A2PR: from the recorded names to our trees. Recorded layers are l1, l2, ..., out; ours count from 0."""

from dataclasses import fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from algos.a2pr import Draws, Hyper, State, Static, make
from algos.core import Dataset, Params, Spec, Transition, UsageError
from envs.datasets.d4rl import as_transition
from envs.datasets.loader import to_device
from tests.parity.core import Arrays

TRAINED = ("actor", "critic", "value", "vae")
NETWORKS = (*TRAINED, "target_actor", "target_critic")
OPTIONAL_HYPER = ("adv_threshold", "lambda_eps", "kl_weight")  # fixed in the reference implementation


def read_hyper(arrays: Arrays) -> Hyper:
    """Traced settings, under our names."""
    names = [field.name for field in fields(Hyper)]
    given = [name for name in names if name not in OPTIONAL_HYPER or f"config/{name}" in arrays]
    return Hyper(**{name: float(arrays[f"config/{name}"]) for name in given})


def read_static(arrays: Arrays) -> Static:
    """Widths and depths from the shapes of the initial parameters."""
    return Static(
        actor_hidden=_hidden(arrays, "init/actor"),
        critic_hidden=_hidden(arrays, "init/critic/q1"),
        vae_hidden=len(arrays["init/vae/enc1/bias"]),
        policy_delay=int(arrays["config/policy_freq"]),
    )


def read_spec(arrays: Arrays) -> Spec:
    """Dimensions of the recorded data."""
    obs, action = arrays["data/observations_raw"], arrays["data/actions"]
    return Spec(obs.shape[-1], action.shape[-1], float(arrays["config/max_action"]))


def read_dataset(arrays: Arrays) -> Dataset:
    """Our normalisation of the recorded raw transitions; rewards are shaped when sampled."""
    names = ("observations_raw", "actions", "rewards", "next_observations_raw", "terminals")
    columns: list[Any] = [arrays[f"data/{name}"] for name in names]
    truncated = np.zeros_like(columns[-1])  # not recorded, and nothing reads it
    return to_device(as_transition(*columns, truncated), normalize=True, scale=1.0, shift=0.0)


def read_batch(arrays: Arrays, group: str) -> Transition:
    """The recorded batch. Rewards in it are shaped."""
    obs, action, reward, next_obs, not_done = (
        jnp.asarray(arrays[f"{group}/batch/{name}"]) for name in ("state", "action", "reward", "next_state", "not_done")
    )
    terminated = 1.0 - not_done.squeeze(-1)
    return Transition(obs, action, reward.squeeze(-1), next_obs, terminated, jnp.zeros_like(terminated))


def read_draws(arrays: Arrays, group: str, with_actor: bool) -> Draws:
    """The recorded noise; updates that leave the actor alone record none for its step."""
    target, vae = arrays[f"{group}/draws/target_noise_eps"], arrays[f"{group}/draws/vae_eps"]
    guide = arrays[f"{group}/draws/actor_vae_eps"] if with_actor else np.zeros_like(vae)
    return Draws(jnp.asarray(target), jnp.asarray(vae), jnp.asarray(guide))


def read_state(arrays: Arrays, static: Static, spec: Spec) -> State:
    """The recorded start. Targets that are not recorded are copies of the online networks."""
    params = {name: read_net(arrays, f"init/{name}", static) for name in TRAINED}
    for name in ("actor", "critic"):
        recorded = f"target_{name}" in arrays.children("init/")
        params[f"target_{name}"] = read_net(arrays, f"init/target_{name}", static) if recorded else params[name]
    ours = jax.eval_shape(make(static, spec).init, jax.random.key(0), Hyper())
    for name, tree in params.items():
        if jax.tree.map(jnp.shape, tree) != jax.tree.map(jnp.shape, getattr(ours, name)):
            raise UsageError(f"{arrays.name}: the shapes of 'init/{name}' are not those of A2PR's network")
    fresh = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), ours.optim)
    return State(**params, optim=fresh)


def read_net(arrays: Arrays, prefix: str, static: Static) -> Params:
    """A network's parameters (or gradients, or moments) as our tree; the prefix ends with its name."""
    name = prefix.split("/")[-1].removeprefix("target_")
    if name == "critic":
        layers = _layer_names(static.critic_hidden)
        pair = [_mlp(arrays, f"{prefix}/{q}", layers) for q in ("q1", "q2")]
        return {"params": {"MLP_0": jax.tree.map(lambda *twins: jnp.stack(twins), *pair)}}
    if name == "vae":
        return {"params": _vae(arrays, prefix)}
    hidden = static.actor_hidden if name == "actor" else static.critic_hidden
    return {"params": {"MLP_0": _mlp(arrays, prefix, _layer_names(hidden))}}


def _vae(arrays: Arrays, prefix: str) -> Params:
    return {
        "trunk": _mlp(arrays, prefix, ["enc1", "enc2"]),
        "mean": _layer(arrays, f"{prefix}/mean"),
        "log_std": _layer(arrays, f"{prefix}/log_std"),
        "decoder": _mlp(arrays, prefix, ["dec1", "dec2", "dec_out"]),
    }


def _mlp(arrays: Arrays, prefix: str, layers: list[str]) -> Params:
    return {f"Dense_{i}": _layer(arrays, f"{prefix}/{layer}") for i, layer in enumerate(layers)}


def _layer(arrays: Arrays, prefix: str) -> Params:
    return {name: jnp.asarray(arrays[f"{prefix}/{name}"]) for name in ("kernel", "bias")}


def _layer_names(hidden: tuple[int, ...]) -> list[str]:
    return [f"l{i + 1}" for i in range(len(hidden))] + ["out"]


def _hidden(arrays: Arrays, prefix: str) -> tuple[int, ...]:
    """Widths of the hidden layers recorded under the prefix."""
    depth = len(arrays.children(f"{prefix}/")) - 1
    return tuple(len(arrays[f"{prefix}/l{i + 1}/bias"]) for i in range(depth))
