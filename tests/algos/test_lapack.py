"""Factorisations under `vmap`: the values of the batched ones, without a batch given to LAPACK on CPUs."""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from algos.barfi.ppo_learn import fit_critic
from algos.drqv2.learn import init_agent
from algos.drqv2.settings import Static
from algos.hypergrad import curvature_range, pseudo_inverse
from algos.lapack import unbatched_on_cpus

SOLVE = partial(jax.scipy.linalg.solve, assume_a="pos")


def operand_ranks(function: Callable, *args: jax.Array) -> list[int]:
    """Ranks of the first operands of LAPACK's routines in the program that a CPU gets."""
    program = jax.jit(function).trace(*args).lower(lowering_platforms=("cpu",)).as_text()
    calls = [line for line in program.splitlines() if "@lapack_" in line]
    return [call.split(": (tensor<")[1].split(">")[0].count("x") for call in calls]


@pytest.fixture(scope="module")
def matrices() -> jax.Array:
    """(3, 4, 5, 5), symmetric and positive definite."""
    roots = jax.random.normal(jax.random.key(0), (3, 4, 5, 5))
    return roots @ roots.mT + jnp.eye(5)


@pytest.mark.parametrize(
    "function", [jnp.linalg.eigvalsh, jnp.linalg.cholesky, lambda matrix: SOLVE(matrix, matrix[0])]
)
def test_batches_of_batches_reach_lapack_as_single_matrices(function, matrices):
    expected = jax.vmap(jax.vmap(function))(matrices)
    singly = jax.vmap(jax.vmap(unbatched_on_cpus(function)))
    assert operand_ranks(jax.vmap(jax.vmap(function)), matrices)[0] > 2
    assert set(operand_ranks(singly, matrices)) == {2}
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), jax.jit(singly)(matrices), expected)


def test_arguments_that_members_share(matrices):
    solve = unbatched_on_cpus(SOLVE)
    right = jnp.arange(5.0)
    found = jax.vmap(solve, in_axes=(0, None))(matrices[0], right)
    np.testing.assert_allclose(found, np.linalg.solve(matrices[0], right), rtol=1e-3, atol=1e-4)


def drqv2_start(seed: jax.Array) -> Any:
    return init_agent(jax.random.key(seed), Static(encoder="identity", hidden_dim=32), (1, 1, 5), 1)


def barfi_critic(seed: jax.Array) -> Any:
    features, returns = (jax.random.normal(jax.random.key(seed), (4, 6, width)) for width in (3, 2))
    batch: Any = SimpleNamespace(features=features, mask=jnp.ones((4, 6)))
    return fit_critic(batch, returns)


def curvature(seed: jax.Array) -> Any:
    diagonal = jax.random.normal(jax.random.key(seed), (5,))
    return curvature_range(lambda v: diagonal * v, diagonal, 3), pseudo_inverse(lambda v: diagonal * v, diagonal)


@pytest.mark.parametrize("function", [drqv2_start, barfi_critic, curvature])
def test_members_at_once_give_lapack_no_batch(function):
    """Two batched factorisations at once wait for ever on two cores."""
    assert set(operand_ranks(jax.vmap(function), jnp.arange(3))) == {2}
