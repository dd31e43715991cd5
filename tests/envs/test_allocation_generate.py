"""Task allocation: generated instances, the flat environment, pictures."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from envs import allocation
from envs.allocation import generate, render
from envs.allocation.adapter import contract_env, flatten, layout_of, teams_of, unflatten
from envs.allocation.core import legal
from envs.allocation.generate import Ranges, Sizes
from envs.core import UsageError
from tests.envs.allocation_play import KEY, play

SMALL = Sizes(12, 3, 8)


@functools.cache
def drawing(kind: str) -> Any:
    """One program for all ranges of a kind: (keys, ranges) -> instances."""
    sizes = Sizes(12, 3, 3) if kind == "almighty" else SMALL
    return jax.jit(jax.vmap(functools.partial(generate.DRAW[kind], sizes=sizes), in_axes=(0, None)))


def several(kind: str, split: str, **change: Any) -> tuple[Any, Any]:
    """Ranges, and 200 instances drawn within them."""
    sizes = Sizes(12, 3, 3) if kind == "almighty" else SMALL
    ranges = generate.RANGES[kind, split](sizes)._replace(**change)
    return ranges, jax.device_get(drawing(kind)(jax.random.split(KEY, 200), ranges))


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_generated_rbf_looks_like_the_published_tables(split: str) -> None:
    ranges, drawn = several("rbf", split)
    entities, queue = drawn.tables.entities, drawn.tables.queue
    capability = entities[..., 1:]
    assert capability.min() == ranges.strength[0]
    assert ranges.strength[1] - 2 <= capability.max() <= ranges.strength[1]
    assert 0.09 < entities[..., 0].min() < entities[..., 0].max() < 2.5
    np.testing.assert_array_equal(capability, capability.round())
    assert (queue[..., 0] >= 1).all()
    assert 1 <= queue[..., 1:].min() < queue[..., 1:].max() <= 150
    assert (drawn.cells.sum(axis=2) > 0).all()
    assert 0 <= drawn.cells.min() <= drawn.cells.max() == 6


def test_generated_trucks_follow_the_published_recipe() -> None:
    _, drawn = several("material", "train")
    entities, queue = drawn.tables.entities, drawn.tables.queue
    np.testing.assert_array_equal(entities[..., 1:4].sum(axis=2), 5 * entities[..., 0])
    assert entities[..., 1:4].min() == 1
    assert entities[..., 4:].max() == 99
    assert (queue[..., 4:].sum(axis=2) > 0).all()


def test_generated_nodes_take_turns() -> None:
    _, drawn = several("electric", "train", entities=(5, 5))
    for source in drawn.source:
        assert sorted(source[:5]) == list(range(5))
        np.testing.assert_array_equal(source[5:], source[:3])
    rows = np.take_along_axis(drawn.tables.entities, drawn.source[..., None], axis=1)
    np.testing.assert_array_equal(drawn.tables.queue, rows)
    assert 0.02 <= drawn.kappa[:, :5].min() < drawn.kappa.max() <= 0.05


def test_generated_skills_are_one_or_all() -> None:
    _, drawn = several("almighty", "heldout")
    for rows in (drawn.tables.entities, drawn.tables.queue):
        assert set(np.unique(rows[..., 1:].sum(axis=2))) == {1, 8}
    assert (drawn.tables.entities[..., 0] == 1).all()


@pytest.mark.parametrize("kind", allocation.PROBLEMS)
def test_training_and_held_out_instances_differ_in_kind(kind: str) -> None:
    """Means over many instances are further apart than draws of the same kind make them."""
    (_, train), (_, held_out) = several(kind, "train"), several(kind, "heldout")
    means = [x.tables.entities[..., 1:4].mean(axis=(1, 2)) for x in (train, held_out)]
    error = np.sqrt(sum(x.var() / len(x) for x in means))
    assert abs(means[0].mean() - means[1].mean()) > 4 * error


def test_counts_vary_and_the_rest_is_padding() -> None:
    _, drawn = several("electric", "train", entities=(5, 12), slots=(1, 3), tasks=(4, 8))
    counts = np.asarray(drawn.tables.entity_mask.sum(axis=1))
    assert set(counts) == set(range(5, 13))
    assert set(np.asarray(drawn.tables.slot_mask.sum(axis=1))) == {1, 2, 3}
    assert set(np.asarray(drawn.tables.queue_length)) == set(range(4, 9))
    padding = ~np.asarray(drawn.tables.entity_mask)
    assert not np.asarray(drawn.tables.entities)[padding].any()
    assert not np.asarray(drawn.kappa)[padding].any()
    assert (np.asarray(drawn.source).max(axis=1) < counts).all()


@pytest.mark.parametrize(
    ("change", "culprit"),
    [
        ({"entities": (5, 13)}, "entities=5..13: need 1 to 12"),
        ({"slots": (0, 3)}, "slots=0..3: need 1 to 3"),
        ({"tasks": (9, 9)}, "tasks=9..9: need 1 to 8"),
        ({"strength": (-1, 4)}, "strength=-1..4"),
        ({"pay": (2, 1)}, "pay=2..1"),
    ],
)
def test_ranges_out_of_bounds_are_refused(change: dict[str, Any], culprit: str) -> None:
    ranges: Ranges = generate.RANGES["rbf", "train"](SMALL)._replace(**change)
    with pytest.raises(UsageError, match=culprit):
        allocation.make_generated("rbf", SMALL, ranges)


def test_too_few_nodes_are_refused() -> None:
    with pytest.raises(UsageError, match="3 nodes for 3 slots"):
        allocation.make("electric-train-3x3")


def test_a_new_instance_each_episode() -> None:
    env = allocation.make("rbf-train-12x3")
    reset = jax.jit(env.reset)
    problems = [reset(jax.random.key(seed), env.params)[1] for seed in (0, 0, 1)]
    np.testing.assert_array_equal(problems[0].entities, problems[1].entities)
    assert (problems[0].entities != problems[2].entities).any()
    profit, gross, _ = play(env)
    assert 0 < profit < gross


@pytest.mark.parametrize("name", ["rbf-b", "electric-a-recommended", "material", "almighty"])
def test_flat_observations_hold_the_problem(name: str) -> None:
    env = allocation.make(name)
    flat = contract_env(env)
    state, obs = jax.jit(flat.reset)(KEY, flat.params)
    layout = layout_of(env.problem(state, env.params), env.pair_costs)
    scores = jax.random.uniform(KEY, (flat.spec.action_dim,), minval=-1.0)
    state, step = jax.jit(flat.step)(KEY, state, scores, flat.params)
    assert obs.shape == step.obs.shape == (flat.spec.obs_dim,)
    assert obs.dtype == jnp.float32
    problem = env.problem(state, env.params)
    np.testing.assert_allclose(step.obs, flatten(problem, layout), rtol=1e-6)
    batch = unflatten(jnp.stack([obs, step.obs]), layout)
    for field, ours, back in zip(problem._fields, problem, batch):
        np.testing.assert_allclose(back[1], ours, rtol=1e-6, err_msg=field)
        assert back.dtype == ours.dtype


def test_scores_become_legal_teams() -> None:
    env = allocation.make("electric-a")
    _, problem = env.reset(KEY, env.params)
    assert not problem.free.all()
    problem = problem._replace(open=problem.open.at[1].set(False))
    scores = jax.random.uniform(KEY, (5, 20), minval=-1.0)
    teams = np.asarray(teams_of(scores, problem))
    np.testing.assert_array_equal(teams, legal(problem, jnp.asarray(teams)))
    masked = np.where(np.asarray(problem.open)[:, None], scores, -1)
    eager = np.asarray(problem.free) & (masked.max(axis=0) > 0)
    np.testing.assert_array_equal(teams.any(axis=0), eager)
    np.testing.assert_array_equal(teams.argmax(axis=0)[eager], masked.argmax(axis=0)[eager])


def test_flat_environment_earns_like_the_other_one() -> None:
    flat = contract_env(allocation.make("almighty"))
    best = np.full((9, 25), -1.0)
    best[np.arange(8), 3 * np.arange(8)], best[8, 24] = 1.0, 1.0
    state, _ = flat.reset(KEY, flat.params)
    _, step = flat.step(KEY, state, jnp.asarray(best).ravel(), flat.params)
    assert (float(step.reward), float(step.measures["gross"]), bool(step.terminated)) == (35.0, 44.0, True)


@pytest.mark.parametrize("name", ["rbf-train-12x3", "electric-b", "material", "almighty"])
def test_episodes_become_animations(name: str, tmp_path: Path) -> None:
    def half(key: jax.Array, problem: Any) -> jax.Array:
        return legal(problem, jax.random.bernoulli(key, 0.5, (len(problem.open), len(problem.free))))

    recording = render.record(allocation.make(name), half, KEY)
    assert len(recording.states.board.t) == len(recording.profit) + 1
    pictures = render.draw(recording._replace(profit=recording.profit[:6], gross=recording.gross[:6]))
    render.save_gif(tmp_path / "episode.gif", pictures)
    with Image.open(tmp_path / "episode.gif") as animation:
        assert getattr(animation, "n_frames", 1) == len(pictures) == (10 if name == "almighty" else 6)
        assert animation.size == pictures[0].size
    first, last = np.asarray(pictures[0]), np.asarray(pictures[-1])
    assert (first != last).any()
    assert len(np.unique(first.reshape(-1, 3), axis=0)) > 20


def test_no_pictures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no pictures"):
        render.save_gif(tmp_path / "episode.gif", [])
