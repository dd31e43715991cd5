"""What MRA's relation and task steps achieve on fixed observations."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from algos.mra import learn, nets
from algos.mra.learn import Learner
from algos.mra.objectives import Batch
from algos.mra.observe import Observation
from algos.mra.settings import Hyper, Static
from tests.algos.mra_games import draw_obs

pytestmark = pytest.mark.usefixtures("quick_compilation")
STATIC, HYPER = Static(batch_size=32), Hyper(relation_lr=4e-3)
LANDMARKS = 6


def batch_of(obs: Observation, game: int = 0) -> Batch:
    zero = jnp.zeros(obs.mask.shape)
    return Batch(obs, zero.astype(jnp.int32), zero, obs, zero[:, 0], jnp.asarray(game))


def begin(scale: float) -> Learner:
    """A policy whose kernels are so many times the initialiser's, and skills that are all alike probable."""
    learner = init(jax.random.key(0))
    sharp = jax.tree_util.tree_map_with_path(
        lambda path, x: scale * x if path[-1].key == "kernel" else x, learner.policy
    )
    uniform = jax.tree.map(jnp.zeros_like, learner.task_encoder)
    return learner._replace(policy=sharp, target_policy=sharp, task_encoder=uniform)


@jax.jit
def init(key: jax.Array) -> Learner:
    return learn.init_learner(key, STATIC, 4 + 3 * LANDMARKS, 1, 3)


@partial(jax.jit, static_argnames="steps")
def relation_steps(learner: Learner, batch: Batch, steps: int) -> tuple[Learner, jax.Array]:
    def one(learner: Learner, key: jax.Array) -> tuple[Learner, jax.Array]:
        draws = learn.draw_meta(key, batch, STATIC).relation
        learner, metrics = learn.relation_step(learner, batch, draws, STATIC, HYPER)
        return learner, metrics["relation_reward"]

    return jax.lax.scan(one, learner, jax.random.split(jax.random.key(1), steps))


@jax.jit
def variation(learner: Learner, obs: Observation) -> jax.Array:
    """Mean total variation between the actions of two different skills."""
    graphs = nets.relation_graphs(learner.relation_net, obs)
    probs = jax.nn.softmax(jax.vmap(nets.policy_logits, (None, None, 0))(learner.policy, obs, graphs))
    distance = 0.5 * jnp.abs(probs[:, None] - probs[None]).sum(-1).mean((2, 3))
    return distance.sum() / (STATIC.skills * (STATIC.skills - 1))


def test_skills_come_to_act_differently_under_a_sharp_policy_only() -> None:
    obs = draw_obs(0, 6, 6, rows=32, landmarks=LANDMARKS)
    sharp, plain = begin(4.0), begin(1.0)
    after, rewards = relation_steps(sharp, batch_of(obs), 140)
    assert rewards[:5].mean() < 0.1
    assert rewards[-20:].mean() > 1.0
    assert variation(after, obs) > 5.0 * variation(sharp, obs)
    assert np.abs(relation_steps(plain, batch_of(obs), 140)[1]).max() < 0.05


def test_the_game_is_soon_recognised() -> None:
    slots, games = 12, (3, 6, 12)
    scenes = [batch_of(draw_obs(n, n, slots, rows=16, landmarks=LANDMARKS), t) for t, n in enumerate(games)]
    labelled = jax.tree.map(lambda *x: jnp.stack(x), *scenes)

    @jax.jit
    def train(learner: Learner) -> jax.Array:
        def one(learner: Learner, key: jax.Array) -> tuple[Learner, jax.Array]:
            uniform = jax.random.uniform(key, (len(games), slots, STATIC.skills))
            learner, metrics = learn.task_step(learner, labelled, uniform, STATIC, HYPER)
            return learner, metrics["task_accuracy"]

        return jax.lax.scan(one, learner, jax.random.split(jax.random.key(2), 500))[1]

    accuracy = train(begin(1.0))
    assert accuracy[0] < 0.7
    assert accuracy[-20:].mean() > 0.9
