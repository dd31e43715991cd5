"""The discount that BARFI learns on records of another policy: exact references, the effect, what is written."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from algos.barfi.rewards import reward_to_go
from envs.core import UsageError
from experiments import discount

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command writes of two seeds and half the outer steps."""
    out = tmp_path_factory.mktemp("discount") / "made" / "anew"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(discount, "OUTER_STEPS", 14)
        discount.main([f"out={out}", "seeds=2"])
    return out


def test_references_are_the_published_ones():
    found = discount.references()
    assert found["behaviour"] == pytest.approx(0.168, abs=5e-4)
    assert found["optimum"] == pytest.approx(0.945, abs=5e-4)


def test_the_learnt_discount_is_lower_and_better(folder: Path):
    rows = pd.read_csv(folder / "discount.csv")
    assert (rows.learned - rows.fixed > 0.05).all()
    assert (rows.learned_discount < 0.9).all()
    assert rows.fixed.between(0.65, 0.82).all()
    assert rows.learned.between(0.8, rows.optimum.max()).all()
    assert (rows.largest_inner_gradient < 1e-7).all()


def test_files_tell_the_whole_course_and_its_origin(folder: Path):
    rows, course = pd.read_csv(folder / "discount.csv"), pd.read_csv(folder / "curves.csv")
    assert rows.seed.tolist() == [0, 1]
    assert {"device", "git", "jax", "python"} <= set(rows.columns)
    assert course.groupby("seed").outer_step.apply(list).tolist() == [list(range(15))] * 2
    first, last = (course[course.outer_step == step].set_index("seed") for step in (0, 14))
    np.testing.assert_allclose(first.discount, 0.99, rtol=1e-6)
    np.testing.assert_allclose(first["return"], rows.fixed)
    np.testing.assert_allclose(last["return"], rows.learned)
    np.testing.assert_allclose(last.discount, rows.learned_discount)
    with Image.open(folder / "discount.png") as picture:
        assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 50


def test_the_inner_solution_imitates_returns():
    """But for the regularisers the policy is in proportion to the returns that followed each action."""
    psi = jnp.log(jnp.array(9.0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(discount, "ENTROPY", 0.0)
        patch.setattr(discount, "THETA_L2", 1e-7)
        batch = jax.jit(discount.play)(jax.random.key(3), discount.BEHAVIOUR)
        theta, _ = jax.jit(discount.solve)(jnp.zeros_like(discount.BEHAVIOUR), psi, batch)
    returns = reward_to_go(batch.primary, batch.mask, 0.9)
    taken = batch.features[..., None] * jax.nn.one_hot(batch.action, 2)[..., None, :]  # (B, P, 7, 2)
    weight = np.einsum("bp,bpsa->sa", returns, taken)[:-1]
    np.testing.assert_allclose(jax.nn.softmax(theta)[:-1], weight / weight.sum(1, keepdims=True), atol=2e-3)


def test_the_sampled_outer_gradient_agrees_in_sign():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(discount, "OUTER_STEPS", 1)
        course = discount.study(2, "sampled")
    assert (course.discount[:, 1] < course.discount[:, 0]).all()


def test_summary_leaves_open_what_is_unknown():
    row = jnp.array([[0.7, 0.8]])
    one = discount.Course(row, row, row)
    assert discount.summary(one).endswith("is open")  # one seed has no interval
    value = jnp.array([[0.7, 0.8], [0.6, 0.71], [0.7, 0.79]])
    better = discount.Course(jnp.tile(jnp.array([0.99, 0.7]), (3, 1)), value, jnp.zeros((3, 2)))
    assert discount.summary(better).endswith("above 0 on 3 of 3 seeds: 'learnt > fixed' holds")
    assert "fell on 3 of 3 seeds" in discount.summary(better)
    assert discount.summary(better._replace(value=value[:, ::-1])).endswith("does not hold")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["out=DIR", "seeds=0"], "seeds=0 must be a whole number, 1 or more"),
        (["out=DIR", "seeds=two"], "seeds=two must be"),
        (["out=DIR", "outer=both"], "outer=both must be one of exact, sampled"),
        (["out=DIR", "steps=3"], "not understood"),
        (["DIR"], "not understood"),
        (["seeds=3"], "not understood"),
        (["out=DIR/file"], "is a file; name a folder"),
        (["out=DIR/file/below"], "is a file; name a folder"),
    ],
)
def test_mistakes_are_refused_before_anything_runs(args: list[str], message: str, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=message):
        discount.main([arg.replace("DIR", str(tmp_path)) for arg in args])
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
