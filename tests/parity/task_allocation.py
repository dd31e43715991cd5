"""Two-stage task allocation: every kind of record, of environments, networks and whole decisions."""

from tests.parity import task_allocation_decide, task_allocation_envs, task_allocation_nets
from tests.parity.core import Kinds

KINDS: Kinds = task_allocation_envs.KINDS | task_allocation_nets.KINDS | task_allocation_decide.KINDS
