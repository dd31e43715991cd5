"""Two updates of DrQ-v2 on images of 17x17, recorded in float64 with nothing of ours.

`python -m tests.golden.adaptive_rr_record` writes `adaptive_rr/img17_updates.npz` anew. The networks are flax's, Adam
is optax's, and images are shifted by bilinear interpolation, as the original code has it.
"""

from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy.ndimage import map_coordinates

PATH = Path(__file__).parent / "adaptive_rr" / "img17_updates.npz"
BATCH, SIDE, CHANNELS, ACTIONS, FEATURES, HIDDEN, UPDATES = 4, 17, 6, 3, 7, 12, 2
CLIP, TAU, LR, PAD, SCHEDULE = 0.3, 0.01, 1e-4, 4, (1.0, 0.1, 5000)
ADAM = optax.adam(LR)
Tree = Any


class Layers(nn.Module):
    """Affine layers with ReLU between; each ReLU's output is sown."""

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i, width in enumerate(self.widths):
            x = nn.Dense(width, name=f"dense{i}")(x)
            if i + 1 < len(self.widths):
                x = nn.relu(x)
                self.sow("intermediates", "active", x)
        return x


class Trunk(nn.Module):
    """Affine, layer norm, tanh."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.tanh(nn.LayerNorm(epsilon=1e-5, name="layernorm")(nn.Dense(FEATURES, name="dense")(x)))


class Encoder(nn.Module):
    """Four convolutions."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x / 255.0 - 0.5
        for i in range(4):
            strides = 2 if i == 0 else 1
            x = nn.relu(nn.Conv(32, (3, 3), strides, padding="VALID", name=f"conv{i + 1}")(x))
            self.sow("intermediates", "active", x)
        return x.reshape(len(x), -1)


class Actor(nn.Module):
    """Mean of the policy."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.tanh(Layers((HIDDEN, HIDDEN, ACTIONS), name="policy")(Trunk(name="trunk")(x)))


class Critic(nn.Module):
    """Two heads on one trunk."""

    @nn.compact
    def __call__(self, x: jax.Array, action: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = jnp.concatenate([Trunk(name="trunk")(x), action], -1)
        return tuple(Layers((HIDDEN, HIDDEN, 1), name=name)(x) for name in ("q1", "q2"))


def run(net: nn.Module, params: Tree, *inputs: jax.Array) -> tuple[Any, list[jax.Array]]:
    """Output and the outputs of all ReLUs."""
    out, state = net.apply({"params": params}, *inputs, mutable="intermediates")
    return out, jax.tree.leaves(state)


def shifted(images: np.ndarray, shift: np.ndarray) -> jax.Array:
    """Interpolated on a grid that hits the centres of pixels but for rounding."""
    x = jnp.pad(jnp.asarray(images, jnp.float64), ((0, 0), (PAD, PAD), (PAD, PAD), (0, 0)), mode="edge")
    size = SIDE + 2 * PAD
    base = jnp.linspace(-1.0 + 1.0 / size, 1.0 - 1.0 / size, size)[:SIDE]
    at = lambda s: ((base + 2.0 * s / size + 1.0) * size - 1.0) / 2.0  # noqa: E731
    planes = []
    for image, (dx, dy) in zip(x, shift, strict=True):
        rows, columns = jnp.meshgrid(at(dy), at(dx), indexing="ij")
        planes.append(jnp.stack([map_coordinates(image[..., c], [rows, columns], 1) for c in range(CHANNELS)], -1))
    return jnp.stack(planes)


def sampled(mean: jax.Array, noise: Any, stddev: float) -> jax.Array:
    """Clipped noise; the clamp is passed straight through."""
    x = mean + jnp.clip(stddev * noise, -CLIP, CLIP)
    return x + jax.lax.stop_gradient(jnp.clip(x, -1 + 1e-6, 1 - 1e-6) - x)


def share(active: list[jax.Array]) -> float:
    """Share of all units above zero."""
    return sum(int((x > 0).sum()) for x in active) / sum(x.size for x in active)


def critic_loss(params: Tree, obs: jax.Array, action: jax.Array, y: jax.Array) -> tuple[jax.Array, Any]:
    """Sum of two mean squared errors."""
    h, encoder_active = run(Encoder(), params["encoder"], obs)
    (q1, q2), active = run(Critic(), params["critic"], h, action)
    return ((q1 - y) ** 2).mean() + ((q2 - y) ** 2).mean(), (h, q1, q2, encoder_active, active)


def actor_loss(params: Tree, critic: Tree, h: jax.Array, noise: jax.Array, stddev: float) -> tuple[jax.Array, Any]:
    """Mean of the smaller critic, negated."""
    mean, active = run(Actor(), params, h)
    action = sampled(mean, noise, stddev)
    (q1, q2), _ = run(Critic(), critic, h, action)
    return -jnp.minimum(q1, q2).mean(), (mean, action, q1, q2, active)


def step(params: Tree, optim: Tree, grads: Tree) -> tuple[Tree, Tree]:
    """One of Adam's."""
    updates, optim = ADAM.update(grads, optim)
    return optax.apply_updates(params, updates), optim


def draw_inputs(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Batch and draws of one update."""
    normal = lambda *shape: np.asarray(rng.standard_normal(shape), np.float32)  # noqa: E731
    image = lambda: rng.integers(0, 256, (BATCH, SIDE, SIDE, CHANNELS), dtype=np.uint8)  # noqa: E731
    shift = lambda: rng.integers(0, 2 * PAD + 1, (BATCH, 2), dtype=np.int32)  # noqa: E731
    return {
        "obs": image(), "next_obs": image(), "action": np.tanh(normal(BATCH, ACTIONS)),
        "reward": 2.0 * normal(BATCH, 1), "discount": np.array([[0.97], [0.0], [0.97], [0.5]], np.float32),
        "shift_obs": shift(), "shift_next_obs": shift(),
        "noise_next_action": normal(BATCH, ACTIONS), "noise_actor": normal(BATCH, ACTIONS),
    }  # fmt: skip


def update(params: Tree, optim: Tree, x: dict[str, np.ndarray], t: int) -> tuple[Tree, Tree, dict[str, Any], Tree]:
    """Parameters and optimisers after an update at agent step t; what it computed; gradients."""
    mix = min(t / SCHEDULE[2], 1.0)
    stddev = (1 - mix) * SCHEDULE[0] + mix * SCHEDULE[1]
    obs, next_obs = shifted(x["obs"], x["shift_obs"]), shifted(x["next_obs"], x["shift_next_obs"])
    next_h, _ = run(Encoder(), params["encoder"], next_obs)
    next_mean, _ = run(Actor(), params["actor"], next_h)
    next_action = sampled(next_mean, x["noise_next_action"], stddev)
    (target_q1, target_q2), _ = run(Critic(), params["critic_target"], next_h, next_action)
    y = x["reward"] + x["discount"] * jnp.minimum(target_q1, target_q2)

    learnt = {name: params[name] for name in ("encoder", "critic")}
    (c_loss, (h, q1, q2, encoder_active, critic_active)), grads = jax.value_and_grad(critic_loss, has_aux=True)(
        learnt, obs, x["action"], y
    )
    encoder, encoder_optim = step(params["encoder"], optim["encoder"], grads["encoder"])
    critic, critic_optim = step(params["critic"], optim["critic"], grads["critic"])
    (a_loss, (mean, action, actor_q1, actor_q2, actor_active)), actor_grads = jax.value_and_grad(
        actor_loss, has_aux=True
    )(params["actor"], critic, h, x["noise_actor"], stddev)
    actor, actor_optim = step(params["actor"], optim["actor"], actor_grads)
    target = jax.tree.map(lambda new, old: TAU * new + (1 - TAU) * old, critic, params["critic_target"])

    log_prob = -0.5 * ((action - mean) / stddev) ** 2 - np.log(stddev) - 0.5 * np.log(2 * np.pi)
    crops = [np.pad(i, ((PAD, PAD), (PAD, PAD), (0, 0)), "edge") for i in x["obs"]]
    crops = [c[dy : dy + SIDE, dx : dx + SIDE] for c, (dx, dy) in zip(crops, x["shift_obs"], strict=True)]
    seen = {
        "step": t, "stddev": stddev, "obs_aug": np.float32(obs), "next_obs_aug": np.float32(next_obs),
        "aug_max_dev_from_integer_crop": np.abs(np.stack(crops) - obs).max(),
        "features_obs_first2": h[:2], "features_next_obs_first2": next_h[:2],
        "features_obs_l2_per_sample": jnp.linalg.norm(h, axis=-1),
        "next_action_mean": next_mean, "next_action": next_action, "target_q1": target_q1, "target_q2": target_q2,
        "target_q": y, "q1": q1, "q2": q2, "critic_loss": c_loss, "actor_mean": mean, "actor_action": action,
        "actor_q1": actor_q1, "actor_q2": actor_q2, "actor_loss": a_loss,
        "actor_logprob_mean": log_prob.sum(-1).mean(),
        "actor_entropy_mean": ACTIONS * (0.5 * np.log(2 * np.pi * np.e) + np.log(stddev)),
        "fau_encoder": share(encoder_active), "fau_critic": share(critic_active), "fau_actor": share(actor_active),
        "encoder_active_counts": [int((a > 0).sum()) for a in encoder_active],
        "encoder_unit_totals": [a.size for a in encoder_active],
    }  # fmt: skip
    params = {"encoder": encoder, "actor": actor, "critic": critic, "critic_target": target}
    return params, {"encoder": encoder_optim, "actor": actor_optim, "critic": critic_optim}, seen, grads | {
        "actor": actor_grads
    }  # fmt: skip


def initial(rng: np.random.Generator) -> Tree:
    """Parameters of which none is zero, float32 numbers in float64, and a target that is not a copy."""
    h, action = jnp.zeros((1, 128)), jnp.zeros((1, ACTIONS))
    shapes = {
        "encoder": Encoder().init(jax.random.key(0), jnp.zeros((1, SIDE, SIDE, CHANNELS))),
        "actor": Actor().init(jax.random.key(1), h),
        "critic": Critic().init(jax.random.key(2), h, action),
    }
    shapes = {name: tree["params"] for name, tree in shapes.items()}
    noisy = lambda x: jnp.asarray(np.float32(x + 0.05 * rng.standard_normal(x.shape)), jnp.float64)  # noqa: E731
    params = jax.tree.map(noisy, shapes)
    return params | {"critic_target": jax.tree.map(noisy, params["critic"])}


def names(prefix: str, tree: Tree) -> dict[str, np.ndarray]:
    """Arrays by their paths, as float32."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {prefix + "/".join(key.key for key in path): np.asarray(x, np.float32) for path, x in leaves}


def record() -> dict[str, np.ndarray]:
    """All arrays of the file."""
    rng = np.random.default_rng(0)
    params = initial(rng)
    optim = {name: ADAM.init(params[name]) for name in ("encoder", "actor", "critic")}
    arrays, total = names("", params), 0.0
    for number in range(1, UPDATES + 1):
        inputs = draw_inputs(rng)
        params, optim, seen, grads = update(params, optim, inputs, 1000 * number)
        total += seen["fau_critic"]
        seen |= {"sum_phi": total, "sum_phi_count": number}
        arrays |= {f"u{number}/{key}": np.asarray(x) for key, x in (inputs | seen).items()}
        if number == 1:
            arrays |= names("u1/grad/", grads) | {"init_phi": np.asarray(total)}
    return arrays | names(f"after{UPDATES}/", params)


if __name__ == "__main__":
    with jax.enable_x64(True):
        np.savez_compressed(PATH, **record())  # type: ignore[arg-type]
