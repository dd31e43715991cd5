"""Instances from tables of numbers: checked, padded to a size, and the published ones from the files beside this."""

from functools import cache
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from envs.allocation import almighty, electric, material, rbf
from envs.allocation.core import Tables
from envs.core import UsageError

TABLES = Path(__file__).with_name("tables")
SLOTS = 5  # of the published instances, but for Almighty's nine


class Sizes(NamedTuple):
    """Padded maxima: instances of equal sizes can be stacked and vmapped."""

    entities: int
    slots: int
    tasks: int  # of the queue


def rbf_instance(
    entities: npt.ArrayLike, queue: npt.ArrayLike, slots: int = SLOTS, sizes: Sizes | None = None,
    *, side: int = 7, horizon: int = rbf.HORIZON, decay: float = rbf.DECAY,
) -> rbf.Instance:  # fmt: skip
    """Entities (N, 4) of cost and capabilities; tasks (Q, 6) of reward, demands, row and column.

    Raises UsageError for tables that are empty, of other shapes, negative, or too large for `sizes`, and for tasks
    that ask for nothing or lie at (0, 0) or outside the grid of `side` cells.
    """
    rows, tasks = _checked("entities", entities, 4), _checked("queue", queue, 6)
    _check_cells(tasks[:, 4:], side)
    sizes = _check_sizes(len(rows), slots, len(tasks), sizes)
    tables = _tables(rows, tasks[:, :4], slots, sizes, 3, decay, horizon)
    cells = jnp.asarray(_padded(tasks[:, 4:], sizes.tasks).astype(np.int32))
    return rbf.Instance(tables, cells, jnp.int32(side))


def material_instance(
    entities: npt.ArrayLike, queue: npt.ArrayLike, slots: int = SLOTS, sizes: Sizes | None = None,
    *, side: int = 100, horizon: int = material.HORIZON, decay: float = 1.0,
) -> material.Instance:  # fmt: skip
    """Trucks (N, 6) of cost, capabilities, x, y; tasks (Q, 6) of reward, demands, x, y. Errors as for RBF.

    A `decay` of 0.95 is what the published code means to do; 1, no decay, is what it does.
    """
    rows, tasks = _checked("entities", entities, 6), _checked("queue", queue, 6)
    _check_cells(tasks[:, 4:], side)
    if rows[:, 4:].max() >= side:
        raise UsageError(f"entities: a truck is outside the grid of {side} cells a side; enlarge `side` or move it")
    sizes = _check_sizes(len(rows), slots, len(tasks), sizes)
    return material.Instance(_tables(rows, tasks, slots, sizes, 3, decay, horizon), jnp.int32(side))


def electric_instance(
    nodes: npt.ArrayLike, queue: npt.ArrayLike, slots: int = SLOTS, sizes: Sizes | None = None,
    *, horizon: int = electric.HORIZON, decay: float = electric.DECAY,
) -> electric.Instance:  # fmt: skip
    """Nodes (N, 5) of value, power, x, y, kappa; `queue` (Q,) names the node that raises each task.

    Raises UsageError as for RBF, for nodes that do not exist, and for more slots than nodes.
    """
    rows = _checked("nodes", nodes, 5)
    source = np.asarray(queue, np.int64)
    if source.ndim != 1 or not len(source):
        raise UsageError("queue: needs the numbers of the nodes that raise tasks, at least one, in one row")
    if source.min() < 0 or source.max() >= len(rows):
        raise UsageError(f"queue: node {source.max()} of {source.min()}..{source.max()} is not one of {len(rows)}")
    sizes = _check_sizes(len(rows), slots, len(source), sizes)
    if sizes.slots > sizes.entities:
        raise UsageError(f"{sizes.slots} slots for {sizes.entities} nodes; each open task keeps a node from supplying")
    tables = _tables(rows[:, :4], rows[source, :4], slots, sizes, 1, decay, horizon)
    kappa = jnp.asarray(_padded(rows[:, 4], sizes.entities))
    return electric.Instance(tables, jnp.asarray(_padded(source, sizes.tasks).astype(np.int32)), kappa)


def almighty_instance(
    entities: npt.ArrayLike, tasks: npt.ArrayLike, sizes: Sizes | None = None, *, horizon: int = almighty.HORIZON
) -> almighty.Instance:
    """Entities (N, 1 + m) of cost and skills; tasks (T, 1 + m) of reward and skills asked for. Errors as for RBF."""
    rows = _checked("entities", entities, None)
    wanted = _checked("tasks", tasks, rows.shape[1])
    sizes = _check_sizes(len(rows), len(wanted), len(wanted), sizes)
    return almighty.Instance(_tables(rows, wanted, len(wanted), sizes, rows.shape[1] - 1, 1.0, horizon))


@cache
def read_table(name: str) -> np.ndarray:
    """A published table (rows, columns) float64 by its file's name."""
    return np.loadtxt(TABLES / f"{name}.csv", delimiter=",", skiprows=1, ndmin=2)


def _checked(name: str, values: npt.ArrayLike, columns: int | None) -> np.ndarray:
    table = np.asarray(values, np.float64)
    if table.ndim != 2 or not table.size:
        raise UsageError(f"{name}: a table with at least one row is needed, not shape {table.shape}")
    if columns is not None and table.shape[1] != columns:
        raise UsageError(f"{name}: {columns} columns are needed, not {table.shape[1]}")
    bad = ~(np.isfinite(table) & (table >= 0))
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise UsageError(f"{name}: row {row} holds {table[row, column]:g} in column {column}; use numbers >= 0")
    return table


def _check_cells(cells: np.ndarray, side: int) -> None:
    """Teams do not go to (0, 0), which is how an empty slot looks."""
    wrong = (cells >= side).any(axis=1) | (cells == 0).all(axis=1)
    if wrong.any():
        task = int(np.argmax(wrong))
        x, y = cells[task]
        raise UsageError(f"queue: task {task} lies at ({x:g}, {y:g}); use cells of 0..{side - 1} other than (0, 0)")


def _check_sizes(entities: int, slots: int, tasks: int, sizes: Sizes | None) -> Sizes:
    counts = Sizes(entities, slots, tasks)
    if slots < 1:
        raise UsageError(f"{slots} slots hold no task; ask for at least 1")
    for name, count, most in zip(Sizes._fields, counts, sizes or counts):
        if count > most:
            raise UsageError(f"{count} {name} do not fit into the padded maximum of {most}; raise sizes.{name}")
    return sizes or counts


def _padded(table: np.ndarray, rows: int) -> np.ndarray:
    return np.pad(table, [(0, rows - len(table))] + [(0, 0)] * (table.ndim - 1))


def _tables(
    entities: np.ndarray, queue: np.ndarray, slots: int, sizes: Sizes, demands: int, decay: float, horizon: int
) -> Tables:
    idle = ~(queue[:, 1 : 1 + demands] > 0).any(axis=1)
    if idle.any():
        raise UsageError(f"queue: task {int(np.argmax(idle))} asks for nothing; give it a demand above 0")
    if not 0.0 < decay <= 1.0 or horizon < 1:
        raise UsageError(f"decay={decay}, horizon={horizon}: need 0 < decay <= 1 and a horizon of at least 1")
    return Tables(
        entities=jnp.asarray(_padded(entities, sizes.entities)),
        entity_mask=jnp.arange(sizes.entities) < len(entities),
        slot_mask=jnp.arange(sizes.slots) < slots,
        queue=jnp.asarray(_padded(queue, sizes.tasks)),
        queue_length=jnp.int32(len(queue)),
        decay=jnp.asarray(np.float64(decay)),
        horizon=jnp.int32(horizon),
    )
