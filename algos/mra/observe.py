"""What the networks see of a scene: what each agent knows of itself, and of every other agent."""

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

VELOCITY, POSITION, REST = slice(0, 2), slice(2, 4), slice(4, None)  # parts of `Observation.own`


class Scene(Protocol):
    """Agents and landmarks of a particle game; leading axes of all fields may be added."""

    @property
    def position(self) -> jax.Array:
        """(N, 2)."""

    @property
    def velocity(self) -> jax.Array:
        """(N, 2)."""

    @property
    def landmark(self) -> jax.Array:
        """(L, 2), positions."""

    @property
    def size(self) -> jax.Array:
        """(L,)."""

    @property
    def mask(self) -> jax.Array:
        """(N,), 1 for agents that exist."""

    @property
    def kind(self) -> jax.Array:
        """(N,), 0 .. H-1."""


class Observation(NamedTuple):
    """Own vectors of N agents, zero where an agent is padding. W = 4 + 3 L, plus H where there are several kinds.

    What agent i sees of agent j is j's own vector with the position relative to i: it need not be stored.
    """

    own: jax.Array  # (..., N, W): velocity, position, for each landmark its offset and size, one-hot kind if H > 1
    mask: jax.Array  # (..., N), 0 or 1
    kind: jax.Array  # (..., N, H), one-hot, zero where padding

    @property
    def others(self) -> jax.Array:
        """o_ij (..., N, N, W): offset from i to j, then j's velocity, landmarks and kind."""
        position = self.own[..., POSITION]
        offset = position[..., None, :, :] - position[..., :, None, :]
        seen = jnp.concatenate([self.own[..., VELOCITY], self.own[..., REST]], -1)[..., None, :, :]
        return jnp.concatenate([offset, jnp.broadcast_to(seen, (*offset.shape[:-1], seen.shape[-1]))], -1)

    @property
    def pairs(self) -> jax.Array:
        """(..., N, N): 1 where both agents exist and are not the same."""
        return self.mask[..., :, None] * self.mask[..., None, :] * (1.0 - jnp.eye(self.mask.shape[-1]))

    @property
    def counts(self) -> jax.Array:
        """(..., H): how many agents of each kind there are."""
        return self.kind.sum(-2)


def observe(scene: Scene, kinds: int) -> Observation:
    """The observation of a scene, whose fields may have leading axes; `kinds` is H."""
    mask = scene.mask
    kind = jax.nn.one_hot(scene.kind.astype(jnp.int32), kinds) * mask[..., None]
    offset = scene.landmark[..., None, :, :] - scene.position[..., :, None, :]
    size = jnp.broadcast_to(scene.size[..., None, :, None], (*offset.shape[:-1], 1))
    landmarks = jnp.concatenate([offset, size], -1)
    landmarks = landmarks.reshape(*landmarks.shape[:-2], -1)
    parts = [scene.velocity, scene.position, landmarks] + ([kind] if kinds > 1 else [])
    own = jnp.where(mask[..., None] > 0.0, jnp.concatenate(parts, -1), 0.0)
    return Observation(own, mask, kind)
