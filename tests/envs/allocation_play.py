"""Playing an allocation environment on the host with a simple heuristic."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from envs.allocation.core import AllocationEnv, Problem

KEY = jax.random.key(0)


def greedy(problem: Problem) -> np.ndarray:
    """Slots by decreasing reward take the entity of most useful capability per cost; teams at a loss stay home."""
    p = jax.tree.map(np.asarray, problem)
    teams, free = np.zeros((len(p.reward), len(p.free)), bool), p.free.copy()
    for j in np.argsort(-p.reward, kind="stable"):
        left, team, pool = p.demand[j].copy(), [], free.copy()
        while p.open[j] and left.any() and pool.any():
            use = np.minimum(p.capability, left).sum(axis=1)
            best = int(np.argmax(np.where(pool & (use > 0), use / np.maximum(p.cost[:, j], 1e-9), -1)))
            if not pool[best] or not use[best]:
                break
            left = np.maximum(left - p.capability[best], 0)
            pool[best] = False
            team.append(best)
        if team and not left.any() and p.reward[j] > p.cost[team, j].sum():
            teams[j, team], free[team] = True, False
    return teams


def play(env: AllocationEnv, policy: Callable[[Problem], Any] = greedy) -> tuple[float, float, list[Any]]:
    """Profit and gross reward of an episode, and its states in NumPy."""
    step = jax.jit(env.step)
    state, problem = jax.jit(env.reset)(KEY, env.params)
    profit, gross, states = 0.0, 0.0, [jax.device_get(state)]
    for _ in range(env.horizon):
        state, outcome = step(KEY, state, policy(problem), env.params)
        profit, gross = profit + float(outcome.reward), gross + float(outcome.gross)
        states.append(jax.device_get(state))
        if outcome.terminated or outcome.truncated:
            break
        problem = outcome.problem
    return profit, gross, states
