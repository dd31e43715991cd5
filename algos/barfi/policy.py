"""The actors of BARFI: an affine head θ on features of the observation, in PyTorch's initialisation.

Where the environment has features (`Env.view`), actions are discrete and the head gives the logits of a softmax. Where
it has none, actions are real vectors: a ReLU layer is learnt as features, and the head gives the mean of a Gaussian.
Only the head is what the hypergradient differentiates; the ReLU layer counts as fixed there.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from algos.barfi.objectives import Policy, softmax_policy
from algos.core import Env, Key, Params
from algos.nets import affine, init_affine

STD = 0.1  # of the Gaussian
WIDTH = 32  # of the learnt features


class Actor(NamedTuple):
    """What acts, as functions of the head's parameters θ and features x (..., F); actions in the form that is stored.

    init:      key -> {"body": parameters of the features, "head": θ}
    features:  (body, obs (..., obs_dim)) -> x (..., F)
    policy:    log_prob (θ, x, action) -> (...), entropy (θ, x) -> (...)
    sample:    (key, θ, x) -> action
    mode:      (θ, x) -> the most probable action
    to_env:    action -> what `Env.step` takes, (..., action_dim)
    """

    init: Callable[[Key], Params]
    features: Callable[[Params, jax.Array], jax.Array]
    policy: Policy
    sample: Callable[[Key, Params, jax.Array], jax.Array]
    mode: Callable[[Params, jax.Array], jax.Array]
    to_env: Callable[[jax.Array], jax.Array]


def make_actor(env: Env) -> Actor:
    """The actor that goes with an environment: softmax on its features, else Gaussian."""
    return gaussian(env) if env.view is None else softmax(env)


def feature_count(env: Env) -> int:
    """F."""
    return WIDTH if env.view is None else jax.eval_shape(env.view, jnp.zeros(env.spec.obs_dim)).shape[0]


def softmax(env: Env) -> Actor:
    """π(a|x) = softmax(x K + b)[a]; an action is its number, int32."""
    assert env.view is not None
    actions, view = env.spec.action_dim, jnp.vectorize(env.view, signature="(d)->(f)")

    def init(key: Key) -> Params:
        return {"body": {}, "head": init_affine(key, feature_count(env), actions)}

    def sample(key: Key, theta: Params, x: jax.Array) -> jax.Array:
        return jax.random.categorical(key, affine(theta, x)).astype(jnp.int32)

    def mode(theta: Params, x: jax.Array) -> jax.Array:
        return affine(theta, x).argmax(-1).astype(jnp.int32)

    def to_env(action: jax.Array) -> jax.Array:
        return 2.0 * jax.nn.one_hot(action, actions) - 1.0

    return Actor(init, lambda body, obs: view(obs), softmax_policy(affine), sample, mode, to_env)


def gaussian(env: Env) -> Actor:
    """π(a|x) = N(M (2 σ(x K + b) - 1), 0.1²) for actions in [-M, M], not clipped; x = relu of an affine layer."""
    spec = env.spec
    log_scale = math.log(STD) + 0.5 * math.log(2.0 * math.pi)

    def init(key: Key) -> Params:
        body, head = jax.random.split(key)
        return {"body": init_affine(body, spec.obs_dim, WIDTH), "head": init_affine(head, WIDTH, spec.action_dim)}

    def features(body: Params, obs: jax.Array) -> jax.Array:
        return jax.nn.relu(affine(body, obs))

    def mean(theta: Params, x: jax.Array) -> jax.Array:
        return spec.max_action * (2.0 * jax.nn.sigmoid(affine(theta, x)) - 1.0)

    def log_prob(theta: Params, x: jax.Array, action: jax.Array) -> jax.Array:
        return (-0.5 * jnp.square((action - mean(theta, x)) / STD) - log_scale).sum(-1)

    def entropy(theta: Params, x: jax.Array) -> jax.Array:
        return jnp.full(x.shape[:-1], spec.action_dim * (log_scale + 0.5), x.dtype)

    def sample(key: Key, theta: Params, x: jax.Array) -> jax.Array:
        center = mean(theta, x)
        return center + STD * jax.random.normal(key, center.shape, center.dtype)

    return Actor(init, features, Policy(log_prob, entropy), sample, mean, lambda action: action)
