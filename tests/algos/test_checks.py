"""Refusals name the setting, what it is and what it may be."""

from types import SimpleNamespace

import pytest

from algos.checks import check_choice, check_choices, check_least
from envs.core import UsageError


def test_choices() -> None:
    settings = SimpleNamespace(kind="round", colour="red")
    check_choices(settings, {"kind": ("flat", "round"), "colour": {"red": 1}})
    with pytest.raises(UsageError, match=r"^algo\.static\.colour=red must be one of green, blue$"):
        check_choices(settings, {"kind": ("round",), "colour": ("green", "blue")})
    with pytest.raises(UsageError, match="^kind=round must be one of flat, square$"):
        check_choice("kind", "round", {"flat": 0, "square": 1})


def test_least_values() -> None:
    settings = SimpleNamespace(width=1, depth=0, limit=None)
    check_least(settings, width=1, depth=0, limit=5)  # None is no number
    with pytest.raises(UsageError, match=r"^algo\.static\.width is at least 2, not 1$"):
        check_least(settings, depth=0, width=2)
