"""BARFI: every kind of record, of environments, features and hypergradients."""

from tests.parity import barfi_envs, barfi_hypergrad
from tests.parity.core import Kinds

KINDS: Kinds = {**barfi_envs.KINDS, **barfi_hypergrad.KINDS}
