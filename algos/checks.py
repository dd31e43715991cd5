"""Refusals of settings that many algorithms share, in one line each."""

from collections.abc import Collection, Mapping
from typing import Any

from algos.core import UsageError


def check_choice(name: str, value: str, choices: Collection[str]) -> None:
    """Raise UsageError if `value` is none of the choices."""
    if value not in choices:
        raise UsageError(f"{name}={value} must be one of {', '.join(choices)}")


def check_choices(static: Any, choices: Mapping[str, Collection[str]]) -> None:
    """Raise UsageError for a setting of `algo.static` that is none of its choices."""
    for name, known in choices.items():
        check_choice(f"algo.static.{name}", getattr(static, name), known)


def check_least(static: Any, **least: int) -> None:
    """Raise UsageError for a number of `algo.static` below its least value; None passes."""
    for name, low in least.items():
        value = getattr(static, name)
        if value is not None and value < low:
            raise UsageError(f"algo.static.{name} is at least {low}, not {value}")
