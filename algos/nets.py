"""Networks shared by the algorithms, in PyTorch's default initialisation.

The offline RL papers we implement were written in PyTorch, whose linear layer draws kernel *and bias*
uniformly from +-1/sqrt(fan_in). Kernels are (in, out): `y = x @ kernel + bias`.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from algos.core import Key, Params


def affine(params: Params, x: jax.Array) -> jax.Array:
    """{"kernel" (in, out), "bias" (out,)} applied to x (..., in)."""
    return x @ params["kernel"] + params["bias"]


def init_affine(key: Key, fan_in: int, features: int) -> Params:
    """Parameters of `affine`, kernel and bias uniform on +-1/sqrt(fan_in)."""
    kernel, bias = jax.random.split(key)
    draw = lambda k, shape: jax.random.uniform(k, shape, minval=-(fan_in**-0.5), maxval=fan_in**-0.5)  # noqa: E731
    return {"kernel": draw(kernel, (fan_in, features)), "bias": draw(bias, (features,))}


class Dense(nn.Module):
    """Affine layer, kernel and bias uniform on +-1/sqrt(fan_in)."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (..., in) to (..., features)."""
        fan_in = x.shape[-1]

        def uniform(key: Key, shape: tuple[int, ...]) -> jax.Array:
            return jax.random.uniform(key, shape, minval=-(fan_in**-0.5), maxval=fan_in**-0.5)

        kernel = self.param("kernel", uniform, (fan_in, self.features))
        bias = self.param("bias", uniform, (self.features,))
        return x @ kernel + bias


class MLP(nn.Module):
    """ReLU layers of the given widths, then an affine output layer."""

    hidden: Sequence[int]
    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (..., in) to (..., features)."""
        for width in self.hidden:
            x = nn.relu(Dense(width)(x))
        return Dense(self.features)(x)


class DeterministicActor(nn.Module):
    """obs (..., obs_dim) -> action (..., action_dim) in [-max_action, max_action]."""

    hidden: Sequence[int]
    action_dim: int
    max_action: float

    @nn.compact
    def __call__(self, obs: jax.Array) -> jax.Array:
        """The policy's action."""
        return self.max_action * jnp.tanh(MLP(self.hidden, self.action_dim)(obs))


class Critic(nn.Module):
    """(obs, action) -> Q value, shape (...)."""

    hidden: Sequence[int]

    @nn.compact
    def __call__(self, obs: jax.Array, action: jax.Array) -> jax.Array:
        """Q(obs, action) without a trailing axis, so that it cannot broadcast against rewards by mistake."""
        return MLP(self.hidden, 1)(jnp.concatenate([obs, action], -1)).squeeze(-1)


class Value(nn.Module):
    """obs -> state value, shape (...)."""

    hidden: Sequence[int]

    @nn.compact
    def __call__(self, obs: jax.Array) -> jax.Array:
        """V(obs) without a trailing axis."""
        return MLP(self.hidden, 1)(obs).squeeze(-1)


def init_ensemble(net: nn.Module, key: Key, size: int, *inputs: jax.Array) -> Params:
    """Independent parameters of `size` copies of `net`, on a new leading axis."""
    return jax.vmap(lambda k: net.init(k, *inputs))(jax.random.split(key, size))


def apply_ensemble(net: nn.Module, params: Params, *inputs: jax.Array) -> jax.Array:
    """Outputs of all copies on the same inputs: (size, ...)."""
    return jax.vmap(lambda p: net.apply(p, *inputs))(params)


def apply_first(net: nn.Module, params: Params, *inputs: jax.Array) -> jax.Array:
    """Output of the first copy alone, e.g. Q1 of twin critics."""
    return net.apply(jax.tree.map(lambda x: x[0], params), *inputs)
